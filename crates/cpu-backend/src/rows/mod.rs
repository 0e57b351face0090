//! Work row by row, some rows at a time in cache: elementwise steps on the elements of the rows, folds of each
//! row, steps on what those give.
//!
//! Registers hold wide elements, as in `elementwise/mod.rs`: one for each element of the rows at hand, or one
//! for each row. Rows that are too long are cut into chunks, whose partial results are merged in order.

mod plan;

use convoke_compiler::{Group, Program, Rows as Work};
use convoke_graph_core::{AlignedBytes, Result};
use smallvec::SmallVec;

use crate::elementwise::code::{Code, Rounding};
use crate::elementwise::{Load, PARALLEL, Slot, SlotCheck, register_bytes};
use crate::reduce::{CHUNK, Partial, WideFold};
use crate::threads::Threads;
use crate::walk::Cursor;

/// Row by row work, compiled.
pub(crate) struct Rows {
    n_rows: usize,
    n_inner: usize,
    /// Rows that are computed at once.
    block: usize,
    /// Elements of a row that are computed at once, if they are not all.
    part: Option<usize>,
    direct: Vec<Direct>,
    loads: Vec<Load>,
    /// Each repeated as its uses need it.
    constants: Vec<(AlignedBytes, Register)>,
    registers: Vec<Register>,
    /// Those of the group, then one for each total.
    outputs: SmallVec<[Register; 2]>,
    /// The folds of what the last outputs have for each row.
    totals: SmallVec<[WideFold; 1]>,
    steps: Vec<Step>,
    /// With whether it is of elements, else of rows.
    check: Option<(SlotCheck, bool)>,
    n_ops: usize,
    /// Of one element, in simple operations.
    cost: usize,
}

/// A packed input, read where it lies.
struct Direct {
    input: usize,
    /// Where its first byte lies.
    offset: usize,
    /// The bytes of an element.
    width: usize,
}

/// The bytes of an element, and whether there is one for each element of the rows or one for each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Register {
    width: usize,
    varies: bool,
}

/// An index into a block's slots: packed inputs, constants, registers, outputs.
type SlotIndex = usize;

enum Step {
    Map {
        code: Code,
        args: SmallVec<[SlotIndex; 3]>,
        out: SlotIndex,
        rounding: Option<Rounding>,
    },
    /// Of elements and of what each row has once, row by row.
    MapRows {
        code: Code,
        args: [RowArg; 2],
        out: SlotIndex,
        rounding: Option<Rounding>,
    },
    /// Repeats what each row has for its elements.
    Spread {
        from: SlotIndex,
        out: SlotIndex,
        width: usize,
    },
    Fold {
        fold: WideFold,
        from: SlotIndex,
        out: SlotIndex,
    },
}

/// An argument of a step that goes row by row.
#[derive(Debug, Clone, Copy)]
struct RowArg {
    slot: SlotIndex,
    /// Its bytes for a row.
    n_bytes: usize,
}

/// Some elements of one row, or all of some rows.
#[derive(Debug, Clone, Copy)]
struct Block {
    n_rows: usize,
    /// The first element in the order of all rows.
    first: usize,
    n: usize,
    /// The rows that registers have room for.
    room: usize,
    /// Whether the registers hold nothing yet.
    is_first: bool,
}

impl Rows {
    /// Compiles a group.
    pub fn compile(program: &Program, group: &Group, work: &Work) -> Result<Self> {
        plan::plan(program, group, work)
    }

    /// Elements times operations, for cost models.
    pub fn flops(&self) -> u64 {
        (self.n_rows as u64 * self.n_inner as u64).saturating_mul(self.n_ops as u64)
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        let elements = self.n_rows.saturating_mul(self.n_inner);
        let parallel = elements.saturating_mul(self.cost) >= PARALLEL;
        if let Some(part) = self.part {
            return self.run_long(part, inputs, outputs, threads, parallel);
        }
        if self.totals.is_empty() {
            return self.run_rows(inputs, outputs, threads, parallel);
        }
        let n_stored = outputs.len() - self.totals.len();
        let (stored, results) = outputs.split_at_mut(n_stored);
        let sizes = self.outputs[n_stored..].iter().map(|register| register.width * self.n_rows);
        let sizes: SmallVec<[usize; 1]> = sizes.collect();
        let mut scratch = threads.scratch(sizes.iter().sum())?;
        let mut all: SmallVec<[&mut [u8]; 3]> = stored.iter_mut().map(|out| &mut **out).collect();
        let mut rest = &mut scratch[..];
        for &size in &sizes {
            let (own, after) = rest.split_at_mut(size);
            all.push(own);
            rest = after;
        }
        self.run_rows(inputs, &mut all, threads, parallel)?;
        for ((total, result), of) in self.totals.iter().zip(results).zip(&all[n_stored..]) {
            total.rows(of, self.n_rows, result);
        }
        Ok(())
    }

