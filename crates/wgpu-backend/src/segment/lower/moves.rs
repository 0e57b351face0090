//! Elements that go to other places: pad, concat, gather and its gradient.

use convoke_compiler::{Group, Operand, ValueId};
use convoke_graph_core::DType;
use convoke_shaders::Access;

use super::{Lowering, WG, as_packed};
use crate::segment::step::{MAX_TURNS, Step, StepBuilder, as_stored, stored, wgsl};

/// Declares how results are stored, of all the output or of a part, and gives how many items there are for `len` of
/// them.
fn emit(
    lowering: &Lowering<'_>,
    step: &mut StepBuilder,
    output: ValueId,
    len: usize,
    is_part: bool,
) -> Result<u64, String> {
    let dtype = lowering.dtype(output);
    let y = match is_part {
        true => step.bind_part(lowering.target(output), stored(dtype)?),
        false => step.bind(lowering.target(output), stored(dtype)?, Access::ReadWrite),
    };
    let kernel = &mut step.kernel;
    kernel.declare(format!("alias T = {};", wgsl(dtype)?));
    let items = if dtype == DType::Bool {
        kernel.declare(format!("fn store_word(i: u32, word: u32) {{ b{y}[i] = word; }}"));
        kernel.import("emit_bool").size("len", len as u32);
        len.div_ceil(4)
    } else {
        let v = as_stored(dtype, "v");
        kernel.declare(format!("fn store(i: u32, v: T) {{ b{y}[i] = {v}; }}"));
        kernel.import("emit");
        len
    };
    kernel.size("items", items as u32);
    Ok(items as u64)
}

/// The sizes before, along and after an axis.
fn around(dims: &[usize], axis: usize) -> Result<[usize; 3], String> {
    let along = dims.get(axis).ok_or_else(|| format!("axis {axis} of {dims:?}"))?;
    let product = |dims: &[usize]| dims.iter().product();
    Ok([product(&dims[..axis]), *along, product(&dims[axis + 1..])])
}

/// One output element per element of zeros or of the input.
pub(super) fn pad(
    lowering: &Lowering<'_>,
    group: &Group,
    before: &[usize],
) -> Result<Vec<Step>, String> {
    let ([input], [output]) = (group.inputs.as_slice(), group.outputs.as_slice()) else {
        return Err("pad has one input and one output".to_owned());
    };
    let shape = &lowering.program.value(*output).shape;
    let mut step = StepBuilder::new("pad");
    lowering.load_alone(&mut step, input, 0)?;
    let mut rank = 0;
    let mut body = "var at = 0u; var rest = i;".to_owned();
    let mut inside = String::new();
    // An axis without padding belongs to the one before it.
    let mut merged: Vec<[usize; 3]> = Vec::new();
    for ((&from, &to), &before) in input.layout.shape().dims().iter().zip(shape.dims()).zip(before)
    {
        match merged.last_mut() {
            Some(last) if from == to => last.iter_mut().for_each(|size| *size *= to),
            _ => merged.push([from, to, before]),
        }
    }
    for [from, to, before] in merged.iter().rev() {
        let kernel = &mut step.kernel;
        kernel.size(format!("from{rank}"), *from as u32).size(format!("to{rank}"), *to as u32);
        kernel.size(format!("before{rank}"), *before as u32);
        let k = rank;
        body.push_str(&format!(
            "\n    let c{k} = rest % p.to{k} - p.before{k}; rest /= p.to{k};\n    \
             if c{k} >= p.from{k} {{ return OUTSIDE; }}"
        ));
        inside = match k {
            0 => "c0".to_owned(),
            _ => format!("{inside} + scale{} * c{k}", k - 1),
        };
        let scale = if k == 0 { String::new() } else { format!("scale{} * ", k - 1) };
        body.push_str(&format!(" let scale{k} = {scale}p.from{k};"));
        rank += 1;
    }
    let inside = if inside.is_empty() { "0u" } else { &inside };
    step.kernel
        .declare(format!("fn source(i: u32) -> u32 {{\n    {body}\n    return {inside};\n}}"));
    let items = emit(lowering, &mut step, *output, shape.len(), false)?;
    Ok(vec![step.finish(items.div_ceil(WG), &lowering.info.limits)?])
}

