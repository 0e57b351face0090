//! A step of the host in the arena of a run: what it writes there, and what it may read meanwhile.

use convoke_compiler::ValueId;
use convoke_cpu_backend::{CpuKernel, Threads};
use convoke_graph_core::{AlignedBytes, Error, Result};
use smallvec::SmallVec;

use super::{Bound, Compiled, CpuStep, Place};
use crate::instance::Instance;

/// An output of a step that lies in the arena.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub offset: usize,
    pub n_bytes: usize,
    /// Its place among the step's outputs.
    pub output: usize,
}

impl Compiled {
    /// Runs the kernel of a step into an arena and slots that are not the instance's just now.
    pub(super) fn run_kernel(
        &self,
        kernel: &CpuKernel,
        step: &CpuStep,
        (arena, slots): (&mut [u8], &mut [(u32, AlignedBytes)]),
        instance: &Instance,
        bound: &Bound<'_>,
        threads: &Threads,
    ) -> Result<()> {
        let mut written: SmallVec<[&mut [u8]; 2]> =
            step.outputs.iter().map(|_| &mut [][..]).collect();
        let rest = carve(arena, &step.in_arena, &mut written)?;
        let outside = step.outputs.iter().zip(&mut written);
        let outside =
            outside.filter(|(id, _)| !matches!(self.places[id.0 as usize], Place::Arena(_)));
        for ((_, buffer), (&id, written)) in slots.iter_mut().zip(outside) {
            *written = &mut buffer[..self.program.value(id).n_bytes()];
        }
        let input = |&id: &ValueId| match self.places[id.0 as usize] {
            Place::Arena(offset) if !step.in_arena.is_empty() => {
                find(&rest, offset, self.program.value(id).n_bytes())
            }
            _ => self.bytes(id, instance, bound),
        };
        let inputs: SmallVec<[&[u8]; 4]> = step.inputs.iter().map(input).collect::<Result<_>>()?;
        kernel.run(&inputs, &mut written, threads)
    }
}

/// Pieces of the arena that are not written, each with its offset.
type Rest<'a> = SmallVec<[(usize, &'a [u8]); 3]>;

/// Takes the parts, which are in the order of their offsets, and gives the rest.
///
/// # Errors
/// Parts that overlap or lie outside.
fn carve<'a>(
    arena: &'a mut [u8],
    parts: &[Part],
    written: &mut [&'a mut [u8]],
) -> Result<Rest<'a>> {
    let mut rest = Rest::new();
    let (mut after, mut at) = (arena, 0);
    for part in parts {
        let split = part.offset.checked_sub(at).and_then(|n| after.split_at_mut_checked(n));
        let (before, from) = split.ok_or_else(misplaced)?;
        let (own, behind) = from.split_at_mut_checked(part.n_bytes).ok_or_else(misplaced)?;
        rest.push((at, before));
        *written.get_mut(part.output).ok_or_else(misplaced)? = own;
        (after, at) = (behind, part.offset + part.n_bytes);
    }
    rest.push((at, after));
    Ok(rest)
}

/// Bytes that are not written.
///
/// # Errors
/// They are, or lie outside.
fn find<'a>(rest: &Rest<'a>, offset: usize, n_bytes: usize) -> Result<&'a [u8]> {
    let mut pieces = rest.iter();
    let piece =
        pieces.find_map(|&(at, piece)| piece.get(offset.checked_sub(at)?..)?.get(..n_bytes));
    piece.ok_or_else(misplaced)
}

fn misplaced() -> Error {
    Error::internal("a value lies where another does")
}