    /// Computes the outputs of all rows, totals not folded yet.
    fn run_rows(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
        parallel: bool,
    ) -> Result<()> {
        let widths: SmallVec<[usize; 4]> = self
            .outputs
            .iter()
            .map(|o| o.width * if o.varies { self.n_inner } else { 1 })
            .collect();
        threads.split(parallel, self.block, (outputs, &widths), self.n_rows, &|range, outputs| {
            let room = self.block.min(range.len());
            let mut arena = threads.scratch(self.arena_bytes(room))?;
            let mut cursors = self.cursors(range.start, range.start * self.n_inner);
            let mut done = 0;
            while done < range.len() {
                let n_rows = self.block.min(range.len() - done);
                let row = range.start + done;
                let (first, n) = (row * self.n_inner, n_rows * self.n_inner);
                let block = Block { n_rows, first, n, room, is_first: done == 0 };
                let mut slots = self.slots(inputs, &mut arena, block, &mut cursors);
                for (output, width) in outputs.iter_mut().zip(&widths) {
                    slots.push(Slot::Write(&mut output[done * width..][..n_rows * width]));
                }
                self.run_steps(&self.steps, &mut slots);
                self.run_check(&slots, row, first)?;
                done += n_rows;
            }
            Ok(())
        })
    }

    /// One fold of rows that are cut into chunks.
    fn run_long(
        &self,
        part: usize,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
        parallel: bool,
    ) -> Result<()> {
        let Some((Step::Fold { fold, from, .. }, steps)) = self.steps.split_last() else {
            return Err(crate::malformed("rows", "long rows end with their fold"));
        };
        let n_chunks = self.n_inner.div_ceil(CHUNK);
        let (size, n_parts) = (fold.n_bytes(), self.n_rows * n_chunks);
        let mut scratch = threads.scratch(size * n_parts)?;
        let partials = &mut scratch[..size * n_parts];
        let shared = (&mut [&mut *partials][..], &[size][..]);
        threads.split(parallel, 1, shared, n_parts, &|range, out| {
            let mut arena = threads.scratch(self.arena_bytes(1))?;
            for (chunk, out) in range.zip(out[0].chunks_exact_mut(size)) {
                let (row, begin) = (chunk / n_chunks, chunk % n_chunks * CHUNK);
                let len = CHUNK.min(self.n_inner - begin);
                let first = row * self.n_inner + begin;
                let mut cursors = self.cursors(row, first);
                let mut partial = Partial::default();
                fold.start(&mut partial);
                let mut done = 0;
                while done < len {
                    let n = part.min(len - done);
                    let at = first + done;
                    let block = Block { n_rows: 1, first: at, n, room: 1, is_first: done == 0 };
                    let mut slots = self.slots(inputs, &mut arena, block, &mut cursors);
                    self.run_steps(steps, &mut slots);
                    self.run_check(&slots, row, at)?;
                    fold.add(&mut partial, slots[*from].bytes());
                    done += n;
                }
                fold.end(&partial, out);
            }
            Ok(())
        })?;
        let width = self.outputs[0].width;
        let rows = partials.chunks_exact_mut(size * n_chunks);
        for (partials, out) in rows.zip(outputs[0].chunks_exact_mut(width)) {
            let (total, rest) = partials.split_at_mut(size);
            rest.chunks_exact(size).for_each(|partial| fold.merge(total, partial));
            fold.store(total, self.n_inner, out);
        }
        Ok(())
    }

    /// The elements of a register for `n_rows` rows.
    fn capacity(&self, register: Register, n_rows: usize) -> usize {
        match (register.varies, self.part) {
            (true, Some(part)) => part,
            (true, None) => n_rows * self.n_inner,
            (false, _) => n_rows,
        }
    }

    fn arena_bytes(&self, n_rows: usize) -> usize {
        let bytes = |r: &Register| register_bytes(r.width, self.capacity(*r, n_rows));
        self.registers.iter().map(bytes).sum()
    }

