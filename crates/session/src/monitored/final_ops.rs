//! What is computed at the end.
//!
//! Source: TensorFlow's `FinalOpsHook`.

use std::fmt;

use convoke_graph_core::{ErrorKind, Feed, Result};

use super::hook::Hook;
use crate::fetch::Fetch;
use crate::session::Session;

/// Computes something when the training ends without an error. Give the hook by `&mut`, to have the value then.
pub struct FinalOps<F: Fetch> {
    fetch: F,
    feeds: Vec<Feed<'static>>,
    value: Option<F::Output>,
}

impl<F: Fetch> FinalOps<F> {
    /// Computes what `fetch` asks for.
    pub fn new(fetch: F) -> Self {
        Self { fetch, feeds: Vec::new(), value: None }
    }

    /// Feeds this as well.
    #[must_use]
    pub fn feed(mut self, feed: Feed<'static>) -> Self {
        self.feeds.push(feed);
        self
    }

    /// The value, if the end has come.
    pub fn value(&self) -> Option<&F::Output> {
        self.value.as_ref()
    }

    /// The value, if the end has come.
    pub fn into_value(self) -> Option<F::Output> {
        self.value
    }
}

impl<F: Fetch> Hook for FinalOps<F> {
    fn end(&mut self, session: &Session) -> Result<()> {
        let value = session.run(&self.feeds, &self.fetch);
        if value.as_ref().is_err_and(|error| error.kind() == ErrorKind::OutOfRange) {
            tracing::warn!(
                "what is computed at the end takes from an input, which may be at its end; compute it of variables"
            );
        }
        self.value = Some(value?);
        Ok(())
    }
}

impl<F: Fetch> fmt::Debug for FinalOps<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FinalOps with {} feeds", self.feeds.len())
    }
}
