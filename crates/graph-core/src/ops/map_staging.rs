//! Map staging areas: elements under integer keys, which come whole or in parts, and are taken by key or as they come.
//!
//! Source: TensorFlow's `python/ops/data_flow_ops.py`, `MapStagingArea`. There, keys may be computed in the step, an
//! element of a key that is there already is dropped, and some components of an element can be taken before the others.

use crate::ops::control::Refused;
use crate::ops::queue::QueueRole;
use crate::ops::staging;
use crate::{
    DType, Dims, Graph, OpError, Operation, Queue, QueueAction, QueueKind, QueueSpec, Tensor, dims,
};

/// The most components of an element, beside its key.
const PARTS_MAX: usize = 64;

/// How much a map staging area holds, and which element it gives to who names no key.
#[derive(Debug, Clone, Default)]
pub struct MapStagingOptions {
    /// Whether it is the element of the smallest key; else it is the one whose first component came first.
    pub ordered: bool,
    /// How many elements at most before who puts one of another key waits, those that lack components among them; `None`
    /// is without bound.
    pub capacity: Option<usize>,
    /// How many bytes its elements have at most, each as if it were complete. They are of specified sizes then, and no
    /// strings.
    pub memory_limit: Option<usize>,
    /// Areas of the same shared name and container are one area in a session. They must be alike.
    pub shared_name: Option<String>,
}

/// A map staging area of a graph. Each session has elements of its own in it, on the host.
///
/// As with a [`Queue`], a run takes all that it needs before it begins, or waits for it, and puts all that it puts when
/// it has succeeded. Keys are scalars of i32 or i64 that are known before the run, as an [`Amount`](crate::Amount) is;
/// one that is not is refused in the run with `Unimplemented`.
#[derive(Debug, Clone)]
pub struct MapStagingArea {
    queue: Queue,
}

/// An element that was taken whatever its key.
#[derive(Debug, Clone)]
pub struct StagedElement {
    /// Its key: a scalar of i64.
    pub key: Tensor,
    /// Its components.
    pub components: Vec<Tensor>,
}

impl Graph {
    /// A map staging area of elements that consist of `components`, dtypes and sizes.
    ///
    /// # Errors
    /// Recorded: no components or more than 64, no capacity, a memory limit below the bytes of one element, or one where
    /// those are not known.
    #[track_caller]
    pub fn map_staging_area<D: Into<Dims>>(
        &self,
        name: &str,
        components: impl IntoIterator<Item = (DType, D)>,
        options: MapStagingOptions,
    ) -> MapStagingArea {
        let MapStagingOptions { ordered, capacity, memory_limit, shared_name } = options;
        let parts: Vec<(DType, Dims)> =
            components.into_iter().map(|(dtype, dims)| (dtype, dims.into())).collect();
        let capacity = staging::room(capacity, memory_limit, &parts);
        let (name, container) = (name.to_owned(), self.container_now());
        let (kind, role) = match ordered {
            true => (QueueKind::Priority, QueueRole::MapStaging),
            false => (QueueKind::Fifo, QueueRole::MapStaging),
        };
        let components = std::iter::once((DType::I64, dims![])).chain(parts).collect();
        let spec = QueueSpec { name, container, kind, capacity, components, role };
        MapStagingArea { queue: self.kept(spec, shared_name) }
    }
}

impl MapStagingArea {
    /// What it holds: the key is the first component. The memory limit counts as a capacity.
    pub fn spec(&self) -> &QueueSpec {
        self.queue.spec()
    }

    /// Puts an element of these components under `key` when the run has succeeded; the run waits for room before it
    /// begins, and until no other run has taken the element of the key.
    ///
    /// # Errors
    /// Recorded: another number of components, or other dtypes or sizes; a key that is no scalar of i32 or i64. In a run:
    /// `InvalidArgument` for a key that has one of the components already, or will have it by a run under way, unless
    /// the run takes that element.
    #[track_caller]
    pub fn put(&self, key: &Tensor, components: &[&Tensor]) -> Operation {
        let n = self.queue.spec().parts().len();
        let all: Vec<(usize, &Tensor)> = (0..n).zip(components.iter().copied()).collect();
        match n == components.len() {
            true => self.put_some(key, &all),
            false => self.refused(
                key,
                format!("expected {n} components of an element, got {}", components.len()),
            ),
        }
    }

