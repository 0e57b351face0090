//! One of several queues, which the run chooses.
//!
//! Source: TensorFlow's `QueueBase.from_list`.

use std::sync::Arc;

use super::{Queue, QueueKind, QueueOp, QueueRole, QueueSpec};
use crate::ops::control::Refused;
use crate::{Dim, Dims, Graph, OpError, Tensor};

/// Which queue. Without queues, what was to be chosen from does not do.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub index: Tensor,
    pub queues: Arc<[Arc<QueueSpec>]>,
}

impl Graph {
    /// The queue of this index, from 0, among `queues`. Their components agree in dtypes; of sizes, only those are
    /// specified that are the same in all.
    ///
    /// `index` is a scalar of i32 or i64 that is known before the run, as an [`Amount`](super::Amount) is. The queue
    /// is for operations of its own: no reader takes names from it.
    ///
    /// # Errors
    /// Recorded with each operation: no queues, other dtypes, queues of other graphs, an index that is no such scalar.
    /// In a run: `InvalidArgument` for an index out of range, `Unimplemented` for one that is not known before it.
    pub fn select_queue(&self, index: &Tensor, queues: &[&Queue]) -> Queue {
        let own = queues.iter().filter(|queue| queue.graph.id() == self.id());
        // What is chosen among queues that are chosen themselves is none of them.
        let own = own.filter(|queue| queue.choice.is_none());
        let own: Arc<[Arc<QueueSpec>]> = own.map(|queue| queue.spec.clone()).collect();
        let all = if own.len() == queues.len() { own } else { Arc::default() };
        let spec = Arc::new(common(&all));
        let choice = Some(Choice { index: index.clone(), queues: all });
        Queue { graph: self.clone(), spec, choice }
    }
}

/// An operation on one of queues that do not do.
pub(super) fn refused() -> Refused {
    let message = "expected queues of this graph to choose from, at least one, none of which is chosen itself";
    Refused(OpError::Invalid(message.into()))
}

/// What queues have in common.
fn common(queues: &[Arc<QueueSpec>]) -> QueueSpec {
    let mut components = queues.first().map(|queue| queue.components.clone()).unwrap_or_default();
    for queue in queues {
        for ((_, dims), (_, other)) in components.iter_mut().zip(&queue.components) {
            *dims = match (dims.dims(), other.dims()) {
                (Some(own), Some(other)) if own.len() == other.len() => {
                    let both = own.iter().zip(other);
                    let dim = |(own, other): (&Dim, &Dim)| match (own.known(), other.known()) {
                        (Some(own), Some(other)) if own == other => Dim::Known(own),
                        _ => Dim::Unknown,
                    };
                    Dims::Known(both.map(dim).collect())
                }
                _ => Dims::UnknownRank,
            };
        }
    }
    let pads = queues.iter().all(|queue| queue.kind == QueueKind::PaddingFifo);
    QueueSpec {
        name: "selected".to_owned(),
        container: None,
        kind: if pads { QueueKind::PaddingFifo } else { QueueKind::Fifo },
        capacity: None,
        components,
        role: QueueRole::Queue,
    }
}

impl QueueOp {
    /// Whether the queues that it chooses from are queues, and alike.
    pub(super) fn expect_alike(&self) -> Result<(), OpError> {
        for queue in self.among.iter() {
            if [queue.role, self.queue.role].iter().any(|role| *role != QueueRole::Queue) {
                let (own, role) = (&queue.name, queue.role);
                return Err(OpError::Invalid(format!(
                    "expected queues to choose from, and '{own}' is {role:?}, among those for {:?}",
                    self.queue.role
                )));
            }
            let dtypes = |spec: &QueueSpec| -> Vec<_> {
                spec.components.iter().map(|(dtype, _)| *dtype).collect()
            };
            let (own, expected) = (dtypes(queue), dtypes(&self.queue));
            if own != expected {
                return Err(OpError::Invalid(format!(
                    "expected queues of the same dtypes, and '{}' has {own:?} where the first has {expected:?}",
                    queue.name
                )));
            }
        }
        Ok(())
    }
}
