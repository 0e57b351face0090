//! Feeds that a function gives.
//!
//! Source: TensorFlow's `FeedFnHook`.

use std::fmt;

use convoke_graph_core::{Feed, Result};

use super::hook::{BeforeRun, Hook};

/// Feeds each run with what a function gives. Its error `OutOfRange` is the end of the training.
pub struct FeedFn<'h>(Box<dyn FnMut() -> Result<Vec<Feed<'static>>> + 'h>);

impl<'h> FeedFn<'h> {
    /// Calls `f` before each run.
    pub fn new(f: impl FnMut() -> Result<Vec<Feed<'static>>> + 'h) -> Self {
        Self(Box::new(f))
    }
}

impl Hook for FeedFn<'_> {
    fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
        (self.0)()?.into_iter().for_each(|feed| run.feed(feed));
        Ok(())
    }
}

impl fmt::Debug for FeedFn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FeedFn")
    }
}
