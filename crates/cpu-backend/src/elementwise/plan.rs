//! From a [`Fused`] to steps: what is read in place, which register holds what, what is stored.

use bytemuck::cast_slice_mut;
use convoke_compiler::{Arg, Fused, Group, Instr, Program};
use convoke_graph_core::{AlignedBytes, DType, Elementwise as Op, HostTensor, OpError, Result};
use smallvec::SmallVec;

use super::code::{Code, Rounding, rounding, store};
use super::{Elementwise, Load, Register, SlotCheck, SlotIndex, Step, load_fn};
use crate::elements::{Stored, is_wide, wide_bytes, with_stored};
use crate::walk::Walk;

/// The bytes that the registers and inputs of a block may take: most of a nearest cache.
const BLOCK_BYTES: usize = 24 << 10;

/// Where an argument lies, before the slots are numbered.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Constant(usize),
    Register(usize),
    Output(usize),
}

/// A step whose slots are not numbered yet.
struct Draft {
    code: Code,
    args: SmallVec<[Place; 3]>,
    out: Place,
    rounding: Option<Rounding>,
}

struct Planner<'a> {
    fused: &'a Fused,
    inputs: Vec<Place>,
    instrs: Vec<Place>,
    /// For each instruction, the last one that reads it; the greatest index if it is stored later.
    last_use: Vec<usize>,
    registers: Vec<usize>,
    free: Vec<usize>,
    drafts: Vec<Draft>,
}

impl Elementwise {
    /// Compiles a group.
    pub fn compile(program: &Program, group: &Group, fused: &Fused) -> Result<Self> {
        let mut planner = Planner {
            fused,
            inputs: Vec::new(),
            instrs: Vec::new(),
            last_use: last_uses(fused),
            registers: Vec::new(),
            free: Vec::new(),
            drafts: Vec::new(),
        };
        let loads = planner.inputs(program, group)?;
        for (i, instr) in fused.instrs.iter().enumerate() {
            planner.instr(i, instr)?;
        }
        planner.stores()?;
        let outputs = fused.stores.iter().map(|&arg| fused.dtype(arg).n_bytes()).collect();
        let block_width: usize =
            planner.registers.iter().sum::<usize>() + fused.constants.len() * 4;
        let block = (BLOCK_BYTES / block_width.max(1)).clamp(256, 2048) / 64 * 64;
        let len = fused.shape.len();
        let constants = fused.constants.iter().map(|c| constant_block(c, block.min(len)));
        let constants: Vec<_> = constants.collect::<Result<_>>()?;
        let counts = [constants.len(), planner.registers.len()];
        let check = fused.check.map(|check| {
            let of = fused.dtype(check.arg);
            if of != DType::I32 {
                return Err(unsupported(format!("a check of {of}")));
            }
            let slot = slot(planner.place(check.arg)?, counts);
            Ok(SlotCheck { slot, below: check.below })
        });
        let check = check.transpose()?;
        let steps = number(planner.drafts, counts);
        let is_direct =
            |register| loads.iter().any(|load| load.direct.is_some() && load.register == register);
        let registers = planner.registers.iter().enumerate();
        let registers =
            registers.map(|(i, &width)| Register { width, is_direct: is_direct(i) }).collect();
        Ok(Self {
            len,
            block,
            loads,
            constants,
            registers,
            outputs,
            steps,
            check,
            n_ops: fused.instrs.len(),
            cost: fused.instrs.iter().map(cost).sum::<usize>() + fused.stores.len(),
        })
    }
}

/// What an instruction does with a block, and what rounds its result to a narrow dtype.
pub(crate) fn code_of(fused: &Fused, instr: &Instr) -> Result<(Code, Option<Rounding>)> {
    let dtypes: SmallVec<[DType; 3]> = instr.args.iter().map(|&arg| fused.dtype(arg)).collect();
    let code = match (instr.op, dtypes.as_slice()) {
        (Op::Row(row), &[x, ref rest @ ..]) => {
            let fits = row.arity == dtypes.len()
                && rest.iter().all(|&y| y == x)
                && row.output(x) == Some(instr.dtype);
            Code::of_row(row, x).filter(|_| fits)
        }
        (Op::Select, &[DType::Bool, x, y]) if x == y && x == instr.dtype => {
            Code::of_select(wide_bytes(x))
        }
        (Op::Cast, &[x]) => Code::of_cast(x, instr.dtype),
        _ => None,
    };
    let code = code.ok_or_else(|| {
        let dtypes: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
        unsupported(format!("{:?} of {dtypes:?} to {}", instr.op, instr.dtype))
    })?;
    let rounding = if matches!(instr.op, Op::Select) { None } else { rounding(instr.dtype) };
    Ok((code, rounding))
}

/// About how many simple operations an instruction takes. The rows that integers lack are functions of
/// several steps.
pub(crate) fn cost(instr: &Instr) -> usize {
    match instr.op {
        Op::Row(row) if row.float.is_some() && row.int.is_none() => 8,
        _ => 1,
    }
}

/// The slot of a place: constants, registers, outputs.
fn slot(place: Place, [n_constants, n_registers]: [usize; 2]) -> SlotIndex {
    match place {
        Place::Constant(i) => i,
        Place::Register(i) => n_constants + i,
        Place::Output(i) => n_constants + n_registers + i,
    }
}

