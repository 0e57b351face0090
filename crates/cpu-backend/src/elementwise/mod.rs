//! Elementwise groups, run block by block: all steps of one block, then the next.
//!
//! A block's registers are wide elements (see `elements.rs`) that stay in the nearest cache. Packed
//! inputs of wide dtypes are read where they lie, and what is stored in a wide dtype is computed where
//! it will lie.

mod cast;
pub(crate) mod code;
pub(crate) mod math;
pub(crate) mod plan;
pub(crate) mod rows;

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use convoke_graph_core::{AlignedBytes, DType, OpError, Result};
use smallvec::SmallVec;

use crate::elements::{Stored, with_stored};
use crate::threads::Threads;
use crate::walk::{Cursor, Walk, widen_run};
use code::{Code, Rounding};

/// Elementwise work, compiled.
pub(crate) struct Elementwise {
    len: usize,
    /// The greatest number of elements of a block.
    block: usize,
    /// The inputs, brought into registers where they can't be read where they lie.
    loads: Vec<Load>,
    /// One block each.
    constants: Vec<(AlignedBytes, usize)>,
    registers: Vec<Register>,
    /// The bytes of an element of each output.
    outputs: SmallVec<[usize; 2]>,
    steps: Vec<Step>,
    check: Option<SlotCheck>,
    n_ops: usize,
    /// Of one element, in simple operations.
    cost: usize,
}

/// A [`Check`](convoke_compiler::Check) of what is in a slot once all steps have run.
pub(crate) struct SlotCheck {
    /// The slot of the index.
    pub slot: usize,
    /// The size that it must be below.
    pub below: u32,
}

impl SlotCheck {
    /// Looks at the elements of a block, the first of which has this position.
    pub fn run(&self, slots: &[Slot<'_>], first: usize) -> Result<()> {
        let xs: &[i32] = cast_slice(slots[self.slot].bytes());
        // A negative one is far above any size.
        match xs.iter().position(|&x| x as u32 >= self.below) {
            Some(at) => {
                let (index, position) = (i64::from(xs[at]), first + at);
                Err(OpError::Index { index, position, size: self.below as usize }.into())
            }
            None => Ok(()),
        }
    }
}

/// Where a block has an input or what is computed of it.
struct Register {
    /// The bytes of an element.
    width: usize,
    /// It is of an input that is read where it lies, but in blocks of several lines.
    is_direct: bool,
}

/// An index into a block's slots: constants, registers, outputs.
type SlotIndex = usize;

struct Step {
    code: Code,
    args: SmallVec<[SlotIndex; 3]>,
    out: SlotIndex,
    /// Rounds the result to a narrow dtype.
    rounding: Option<Rounding>,
}

/// An input that is brought into a register.
pub(crate) struct Load {
    /// The bytes of an element, if elements that follow each other may be read where they lie.
    pub direct: Option<usize>,
    /// Which input.
    pub input: usize,
    /// Its elements.
    pub walk: Walk,
    /// How they are widened.
    pub load: LoadFn,
    /// The register.
    pub register: usize,
    /// All elements are one, so that one load fills the register for all blocks.
    pub is_scalar: bool,
}

impl Load {
    /// Loads the `n` elements of lines from element `done` on, at which `cursor` is unless a line begins there, or these
    /// were read where they lie.
    fn lines(&self, input: &[u8], cursor: &mut Cursor, at: (Lines, usize, usize), out: &mut [u8]) {
        let (lines, done, n) = at;
        let width = out.len() / n;
        let mut loaded = 0;
        while loaded < n {
            let (place, in_line) = lines.at(done + loaded);
            let some = in_line.min(n - loaded);
            if (in_line == lines.len && done + loaded > 0) || self.direct.is_some() {
                *cursor = self.walk.start(place);
            }
            let out = &mut out[loaded * width..(loaded + some) * width];
            (self.load)(input, &self.walk, cursor, out);
            loaded += some;
        }
    }
}

/// Elements that are computed together: so many lines of elements that follow each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines {
    /// The first element.
    pub first: usize,
    /// From one line's first element to that of the next.
    step: usize,
    n: usize,
    /// Elements of a line.
    len: usize,
}

impl Lines {
    /// Elements that all follow each other.
    pub fn one(range: Range<usize>) -> Self {
        Self { first: range.start, step: range.len(), n: 1, len: range.len() }
    }

    /// `n` lines of `len` elements each.
    pub fn new(first: usize, step: usize, [n, len]: [usize; 2]) -> Self {
        if step == len { Self::one(first..first + n * len) } else { Self { first, step, n, len } }
    }

    /// The place of element `i` of all lines, and how many there are from it on in its line.
    fn at(&self, i: usize) -> (usize, usize) {
        let (line, within) = if self.n == 1 { (0, i) } else { (i / self.len, i % self.len) };
        (self.first + line * self.step + within, self.len - within)
    }
}

/// Fills a register with elements from a place on.
pub(crate) type LoadFn = fn(&[u8], &Walk, &mut Cursor, &mut [u8]);

/// The load of a dtype.
pub(crate) fn load_fn(dtype: DType) -> Option<LoadFn> {
    with_stored!(dtype, T => Some(load::<T>), else None)
}

