//! What a session keeps: the elements of variables on the host, which variables have elements, and how
//! often random nodes were drawn.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};

use convoke_compiler::{DeviceIndex, HOST};
use convoke_graph_core::{
    AlignedBytes, DType, Error, ErrorKind, HostTensor, Node, NodeId, Result, Shape,
};
use rustc_hash::FxHashMap;

use crate::drawing::Draws;

/// A variable as a session keeps it.
#[derive(Debug, Clone)]
pub struct VariableInfo {
    /// The name of its handle.
    pub name: Arc<str>,
    /// The element type.
    pub dtype: DType,
    /// The shape.
    pub shape: Shape,
    /// The index of the device where it lives; 0 is the CPU.
    pub device: usize,
    /// Whether it has elements.
    pub initialized: bool,
}

/// One variable.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    pub(crate) device: DeviceIndex,
    /// Whether work of a program reads it. Until then it may move: its initialiser and a mere fetch do not decide its
    /// place.
    pub(crate) settled: bool,
    /// How often it moved to another device: programs that were made before have its old memory.
    pub(crate) moves: u32,
    /// How often it was reset: programs that were made before have its old memory, too.
    pub(crate) resets: u32,
    /// How often it was stored into; 0 means that it has no elements.
    pub(crate) version: u64,
    /// The elements, if it lives on the host and has some.
    pub(crate) elements: Option<Elements>,
}

/// The elements of a variable on the host.
#[derive(Debug, Clone)]
pub(crate) enum Elements {
    /// May be longer than the elements are.
    Bytes(Arc<AlignedBytes>),
    /// Of strings, which never leave the host.
    Strings(HostTensor),
}

/// Elements that a variable is to get.
#[derive(Debug)]
pub(crate) enum NewElements {
    /// Of any dtype but string.
    Bytes(AlignedBytes),
    /// Of strings.
    Strings(HostTensor),
}

/// See [`Entry::generation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation {
    moves: u32,
    pub(crate) resets: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) variables: FxHashMap<NodeId, Entry>,
    pub(crate) draws: Draws,
}

/// The elements and version of a variable at the start of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) version: u64,
    pub(crate) elements: Option<Elements>,
}

impl Elements {
    /// Zeros, or empty strings.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn zeros(dtype: DType, shape: &Shape) -> Result<Self> {
        if dtype == DType::String {
            return HostTensor::zeros(dtype, shape.clone()).map(Self::Strings);
        }
        let bytes = AlignedBytes::zeroed(shape.len() * dtype.n_bytes())?;
        Ok(Self::Bytes(Arc::new(bytes)))
    }

    /// The bytes, maybe more; none of strings.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.shared().map_or(&[], |bytes| bytes)
    }

    /// The bytes, maybe more, if they are no strings.
    pub(crate) fn shared(&self) -> Option<&Arc<AlignedBytes>> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Strings(_) => None,
        }
    }

    /// The strings.
    pub(crate) fn strings(&self) -> Option<&HostTensor> {
        match self {
            Self::Bytes(_) => None,
            Self::Strings(tensor) => Some(tensor),
        }
    }

    /// As a tensor, which shares them.
    ///
    /// # Errors
    /// They are not as many.
    pub(crate) fn tensor(&self, dtype: DType, shape: Shape) -> Result<HostTensor> {
        match self {
            Self::Bytes(bytes) => HostTensor::from_shared(dtype, shape, bytes.clone()),
            Self::Strings(tensor) => tensor.reshaped(shape),
        }
    }
}

impl NewElements {
    /// Those of a tensor.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn of(tensor: &HostTensor) -> Result<Self> {
        match tensor.dtype() {
            DType::String => Ok(Self::Strings(tensor.clone())),
            _ => AlignedBytes::copy_of(tensor.bytes()).map(Self::Bytes),
        }
    }

    /// The same once more.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn copy(&self) -> Result<Self> {
        match self {
            Self::Bytes(bytes) => AlignedBytes::copy_of(bytes).map(Self::Bytes),
            Self::Strings(tensor) => Ok(Self::Strings(tensor.clone())),
        }
    }
}

/// All that a session keeps.
#[derive(Debug, Default)]
pub(crate) struct State {
    kept: Mutex<Kept>,
}

impl State {
    // A panic while the lock is held is a bug of Convoke; what is kept is whole all the same, because
    // commits store one variable at a time.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Kept {
    /// The device that a variable lives on, if a run has used its elements or it has none to move.
    pub(crate) fn settled(&self, variable: NodeId) -> Option<DeviceIndex> {
        self.variables.get(&variable).filter(|entry| entry.settled).map(|entry| entry.device)
    }

