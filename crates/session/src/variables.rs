//! What a session says of its variables.

use std::sync::Arc;

use convoke_graph_core::{Error, ErrorKind, Result};

use crate::session::Session;

impl Session {
    /// The names of the graph's variables that have no elements, in the order in which they were built.
    ///
    /// # Source
    /// TensorFlow's `tf.report_uninitialized_variables`, a node of the graph there: how many strings a run gives has
    /// to be known here before it runs.
    pub fn uninitialized(&self) -> Vec<Arc<str>> {
        let variables = self.graph().global_variables();
        let kept = self.state().lock();
        let nodes = variables.iter().map(|variable| variable.handle().node());
        nodes.filter(|node| !kept.is_initialized(node.id)).map(|node| node.name.clone()).collect()
    }

    /// Makes sure that all of the graph's variables have elements.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] with the names of those that have none.
    ///
    /// # Source
    /// TensorFlow's `tf.assert_variables_initialized`.
    pub fn check_initialized(&self) -> Result<()> {
        let names = self.uninitialized();
        if names.is_empty() {
            return Ok(());
        }
        let message = format!(
            "variables have no elements yet: {}; run graph.initializers() or restore a checkpoint first",
            names.join(", ")
        );
        Err(Error::new(ErrorKind::FailedPrecondition, message))
    }
}
