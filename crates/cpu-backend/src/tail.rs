//! Tails: a kernel's result goes through elementwise work, in the output's own buffer where the two are of
//! one dtype and order, else through scratch memory.

use convoke_compiler::{Group, Program, Tail as Work};
use convoke_graph_core::Result;
use smallvec::SmallVec;

use crate::elements::is_wide;
use crate::elementwise::Elementwise;
use crate::threads::Threads;
use crate::{Run, malformed};

/// A kernel and its tail, compiled.
pub(crate) struct Tail {
    core: Box<Run>,
    n_core_inputs: usize,
    work: Box<Run>,
    /// The output that the kernel's result lies in.
    in_place: Option<usize>,
    result_bytes: usize,
}

impl Tail {
    /// Compiles the tail of a group, whose kernel without it is `core`.
    pub fn compile(program: &Program, group: &Group, tail: &Work, core: Run) -> Result<Self> {
        let own = group.tail();
        let own = own.ok_or_else(|| malformed("tail", "the result has another shape"))?;
        let result = program.value(tail.result);
        let like = |&id: &_| program.value(id).dtype == result.dtype;
        let in_order = tail.layout.is_packed() && is_wide(result.dtype);
        let in_place = group.outputs.iter().position(like).filter(|_| in_order);
        let work = match in_place {
            Some(_) => {
                let fused = &tail.fused;
                Run::Elementwise(Elementwise::compile_in_place(program, &own, fused, in_place)?)
            }
            None => Run::compile(program, &own)?,
        };
        Ok(Self {
            core: Box::new(core),
            n_core_inputs: group.inputs.len() + 1 - own.inputs.len(),
            work: Box::new(work),
            in_place,
            result_bytes: result.n_bytes(),
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
        let mut scratch;
        let mut all: SmallVec<[&[u8]; 6]> = SmallVec::with_capacity(1 + others.len());
        all.push(&[]);
        all.extend_from_slice(others);
        if let Some(output) = self.in_place {
            self.core.run(core, &mut [&mut *outputs[output]], threads)?;
            return self.work.run(&all, outputs, threads);
        }
        scratch = threads.scratch(self.result_bytes)?;
        let result = &mut scratch[..self.result_bytes];
        self.core.run(core, &mut [&mut *result], threads)?;
        all[0] = result;
        self.work.run(&all, outputs, threads)
    }
}
