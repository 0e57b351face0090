//! What a session says of its variables.

use std::sync::Arc;

use convoke_graph_core::{Collection, Error, ErrorKind, Node, Result, Tensor};

use crate::session::Session;

impl Session {
    /// The names of the graph's variables, global and local, that have no elements, in the order in which they were built.
    ///
    /// # Source
    /// TensorFlow's `tf.report_uninitialized_variables`, a node of the graph there: how many strings a run gives has
    /// to be known here before it runs.
    pub fn uninitialized(&self) -> Vec<Arc<str>> {
        let graph = self.graph();
        let all =
            [Collection::Global, Collection::Local].map(|all| graph.collection(&all)).concat();
        let mut nodes: Vec<Arc<Node>> = all.iter().map(Tensor::node).collect();
        nodes.sort_by_key(|node| node.id);
        let kept = self.state().lock();
        let nodes = nodes.iter();
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
            "variables have no elements yet: {}; run graph.initializers() or restore a checkpoint \
             first, and graph.local_initializers() for local ones",
            names.join(", ")
        );
        Err(Error::new(ErrorKind::FailedPrecondition, message))
    }
}
