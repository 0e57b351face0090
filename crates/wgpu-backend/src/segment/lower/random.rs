//! Random elements.

use convoke_compiler::Group;
use convoke_graph_core::{DType, Distribution, Random};
use convoke_shaders::Access;

use super::{Lowering, WG};
use crate::segment::step::{Step, StepBuilder, as_stored, stored};

/// One output element per counter.
pub(super) fn lower(
    lowering: &Lowering<'_>,
    group: &Group,
    random: Random,
) -> Result<Vec<Step>, String> {
    let ([draws], [output]) = (group.inputs.as_slice(), group.outputs.as_slice()) else {
        return Err("random has one input and one output".to_owned());
    };
    let (from, to) = (lowering.dtype(draws.value), lowering.dtype(*output));
    if from != DType::U32 || !matches!(to, DType::F32 | DType::F16) {
        return Err(format!("unsupported: random {to} from a count of {from} on a GPU"));
    }
    let sample = match random.distribution {
        Distribution::Uniform => "uniform_of(words(i, 0u).x)",
        Distribution::Normal => "normal_of(words(i, 0u))",
        Distribution::TruncatedNormal => "truncated_normal(i)",
        other => return Err(format!("unsupported: random {other:?} on a GPU")),
    };
    let mut step = StepBuilder::new("random");
    let x = step.bind(lowering.place(draws.value), "u32", Access::Read);
    let y = step.bind(lowering.target(*output), stored(to)?, Access::ReadWrite);
    let kernel = &mut step.kernel;
    let len = lowering.program.value(*output).shape.len();
    kernel.size("items", len as u32).size("x", draws.layout.offset() as u32);
    kernel.size("key_low", random.key as u32).size("key_high", (random.key >> 32) as u32);
    kernel.declare(format!("fn draws() -> u32 {{ return b{x}[p.x]; }}"));
    kernel.declare(format!("fn sample(i: u32) -> f32 {{ return {sample}; }}"));
    let v = as_stored(to, "v");
    kernel.declare(format!("fn store(i: u32, v: f32) {{ b{y}[i] = {v}; }}"));
    Ok(vec![step.finish((len as u64).div_ceil(WG), &lowering.info.limits)?])
}
