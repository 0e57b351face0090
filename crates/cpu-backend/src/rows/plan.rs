//! From a [`Work`] to steps: what is read in place, which register holds what, what is stored.

use convoke_compiler::{Arg, Check, Fold, Group, Instr, Needs, Operand, Program, Rows as Work};
use convoke_graph_core::{DType, Elementwise, Error, Result};
use smallvec::SmallVec;

use super::{Direct, Register, RowArg, Rows, SlotIndex, Step};
use crate::elements::{is_wide, wide_bytes};
use crate::elementwise::code::{Code, Rounding, store};
use crate::elementwise::plan::{code_of, constant_block, cost};
use crate::elementwise::rows::exp_of_difference;
use crate::elementwise::{Load, SlotCheck, load_fn};
use crate::reduce::{PART, WideFold};
use crate::walk::Walk;
use crate::{malformed, unsupported};

/// The bytes that the registers and inputs of a block may take: they fit a second cache.
const BLOCK_BYTES: usize = 32 << 10;

/// Elements of a row that are worth a call of their own.
const ROW_CALL: usize = 64;

/// Elements of a long row that are computed at once.
const LONG_PART: usize = 2 * PART;

/// Where something lies, before the slots are numbered.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Direct(usize),
    Constant(usize),
    Register(usize),
    Output(usize),
}

/// A step whose slots are not numbered yet.
enum Draft {
    Map { code: Code, args: SmallVec<[Place; 3]>, out: Place, rounding: Option<Rounding> },
    MapRows { code: Code, args: [(Place, usize); 2], out: Place, rounding: Option<Rounding> },
    Spread { from: Place, out: Place, width: usize },
    Fold { fold: WideFold, from: Place, out: Place },
}

impl Draft {
    /// With the number of each place.
    fn numbered(self, slot: &impl Fn(Place) -> SlotIndex) -> Step {
        match self {
            Self::Map { code, args, out, rounding } => {
                let args = args.into_iter().map(slot).collect();
                Step::Map { code, args, out: slot(out), rounding }
            }
            Self::MapRows { code, args, out, rounding } => {
                let args = args.map(|(place, n_bytes)| RowArg { slot: slot(place), n_bytes });
                Step::MapRows { code, args, out: slot(out), rounding }
            }
            Self::Spread { from, out, width } => {
                Step::Spread { from: slot(from), out: slot(out), width }
            }
            Self::Fold { fold, from, out } => Step::Fold { fold, from: slot(from), out: slot(out) },
        }
    }
}

/// What is computed next.
#[derive(Debug, Clone, Copy)]
enum Next {
    Fold(usize),
    Instr(usize),
}

struct Planner<'a> {
    work: &'a Work,
    /// Instructions that are the exponential of a difference.
    differences: Vec<usize>,
    needs: Needs,
    order: Vec<Next>,
    direct: Vec<Direct>,
    loads: Vec<Load>,
    inputs: Vec<Place>,
    instrs: Vec<Place>,
    /// What each row has, repeated for its elements.
    spread: Vec<(Arg, Place)>,
    /// For each instruction, the last place in `order` that reads it; none if nobody does.
    last_use: Vec<Option<usize>>,
    /// The constants that are used, each for elements or for rows.
    constants: Vec<(u32, bool)>,
    registers: Vec<Register>,
    free: Vec<usize>,
    outputs: SmallVec<[Register; 2]>,
    drafts: Vec<Draft>,
}

/// Compiles a group.
pub(super) fn plan(program: &Program, group: &Group, work: &Work) -> Result<Rows> {
    let (work, differences) = with_differences(work);
    let work = &work;
    let order = order(work);
    let len = work.fused.shape.len();
    let output = |(&id, &arg): (&_, &Arg)| {
        let value = program.value(id);
        let varies = value.shape.len() == len;
        let fits = varies || value.shape.len() == work.n_rows();
        let fits = fits && value.dtype == work.fused.dtype(arg);
        let register = Register { width: value.dtype.n_bytes(), varies };
        fits.then_some(register).ok_or_else(|| malformed("rows", "an output has another shape"))
    };
    let outputs = group.outputs.iter().zip(&work.fused.stores).map(output);
    let mut outputs: SmallVec<[Register; 2]> = outputs.collect::<Result<_>>()?;
    // What is added up is stored too, for as long as the run takes.
    outputs.extend(work.totals.iter().map(|total| {
        let width = wide_bytes(work.fused.dtype(total.arg));
        Register { width, varies: false }
    }));
    let mut planner = Planner {
        work,
        differences,
        needs: work.needs(&group.inputs),
        last_use: last_uses(work, &order),
        order,
        direct: Vec::new(),
        loads: Vec::new(),
        inputs: Vec::new(),
        instrs: Vec::new(),
        spread: Vec::new(),
        constants: Vec::new(),
        registers: Vec::new(),
        free: Vec::new(),
        outputs,
        drafts: Vec::new(),
    };
    for (input, operand) in group.inputs.iter().enumerate() {
        planner.input(program, input, operand)?;
    }
    for at in 0..planner.order.len() {
        match planner.order[at] {
            Next::Fold(k) => planner.fold(at, work.folds[k])?,
            Next::Instr(i) => planner.instr(at, i, &work.fused.instrs[i])?,
        }
    }
    if !work.is_in_parts() {
        planner.stores()?;
    }
    planner.finish()
}