/// As many inputs per step as there are buffers; none of those that are parts of the output already.
pub(super) fn concat(
    lowering: &Lowering<'_>,
    group: &Group,
    axis: usize,
) -> Result<Vec<Step>, String> {
    let [output] = group.outputs.as_slice() else {
        return Err("concat has one output".to_owned());
    };
    let most = lowering.info.limits.max_storage_buffers_per_shader_stage.clamp(2, 8) as usize - 1;
    let runs = runs(lowering, group, axis, most)?;
    // Copies come after the parts, so that the whole does not live before it has to.
    let has_parts = group.inputs.iter().any(|input| lowering.parts.get(input.value).is_some());
    if runs.len() > 1 && lowering.dtype(*output) == DType::Bool {
        let n = group.inputs.len();
        return Err(format!("unsupported: concat of {n} tensors of bool on a GPU, at most {most}"));
    }
    let mut steps = Vec::new();
    for (first, inputs) in runs {
        steps.push(concat_step(lowering, (*output, !has_parts), axis, first, &inputs)?);
    }
    Ok(steps)
}

/// Inputs that lie side by side in the output, at most `most` together, each with where they begin.
fn runs<'g>(
    lowering: &Lowering<'_>,
    group: &'g Group,
    axis: usize,
    most: usize,
) -> Result<Vec<(usize, Vec<&'g Operand>)>, String> {
    let mut runs: Vec<(usize, Vec<&Operand>)> = Vec::new();
    let (mut at, mut end) = (0, 0);
    for input in group.inputs.iter().filter(|input| !input.layout.shape().is_empty()) {
        let [_, own, _] = around(input.layout.shape().dims(), axis)?;
        let is_there = lowering.parts.get(input.value).is_some();
        if !is_there {
            match runs.last_mut() {
                Some((_, run)) if end == at && run.len() < most => run.push(input),
                _ => runs.push((at, vec![input])),
            }
            end = at + own;
        }
        at += own;
    }
    Ok(runs)
}

/// The step that copies inputs to where the first of them begins along the axis; whether it may come in any order
/// with other steps that store into the output.
fn concat_step(
    lowering: &Lowering<'_>,
    (output, in_any_order): (ValueId, bool),
    axis: usize,
    first: usize,
    inputs: &[&Operand],
) -> Result<Step, String> {
    let [outer, along, inner] = around(lowering.program.value(output).shape.dims(), axis)?;
    let mut step = StepBuilder::new("concat");
    let ty = wgsl(lowering.dtype(output))?;
    let mut body = String::new();
    let mut size = 0;
    for (k, input) in inputs.iter().enumerate() {
        lowering.load_alone(&mut step, input, k)?;
        let [_, own, _] = around(input.layout.shape().dims(), axis)?;
        step.kernel.size(format!("start{k}"), size as u32);
        step.kernel.size(format!("size{k}"), own as u32);
        let load = format!("return load_{k}((outer * p.size{k} + a - p.start{k}) * p.inner + j);");
        body.push_str(&if k + 1 < inputs.len() {
            format!("\n    if a < p.start{k} + p.size{k} {{ {load} }}")
        } else {
            format!("\n    {load}\n")
        });
        size += own;
    }
    step.kernel.declare(format!("fn pick(outer: u32, a: u32, j: u32) -> {ty} {{{body}}}"));
    for (name, size) in [("axis", along), ("inner", inner), ("first", first), ("part", size)] {
        step.kernel.size(name, size as u32);
    }
    let items = emit(lowering, &mut step, output, outer * size * inner, in_any_order)?;
    step.finish(items.div_ceil(WG), &lowering.info.limits)
}

