//! The name and version of a session.
//!
//! Source: TensorFlow's `SessionMetadata` of `core/protobuf/config.proto` and `direct_session.cc`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use convoke_graph_core::{Error, Result};

/// A name and a version by which a session is known in logs, metadata and traces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionMetadata {
    /// The name; it may be empty.
    pub name: String,
    /// The version, at least 0.
    pub version: i64,
}

/// Those of the sessions that are open.
static OPEN: Mutex<BTreeSet<Arc<SessionMetadata>>> = Mutex::new(BTreeSet::new());

/// The right to a name and version, until it is released or dropped.
#[derive(Debug)]
pub(crate) struct Identity(Arc<SessionMetadata>);

impl Identity {
    /// # Errors
    /// A negative version, or another open session of this process has both.
    pub fn claim(metadata: &SessionMetadata) -> Result<Self> {
        if metadata.version < 0 {
            let SessionMetadata { name, version } = metadata;
            return Err(Error::invalid(format!(
                "expected a version of at least 0 of session '{name}', got {version}"
            )));
        }
        let metadata = Arc::new(metadata.clone());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if !open.insert(metadata.clone()) {
            return Err(Error::invalid(format!(
                "a session with the same name and version is open: {metadata}; close it, or give another version"
            )));
        }
        Ok(Self(metadata))
    }

    /// Lets others have it.
    pub fn release(&self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have it since it was released.
        if open.get(&self.0).is_some_and(|own| Arc::ptr_eq(own, &self.0)) {
            open.remove(&self.0);
        }
    }

    pub fn metadata(&self) -> &Arc<SessionMetadata> {
        &self.0
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.release();
    }
}

/// What a log's line begins with.
pub(crate) struct Prefix<'a>(pub Option<&'a SessionMetadata>);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(metadata) => write!(f, "session {metadata}: "),
            None => Ok(()),
        }
    }
}

impl fmt::Display for SessionMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} version {}", self.name, self.version)
    }
}