/// The work where an exponential of a difference that nothing else reads has the operands of the difference, and
/// which instructions these are: softmax has one, whose difference need not be stored.
fn with_differences(work: &Work) -> (Work, Vec<usize>) {
    let mut uses = vec![0usize; work.fused.instrs.len()];
    let folded = work.folds.iter().map(|fold| fold.arg);
    let checked = work.fused.check.iter().map(|check| check.arg);
    let read = work.fused.instrs.iter().flat_map(|instr| instr.args.iter().copied());
    for arg in read.chain(folded).chain(checked).chain(stored(work)) {
        if let Arg::Instr(i) = arg {
            uses[i as usize] += 1;
        }
    }
    let mut work = work.clone();
    let mut differences = Vec::new();
    for i in 0..work.fused.instrs.len() {
        let instr = &work.fused.instrs[i];
        let &[Arg::Instr(of)] = instr.args.as_slice() else { continue };
        let before = &work.fused.instrs[of as usize];
        let is_float = instr.dtype == DType::F32 && before.dtype == DType::F32;
        if is_float && is_row(instr, "exp") && is_row(before, "sub") && uses[of as usize] == 1 {
            work.fused.instrs[i].args = before.args.clone();
            differences.push(i);
        }
    }
    (work, differences)
}

fn is_row(instr: &Instr, name: &str) -> bool {
    matches!(instr.op, Elementwise::Row(row) if row.name == name)
}

/// Instructions and folds in an order in which both can be computed.
fn order(work: &Work) -> Vec<Next> {
    let mut order = Vec::with_capacity(work.fused.instrs.len() + work.folds.len());
    let mut folds = work.folds.iter().enumerate().peekable();
    for i in 0..=work.fused.instrs.len() {
        let is_ready =
            |(_, fold): &(usize, &Fold)| !matches!(fold.arg, Arg::Instr(arg) if arg as usize >= i);
        while let Some((k, _)) = folds.next_if(is_ready) {
            order.push(Next::Fold(k));
        }
        if i < work.fused.instrs.len() {
            order.push(Next::Instr(i));
        }
    }
    order
}

/// The folds of the totals.
fn totals(work: &Work) -> Result<SmallVec<[WideFold; 1]>> {
    let total = |total: &Fold| {
        let dtype = work.fused.dtype(total.arg);
        WideFold::new(total.kind, dtype)
            .filter(|_| is_wide(dtype))
            .ok_or_else(|| unsupported(&format!("{:?} of rows of {dtype}", total.kind)))
    };
    work.totals.iter().map(total).collect()
}

/// What is stored, and what is added up over all rows.
fn stored(work: &Work) -> impl Iterator<Item = Arg> {
    work.fused.stores.iter().copied().chain(work.totals.iter().map(|total| total.arg))
}

fn last_uses(work: &Work, order: &[Next]) -> Vec<Option<usize>> {
    let mut last = vec![None; work.fused.instrs.len()];
    let mut used = |arg: Arg, at: usize| {
        if let Arg::Instr(i) = arg
            && let Some(last) = last.get_mut(i as usize)
        {
            *last = Some(at);
        }
    };
    for (at, next) in order.iter().enumerate() {
        match *next {
            Next::Fold(k) => used(work.folds[k].arg, at),
            Next::Instr(i) => {
                work.fused.instrs[i].args.iter().for_each(|&arg| used(arg, at));
            }
        }
    }
    let checked = work.fused.check.map(|check| check.arg);
    stored(work).chain(checked).for_each(|arg| used(arg, usize::MAX));
    last
}

/// What registers and inputs take for one element of a row.
fn element_bytes(registers: &[Register], direct: &[Direct]) -> usize {
    let of_elements = registers.iter().filter(|register| register.varies);
    let widths = of_elements.map(|register| register.width).chain(direct.iter().map(|d| d.width));
    widths.sum::<usize>().max(1)
}

