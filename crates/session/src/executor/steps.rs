//! One step of a run on the host: a kernel of bytes in the run's memory, or one of strings.

use convoke_compiler::{Source, ValueId};
use convoke_cpu_backend::{CpuKernel, Elements, StringKernel, Threads};
use convoke_graph_core::{AlignedBytes, DType, Error, HostTensor, Result};
use smallvec::SmallVec;

use super::{Bound, Compiled, CpuStep, Place, StepKernel};
use crate::devices::HOST_NAME;
use crate::instance::Instance;
use crate::metadata::{KernelNote, RunMetadata};

impl Compiled {
    pub(super) fn run_step(
        &self,
        step: &CpuStep,
        segment: usize,
        instance: &mut Instance,
        bound: &Bound<'_>,
        threads: &Threads,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let start = metadata.now();
        let result = match &step.kernel {
            StepKernel::Bytes(kernel) => self.run_bytes(kernel, step, instance, bound, threads),
            StepKernel::Strings(kernel) => self.run_strings(kernel, step, instance, bound),
        };
        if let (Some(start), Some(end)) = (start, metadata.now()) {
            let (group, time) = (Some(step.group), end.saturating_sub(start));
            let note = KernelNote { group, segment, start, time, share: 1.0, is_aligned: false };
            metadata.notes.kernels.push(note);
        }
        result.map_err(|e: Error| match self.blamed.get(step.group as usize) {
            Some(name) => e.with_node(&**name).with_device(HOST_NAME),
            None => e,
        })
    }

    /// Runs a kernel on bytes.
    fn run_bytes(
        &self,
        kernel: &CpuKernel,
        step: &CpuStep,
        instance: &mut Instance,
        bound: &Bound<'_>,
        threads: &Threads,
    ) -> Result<()> {
        // The buffers that are written leave the instance while the others are read.
        let mut arena = match step.in_arena.is_empty() {
            true => AlignedBytes::default(),
            false => std::mem::take(&mut instance.arena),
        };
        let mut slots: SmallVec<[(u32, AlignedBytes); 2]> = SmallVec::new();
        for output in &step.outputs {
            if let Place::Slot(slot) = self.places[output.0 as usize] {
                slots.push((slot, std::mem::take(&mut instance.slots[slot as usize])));
            }
        }
        let written = (&mut arena[..], slots.as_mut_slice());
        let result = self.run_kernel(kernel, step, written, instance, bound, threads);
        for (slot, buffer) in slots {
            instance.slots[slot as usize] = buffer;
        }
        if !step.in_arena.is_empty() {
            instance.arena = arena;
        }
        result
    }

    /// Runs a kernel of strings, which gives a tensor.
    fn run_strings(
        &self,
        kernel: &StringKernel,
        step: &CpuStep,
        instance: &mut Instance,
        bound: &Bound<'_>,
    ) -> Result<()> {
        let elements = |&id: &ValueId| match self.program.value(id).dtype {
            DType::String => {
                Ok(Elements::Strings(self.strings(id, instance, bound)?.as_strings()?))
            }
            _ => self.bytes(id, instance, bound).map(Elements::Bytes),
        };
        let inputs: SmallVec<[Elements<'_>; 4]> =
            step.inputs.iter().map(elements).collect::<Result<_>>()?;
        let given = kernel.run(&inputs)?;
        drop(inputs);
        let id = step.outputs.first().copied();
        let id = id.ok_or_else(|| Error::internal("a kernel of strings has no output"))?;
        match self.places[id.0 as usize] {
            Place::Strings(at) => instance.keep_strings(at as usize, given),
            Place::Slot(slot) => write(&mut instance.slots[slot as usize], 0, given.bytes())?,
            Place::Arena(offset) => write(&mut instance.arena, offset, given.bytes())?,
            _ => return Err(Error::internal(format!("there is no place for {id}"))),
        }
        Ok(())
    }

    /// The strings of a value.
    pub(super) fn strings<'b>(
        &'b self,
        id: ValueId,
        instance: &'b Instance,
        bound: &'b Bound<'_>,
    ) -> Result<&'b HostTensor> {
        let tensor = match (self.places[id.0 as usize], &self.program.value(id).source) {
            (Place::Strings(at), _) => instance.strings(at as usize),
            (Place::Feed(feed), _) => bound.feeds[feed as usize].tensor(),
            (Place::Constant, Source::Constant(tensor)) => Some(tensor),
            (Place::Variable(at), _) => match &bound.variables[at as usize].elements {
                Some(elements) => elements.strings(),
                None => None,
            },
            _ => None,
        };
        tensor.ok_or_else(|| Error::internal(format!("{id} has no strings")))
    }
}

/// Puts bytes at their place.
fn write(buffer: &mut [u8], offset: usize, bytes: &[u8]) -> Result<()> {
    let place = buffer.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes.len()));
    place
        .ok_or_else(|| Error::internal("a value lies outside of its memory"))?
        .copy_from_slice(bytes);
    Ok(())
}
