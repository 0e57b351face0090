//! Heads: operands that kernels compute where they load them.

use convoke_compiler::{Arg, Fused, Group, Head, Kernel};
use convoke_graph_core::{DType, HostTensor, Layout};
use convoke_shaders::Access;
use smallvec::SmallVec;

use super::{Lowering, element, elementwise};
use crate::segment::address::Axes;
use crate::segment::step::{StepBuilder, stored, wgsl};

/// Names of inputs and of constants that heads take. Input 0 is a tail's result.
pub(super) fn taken(heads: &[Head]) -> (usize, usize) {
    let count = |(inputs, constants): (usize, usize), fused: &Fused| {
        (inputs + fused.input_dtypes.len(), constants + fused.constants.len())
    };
    heads.iter().map(|head| &head.fused).fold((0, 0), count)
}

/// The work with its inputs and constants named from these numbers on.
pub(super) fn numbered(fused: &Fused, (inputs, constants): (usize, usize)) -> Fused {
    let number = |arg: Arg| match arg {
        Arg::Input(k) => Arg::Input(k + inputs as u32),
        Arg::Constant(c) => Arg::Constant(c + constants as u32),
        arg => arg,
    };
    let mut fused = fused.clone();
    let args = fused.instrs.iter_mut().flat_map(|instr| &mut instr.args).chain(&mut fused.stores);
    args.for_each(|arg| *arg = number(*arg));
    make_room(&mut fused, 0, (inputs, constants));
    fused
}

/// Puts so many inputs at `at`, and so many constants in front, which stand for those of others.
pub(super) fn make_room(fused: &mut Fused, at: usize, (inputs, constants): (usize, usize)) {
    fused.input_dtypes.insert_many(at, std::iter::repeat_n(DType::F32, inputs));
    fused.constants.splice(0..0, std::iter::repeat_n(HostTensor::from(0f32), constants));
}

impl Lowering<'_> {
    /// The statement that gives the element at `at` of operand `k` of a product or convolution, in the type of
    /// functions; declares what it needs.
    pub(super) fn operand(
        &self,
        step: &mut StepBuilder,
        group: &Group,
        k: usize,
    ) -> Result<Loaded, String> {
        let bare = group.bare();
        let Some(value) = bare.inputs.get(k).map(|input| input.value) else {
            return Err(format!("{} has no operand {k}", group.kernel));
        };
        let dtype = self.dtype(value);
        let Some(at) = group.heads.iter().position(|head| head.operand == k) else {
            let binding = step.bind(self.place(value), stored(dtype)?, Access::Read);
            return Ok(Loaded::Stored(dtype, binding));
        };
        let (first, constants) = taken(&group.heads[..at]);
        let Some((.., work)) = group.heads().nth(at) else {
            return Err(format!("{} has no head {at}", group.kernel));
        };
        self.declare_head(step, &work, k, (first + 1, constants))?;
        Ok(Loaded::Made(k))
    }

    /// Declares `head_{k}(i)`, which gives element `i` of what `group` makes.
    fn declare_head(
        &self,
        step: &mut StepBuilder,
        group: &Group,
        k: usize,
        first: (usize, usize),
    ) -> Result<(), String> {
        let (Kernel::Elementwise(fused), &[value]) = (&group.kernel, group.outputs.as_slice())
        else {
            return Err(format!("a head is elementwise, not {}", group.kernel));
        };
        self.check(value, fused.shape.len())?;
        let fused = numbered(fused, first);
        let layouts: SmallVec<[&Layout; 4]> = group.inputs.iter().map(|x| &x.layout).collect();
        let axes = Axes::of(&layouts);
        let sizes = format!("h{k}_d");
        axes.size_params(&mut step.kernel, &sizes);
        for (index, operand) in group.inputs.iter().enumerate() {
            self.load(step, operand, &axes, first.0 + index, &sizes, index)?;
        }
        elementwise::constants(step, &fused, first.1)?;
        let body = elementwise::body(step, &fused, first)?;
        let Some(&stored) = fused.stores.first() else {
            return Err("a head stores nothing".to_owned());
        };
        let (ty, result) = (wgsl(self.dtype(value))?, elementwise::name(stored));
        step.kernel
            .declare(format!("fn head_{k}(i: u32) -> {ty} {{\n{body}    return {result};\n}}"));
        Ok(())
    }
}

/// Where the elements of an operand come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Loaded {
    /// A binding that holds elements of this dtype.
    Stored(DType, usize),
    /// The head of this operand.
    Made(usize),
}

impl Loaded {
    /// Statements that return the element at `at`.
    pub(super) fn element(self, at: &str) -> String {
        match self {
            Self::Stored(dtype, binding) => element(dtype, binding, at),
            Self::Made(k) => format!("return head_{k}({at});"),
        }
    }
}
