//! Operands of products and convolutions: bytes in memory, or what elementwise work makes of others (a group's heads),
//! part by part where it is needed, so that it stays in a core's own cache.

use std::ops::{Deref, Range};

use bytemuck::{Pod, cast_slice};
use convoke_compiler::{Group, Program};
use convoke_graph_core::Result;
use smallvec::SmallVec;

use crate::elementwise::{Elementwise, Lines};
use crate::fast::{Matrix, Needed};
use crate::tail::Finish;
use crate::threads::{Scratch, Threads};
use crate::walk::Walk;
use crate::{Run, malformed};

/// Bytes of an operand or result that is made whole, as it stays in a cache: parts of less are not worth their calls.
pub(crate) const WHOLE_BYTES: usize = 1 << 18;

/// What a kernel reads.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    /// It lies in memory.
    Lies(&'a [u8]),
    /// It is made.
    Made(&'a Head, &'a [&'a [u8]]),
}

/// All of an operand.
pub(crate) enum Whole<'a> {
    Lies(&'a [u8]),
    Made(Scratch<'a>, usize),
}

impl Deref for Whole<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Lies(bytes) => bytes,
            Self::Made(scratch, len) => &scratch[..*len],
        }
    }
}

impl<'a> Operand<'a> {
    /// The bytes of all of it.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Lies(bytes) => bytes.len(),
            Self::Made(head, _) => head.n_bytes,
        }
    }

    /// All of it.
    pub fn whole(&self, threads: &'a Threads) -> Result<Whole<'a>> {
        Ok(match *self {
            Self::Lies(bytes) => Whole::Lies(bytes),
            Self::Made(head, inputs) => {
                let mut made = threads.scratch(head.n_bytes)?;
                head.work.run(inputs, &mut [&mut made[..head.n_bytes]], threads)?;
                Whole::Made(made, head.n_bytes)
            }
        })
    }

    /// Some elements that follow each other, made in `room` if need be; by all threads if they may `share`.
    pub fn elements<'r, T: Pod>(
        &self,
        range: Range<usize>,
        room: &'r mut [T],
        threads: &Threads,
        share: bool,
    ) -> Result<&'r [T]>
    where
        'a: 'r,
    {
        match *self {
            Self::Lies(bytes) => Ok(&cast_slice(bytes)[range]),
            Self::Made(head, inputs) => {
                let made = &mut room[..range.len()];
                let out = bytemuck::cast_slice_mut(&mut *made);
                head.work.run_range(range, (inputs, 0), &mut [out], threads, share)?;
                Ok(made)
            }
        }
    }

    /// Calls `f` with some rows and columns of a matrix in it that lies in [lines](Matrix::is_lines).
    pub fn part<T: Pod>(
        &self,
        at: Matrix,
        [rows, cols]: [Range<usize>; 2],
        threads: &Threads,
        f: &mut Needed<'_, T>,
    ) -> Result<()> {
        let (head, inputs) = match *self {
            Self::Lies(bytes) => return f(cast_slice(bytes), at.moved(rows.start, cols.start)),
            Self::Made(head, inputs) => (head, inputs),
        };
        let is_in_rows = at.col == 1;
        let (lines, along, step) =
            if is_in_rows { (rows, cols, at.row) } else { (cols, rows, at.col) };
        let (n_lines, len, step) = (lines.len(), along.len(), step.unsigned_abs());
        let n_bytes = n_lines * len * size_of::<T>();
        let mut scratch = threads.scratch(n_bytes)?;
        let made = &mut scratch[..n_bytes];
        let first = at.offset + lines.start * step + along.start;
        let lines = Lines::new(first, step, [n_lines, len]);
        head.work.run_part(lines, 0, inputs, &mut [&mut *made], threads)?;
        let step = len as isize;
        let at = if is_in_rows {
            Matrix { offset: 0, row: step, col: 1 }
        } else {
            Matrix { offset: 0, row: 1, col: step }
        };
        f(cast_slice(made), at)
    }
}

/// A kernel with its heads, compiled.
pub(crate) struct Heads {
    core: Box<Run>,
    heads: SmallVec<[Head; 1]>,
}

/// What makes an operand.
pub(crate) struct Head {
    work: Elementwise,
    inputs: Range<usize>,
    n_bytes: usize,
}

impl Heads {
    /// Compiles the heads of a group.
    pub fn compile(program: &Program, group: &Group) -> Result<Self> {
        for head in &group.heads {
            Walk::new(&head.layout).check(program.value(head.value).shape.len())?;
        }
        let head = |((_, first, work), head): ((usize, usize, Group), &convoke_compiler::Head)| {
            let inputs = first..first + work.inputs.len();
            let n_bytes = program.value(head.value).n_bytes();
            let work = Elementwise::compile(program, &work, &head.fused)?;
            Ok(Head { work, inputs, n_bytes })
        };
        let heads = group.heads().zip(&group.heads).map(head).collect::<Result<_>>()?;
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
        finish: Option<&Finish<'_>>,
        threads: &Threads,
    ) -> Result<()> {
        let mut operands: SmallVec<[Operand<'_>; 2]> = SmallVec::new();
        let mut given = 0;
        for head in &self.heads {
            operands.extend(inputs[given..head.inputs.start].iter().map(|x| Operand::Lies(x)));
            given = head.inputs.end;
            operands.push(Operand::Made(head, &inputs[head.inputs.clone()]));
        }
        operands.extend(inputs[given..].iter().map(|x| Operand::Lies(x)));
        match &*self.core {
            Run::Matmul(core) => core.run(&operands, outputs, finish, threads),
            Run::Conv(core) => core.run(&operands, outputs, finish, threads),
            _ => Err(malformed("head", "the kernel takes none")),
        }
    }
}

/// Operands that lie in memory.
pub(crate) fn lying<'a>(inputs: &[&'a [u8]]) -> SmallVec<[Operand<'a>; 2]> {
    inputs.iter().map(|x| Operand::Lies(x)).collect()
}
