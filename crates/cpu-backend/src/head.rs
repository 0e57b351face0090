//! Heads: operands that elementwise work makes for a product or a convolution, in scratch memory.

use std::ops::Range;

use convoke_compiler::{Group, Program};
use convoke_graph_core::Result;
use smallvec::SmallVec;

use crate::Run;
use crate::threads::Threads;

/// A kernel with its heads, compiled.
pub(crate) struct Heads {
    core: Box<Run>,
    heads: SmallVec<[Head; 1]>,
}

/// What makes an operand.
struct Head {
    work: Box<Run>,
    inputs: Range<usize>,
    n_bytes: usize,
}

impl Heads {
    /// Compiles the heads of a group.
    pub fn compile(program: &Program, group: &Group) -> Result<Self> {
        let head = |(_, first, work): (usize, usize, Group)| {
            let inputs = first..first + work.inputs.len();
            let n_bytes = work.outputs.iter().map(|&id| program.value(id).n_bytes()).sum();
            let work = Box::new(Run::compile(program, &work)?);
            Ok(Head { work, inputs, n_bytes })
        };
        let heads = group.heads().map(head).collect::<Result<_>>()?;
        Ok(Self { core: Box::new(Run::compile(program, &group.bare())?), heads })
    }

    /// Those of the kernel and of the heads.
    pub fn flops(&self) -> u64 {
        let heads = self.heads.iter().map(|head| head.work.flops());
        heads.fold(self.core.flops(), u64::saturating_add)
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        let lines = |n_bytes: usize| n_bytes.next_multiple_of(64);
        let n_bytes = self.heads.iter().map(|head| lines(head.n_bytes)).sum();
        let mut scratch = threads.scratch(n_bytes)?;
        let mut rest = &mut scratch[..];
        let mut all: SmallVec<[&[u8]; 2]> = SmallVec::new();
        let mut given = 0;
        for head in &self.heads {
            let (made, after) = rest.split_at_mut(lines(head.n_bytes));
            rest = after;
            let made = &mut made[..head.n_bytes];
            head.work.run(&inputs[head.inputs.clone()], &mut [&mut *made], threads)?;
            all.extend_from_slice(&inputs[given..head.inputs.start]);
            given = head.inputs.end;
            all.push(made);
        }
        all.extend_from_slice(&inputs[given..]);
        self.core.run(&all, outputs, threads)
    }
}
