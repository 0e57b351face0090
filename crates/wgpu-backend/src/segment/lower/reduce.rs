//! Reductions: one or more stages, each with a workgroup or an invocation per result.

use convoke_compiler::{Group, Reduction, Rows};
use convoke_graph_core::{DType, ReduceKind};
use convoke_shaders::{Access, ParamValue};

use super::{Lowering, WG, element, rows};
use crate::gpu::AdapterInfo;
use crate::segment::address::Axes;
use crate::segment::step::{MAX_LEN, MAX_TURNS, Place, Step, StepBuilder, stored, wgsl};

/// Invocations of a workgroup of `reduce_lanes`.
const LANES: u64 = 64;
/// Results of workgroups that keep a GPU busy.
const BUSY_GROUPS: u64 = 512;
/// Results of invocations that keep a GPU busy.
const BUSY_LANES: u64 = 16_384;

/// The steps of a reduction.
pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    group: &Group,
    reduction: Reduction,
) -> Result<Vec<Step>, String> {
    let ([operand], [output]) = (group.inputs.as_slice(), group.outputs.as_slice()) else {
        return Err("a reduction has one input and one output".to_owned());
    };
    let (dims, strides) = (operand.layout.shape().dims(), operand.layout.strides());
    if reduction.n_outer > dims.len() {
        return Err(format!("{} axes of {} stay", reduction.n_outer, operand.layout.shape()));
    }
    let (outer, inner) = dims.split_at(reduction.n_outer);
    let (outer_strides, inner_strides) = strides.split_at(reduction.n_outer);
    let dtype = lowering.dtype(operand.value);
    let elements = Elements::Stored {
        place: lowering.place(operand.value),
        offset: operand.layout.offset(),
        axes: Box::new([
            Axes::merge(outer, &[outer_strides]),
            Axes::merge(inner, &[inner_strides]),
        ]),
    };
    let input = Input {
        elements,
        dtype,
        n_rows: outer.iter().product::<usize>() as u64,
        n_inner: inner.iter().product::<usize>() as u64,
    };
    let kind = reduction.kind;
    let target = lowering.target(*output);
    if dtype == DType::Bool {
        // Words of 0 and 1, packed afterwards.
        let words = lowering.new_scratch(input.n_rows * 4)?;
        let n_rows = input.n_rows;
        let mut steps = stages(lowering, input, kind, words, DType::U32)?;
        steps.push(pack(lowering, words, target, n_rows)?);
        return Ok(steps);
    }
    stages(lowering, input, kind, target, lowering.dtype(*output))
}

/// The dtype that elements are gathered in, and that parts are kept in.
pub(super) fn accumulator(dtype: DType) -> DType {
    match dtype {
        DType::Bool => DType::U32,
        DType::F16 => DType::F32,
        dtype => dtype,
    }
}

/// What a stage reads.
pub(super) struct Input<'a> {
    pub elements: Elements<'a>,
    pub dtype: DType,
    pub n_rows: u64,
    pub n_inner: u64,
}

/// Where elements come from.
pub(super) enum Elements<'a> {
    /// They lie in a buffer, along the axes of rows, then those inside of a row.
    Stored { place: Place, offset: usize, axes: Box<[Axes; 2]> },
    /// They are what a group's only fold is of.
    Computed(&'a Group, &'a Rows),
}

/// How a stage goes about it.
struct Shape {
    /// A workgroup per result, or an invocation.
    by_group: bool,
    /// A workgroup is a subgroup of so many invocations.
    subgroup: Option<u32>,
    chunks: u64,
    chunk: u64,
}

/// Stages that reduce `input` to elements of `dtype` at `target`, the parts between them in scratch memory.
pub(super) fn stages(
    lowering: &mut Lowering<'_>,
    mut input: Input<'_>,
    kind: ReduceKind,
    target: Place,
    dtype: DType,
) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let count = input.n_inner;
    loop {
        let shape = shape(lowering.info, &input, kind)?;
        let acc = accumulator(input.dtype);
        if shape.chunks == 1 {
            steps.push(stage(lowering, &input, kind, &shape, (target, dtype), Some(count))?);
            return Ok(steps);
        }
        let parts = lowering.new_scratch(input.n_rows * shape.chunks * 4)?;
        steps.push(stage(lowering, &input, kind, &shape, (parts, acc), None)?);
        let (n_rows, chunks) = (input.n_rows, shape.chunks);
        let elements = Elements::Stored {
            place: parts,
            offset: 0,
            axes: Box::new([
                Axes::merge(&[n_rows as usize], &[&[chunks as isize]]),
                Axes::merge(&[chunks as usize], &[&[1]]),
            ]),
        };
        input = Input { elements, dtype: acc, n_rows, n_inner: chunks };
    }
}

