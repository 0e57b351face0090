//! Tails: a kernel's result goes through elementwise work block by block; or whole where it is small, of a narrow dtype,
//! in another order of its axes, or of a kernel that makes it at once.

use std::ops::Range;

use convoke_compiler::{Group, Program, Tail as Work};
use convoke_graph_core::Result;
use smallvec::SmallVec;

use crate::elements::is_wide;
use crate::elementwise::Elementwise;
use crate::operand::lying;
use crate::threads::Threads;
use crate::{Run, malformed};

/// A kernel and its tail, compiled.
pub(crate) struct Tail {
    core: Box<Run>,
    n_core_inputs: usize,
    work: Box<Run>,
    result_bytes: usize,
    /// The result's elements are read in order, where they lie.
    is_in_order: bool,
}

/// The tail of a run, for the kernel whose result it takes.
pub(crate) struct Finish<'a> {
    tail: &'a Tail,
    /// What it reads besides the result.
    others: &'a [&'a [u8]],
}

impl Tail {
    /// Compiles the tail of a group, whose kernel without it is `core`.
    pub fn compile(program: &Program, group: &Group, tail: &Work, core: Run) -> Result<Self> {
        let own = group.tail();
        let own = own.ok_or_else(|| malformed("tail", "the result has another shape"))?;
        let result = program.value(tail.result);
        Ok(Self {
            core: Box::new(core),
            n_core_inputs: group.inputs.len() + 1 - own.inputs.len(),
            work: Box::new(Run::compile(program, &own)?),
            result_bytes: result.n_bytes(),
            is_in_order: tail.layout.is_packed() && is_wide(result.dtype),
        })
    }

    /// Those of the kernel and of the tail.
    pub fn flops(&self) -> u64 {
        self.core.flops().saturating_add(self.work.flops())
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        let (core, others) = inputs.split_at(self.n_core_inputs);
        let finish = Finish { tail: self, others };
        match &*self.core {
            Run::Matmul(kernel) => kernel.run(&lying(core), outputs, Some(&finish), threads),
            Run::Conv(kernel) => kernel.run(&lying(core), outputs, Some(&finish), threads),
            Run::Heads(kernel) => kernel.run(core, outputs, Some(&finish), threads),
            Run::Pool(kernel) => kernel.run(core, outputs, Some(&finish), threads),
            kernel => finish
                .whole(outputs, threads, |result| kernel.run(core, &mut [&mut *result], threads)),
        }
    }

    /// The work, if it takes the result's elements block by block.
    fn by_blocks(&self) -> Option<&Elementwise> {
        match &*self.work {
            Run::Elementwise(work) if self.is_in_order => Some(work),
            _ => None,
        }
    }
}

impl Finish<'_> {
    /// The bytes of an element of each output, if the result's elements are taken block by block.
    pub fn widths(&self) -> Option<&[usize]> {
        self.tail.by_blocks().map(Elementwise::widths)
    }

    /// The bytes of the result.
    pub fn result_bytes(&self) -> usize {
        self.tail.result_bytes
    }

    /// Whether so many elements by themselves are worth all threads.
    pub fn is_shared(&self, n: usize) -> bool {
        self.tail.by_blocks().is_some_and(|work| work.is_parallel(n))
    }

    /// Computes the outputs from a result that `core` computes whole.
    pub fn whole(
        &self,
        outputs: &mut [&mut [u8]],
        threads: &Threads,
        core: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut scratch = threads.scratch(self.tail.result_bytes)?;
        let result = &mut scratch[..self.tail.result_bytes];
        core(result)?;
        self.tail.work.run(&self.inputs(result), outputs, threads)
    }

    /// Computes elements of the outputs, which begin with them, from those of the result; by all threads if they may
    /// `share`.
    pub fn block(
        &self,
        range: Range<usize>,
        result: &[u8],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
        share: bool,
    ) -> Result<()> {
        let work = self.tail.by_blocks();
        let work = work.ok_or_else(|| malformed("tail", "the result is not taken in blocks"))?;
        let given = range.start;
        work.run_range(range, (&self.inputs(result), given), outputs, threads, share)
    }

    /// What the tail reads.
    fn inputs<'r>(&'r self, result: &'r [u8]) -> SmallVec<[&'r [u8]; 6]> {
        std::iter::once(result).chain(self.others.iter().copied()).collect()
    }
}
