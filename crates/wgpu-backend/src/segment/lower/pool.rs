//! Pooling and its gradients: an invocation for each output, or for each input of a gradient.
//!
//! The gradient of the maximum has two steps: where the first greatest element under each window is, and
//! for each element the sum over the windows that it is greatest of. So no window is searched twice. Where
//! windows are small and apart, an element searches its only window itself, in one step.

use convoke_compiler::{Group, Operand, PoolKind};
use convoke_graph_core::{DType, ImageLayout, PoolGeometry};
use convoke_shaders::{Access, Kernel, ParamValue};

use super::Lowering;
use crate::segment::step::{MAX_LEN, MAX_TURNS, Place, Step, StepBuilder, loaded, stored};

/// Invocations of a workgroup.
const LANES: u64 = 64;

/// What is known of the greatest element so far; the first NaN is greatest.
const GREATEST: &str = "struct Acc { value: f32, at: u32 }";
const TAKE_GREATEST: &str = "\
fn take(acc: Acc, at: u32) -> Acc {
    let x = element(at);
    let above = x > acc.value || (is_nan_f32(x) && !is_nan_f32(acc.value));
    if acc.at == NOWHERE || above { return Acc(x, at); }
    return acc;
}";

/// The steps of pooling or a gradient of it.
pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    group: &Group,
    kind: PoolKind,
    g: &PoolGeometry,
) -> Result<Vec<Step>, String> {
    let (images, pooled) = (g.input_dims(), g.output_dims());
    let (inputs, dims) = match kind {
        PoolKind::Max | PoolKind::Avg => (vec![images], pooled),
        PoolKind::MaxAt => (vec![images, images], pooled),
        PoolKind::MaxGrad => (vec![images, pooled], images),
        PoolKind::AvgGrad => (vec![pooled], images),
        other => return Err(format!("unsupported: pooling of the kind {other:?} on a GPU")),
    };
    let dtype = lowering.float(group);
    let output = lowering.check_packed(group, &inputs, dims, dtype)?;
    check(group, kind, g)?;
    let target = (lowering.target(output), dtype);
    let place = |operand: &Operand| (lowering.place(operand.value), dtype);
    let from: Vec<Typed> = group.inputs.iter().map(place).collect();
    Ok(match (kind, from.as_slice()) {
        (PoolKind::Avg, &[x]) => vec![mean(lowering, g, x, target)?],
        (PoolKind::Max, &[x]) => vec![greatest(lowering, g, x, Found::Value, target)?],
        (PoolKind::MaxAt, &[x, other]) => {
            vec![greatest(lowering, g, x, Found::Of(other), target)?]
        }
        (PoolKind::MaxGrad, &[x, dy]) if searches_itself(g) => {
            vec![gradient(lowering, g, dy, Share::Searched(x), target)?]
        }
        (PoolKind::MaxGrad, &[x, dy]) => {
            let places = (lowering.new_scratch(len(g, g.out_size) * 4)?, DType::U32);
            vec![
                greatest(lowering, g, x, Found::Place, places)?,
                gradient(lowering, g, dy, Share::At(places.0), target)?,
            ]
        }
        (PoolKind::AvgGrad, &[dy]) => vec![gradient(lowering, g, dy, Share::Equal, target)?],
        _ => return Err(format!("{} of {} operands", group.kernel, from.len())),
    })
}

/// Whether no element lies under two windows, and few lie under one.
fn searches_itself(g: &PoolGeometry) -> bool {
    let apart = g.window.iter().zip(&g.stride).all(|(window, stride)| window <= stride);
    apart && g.window[0].saturating_mul(g.window[1]) <= 16
}

/// A place and the dtype of its elements.
type Typed = (Place, DType);

/// Elements of images of this size.
fn len(g: &PoolGeometry, [rows, columns]: [usize; 2]) -> u64 {
    (g.batch * g.channels * rows * columns) as u64
}

/// Refuses what would turn an invocation's loops too often, and numbers that could leave 32 bits.
fn check(group: &Group, kind: PoolKind, g: &PoolGeometry) -> Result<(), String> {
    let kernel = &group.kernel;
    let searched = kind != PoolKind::AvgGrad;
    let gathered = matches!(kind, PoolKind::MaxGrad | PoolKind::AvgGrad);
    let [mut under, mut over] = [[0; 2]; 2];
    for axis in 0..2 {
        let reach = g.out_size[axis].checked_mul(g.stride[axis]);
        let reach = reach.and_then(|n| n.checked_add(g.window[axis]));
        let padded = g.in_size[axis].checked_add(g.pad_before[axis]);
        let most = reach.and_then(|n| n.checked_add(padded?)).map_or(u64::MAX, |n| n as u64);
        if most >= MAX_LEN {
            return Err(format!("unsupported: {kernel} on a GPU: more than {MAX_LEN} places"));
        }
        under[axis] = g.window[axis].min(g.in_size[axis]) as u64;
        over[axis] = g.window[axis].div_ceil(g.stride[axis]).min(g.out_size[axis]) as u64;
    }
    let turns = |[rows, columns]: [u64; 2]| rows.saturating_mul(columns + 1);
    for (wanted, turns, what) in [
        (searched, turns(under), "elements under a window"),
        (gathered, turns(over), "windows over an element"),
    ] {
        if wanted && turns > MAX_TURNS {
            return Err(format!("unsupported: {kernel} on a GPU: {turns} {what}"));
        }
    }
    Ok(())
}

/// Adds the params of `lib/cover.wgsl`.
fn geometry(kernel: &mut Kernel, g: &PoolGeometry) {
    for (name, [rows, columns]) in [
        ("in", g.in_size),
        ("out", g.out_size),
        ("window", g.window),
        ("stride", g.stride),
        ("pad", g.pad_before),
    ] {
        kernel.size(format!("{name}_h"), rows as u32).size(format!("{name}_w"), columns as u32);
    }
    let lanes = if g.layout == ImageLayout::Nchw { 1 } else { g.channels };
    kernel.size("lanes", lanes as u32);
}

