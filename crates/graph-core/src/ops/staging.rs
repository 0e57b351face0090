//! Staging areas: elements that runs prepare for later runs, as many as there is room for.
//!
//! Source: TensorFlow's `python/ops/data_flow_ops.py`, `StagingArea`. There, elements may be on a GPU, and whatever
//! touches an area does so in the middle of a step.

use crate::ops::queue::QueueRole;
use crate::{
    Amount, DType, Dims, Graph, Operation, Queue, QueueAction, QueueKind, QueueSpec, Tensor,
};

/// How much a staging area holds.
#[derive(Debug, Clone, Default)]
pub struct StagingOptions {
    /// How many elements at most before who puts one waits; `None` is without bound.
    pub capacity: Option<usize>,
    /// How many bytes its elements have at most. They are of specified sizes then, and no strings.
    pub memory_limit: Option<usize>,
    /// Areas of the same shared name and container are one area in a session. They must be alike.
    pub shared_name: Option<String>,
}

/// A staging area of a graph. Each session has elements of its own in it, on the host.
///
/// As with a [`Queue`], a run takes all that it needs before it begins, or waits for it, and puts all that it puts
/// when it has succeeded.
#[derive(Debug, Clone)]
pub struct StagingArea {
    queue: Queue,
}

impl Graph {
    /// A staging area of elements that consist of `components`, dtypes and sizes.
    ///
    /// # Errors
    /// Recorded: no components, no capacity, a memory limit below the bytes of one element, or one where those are
    /// not known.
    #[track_caller]
    pub fn staging_area<D: Into<Dims>>(
        &self,
        name: &str,
        components: impl IntoIterator<Item = (DType, D)>,
        options: StagingOptions,
    ) -> StagingArea {
        let StagingOptions { capacity, memory_limit, shared_name } = options;
        let components: Vec<(DType, Dims)> =
            components.into_iter().map(|(dtype, dims)| (dtype, dims.into())).collect();
        let capacity = room(capacity, memory_limit, &components);
        let (name, container) = (name.to_owned(), self.container_now());
        let (kind, role) = (QueueKind::Fifo, QueueRole::Staging);
        let spec = QueueSpec { name, container, kind, capacity, components, role };
        StagingArea { queue: self.kept(spec, shared_name) }
    }
}

/// How many elements of these components there is room for. Where it is not known whether there is some it is none, and
/// an area of no room is refused.
pub(super) fn room(
    capacity: Option<usize>,
    memory_limit: Option<usize>,
    components: &[(DType, Dims)],
) -> Option<usize> {
    let fits = memory_limit.map(|limit| n_bytes(components).map_or(0, |n| limit / n.max(1)));
    capacity.into_iter().chain(fits).min()
}

/// The bytes of an element, where they are known.
fn n_bytes(components: &[(DType, Dims)]) -> Option<usize> {
    let size = |(dtype, dims): &(DType, Dims)| match dtype {
        DType::String => None,
        _ => dims.shape()?.len().checked_mul(dtype.n_bytes()),
    };
    components.iter().map(size).try_fold(0usize, |sum, n| sum.checked_add(n?))
}

impl StagingArea {
    /// What it holds. The memory limit counts as a capacity.
    pub fn spec(&self) -> &QueueSpec {
        self.queue.spec()
    }

    /// Puts an element of these components when the run has succeeded; the run waits for room before it begins.
    ///
    /// # Errors
    /// Recorded: another number of components, or other dtypes or sizes.
    #[track_caller]
    pub fn put(&self, components: &[&Tensor]) -> Operation {
        self.queue.enqueue(components)
    }

    /// The components of the element that came first, which the run takes.
    #[track_caller]
    pub fn get(&self) -> Vec<Tensor> {
        self.queue.dequeue()
    }

    /// The components of the element at `index`, from 0, as it is when the run begins; it stays. The run waits until
    /// there is one. The index is a number or a tensor whose value is known before the run: see [`Amount`].
    ///
    /// # Errors
    /// Recorded: an index that is no scalar of i32 or i64. In a run: `InvalidArgument` for one below 0 or at least
    /// the capacity, `Unimplemented` for one that is not known before the run.
    #[track_caller]
    pub fn peek(&self, index: impl Into<Amount>) -> Vec<Tensor> {
        self.queue.apply_to(index.into(), QueueAction::Peek)
    }

    /// How many elements there are when the run begins: a scalar of i32.
    #[track_caller]
    pub fn size(&self) -> Tensor {
        self.queue.size()
    }

    /// Takes all elements out, when the run has succeeded. What the run puts by operations that were built later
    /// stays.
    #[track_caller]
    pub fn clear(&self) -> Operation {
        self.queue.apply(QueueAction::Clear, &[]).operation()
    }
}