    fn cursors(&self, row: usize, first: usize) -> SmallVec<[Cursor; 4]> {
        let start = |load: &Load| {
            load.walk.start(if self.registers[load.register].varies { first } else { row })
        };
        self.loads.iter().map(start).collect()
    }

    /// The slots of a block, loaded, all but the outputs.
    fn slots<'a>(
        &'a self,
        inputs: &[&'a [u8]],
        arena: &'a mut [u8],
        block: Block,
        cursors: &mut [Cursor],
    ) -> SmallVec<[Slot<'a>; 12]> {
        let mut slots: SmallVec<[Slot<'a>; 12]> = SmallVec::new();
        for &Direct { input, offset, width } in &self.direct {
            let bytes = &inputs[input][offset + block.first * width..][..block.n * width];
            slots.push(Slot::Read(bytes));
        }
        let bytes_of = |r: &Register| r.width * if r.varies { block.n } else { block.n_rows };
        for (bytes, register) in &self.constants {
            slots.push(Slot::Read(&bytes[..bytes_of(register)]));
        }
        let first_register = slots.len();
        let mut rest = arena;
        for register in &self.registers {
            let capacity = self.capacity(*register, block.room);
            let (own, after) = rest.split_at_mut(register_bytes(register.width, capacity));
            slots.push(Slot::Write(&mut own[..bytes_of(register)]));
            rest = after;
        }
        for (load, cursor) in self.loads.iter().zip(cursors) {
            // What a long row has for all its elements is loaded before its first part.
            let stays =
                load.is_scalar || (self.part.is_some() && !self.registers[load.register].varies);
            let slot = &mut slots[first_register + load.register];
            if let (Slot::Write(out), true) = (slot, !stays || block.is_first) {
                (load.load)(inputs[load.input], &load.walk, cursor, out);
            }
        }
        slots
    }

    /// Checks a block that begins with this row and this element.
    fn run_check(&self, slots: &[Slot<'_>], row: usize, element: usize) -> Result<()> {
        self.check
            .iter()
            .try_for_each(|(check, varies)| check.run(slots, if *varies { element } else { row }))
    }

    fn run_steps(&self, steps: &[Step], slots: &mut [Slot<'_>]) {
        for step in steps {
            let index = match step {
                Step::Map { out, .. }
                | Step::MapRows { out, .. }
                | Step::Spread { out, .. }
                | Step::Fold { out, .. } => *out,
            };
            let out = std::mem::replace(&mut slots[index], Slot::Read(&[]));
            let Slot::Write(bytes) = out else { continue };
            match step {
                Step::Map { code, args, rounding, .. } => {
                    let args: SmallVec<[&[u8]; 3]> =
                        args.iter().map(|&arg| slots[arg].bytes()).collect();
                    code.call(&args, bytes);
                    drop(args);
                    if let Some(round) = rounding {
                        round(bytes);
                    }
                }
                Step::MapRows { code, args: [x, y], rounding, .. } => {
                    let of = |arg: &RowArg| slots[arg.slot].bytes().chunks(arg.n_bytes);
                    let n_rows = slots[x.slot].bytes().len().div_ceil(x.n_bytes);
                    let n = bytes.len().div_ceil(n_rows.max(1)).max(1);
                    for ((out, x), y) in bytes.chunks_mut(n).zip(of(x)).zip(of(y)) {
                        code.call(&[x, y], out);
                    }
                    if let Some(round) = rounding {
                        round(bytes);
                    }
                }
                Step::Spread { from, width, .. } => {
                    spread(slots[*from].bytes(), *width, self.n_inner, bytes);
                }
                Step::Fold { fold, from, .. } => {
                    fold.rows(slots[*from].bytes(), self.n_inner, bytes);
                }
            }
            slots[index] = Slot::Write(bytes);
        }
    }
}

/// Repeats each element of `width` bytes `n` times, the last ones less often where there is no more room.
fn spread(from: &[u8], width: usize, n: usize, out: &mut [u8]) {
    match width {
        1 => repeat::<u8>(from, n, out),
        4 => repeat::<u32>(from, n, out),
        _ => repeat::<u64>(from, n, out),
    }
}

fn repeat<T: bytemuck::Pod>(from: &[u8], n: usize, out: &mut [u8]) {
    let (from, out): (&[T], &mut [T]) = (bytemuck::cast_slice(from), bytemuck::cast_slice_mut(out));
    for (out, &x) in out.chunks_mut(n.max(1)).zip(from) {
        out.fill(x);
    }
}
