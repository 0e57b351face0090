//! Where kernels store their results, and the elementwise work that a tail does there instead.

use convoke_compiler::{Group, Kernel};
use convoke_graph_core::{DType, Layout};
use convoke_shaders::Access;
use smallvec::SmallVec;

use super::{Lowering, elementwise};
use crate::segment::address::Axes;
use crate::segment::step::{Place, StepBuilder, as_stored, stored, wgsl};

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
            && tail.inputs.first().is_some_and(|result| target == Place::Value(result.value))
        {
            return self.declare_tail(step, tail, dtype);
        }
        let y = step.bind(target, stored(dtype)?, Access::ReadWrite);
        let (ty, v) = (wgsl(dtype)?, as_stored(dtype, "v"));
        step.kernel.declare(format!("fn store(i: u32, v: {ty}) {{ b{y}[i] = {v}; }}"));
        Ok(())
    }

    fn declare_tail(
        &self,
        step: &mut StepBuilder,
        tail: &Group,
        dtype: DType,
    ) -> Result<(), String> {
        let Kernel::Elementwise(fused) = &tail.kernel else {
            return Err(format!("a tail is elementwise, not {}", tail.kernel));
        };
        let others = &tail.inputs[1..];
        let layouts: SmallVec<[&Layout; 4]> = others.iter().map(|x| &x.layout).collect();
        let axes = Axes::of(&layouts);
        axes.size_params(&mut step.kernel, "d");
        for (index, operand) in others.iter().enumerate() {
            self.load(step, operand, &axes, index + 1, "d", index)?;
        }
        elementwise::constants(step, fused)?;
        let body = elementwise::body(step, fused, 1)?;
        let outputs = elementwise::outputs(self, step, tail)?;
        self.guard(step);
        let allowed = if self.guarded { "    if !allowed() { return; }\n" } else { "" };
        let stores = elementwise::stores(fused, &outputs);
        if dtype == DType::F16 {
            step.kernel.import("math");
        }
        let ty = wgsl(dtype)?;
        let result = if dtype == DType::F16 { "round_f16(v)" } else { "v" };
        let text = format!("{allowed}    let i0 = {result};\n{body}{stores}");
        step.kernel.declare(format!("fn store(i: u32, v: {ty}) {{\n{text}}}"));
        Ok(())
    }
}
