//! A user's own kernel: its text, with loads and stores declared for its inputs and outputs.

use convoke_compiler::Group;
use convoke_graph_core::{CustomKernel, DType, WgslParam};
use convoke_shaders::{Access, ParamValue, Source};

use wgpu::naga::front::wgsl;
use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};

use super::Lowering;
use crate::segment::step::{Step, StepBuilder, as_stored, stored, wgsl};

/// One step; the text is checked here, so that placement knows what is wrong with it.
pub(super) fn lower(
    lowering: &Lowering<'_>,
    group: &Group,
    kernel: &dyn CustomKernel,
) -> Result<Vec<Step>, String> {
    let shapes = group.shapes(&lowering.program.values);
    let shader = kernel.wgsl(&shapes).ok_or("unsupported: no WGSL for these shapes")?;
    let mut step = StepBuilder::custom(Source { name: shader.name, text: shader.text });
    for (k, input) in group.inputs.iter().enumerate() {
        lowering.load_alone(&mut step, input, k)?;
        step.kernel.size(format!("x{k}_len"), input.layout.shape().len() as u32);
    }
    for (k, &output) in group.outputs.iter().enumerate() {
        let dtype = lowering.dtype(output);
        if dtype == DType::Bool {
            return Err("unsupported: a custom kernel's output of bool on a GPU".to_owned());
        }
        let y = step.bind(lowering.target(output), stored(dtype)?, Access::ReadWrite);
        let (ty, value) = (wgsl(dtype)?, as_stored(dtype, "value"));
        let store = format!("fn store_{k}(i: u32, value: {ty}) {{ b{y}[i] = {value}; }}");
        let len = lowering.program.value(output).shape.len();
        step.kernel.declare(store).size(format!("y{k}_len"), len as u32);
    }
    for (name, param) in shader.params {
        let value = match param {
            WgslParam::U32(x) => ParamValue::U32(x),
            WgslParam::I32(x) => ParamValue::I32(x),
            WgslParam::F32(x) => ParamValue::F32(x),
        };
        step.kernel.param(name, value);
    }
    check(&step.kernel.assemble(), shader.name)?;
    Ok(vec![step.finish(shader.workgroups, &lowering.info.limits)?])
}

/// What the WGSL compiler has to say against a shader.
fn check(text: &str, name: &str) -> Result<(), String> {
    let module = wgsl::parse_str(text).map_err(|e| e.emit_to_string_with_path(text, name))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let valid = validator.validate(&module);
    valid.map(|_| ()).map_err(|e| e.emit_to_string_with_path(text, name))
}