/// Neighbouring lanes read neighbouring elements; there are enough results to keep the device busy, and no
/// invocation turns too often.
fn shape(info: &AdapterInfo, input: &Input<'_>, kind: ReduceKind) -> Result<Shape, String> {
    let (rows, inner) = (input.n_rows, input.n_inner);
    let last = |axes: &Axes| axes.strides[0].last().map_or(0, |stride| stride.unsigned_abs());
    let columns = match &input.elements {
        Elements::Stored { axes, .. } => last(&axes[1]) != 1 && last(&axes[0]) == 1 && rows >= 16,
        Elements::Computed(_, work) => work.seen.is_some() && rows >= 16,
    };
    let by_group = inner > 32 && !columns;
    if matches!(kind, ReduceKind::ArgMax | ReduceKind::ArgMin) {
        // The places would have to come along, so these have one stage.
        let turns = if by_group { inner.div_ceil(WG) } else { inner };
        if turns <= MAX_TURNS {
            let chunk = inner.max(1);
            return Ok(Shape { by_group, subgroup: None, chunks: 1, chunk });
        }
        if inner.div_ceil(WG) > MAX_TURNS {
            return Err(format!("unsupported: {kind:?} of {inner} elements on a GPU"));
        }
        return Ok(Shape { by_group: true, subgroup: None, chunks: 1, chunk: inner });
    }
    let (busy, least) = if by_group { (BUSY_GROUPS, 4096) } else { (BUSY_LANES, 128) };
    let subgroup = info.lone_subgroup_size().filter(|_| by_group);
    let most = match subgroup {
        Some(size) => MAX_TURNS * u64::from(size),
        None if by_group => MAX_TURNS * WG,
        None => MAX_TURNS,
    };
    // A second stage costs more than what a few workgroups lose by long rows.
    let is_one = by_group && rows >= 16 && inner <= 32_768;
    let wanted = if is_one { 1 } else { busy / rows.max(1) };
    let wanted = wanted.clamp(1, inner.div_ceil(least).max(1));
    let chunk = inner.div_ceil(wanted).clamp(1, most);
    let chunks = inner.div_ceil(chunk).max(1);
    if rows * chunks >= MAX_LEN {
        return Err(format!("unsupported: {rows} times {chunks} parts of a reduction"));
    }
    Ok(Shape { by_group, subgroup, chunks, chunk })
}

/// One dispatch. The last stage knows how many elements there were.
fn stage(
    lowering: &Lowering<'_>,
    input: &Input<'_>,
    kind: ReduceKind,
    shape: &Shape,
    (target, dtype): (Place, DType),
    last: Option<u64>,
) -> Result<Step, String> {
    let mut step = StepBuilder::new(match shape {
        Shape { subgroup: Some(_), .. } => "reduce_subgroups",
        Shape { by_group: true, .. } => "reduce",
        _ => "reduce_lanes",
    });
    let results = input.n_rows * shape.chunks;
    for (name, size) in [
        ("results", results),
        ("inner", input.n_inner),
        ("chunk", shape.chunk),
        ("chunks", shape.chunks),
    ] {
        step.kernel.size(name, size as u32);
    }
    read(lowering, &mut step, input)?;
    accumulate(&mut step, input, kind)?;
    let is_arg = matches!(kind, ReduceKind::ArgMax | ReduceKind::ArgMin);
    let result = match (kind, last) {
        (ReduceKind::Mean, Some(count)) => {
            step.kernel.param("count", ParamValue::F32(count as f32));
            "acc / p.count"
        }
        _ if is_arg => "i32(acc.at)",
        _ => "acc",
    };
    lowering.declare_store(&mut step, target, dtype)?;
    step.kernel.declare(format!("fn finish(w: u32, acc: Acc) {{ store(w, {result}); }}"));
    let n_groups = if shape.by_group { results } else { results.div_ceil(LANES) };
    if let Some(size) = shape.subgroup {
        let together = rows::fold_of_subgroup(kind);
        step.kernel.declare(format!("const WG = {size}u;"));
        step.kernel.declare(format!("fn together(acc: Acc) -> Acc {{ return {together}(acc); }}"));
    } else if shape.by_group && input.n_inner <= 512 {
        step.kernel.declare("const WG = 64u;");
    }
    step.finish(n_groups, &lowering.info.limits)
}

/// Declares `row_start`, and `element_at(start, j)`.
fn read(lowering: &Lowering<'_>, step: &mut StepBuilder, input: &Input<'_>) -> Result<(), String> {
    let ty = wgsl(input.dtype)?;
    let (place, offset, [rows, inner]) = match &input.elements {
        Elements::Stored { place, offset, axes } => (*place, *offset, &**axes),
        Elements::Computed(group, work) => {
            step.kernel.declare("fn row_start(i: u32) -> u32 { return i * p.inner; }");
            let element = rows::element(lowering, step, group, work)?;
            let text = format!("    let i = start + j;\n{element}");
            step.kernel.declare(format!("fn element_at(start: u32, j: u32) -> {ty} {{\n{text}}}"));
            return Ok(());
        }
    };
    let x = step.bind(place, stored(input.dtype)?, Access::Read);
    let kernel = &mut step.kernel;
    kernel.size("x", offset as u32);
    rows.size_params(kernel, "r");
    let body = rows.address(kernel, 0, "r", "r_s", "p.x");
    kernel.declare(format!("fn row_start(i: u32) -> u32 {{ {body} }}"));
    inner.size_params(kernel, "j");
    let body = inner.address(kernel, 0, "j", "j_s", "start");
    kernel.declare(format!("fn at_0(start: u32, i: u32) -> u32 {{ {body} }}"));
    let element = element(input.dtype, x, "at_0(start, j)");
    kernel.declare(format!("fn element_at(start: u32, j: u32) -> {ty} {{ {element} }}"));
    Ok(())
}