    /// A variable's entry; made for `device` if there was none.
    pub(crate) fn entry(&mut self, node: &Node, device: DeviceIndex) -> &mut Entry {
        self.variables.entry(node.id).or_insert_with(|| Entry {
            name: node.name.clone(),
            dtype: node.facts[0].dtype,
            shape: node.facts[0].shape().unwrap_or_default(),
            device,
            settled: false,
            moves: 0,
            resets: 0,
            version: 0,
            elements: None,
        })
    }

    /// The elements at the start of a run.
    pub(crate) fn read(&self, variable: NodeId, name: &str) -> Result<Snapshot> {
        match self.variables.get(&variable).filter(|entry| entry.version > 0) {
            Some(entry) => {
                Ok(Snapshot { version: entry.version, elements: entry.elements.clone() })
            }
            None => Err(uninitialized(name)),
        }
    }

    /// Adds all that is kept to a digest; `load` gives the elements of variables that are not on the host.
    pub(crate) fn hash(
        &self,
        hasher: &mut impl Hasher,
        mut load: impl FnMut(NodeId, &Entry) -> Result<AlignedBytes>,
    ) -> Result<()> {
        let mut variables: Vec<(&NodeId, &Entry)> = self.variables.iter().collect();
        variables.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        for (&variable, entry) in variables.into_iter().filter(|(_, entry)| entry.version > 0) {
            (&entry.name, entry.dtype, entry.shape.dims()).hash(hasher);
            let n_bytes = usize::try_from(entry.n_bytes()).unwrap_or(usize::MAX);
            match (&entry.elements, entry.device) {
                (Some(Elements::Strings(tensor)), _) => tensor.as_strings().ok().hash(hasher),
                (Some(Elements::Bytes(bytes)), HOST) => bytes.get(..n_bytes).hash(hasher),
                _ => load(variable, entry)?.get(..n_bytes).hash(hasher),
            }
        }
        let mut draws: Vec<(&NodeId, &u32)> =
            self.draws.counts.iter().filter(|(_, n)| **n > 0).collect();
        draws.sort_unstable();
        draws.hash(hasher);
        Ok(())
    }

    pub(crate) fn is_initialized(&self, variable: NodeId) -> bool {
        self.variables.get(&variable).is_some_and(|entry| entry.version > 0)
    }

    /// Stores host elements, and gives back the buffer that they replace if nobody else holds it.
    pub(crate) fn store(
        &mut self,
        variable: NodeId,
        elements: NewElements,
    ) -> Option<AlignedBytes> {
        let entry = self.variables.get_mut(&variable)?;
        entry.version += 1;
        entry.device = HOST;
        let elements = match elements {
            NewElements::Bytes(bytes) => Elements::Bytes(Arc::new(bytes)),
            NewElements::Strings(tensor) => Elements::Strings(tensor),
        };
        match entry.elements.replace(elements) {
            Some(Elements::Bytes(bytes)) => Arc::into_inner(bytes),
            Some(Elements::Strings(_)) | None => None,
        }
    }

    /// Notes that a variable's elements on its device were replaced.
    #[cfg(feature = "gpu")]
    pub(crate) fn stored_on_device(&mut self, variable: NodeId) {
        if let Some(entry) = self.variables.get_mut(&variable) {
            entry.version += 1;
        }
    }
}

/// Why a variable without elements cannot be read.
pub(crate) fn uninitialized(name: &str) -> Error {
    let message = "the variable has no elements yet; run graph.initializers() or restore a \
                   checkpoint first";
    Error::new(ErrorKind::FailedPrecondition, message).with_node(name)
}

impl Entry {
    /// How often it moved and was reset: programs that were made before either have memory that is not the variable's
    /// any more.
    pub(crate) fn generation(&self) -> Generation {
        Generation { moves: self.moves, resets: self.resets }
    }

    /// Forgets the elements, and where they were.
    pub(crate) fn reset(&mut self) {
        self.resets = self.resets.wrapping_add(1);
        (self.version, self.elements, self.settled) = (0, None, false);
    }

    /// The bytes of its elements; 0 for strings.
    pub(crate) fn n_bytes(&self) -> u64 {
        (self.shape.len() as u64).saturating_mul(self.dtype.n_bytes() as u64)
    }

    pub(crate) fn info(&self) -> VariableInfo {
        VariableInfo {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
            device: self.device.0 as usize,
            initialized: self.version > 0,
        }
    }
}
