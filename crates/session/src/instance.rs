//! The memory of one run of a program: its arena, its strings, and its slots, some of which fetched tensors may still hold. Of those, what comes back
//! is used again, so that a state that goes round has two places in turn.

use std::sync::Arc;

use convoke_compiler::ValueId;
use convoke_compiler::memory::HostMemory;
use convoke_graph_core::{AlignedBytes, HostTensor, Result};

use crate::device_tensor::DeviceTensor;

/// The memory of one run.
#[derive(Debug, Default)]
pub(crate) struct Instance {
    /// What values share that do not outlive the run.
    pub arena: AlignedBytes,
    /// One for each slot of the program.
    pub slots: Vec<AlignedBytes>,
    /// What GPUs keep for tensors that are fetched and stay there.
    pub residents: Vec<(ValueId, DeviceTensor)>,
    /// The strings that the run has computed.
    strings: Vec<Option<HostTensor>>,
    /// Slots that fetched tensors hold, until those are dropped.
    lent: Vec<Option<Arc<AlignedBytes>>>,
    /// What was lent before that and still held when a run began: one state goes out while the other comes back.
    parked: Vec<Option<Arc<AlignedBytes>>>,
}

/// Fetched tensors of at least this many bytes keep the slot that they were computed in; smaller ones are
/// copied, which costs less than a new slot.
pub(crate) const LEND_MIN: usize = 4096;

impl Instance {
    /// Makes it ready for a run: slots that nobody holds any more come back, and what is missing is made. Gives
    /// the bytes that this took.
    pub fn prepare(&mut self, memory: &HostMemory) -> Result<u64> {
        let sizes = &memory.slots;
        self.slots.resize_with(sizes.len(), AlignedBytes::default);
        self.lent.resize_with(sizes.len(), || None);
        self.parked.resize_with(sizes.len(), || None);
        let lent = self.lent.iter_mut().zip(&mut self.parked);
        for (slot, (lent, parked)) in self.slots.iter_mut().zip(lent) {
            let Some(lent) = lent.take() else { continue };
            let back = match Arc::try_unwrap(lent) {
                Ok(back) => {
                    *parked = None;
                    Some(back)
                }
                Err(held) => parked.replace(held).and_then(|before| Arc::try_unwrap(before).ok()),
            };
            *slot = back.unwrap_or_default();
        }
        let mut made = 0;
        if self.arena.len() < memory.arena {
            self.arena = AlignedBytes::zeroed(memory.arena)?;
            made += memory.arena as u64;
        }
        for (slot, &size) in self.slots.iter_mut().zip(sizes) {
            if slot.len() < size {
                *slot = AlignedBytes::zeroed(size)?;
                made += size as u64;
            }
        }
        Ok(made)
    }

    /// Keeps strings for the rest of the run.
    pub fn keep_strings(&mut self, at: usize, strings: HostTensor) {
        if self.strings.len() <= at {
            self.strings.resize(at + 1, None);
        }
        self.strings[at] = Some(strings);
    }

    /// Strings that the run has computed.
    pub fn strings(&self, at: usize) -> Option<&HostTensor> {
        self.strings.get(at)?.as_ref()
    }

    /// Lets go of what is of one run only.
    pub fn forget(&mut self) {
        self.residents.clear();
        self.strings.clear();
    }

    /// The bytes of a slot.
    pub fn slot(&self, slot: usize) -> &[u8] {
        match &self.lent[slot] {
            Some(lent) => lent,
            None => &self.slots[slot],
        }
    }

    /// The bytes of a slot, to be kept by a tensor.
    pub fn lend(&mut self, slot: usize) -> Arc<AlignedBytes> {
        let own = &mut self.slots[slot];
        self.lent[slot].get_or_insert_with(|| Arc::new(std::mem::take(own))).clone()
    }
}