fn number(drafts: Vec<Draft>, counts: [usize; 2]) -> Vec<Step> {
    let slot = |place| slot(place, counts);
    let step = |draft: Draft| Step {
        code: draft.code,
        args: draft.args.iter().map(|&arg| slot(arg)).collect(),
        out: slot(draft.out),
        rounding: draft.rounding,
    };
    drafts.into_iter().map(step).collect()
}

fn last_uses(fused: &Fused) -> Vec<usize> {
    let mut last = vec![0; fused.instrs.len()];
    let uses = fused
        .instrs
        .iter()
        .enumerate()
        .flat_map(|(i, instr)| instr.args.iter().map(move |&arg| (i, arg)));
    let checked = fused.check.iter().map(|check| &check.arg);
    let last_of_all = fused.stores.iter().chain(checked).map(|&arg| (usize::MAX, arg));
    for (i, arg) in uses.chain(last_of_all) {
        if let Some(last) = index_of(arg).and_then(|of| last.get_mut(of)) {
            *last = i;
        }
    }
    last
}

fn index_of(arg: Arg) -> Option<usize> {
    match arg {
        Arg::Instr(i) => Some(i as usize),
        _ => None,
    }
}

/// A scalar repeated to a block, widened.
pub(crate) fn constant_block(constant: &HostTensor, len: usize) -> Result<(AlignedBytes, usize)> {
    let dtype = constant.dtype();
    let width = wide_bytes(dtype);
    let mut bytes = AlignedBytes::zeroed(width * len)?;
    let fill = |bytes: &mut [u8]| {
        with_stored!(dtype, T => {
            let x = bytemuck::try_cast_slice::<u8, T>(constant.bytes()).ok()?.first()?;
            cast_slice_mut::<u8, <T as Stored>::Wide>(bytes).fill(x.widen());
            Some(())
        }, else None)
    };
    fill(&mut bytes).ok_or_else(|| unsupported(format!("the constant {constant}")))?;
    Ok((bytes, width))
}

fn unsupported(what: String) -> convoke_graph_core::Error {
    OpError::Unsupported(format!("{what} in an elementwise group on the CPU")).into()
}

impl Planner<'_> {
    fn inputs(&mut self, program: &Program, group: &Group) -> Result<Vec<Load>> {
        let mut loads = Vec::new();
        for (input, operand) in group.inputs.iter().enumerate() {
            let dtype = program.value(operand.value).dtype;
            let walk = Walk::new(&operand.layout);
            let load = load_fn(dtype).ok_or_else(|| unsupported(format!("the dtype {dtype}")))?;
            let register = self.registers.len();
            self.registers.push(wide_bytes(dtype));
            self.inputs.push(Place::Register(register));
            let direct = (is_wide(dtype) && walk.is_packed()).then(|| dtype.n_bytes());
            let is_scalar = walk.is_scalar();
            loads.push(Load { direct, input, walk, load, register, is_scalar });
        }
        Ok(loads)
    }

    fn instr(&mut self, i: usize, instr: &Instr) -> Result<()> {
        let args = instr.args.iter().map(|&arg| self.place(arg)).collect::<Result<_>>()?;
        let (code, rounding) = code_of(self.fused, instr)?;
        let out = self.result(i, instr.dtype);
        self.drafts.push(Draft { code, args, out, rounding });
        self.instrs.push(out);
        self.release(i, instr);
        Ok(())
    }

    fn place(&self, arg: Arg) -> Result<Place> {
        let place = match arg {
            Arg::Input(i) => self.inputs.get(i as usize).copied(),
            Arg::Constant(i) => {
                let i = i as usize;
                (i < self.fused.constants.len()).then_some(Place::Constant(i))
            }
            Arg::Instr(i) => self.instrs.get(i as usize).copied(),
        };
        place.ok_or_else(|| {
            convoke_graph_core::Error::internal(format!("{arg:?} does not come before its user"))
        })
    }

    /// Where instruction `i` puts its result: in place in an output, or in a register.
    fn result(&mut self, i: usize, dtype: DType) -> Place {
        let stored = self.fused.stores.iter().position(|&arg| index_of(arg) == Some(i));
        if let (Some(output), true) = (stored, is_wide(dtype)) {
            return Place::Output(output);
        }
        let width = wide_bytes(dtype);
        let free = self.free.iter().position(|&register| self.registers[register] == width);
        Place::Register(match free {
            Some(at) => self.free.swap_remove(at),
            None => {
                self.registers.push(width);
                self.registers.len() - 1
            }
        })
    }

    /// Gives back the registers that instruction `i` was the last to read.
    fn release(&mut self, i: usize, instr: &Instr) {
        let own = (self.last_use[i] <= i).then_some(Arg::Instr(i as u32));
        for &arg in instr.args.iter().chain(own.as_ref()) {
            let Some(of) = index_of(arg).filter(|&of| self.last_use[of] <= i) else { continue };
            if let Place::Register(register) = self.instrs[of]
                && !self.free.contains(&register)
            {
                self.free.push(register);
            }
        }
    }

    fn stores(&mut self) -> Result<()> {
        for (output, &arg) in self.fused.stores.iter().enumerate() {
            let (from, out) = (self.place(arg)?, Place::Output(output));
            if from == out {
                continue;
            }
            let dtype = self.fused.dtype(arg);
            let store = store(dtype).ok_or_else(|| unsupported(format!("the dtype {dtype}")))?;
            let code = Code::Fast(store);
            let args = SmallVec::from_slice(&[from]);
            self.drafts.push(Draft { code, args, out, rounding: None });
        }
        Ok(())
    }
}
