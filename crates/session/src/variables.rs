//! What a session says of its variables.

use std::sync::Arc;

use convoke_graph_core::{Collection, Error, ErrorKind, Node, Result, Tensor};

use crate::session::Session;

impl Session {
    /// Drops what the session keeps for the variables, queues, readers and tables of these containers, as if it were
    /// new: the variables have no elements then, the queues are empty and open, the tables are empty, and the readers
    /// have read nothing. No name at all means all containers, the empty
    /// name the default one, and a name that no container has nothing. See [`Graph::container`].
    ///
    /// What runs that are under way store into these variables is lost; elements that they took from these queues do
    /// not come back if they fail, and those that they put come after, also into tables. What they have read does not
    /// move these readers. Who waits for a queue waits on. Memory is
    /// returned as soon as no run and no callable uses it: a callable lets go of it when it is called next. How
    /// often random operations were drawn is in no container and stays.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] for a closed session; a device that is lost.
    ///
    /// # Source
    /// TensorFlow's `tf.Session.reset`, which resets a target and closes all its sessions: there sessions of one
    /// target share variables, here each has its own.
    ///
    /// [`Graph::container`]: convoke_graph_core::Graph::container
    pub fn reset(&self, containers: &[&str]) -> Result<()> {
        self.core.reset(containers)
    }

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