/// Declares the accumulator: its type, its start, how an element becomes one, how two become one.
fn accumulate(step: &mut StepBuilder, input: &Input<'_>, kind: ReduceKind) -> Result<(), String> {
    let dtype = accumulator(input.dtype);
    let ty = wgsl(dtype)?;
    let kernel = &mut step.kernel;
    kernel.param("identity", identity(kind, dtype)?);
    if let ReduceKind::ArgMax | ReduceKind::ArgMin = kind {
        let better = if kind == ReduceKind::ArgMax { ">" } else { "<" };
        kernel.declare(format!("struct Acc {{ value: {ty}, at: u32 }}"));
        kernel.declare("fn identity() -> Acc { return Acc(p.identity, 0xffffffffu); }");
        kernel
            .declare("fn load(start: u32, j: u32) -> Acc { return Acc(element_at(start, j), j); }");
        kernel.declare(format!(
            "fn combine(a: Acc, b: Acc) -> Acc {{\n    \
             if b.value {better} a.value || (b.value == a.value && b.at < a.at) {{ return b; }}\n    \
             return a;\n}}"
        ));
        return Ok(());
    }
    let combined = combined(kind);
    let read = if input.dtype == DType::Bool {
        "u32(element_at(start, j))"
    } else {
        "element_at(start, j)"
    };
    kernel.declare(format!("alias Acc = {ty};"));
    kernel.declare("fn identity() -> Acc { return p.identity; }");
    kernel.declare(format!("fn load(start: u32, j: u32) -> Acc {{ return {read}; }}"));
    kernel.declare(format!("fn combine(a: Acc, b: Acc) -> Acc {{ return {combined}; }}"));
    Ok(())
}

/// `a` and `b` together.
pub(super) fn combined(kind: ReduceKind) -> &'static str {
    match kind {
        ReduceKind::Sum | ReduceKind::Mean => "a + b",
        ReduceKind::Prod => "a * b",
        ReduceKind::Max | ReduceKind::Any => "max(a, b)",
        _ => "min(a, b)",
    }
}

/// What nothing reduces to.
pub(super) fn identity(kind: ReduceKind, dtype: DType) -> Result<ParamValue, String> {
    let least = matches!(kind, ReduceKind::Max | ReduceKind::ArgMax | ReduceKind::Any);
    let greatest = matches!(kind, ReduceKind::Min | ReduceKind::ArgMin);
    let one = matches!(kind, ReduceKind::Prod | ReduceKind::All);
    let choose = |zero, unit, low, high| match () {
        () if least => low,
        () if greatest => high,
        () if one => unit,
        () => zero,
    };
    use ParamValue::{F32, I32, U32};
    Ok(match dtype {
        DType::F32 => choose(F32(0.0), F32(1.0), F32(f32::NEG_INFINITY), F32(f32::INFINITY)),
        DType::I32 => choose(I32(0), I32(1), I32(i32::MIN), I32(i32::MAX)),
        DType::U32 => choose(U32(0), U32(1), U32(0), U32(u32::MAX)),
        _ => return Err(format!("unsupported: {kind:?} of {dtype} on a GPU")),
    })
}

/// Words of 0 and 1 become bools.
fn pack(lowering: &Lowering<'_>, words: Place, target: Place, len: u64) -> Result<Step, String> {
    let mut step = StepBuilder::new("elementwise");
    let x = step.bind(words, "u32", Access::Read);
    let y = step.bind(target, "u32", Access::ReadWrite);
    let items = len.div_ceil(4);
    step.kernel.size("items", items as u32).size("len", len as u32).import("emit_bool");
    step.kernel.declare(format!("fn value(i: u32) -> bool {{ return b{x}[i] != 0u; }}"));
    step.kernel.declare(format!("fn store_word(i: u32, word: u32) {{ b{y}[i] = word; }}"));
    step.kernel.declare("fn compute(item: u32) { emit(item); }");
    step.finish(items.div_ceil(WG), &lowering.info.limits)
}

/// The sum over the first axis of `[parts, len]`.
pub(super) fn sum_parts(
    lowering: &mut Lowering<'_>,
    parts: Place,
    dtype: DType,
    n_parts: u64,
    len: u64,
    target: Place,
) -> Result<Vec<Step>, String> {
    let elements = Elements::Stored {
        place: parts,
        offset: 0,
        axes: Box::new([
            Axes::merge(&[len as usize], &[&[1]]),
            Axes::merge(&[n_parts as usize], &[&[len as isize]]),
        ]),
    };
    let input = Input { elements, dtype: accumulator(dtype), n_rows: len, n_inner: n_parts };
    stages(lowering, input, ReduceKind::Sum, target, dtype)
}