/// A step of `pool.wgsl` that reads `x` with `element`.
fn pool(g: &PoolGeometry, (x, dtype): Typed) -> Result<StepBuilder, String> {
    let mut step = StepBuilder::new("pool");
    geometry(&mut step.kernel, g);
    step.kernel.size("items", len(g, g.out_size) as u32);
    let x = step.bind(x, stored(dtype)?, Access::Read);
    let element = loaded(dtype, &format!("b{x}[i]"));
    step.kernel.declare(format!("fn element(i: u32) -> f32 {{ return {element}; }}"));
    Ok(step)
}

fn mean(
    lowering: &Lowering<'_>,
    g: &PoolGeometry,
    x: Typed,
    (target, dtype): Typed,
) -> Result<Step, String> {
    let mut step = pool(g, x)?;
    lowering.declare_store(&mut step, target, dtype)?;
    for line in [
        "alias Acc = f32;",
        "fn nothing() -> Acc { return 0.0; }",
        "fn take(acc: Acc, at: u32) -> Acc { return acc + element(at); }",
    ] {
        step.kernel.declare(line);
    }
    step.kernel
        .declare("fn finish(item: u32, acc: Acc, count: u32) { store(item, acc / f32(count)); }");
    step.finish(len(g, g.out_size).div_ceil(LANES), &lowering.info.limits)
}

/// What is stored of the first greatest element under a window.
#[derive(Debug, Clone, Copy)]
enum Found {
    /// The element; of nothing, -inf.
    Value,
    /// The element of another tensor at its place; of nothing, 0.
    Of(Typed),
    /// Its place.
    Place,
}

fn greatest(
    lowering: &Lowering<'_>,
    g: &PoolGeometry,
    x: Typed,
    found: Found,
    (target, dtype): Typed,
) -> Result<Step, String> {
    let mut step = pool(g, x)?;
    let result = match found {
        Found::Value => "acc.value".to_owned(),
        Found::Place => "acc.at".to_owned(),
        Found::Of((other, dtype)) => {
            let other = step.bind(other, stored(dtype)?, Access::Read);
            let element = loaded(dtype, &format!("b{other}[at]"));
            step.kernel.declare(format!(
                "fn found(at: u32) -> f32 {{ if at == NOWHERE {{ return 0.0; }} return {element}; }}"
            ));
            "found(acc.at)".to_owned()
        }
    };
    lowering.declare_store(&mut step, target, dtype)?;
    declare_greatest(&mut step.kernel);
    step.kernel.declare(format!(
        "fn finish(item: u32, acc: Acc, count: u32) {{ store(item, {result}); }}"
    ));
    step.finish(len(g, g.out_size).div_ceil(LANES), &lowering.info.limits)
}

/// Declares how the first greatest element is found.
fn declare_greatest(kernel: &mut Kernel) {
    kernel.import("math").param("least", ParamValue::F32(f32::NEG_INFINITY));
    for line in [
        "const NOWHERE = 0xffffffffu;",
        GREATEST,
        "fn nothing() -> Acc { return Acc(p.least, NOWHERE); }",
        TAKE_GREATEST,
    ] {
        kernel.declare(line);
    }
}

/// What of a window's `dy` an element gets.
enum Share {
    /// As much as each other element.
    Equal,
    /// All of it if it is the element at the place that was found.
    At(Place),
    /// All of it if it is the greatest of these.
    Searched(Typed),
}

/// Looks for the greatest element of a window.
const SEARCH: &str = "\
fn greatest_at(place: vec4<u32>, i: u32, j: u32) -> u32 {
    let rows = cover_rows(i);
    let columns = cover_columns(j);
    var acc = nothing();
    for (var y = rows.x; y < rows.y; y++) {
        for (var x = columns.x; x < columns.y; x++) { acc = take(acc, at_in(place, y, x)); }
    }
    return acc.at;
}";

/// The sum over windows of what they give.
fn gradient(
    lowering: &Lowering<'_>,
    g: &PoolGeometry,
    (dy, dtype): Typed,
    share: Share,
    (target, _): Typed,
) -> Result<Step, String> {
    let mut step = StepBuilder::new("pool_grad");
    geometry(&mut step.kernel, g);
    let n = len(g, g.in_size);
    step.kernel.size("items", n as u32).declare("alias T = f32;");
    let dy = step.bind(dy, stored(dtype)?, Access::Read);
    let element = loaded(dtype, &format!("b{dy}[at_out(place, i, j)]"));
    let share = match share {
        Share::Equal => format!("return {element} / f32(count);"),
        Share::At(places) => {
            let places = step.bind(places, "u32", Access::Read);
            format!("if b{places}[at_out(place, i, j)] == item {{ return {element}; }} return 0.0;")
        }
        Share::Searched((x, dtype)) => {
            let x = step.bind(x, stored(dtype)?, Access::Read);
            let own = loaded(dtype, &format!("b{x}[i]"));
            step.kernel.declare(format!("fn element(i: u32) -> f32 {{ return {own}; }}"));
            declare_greatest(&mut step.kernel);
            step.kernel.declare(SEARCH);
            format!("if greatest_at(place, i, j) == item {{ return {element}; }} return 0.0;")
        }
    };
    lowering.declare_store(&mut step, target, dtype)?;
    let params = "item: u32, place: vec4<u32>, i: u32, j: u32, count: u32";
    step.kernel.declare(format!("fn share({params}) -> T {{ {share} }}"));
    step.finish(n.div_ceil(LANES), &lowering.info.limits)
}
