//! Matrix products: tiles, and where those are few, parts of the sum that are added afterwards.

use convoke_compiler::{Group, Operand};
use convoke_graph_core::DType;
use convoke_shaders::Access;

use super::{Lowering, element, reduce};
use crate::segment::address::Axes;
use crate::segment::step::{MAX_LEN, Step, StepBuilder, stored};

/// Tiles that keep a GPU busy.
const BUSY_TILES: u64 = 128;
/// Steps of k that are worth a workgroup of their own.
const LEAST_SPLIT: u64 = 256;
/// Steps of k in one workgroup, so that its loops turn less often than 60,000 times: at most 8 per 16 steps.
const MOST_SPLIT: u64 = 98_304;

struct Sizes {
    batches: u64,
    m: u64,
    n: u64,
    k: u64,
    side: u64,
    splits: u64,
    split: u64,
}

/// The steps of a matrix product.
pub(super) fn lower(lowering: &mut Lowering<'_>, group: &Group) -> Result<Vec<Step>, String> {
    let ([a, b], [output]) = (group.inputs.as_slice(), group.outputs.as_slice()) else {
        return Err("a matrix product has two inputs and one output".to_owned());
    };
    let dtype = lowering.dtype(*output);
    if dtype == DType::Bool {
        return Err("unsupported: matmul of bool".to_owned());
    }
    let sizes = sizes(a, b)?;
    let target = lowering.target(*output);
    let len = sizes.batches * sizes.m * sizes.n;
    if len * sizes.splits >= MAX_LEN {
        return Err(format!("unsupported: {} parts of {len} elements", sizes.splits));
    }
    let parts = match sizes.splits {
        1 => target,
        splits => lowering.new_scratch(splits * len * 4)?,
    };
    let mut step = StepBuilder::new("matmul");
    operands(lowering, &mut step, a, b, dtype)?;
    let y = step.bind(parts, stored(dtype)?, Access::ReadWrite);
    let tile = 4 * sizes.side;
    let (tiles_m, tiles_n) = (sizes.m.div_ceil(tile), sizes.n.div_ceil(tile));
    let Sizes { batches, m, n, k, splits, split, .. } = sizes;
    for (name, size) in [
        ("m", m),
        ("n", n),
        ("k", k),
        ("batches", batches),
        ("splits", splits),
        ("split", split),
        ("tiles_m", tiles_m),
        ("tiles_n", tiles_n),
    ] {
        step.kernel.size(name, size as u32);
    }
    step.kernel.declare(format!("const SIDE = {}u;", sizes.side));
    step.kernel.declare(format!("fn store(i: u32, v: T) {{ b{y}[i] = v; }}"));
    let n_tiles = tiles_m * tiles_n * batches * splits;
    let mut steps = vec![step.finish(n_tiles, &lowering.info.limits)?];
    if splits > 1 {
        steps.extend(reduce::sum_parts(lowering, parts, dtype, splits, len, target)?);
    }
    Ok(steps)
}

/// The sizes, the tile and the parts of k.
fn sizes(a: &Operand, b: &Operand) -> Result<Sizes, String> {
    let (da, db) = (a.layout.shape().dims(), b.layout.shape().dims());
    let ([lead_a @ .., m, k], [lead_b @ .., k2, n]) = (da, db) else {
        return Err("a matrix product needs matrices".to_owned());
    };
    if lead_a != lead_b || k != k2 {
        return Err(format!("matmul of {} and {}", a.layout.shape(), b.layout.shape()));
    }
    let batches = lead_a.iter().product::<usize>() as u64;
    let [m, n, k] = [m, n, k].map(|&size| size as u64);
    let tiles = |side: u64| m.div_ceil(4 * side) * n.div_ceil(4 * side) * batches;
    let side = if m >= 48 && n >= 48 && tiles(16) >= BUSY_TILES { 16 } else { 8 };
    let wanted = (BUSY_TILES / tiles(side).max(1)).clamp(1, (k / LEAST_SPLIT).max(1));
    let split = k.div_ceil(wanted).next_multiple_of(16).clamp(16, MOST_SPLIT);
    let splits = k.div_ceil(split).max(1);
    Ok(Sizes { batches, m, n, k, side, splits, split })
}

/// Declares what `matmul.wgsl` reads: where each matrix starts, and its elements.
fn operands(
    lowering: &Lowering<'_>,
    step: &mut StepBuilder,
    a: &Operand,
    b: &Operand,
    dtype: DType,
) -> Result<(), String> {
    let batch = a.layout.shape().rank() - 2;
    let leading = |x: &Operand| x.layout.strides()[..batch].to_vec();
    let axes = Axes::merge(&a.layout.shape().dims()[..batch], &[&leading(a), &leading(b)]);
    axes.size_params(&mut step.kernel, "z");
    for (index, (x, name)) in [(a, 'a'), (b, 'b')].into_iter().enumerate() {
        if lowering.dtype(x.value) != dtype {
            return Err("a matrix product has one dtype".to_owned());
        }
        let binding = step.bind(lowering.place(x.value), stored(dtype)?, Access::Read);
        let kernel = &mut step.kernel;
        kernel.size(format!("x{name}"), x.layout.offset() as u32);
        let start = axes.address(kernel, index, "z", &format!("x{name}_z"), &format!("p.x{name}"));
        kernel.declare(format!("fn {name}_start(i: u32) -> u32 {{ {start} }}"));
        let mut at = "start".to_owned();
        for (stride, index) in x.layout.strides()[batch..].iter().zip(["row", "column"]) {
            match stride {
                0 => {}
                1 => at.push_str(&format!(" + {index}")),
                &stride => {
                    kernel.size(format!("x{name}_{index}"), stride as u32);
                    at.push_str(&format!(" + {index} * p.x{name}_{index}"));
                }
            }
        }
        let element = element(dtype, binding, &at);
        kernel.declare(format!(
            "fn load_{name}(start: u32, row: u32, column: u32) -> T {{ {element} }}"
        ));
    }
    step.kernel.declare(format!("alias T = {};", stored(dtype)?));
    Ok(())
}