impl Planner<'_> {
    fn input(&mut self, program: &Program, input: usize, operand: &Operand) -> Result<()> {
        let dtype = program.value(operand.value).dtype;
        let varies = self.needs.of(Arg::Input(input as u32)).varies;
        let (dims, strides) = (operand.layout.shape().dims(), operand.layout.strides());
        let n = if varies { dims.len() } else { self.work.n_outer };
        let walk = Walk::of_axes(&dims[..n], &strides[..n], operand.layout.offset());
        if varies && is_wide(dtype) && walk.is_packed() {
            let width = dtype.n_bytes();
            self.inputs.push(Place::Direct(self.direct.len()));
            self.direct.push(Direct { input, offset: walk.offset() * width, width });
            return Ok(());
        }
        let load = load_fn(dtype).ok_or_else(|| unsupported(&format!("rows of {dtype}")))?;
        let register = self.new_register(dtype, varies);
        self.inputs.push(Place::Register(register));
        let is_scalar = walk.is_scalar();
        self.loads.push(Load { direct: None, input, walk, load, register, is_scalar });
        Ok(())
    }

    fn new_register(&mut self, dtype: DType, varies: bool) -> usize {
        self.registers.push(Register { width: wide_bytes(dtype), varies });
        self.registers.len() - 1
    }

    fn fold(&mut self, at: usize, fold: Fold) -> Result<()> {
        let dtype = self.work.dtype(&fold);
        let code = WideFold::new(fold.kind, dtype)
            .ok_or_else(|| unsupported(&format!("{:?} of {dtype}", fold.kind)))?;
        let from = self.argument(fold.arg, true)?;
        let out = Place::Register(self.new_register(dtype, false));
        self.drafts.push(Draft::Fold { fold: code, from, out });
        self.inputs.push(out);
        self.release(at, &[fold.arg]);
        Ok(())
    }

    fn instr(&mut self, at: usize, i: usize, instr: &Instr) -> Result<()> {
        if self.last_use[i].is_none() {
            self.instrs.push(Place::Constant(0));
            return Ok(());
        }
        let (code, rounding) = match self.differences.contains(&i) {
            true => (exp_of_difference(), None),
            false => code_of(&self.work.fused, instr)?,
        };
        let varies = self.needs.of(Arg::Instr(i as u32)).varies;
        if let (Code::Binary(_), &[x, y], true) = (code, instr.args.as_slice(), varies)
            && let Some(args) = self.by_row(x, y)?
        {
            let out = self.result(i, instr.dtype, varies);
            self.drafts.push(Draft::MapRows { code, args, out, rounding });
            self.instrs.push(out);
            self.release(at, &instr.args);
            return Ok(());
        }
        let args = instr.args.iter().map(|&arg| self.argument(arg, varies));
        let args = args.collect::<Result<_>>()?;
        let out = self.result(i, instr.dtype, varies);
        self.drafts.push(Draft::Map { code, args, out, rounding });
        self.instrs.push(out);
        self.release(at, &instr.args);
        Ok(())
    }

    /// Where two arguments lie and the bytes of a row of each, if exactly one has a single element for each
    /// row, and rows are long enough for a call each.
    fn by_row(&mut self, x: Arg, y: Arg) -> Result<Option<[(Place, usize); 2]>> {
        let once = [x, y].map(|arg| !matches!(arg, Arg::Constant(_)) && !self.needs.of(arg).varies);
        let n = self.work.n_inner();
        if self.work.is_in_parts() || n < ROW_CALL || once[0] == once[1] {
            return Ok(None);
        }
        let width = wide_bytes(self.work.fused.dtype(x));
        let mut place = |arg: Arg, once: bool| -> Result<(Place, usize)> {
            let place = self.argument(arg, !once)?;
            Ok((place, if once { width } else { n * width }))
        };
        Ok(Some([place(x, once[0])?, place(y, once[1])?]))
    }

    /// Where an argument lies, one for each element if `varies`, else for each row.
    fn argument(&mut self, arg: Arg, varies: bool) -> Result<Place> {
        if let Arg::Constant(c) = arg {
            let known = self.constants.iter().position(|&other| other == (c, varies));
            if known.is_none() {
                self.constants.push((c, varies));
            }
            return Ok(Place::Constant(known.unwrap_or(self.constants.len() - 1)));
        }
        let place = match arg {
            Arg::Input(i) => self.inputs.get(i as usize),
            Arg::Instr(i) => self.instrs.get(i as usize),
            Arg::Constant(_) => None,
        };
        let place =
            *place.ok_or_else(|| Error::internal(format!("{arg:?} is used before it is")))?;
        if self.needs.of(arg).varies || !varies {
            return Ok(place);
        }
        if let Some(&(_, place)) = self.spread.iter().find(|(other, _)| *other == arg) {
            return Ok(place);
        }
        let dtype = self.work.fused.dtype(arg);
        let out = Place::Register(self.new_register(dtype, true));
        self.drafts.push(Draft::Spread { from: place, out, width: wide_bytes(dtype) });
        self.spread.push((arg, out));
        Ok(out)
    }

    /// Where instruction `i` puts its result: in place in an output, or in a register.
    fn result(&mut self, i: usize, dtype: DType, varies: bool) -> Place {
        let is_it = |&arg: &Arg| arg == Arg::Instr(i as u32);
        let stored = stored(self.work).position(|arg| is_it(&arg));
        let stored = stored.filter(|&output| self.outputs[output].varies == varies);
        if let (Some(output), true, false) = (stored, is_wide(dtype), self.work.is_in_parts()) {
            return Place::Output(output);
        }
        let wanted = Register { width: wide_bytes(dtype), varies };
        let free = self.free.iter().position(|&register| self.registers[register] == wanted);
        Place::Register(match free {
            Some(at) => self.free.swap_remove(at),
            None => self.new_register(dtype, varies),
        })
    }

    /// Gives back the registers of instructions that are not read after `at`.
    fn release(&mut self, at: usize, args: &[Arg]) {
        let own = match self.order[at] {
            Next::Instr(i) => Some(Arg::Instr(i as u32)),
            Next::Fold(_) => None,
        };
        for arg in args.iter().copied().chain(own) {
            let Arg::Instr(i) = arg else { continue };
            let is_read = self.last_use[i as usize].is_some_and(|last| last > at);
            if let (false, Place::Register(register)) = (is_read, self.instrs[i as usize])
                && !self.free.contains(&register)
            {
                self.free.push(register);
            }
        }
    }

    fn stores(&mut self) -> Result<()> {
        for (output, arg) in stored(self.work).enumerate() {
            let out = Place::Output(output);
            let from = self.argument(arg, self.outputs[output].varies)?;
            if from == out {
                continue;
            }
            let dtype = self.work.fused.dtype(arg);
            let store = store(dtype).ok_or_else(|| unsupported(&format!("rows of {dtype}")))?;
            let args = SmallVec::from_slice(&[from]);
            let code = Code::Fast(store);
            self.drafts.push(Draft::Map { code, args, out, rounding: None });
        }
        Ok(())
    }

    /// Where the index that is checked lies, and whether there is one for each element.
    fn check(&mut self, check: Check) -> Result<(Place, bool, u32)> {
        let (varies, dtype) = (self.needs.of(check.arg).varies, self.work.fused.dtype(check.arg));
        if dtype != DType::I32 {
            return Err(unsupported(&format!("a check of {dtype}")));
        }
        Ok((self.argument(check.arg, varies)?, varies, check.below))
    }

    fn finish(mut self) -> Result<Rows> {
        let check = self.work.fused.check.map(|check| self.check(check)).transpose()?;
        let Self { work, direct, loads, constants, registers, outputs, drafts, .. } = self;
        let (n_rows, n_inner) = (work.n_rows(), work.n_inner());
        let element_bytes = element_bytes(&registers, &direct);
        let row_bytes = element_bytes.saturating_mul(n_inner.max(1));
        let part = work.is_in_parts().then_some(LONG_PART);
        let block =
            if part.is_some() { 1 } else { (BLOCK_BYTES / row_bytes).clamp(1, n_rows.max(1)) };
        let n_elements = part.unwrap_or(block * n_inner);
        let constant = |&(c, varies): &(u32, bool)| {
            let n = if varies { n_elements } else { block };
            let (bytes, width) = constant_block(&work.fused.constants[c as usize], n)?;
            Ok((bytes, Register { width, varies }))
        };
        let constants: Vec<_> = constants.iter().map(constant).collect::<Result<_>>()?;
        let slot = |place: Place| -> SlotIndex {
            match place {
                Place::Direct(i) => i,
                Place::Constant(i) => direct.len() + i,
                Place::Register(i) => direct.len() + constants.len() + i,
                Place::Output(i) => direct.len() + constants.len() + registers.len() + i,
            }
        };
        let steps = drafts.into_iter().map(|draft| draft.numbered(&slot)).collect();
        let totals = totals(work)?;
        let check =
            check.map(|(place, varies, below)| (SlotCheck { slot: slot(place), below }, varies));
        let n_ops = work.fused.instrs.len() + work.folds.len();
        let cost = work.fused.instrs.iter().map(cost).sum::<usize>() + work.folds.len();
        Ok(Rows {
            n_rows,
            n_inner,
            block,
            part,
            direct,
            loads,
            constants,
            registers,
            outputs,
            totals,
            steps,
            check,
            n_ops,
            cost,
        })
    }
}