/// The operands of a gather or a scatter: the indices and the slices.
fn indices(group: &Group, at: usize) -> Result<[&Operand; 2], String> {
    match group.inputs.as_slice() {
        [a, b] if at == 1 => Ok([b, a]),
        [a, b] => Ok([a, b]),
        _ => Err("gather and scatter_add have two inputs".to_owned()),
    }
}

/// Refuses indices that the device can't read, or that nobody would look at.
pub(super) fn check_indices(lowering: &Lowering<'_>, group: &Group) -> Result<(), String> {
    let at = usize::from(matches!(group.kernel, convoke_compiler::Kernel::Gather { .. }));
    let [indices, _] = indices(group, at)?;
    let dtype = lowering.dtype(indices.value);
    if !matches!(dtype, DType::I32 | DType::U32) {
        return Err(format!("unsupported: indices of {dtype} on a GPU; cast them to i32"));
    }
    let empty = |&id| lowering.program.value(id).shape.is_empty();
    if !indices.layout.shape().is_empty() && group.outputs.iter().all(empty) {
        return Err("unsupported: indices into an empty result are checked on the CPU".to_owned());
    }
    Ok(())
}

/// One output element per element of the slices.
pub(super) fn gather(
    lowering: &Lowering<'_>,
    group: &Group,
    axis: usize,
) -> Result<Vec<Step>, String> {
    let [output] = group.outputs.as_slice() else {
        return Err("gather has one output".to_owned());
    };
    let [indices, data] = indices(group, 1)?;
    let [_, along, inner] = around(data.layout.shape().dims(), axis)?;
    let mut step = StepBuilder::new("gather");
    lowering.load_alone(&mut step, data, 0)?;
    lowering.load_alone(&mut step, indices, 1)?;
    for (name, size) in [("axis", along), ("inner", inner), ("n", indices.layout.shape().len())] {
        step.kernel.size(name, size as u32);
    }
    lowering.report(&mut step);
    let items =
        emit(lowering, &mut step, *output, lowering.program.value(*output).shape.len(), false)?;
    Ok(vec![step.finish(items.div_ceil(WG), &lowering.info.limits)?])
}

/// Each output element looks for the slices that are its.
pub(super) fn scatter_add(
    lowering: &Lowering<'_>,
    group: &Group,
    axis: usize,
) -> Result<Vec<Step>, String> {
    let [output] = group.outputs.as_slice() else {
        return Err("scatter_add has one output".to_owned());
    };
    let [indices, updates] = indices(group, 0)?;
    let dtype = lowering.dtype(*output);
    if dtype == DType::Bool {
        return Err("unsupported: scatter_add of bool".to_owned());
    }
    let n = indices.layout.shape().len();
    if n as u64 > MAX_TURNS {
        return Err(format!("unsupported: {n} indices on a GPU, at most {MAX_TURNS}"));
    }
    let shape = &lowering.program.value(*output).shape;
    let [_, along, inner] = around(shape.dims(), axis)?;
    let mut step = StepBuilder::new("scatter_add");
    lowering.load_alone(&mut step, indices, 0)?;
    lowering.load_alone(&mut step, updates, 1)?;
    for (name, size) in [("axis", along), ("inner", inner), ("n", n), ("len", shape.len())] {
        step.kernel.size(name, size as u32);
    }
    lowering.report(&mut step);
    let packed = as_packed(lowering.program, *output);
    let y = step.bind(lowering.target(packed.value), stored(dtype)?, Access::ReadWrite);
    step.kernel.declare(format!("alias T = {};", wgsl(dtype)?));
    let v = as_stored(dtype, "v");
    step.kernel.declare(format!("fn store(i: u32, v: T) {{ b{y}[i] = {v}; }}"));
    let items = shape.len().max(n) as u64;
    Ok(vec![step.finish(items.div_ceil(WG), &lowering.info.limits)?])
}