fn load<S: Stored>(input: &[u8], walk: &Walk, cursor: &mut Cursor, out: &mut [u8]) {
    let (xs, out): (&[S], &mut [S::Wide]) = (cast_slice(input), cast_slice_mut(out));
    let mut done = 0;
    walk.runs(cursor, out.len(), |at, stride, len| {
        widen_run(xs, at, stride, &mut out[done..][..len]);
        done += len;
    });
}

/// Where the elements of a block lie.
pub(crate) enum Slot<'a> {
    Read(&'a [u8]),
    Write(&'a mut [u8]),
}

impl Slot<'_> {
    /// What was written last.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Write(bytes) => bytes,
        }
    }
}

impl Elementwise {
    /// Elements times operations, for cost models.
    pub fn flops(&self) -> u64 {
        self.len as u64 * self.n_ops as u64
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        self.run_range(0..self.len, (inputs, 0), outputs, threads, true)
    }

    /// The bytes of an element of each output.
    pub fn widths(&self) -> &[usize] {
        &self.outputs
    }

    /// Whether so many elements are worth all threads.
    pub fn is_parallel(&self, n: usize) -> bool {
        n.saturating_mul(self.cost) >= PARALLEL
    }

    /// As [`Self::run_part`], by all threads if they may `share` and it is worth it.
    pub fn run_range(
        &self,
        range: Range<usize>,
        (inputs, given): (&[&[u8]], usize),
        outputs: &mut [&mut [u8]],
        threads: &Threads,
        share: bool,
    ) -> Result<()> {
        let first = range.start;
        let parallel = share && self.is_parallel(range.len());
        let parts = (outputs, self.outputs.as_slice());
        threads.split(parallel, self.block, parts, range.len(), &|part, outputs| {
            let part = Lines::one(first + part.start..first + part.end);
            self.run_part(part, given, inputs, outputs, threads)
        })
    }

    /// Computes some elements, which the outputs begin with. A packed input 0 begins with element `given`.
    pub fn run_part(
        &self,
        lines: Lines,
        given: usize,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        let len = lines.n * lines.len;
        let capacity = self.block.min(len);
        let n_bytes = |register: &Register| match register.is_direct && lines.n == 1 {
            true => 0,
            false => register_bytes(register.width, capacity),
        };
        let mut arena = threads.scratch(self.registers.iter().map(n_bytes).sum())?;
        let mut cursors: SmallVec<[Cursor; 4]> =
            self.loads.iter().map(|load| load.walk.start(lines.first)).collect();
        let mut done = 0;
        while done < len {
            let (first, in_line) = lines.at(done);
            // Of short lines a block is of several, and all inputs are brought into registers.
            let is_in_line = lines.n == 1 || in_line >= capacity / 2;
            let n = capacity.min(if is_in_line { in_line } else { len - done });
            let mut slots: SmallVec<[Slot<'_>; 12]> = SmallVec::new();
            for (bytes, width) in &self.constants {
                slots.push(Slot::Read(&bytes[..n * width]));
            }
            let first_register = slots.len();
            let mut rest = &mut arena[..];
            for register in &self.registers {
                let (own, after) = rest.split_at_mut(n_bytes(register));
                let len = own.len().min(n * register.width);
                slots.push(Slot::Write(&mut own[..len]));
                rest = after;
            }
            for (output, &width) in outputs.iter_mut().zip(&self.outputs) {
                slots.push(Slot::Write(&mut output[done * width..][..n * width]));
            }
            for (load, cursor) in self.loads.iter().zip(&mut cursors) {
                let slot = &mut slots[first_register + load.register];
                let start = if load.input == 0 { first - given } else { first };
                match load.direct.filter(|_| is_in_line) {
                    Some(width) => {
                        let at = (load.walk.offset() + start) * width;
                        *slot = Slot::Read(&inputs[load.input][at..][..n * width]);
                    }
                    None if load.is_scalar && done > 0 => {}
                    None => {
                        if let Slot::Write(out) = slot {
                            load.lines(inputs[load.input], cursor, (lines, done, n), out);
                        }
                    }
                }
            }
            self.run_block(&mut slots);
            self.check.iter().try_for_each(|check| check.run(&slots, first))?;
            done += n;
        }
        Ok(())
    }

    fn run_block(&self, slots: &mut [Slot<'_>]) {
        for step in &self.steps {
            let out = std::mem::replace(&mut slots[step.out], Slot::Read(&[]));
            if let Slot::Write(bytes) = out {
                let args: SmallVec<[&[u8]; 3]> =
                    step.args.iter().map(|&arg| slots[arg].bytes()).collect();
                step.code.call(&args, bytes);
                drop(args);
                if let Some(round) = step.rounding {
                    round(bytes);
                }
                slots[step.out] = Slot::Write(bytes);
            }
        }
    }
}

/// Simple operations from which threads share the work.
pub(crate) const PARALLEL: usize = 1 << 17;

/// The bytes of a register for blocks of `capacity` elements: whole cache lines.
pub(crate) fn register_bytes(width: usize, capacity: usize) -> usize {
    (width * capacity).next_multiple_of(64)
}
