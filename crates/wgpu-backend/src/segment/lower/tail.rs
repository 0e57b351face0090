//! Where kernels store their results, and the elementwise work that a tail does there instead.

use convoke_compiler::{Arg, Fused, Group, Kernel};
use convoke_graph_core::{DType, Layout};
use smallvec::SmallVec;

use super::{Lowering, elementwise, head};
use crate::segment::address::Axes;
use crate::segment::step::{Place, StepBuilder, wgsl};

/// A tail as its kernel's text names what is in it: after what the kernel itself loads.
pub(super) struct Tail {
    group: Group,
    fused: Fused,
    /// Names of inputs and of constants that the kernel itself has.
    taken: (usize, usize),
}

/// The tail of `group`.
pub(super) fn numbered(group: &Group, tail: Group) -> Result<Tail, String> {
    let Kernel::Elementwise(fused) = &tail.kernel else {
        return Err(format!("a tail is elementwise, not {}", tail.kernel));
    };
    let taken = match &group.kernel {
        Kernel::Rows(work) => (work.n_inputs(), work.fused.constants.len()),
        _ => head::taken(&group.heads),
    };
    let number = |arg: Arg| match arg {
        Arg::Input(k) if k > 0 => Arg::Input(k + taken.0 as u32),
        Arg::Constant(c) => Arg::Constant(c + taken.1 as u32),
        arg => arg,
    };
    let mut fused = fused.clone();
    let args = fused.instrs.iter_mut().flat_map(|instr| &mut instr.args).chain(&mut fused.stores);
    args.for_each(|arg| *arg = number(*arg));
    head::make_room(&mut fused, 1, taken);
    Ok(Tail { group: tail, fused, taken })
}

impl Lowering<'_> {
    /// Declares `store(i, v)`, which stores element `i` of a kernel's result at `target`, or does the work
    /// of the tail on it if that is where the whole result would go.
    pub(super) fn declare_store(
        &self,
        step: &mut StepBuilder,
        target: Place,
        dtype: DType,
    ) -> Result<(), String> {
        if let Some(tail) = &self.tail
            && tail.group.inputs.first().is_some_and(|x| target == Place::Value(x.value))
        {
            return self.declare_tail(step, tail, dtype);
        }
        let output = self.bind_output(step, 0, target, dtype)?;
        let (ty, store) = (wgsl(dtype)?, output.store("i", "v"));
        step.kernel.declare(format!("fn store(i: u32, v: {ty}) {{ {store} }}"));
        Ok(())
    }

    fn declare_tail(
        &self,
        step: &mut StepBuilder,
        tail: &Tail,
        dtype: DType,
    ) -> Result<(), String> {
        let Tail { group, fused, taken } = tail;
        let Some((result, others)) = group.inputs.split_first() else {
            return Err("a tail has a result".to_owned());
        };
        let to = places_of(&result.layout);
        to.size_params(&mut step.kernel, "t");
        let body = to.address(&mut step.kernel, 0, "t", "t_s", "0u");
        step.kernel.declare(format!("fn at_tail(i: u32) -> u32 {{ {body} }}"));
        let layouts: SmallVec<[&Layout; 4]> = others.iter().map(|x| &x.layout).collect();
        let axes = Axes::of(&layouts);
        axes.size_params(&mut step.kernel, "e");
        let first = taken.0 + 1;
        for (index, operand) in others.iter().enumerate() {
            self.load(step, operand, &axes, first + index, "e", index)?;
        }
        elementwise::constants(step, fused, taken.1)?;
        let body = elementwise::body(step, fused, (first, taken.1))?;
        let outputs = elementwise::outputs(self, step, group, 0)?;
        self.guard(step);
        let allowed = if self.guarded { "    if !allowed() { return; }\n" } else { "" };
        let stores = elementwise::stores(fused, &outputs);
        if dtype == DType::F16 {
            step.kernel.import("math");
        }
        let ty = wgsl(dtype)?;
        let result = if dtype == DType::F16 { "round_f16(v)" } else { "v" };
        let text =
            format!("{allowed}    let i = at_tail(at);\n    let i0 = {result};\n{body}{stores}");
        step.kernel.declare(format!("fn store(at: u32, v: {ty}) {{\n{text}}}"));
        Ok(())
    }
}

/// For elements in the order of a result, their places in the order of the shape that sees it through
/// `layout`.
fn places_of(layout: &Layout) -> Axes {
    let own = Layout::packed(layout.shape().clone());
    let mut axes: SmallVec<[(isize, usize, isize); 6]> = layout
        .strides()
        .iter()
        .zip(layout.shape().dims())
        .zip(own.strides())
        .map(|((&from, &dim), &to)| (from, dim, to))
        .filter(|&(_, dim, _)| dim != 1)
        .collect();
    axes.sort_unstable_by_key(|&(from, ..)| std::cmp::Reverse(from));
    let dims: SmallVec<[usize; 6]> = axes.iter().map(|&(_, dim, _)| dim).collect();
    let strides: SmallVec<[isize; 6]> = axes.iter().map(|&(.., to)| to).collect();
    Axes::merge(&dims, &[&strides])
}