    /// As [`Self::put`], but puts only some components, by place. An element can be taken once all have been put; it
    /// has its room from the first one on, so that the others wait for none.
    ///
    /// # Errors
    /// As [`Self::put`]; recorded: no components, a place that there is not, one that comes twice.
    #[track_caller]
    pub fn put_some(&self, key: &Tensor, components: &[(usize, &Tensor)]) -> Operation {
        let n = self.queue.spec().parts().len();
        let mut sorted = components.to_vec();
        sorted.sort_by_key(|(place, _)| *place);
        let mut places = 0u64;
        for &(place, _) in &sorted {
            let bit = if place < n { 1u64.checked_shl(place as u32).unwrap_or(0) } else { 0 };
            if bit == 0 || places & bit != 0 {
                let message = format!("expected different components of {n}, got place {place}");
                return self.refused(key, message);
            }
            places |= bit;
        }
        let inputs: Vec<&Tensor> =
            sorted.iter().map(|(_, tensor)| *tensor).chain(std::iter::once(key)).collect();
        self.queue.apply(QueueAction::Put { places }, &inputs).operation()
    }

    #[track_caller]
    fn refused(&self, key: &Tensor, message: String) -> Operation {
        self.queue.graph().apply(Refused(OpError::Invalid(message)), &[key]).operation()
    }

    /// The components of the element of `key`, which the run takes; it waits until there is one and it is complete.
    ///
    /// # Errors
    /// Recorded: a key that is no scalar of i32 or i64. In a run: `InvalidArgument` for two that take the element of one
    /// key.
    #[track_caller]
    pub fn get(&self, key: &Tensor) -> Vec<Tensor> {
        self.queue.apply(QueueAction::GetKey, &[key]).operation().outputs()
    }

    /// A complete element that no run asks for by its key, which the run takes, or waits for: which one,
    /// [`MapStagingOptions::ordered`] says.
    #[track_caller]
    pub fn get_any(&self) -> StagedElement {
        let mut outputs = self.queue.dequeue();
        // One that was refused has one output.
        StagedElement { key: outputs.remove(0), components: outputs }
    }

    /// The components of the element of `key` as it is when the run begins; it stays. The run waits until there is one
    /// and it is complete.
    ///
    /// # Errors
    /// Recorded: a key that is no scalar of i32 or i64.
    #[track_caller]
    pub fn peek(&self, key: &Tensor) -> Vec<Tensor> {
        self.queue.apply(QueueAction::PeekKey, &[key]).operation().outputs()
    }

    /// How many elements are complete when the run begins: a scalar of i32.
    #[track_caller]
    pub fn size(&self) -> Tensor {
        self.queue.size()
    }

    /// How many elements lack a component when the run begins: a scalar of i32.
    #[track_caller]
    pub fn incomplete_size(&self) -> Tensor {
        self.queue.apply(QueueAction::IncompleteSize, &[])
    }

    /// Takes all elements out, also those that lack components, when the run has succeeded. What the run puts by
    /// operations that were built later stays.
    #[track_caller]
    pub fn clear(&self) -> Operation {
        self.queue.apply(QueueAction::Clear, &[]).operation()
    }
}

/// # Errors
/// What is no map staging area's.
pub(super) fn check(spec: &QueueSpec) -> Result<(), OpError> {
    let n = spec.parts().len();
    if n == 0 || n > PARTS_MAX {
        return Err(OpError::Invalid(format!(
            "expected from 1 to {PARTS_MAX} components of an element beside its key, got {n}"
        )));
    }
    match &spec.components[..] {
        [(DType::I64, dims), ..] if dims.rank() == Some(0) => Ok(()),
        _ => Err(OpError::Invalid("the first component of an element is its key, of i64".into())),
    }
}
