//! Fused elementwise work: one function `compute` per group, with a line per operation.

use convoke_compiler::{Arg, Check, Fused, Group, Instr, Kernel};
use convoke_graph_core::{DType, Elementwise, HostTensor, Layout, Row};
use convoke_shaders::ParamValue;
use half::f16;
use smallvec::SmallVec;

use super::{Lowering, Output, WG, head};
use crate::segment::address::Axes;
use crate::segment::step::{MAX_LEN, Step, StepBuilder, wgsl};

/// The one step of a fused group.
pub(super) fn lower(
    lowering: &Lowering<'_>,
    group: &Group,
    fused: &Fused,
) -> Result<Vec<Step>, String> {
    let mut step = StepBuilder::new("elementwise");
    let len = fused.shape.len();
    let has_bool = group.outputs.iter().any(|&id| lowering.dtype(id) == DType::Bool);
    let items = if has_bool { len.div_ceil(4) } else { len } as u64;
    step.kernel.size("items", items as u32);

    let (body, outputs) = declare_work(lowering, &mut step, group, fused, ((0, 0), 0, "d"))?;
    declare_check(lowering, &mut step, fused);
    if has_bool {
        step.kernel.size("len", len as u32);
        step.kernel.declare(compute_words(fused, &outputs, &body));
    } else {
        step.kernel.declare(compute("compute", fused, &outputs, &body));
    }
    lowering.guard(&mut step);
    Ok(vec![step.finish(items.div_ceil(WG), &lowering.info.limits)?])
}

/// One step for several groups, whose items lie one after the other: a workgroup has those of one group.
pub(super) fn lower_together(lowering: &Lowering<'_>, groups: &[Group]) -> Result<Step, String> {
    let mut step = StepBuilder::new("elementwise");
    let (mut taken, mut n_outputs, mut items) = ((0, 0), 0, 0);
    let mut choice = "fn compute(item: u32) {\n    var i = item;\n".to_owned();
    for (q, group) in groups.iter().enumerate() {
        let Kernel::Elementwise(fused) = &group.kernel else {
            return Err(format!("{} beside elementwise work", group.kernel));
        };
        let fused = head::numbered(fused, taken);
        let sizes = format!("d{q}_");
        let names = (taken, n_outputs, sizes.as_str());
        let (body, outputs) = declare_work(lowering, &mut step, group, &fused, names)?;
        step.kernel.declare(compute(&format!("compute_{q}"), &fused, &outputs, &body));
        let len = fused.shape.len() as u64;
        if q + 1 == groups.len() {
            choice.push_str(&format!("    compute_{q}(i);\n}}"));
            items += len;
        } else {
            let whole = len.next_multiple_of(WG);
            step.kernel.size(format!("n{q}"), len as u32).size(format!("w{q}"), whole as u32);
            choice.push_str(&format!(
                "    if i < p.w{q} {{\n        if i < p.n{q} {{ compute_{q}(i); }}\n        return;\n    }}\n    \
                 i -= p.w{q};\n"
            ));
            items += whole;
        }
        taken = (fused.input_dtypes.len(), fused.constants.len());
        n_outputs += outputs.len();
    }
    if items >= MAX_LEN {
        return Err(format!("unsupported: {items} elements in one kernel, at most {MAX_LEN}"));
    }
    step.kernel.size("items", items as u32);
    step.kernel.declare(choice);
    lowering.guard(&mut step);
    step.finish(items.div_ceil(WG), &lowering.info.limits)
}

/// Declares how a group's inputs are loaded, its constants and outputs, and gives the lines that compute. The inputs,
/// constants and outputs before its own, and what its sizes are called, are those of `names`.
fn declare_work(
    lowering: &Lowering<'_>,
    step: &mut StepBuilder,
    group: &Group,
    fused: &Fused,
    names: ((usize, usize), usize, &str),
) -> Result<(String, Outputs), String> {
    let (taken, n_outputs, sizes) = names;
    let layouts: SmallVec<[&Layout; 4]> = group.inputs.iter().map(|x| &x.layout).collect();
    let axes = Axes::of(&layouts);
    axes.size_params(&mut step.kernel, sizes);
    for (k, operand) in group.inputs.iter().enumerate() {
        lowering.load(step, operand, &axes, taken.0 + k, sizes, k)?;
    }
    constants(step, fused, taken.1)?;
    let body = body(step, fused, taken)?;
    Ok((body, outputs(lowering, step, group, n_outputs)?))
}

/// One for each output of a group.
pub(super) type Outputs = SmallVec<[Output; 1]>;

/// Binds the outputs of a group, the first of which is number `first` of its kernel's.
pub(super) fn outputs(
    lowering: &Lowering<'_>,
    step: &mut StepBuilder,
    group: &Group,
    first: usize,
) -> Result<Outputs, String> {
    let mut outputs = Outputs::new();
    for (k, &id) in group.outputs.iter().enumerate() {
        let (target, dtype) = (lowering.target(id), lowering.dtype(id));
        outputs.push(lowering.bind_output(step, first + k, target, dtype)?);
    }
    Ok(outputs)
}

/// An invocation computes an element.
fn compute(name: &str, fused: &Fused, outputs: &Outputs, body: &str) -> String {
    format!("fn {name}(i: u32) {{\n{body}{}}}", stores(fused, outputs))
}

/// The lines that store element `i` of each output.
pub(super) fn stores(fused: &Fused, outputs: &Outputs) -> String {
    let store =
        |(&arg, output): (&Arg, &Output)| format!("    {}\n", output.store("i", &name(arg)));
    fused.stores.iter().zip(outputs).map(store).collect()
}

/// The scalar constants from number `first` on as params.
pub(super) fn constants(step: &mut StepBuilder, fused: &Fused, first: usize) -> Result<(), String> {
    for (i, constant) in fused.constants.iter().enumerate().skip(first) {
        step.kernel.param(format!("c{i}"), param(constant)?);
    }
    Ok(())
}

/// An invocation computes four elements, and gathers those that are bool into words.
fn compute_words(fused: &Fused, outputs: &Outputs, body: &str) -> String {
    let is_bool = |output: &Output| output.dtype == DType::Bool;
    let mut text = "fn compute(item: u32) {\n".to_owned();
    for (k, _) in outputs.iter().enumerate().filter(|(_, output)| is_bool(output)) {
        text.push_str(&format!("    var w{k} = 0u;\n"));
    }
    text.push_str("    for (var byte = 0u; byte < 4u; byte++) {\n");
    text.push_str("    let i = item * 4u + byte;\n    if i >= p.len { break; }\n");
    text.push_str(body);
    for (k, (&arg, output)) in fused.stores.iter().zip(outputs).enumerate() {
        let arg = name(arg);
        text.push_str(&if is_bool(output) {
            format!("    w{k} |= u32({arg}) << (byte * 8u);\n")
        } else {
            format!("    {}\n", output.store("i", &arg))
        });
    }
    text.push_str("    }\n");
    for (k, output) in outputs.iter().enumerate().filter(|(_, output)| is_bool(output)) {
        text.push_str(&format!("    b{}[item] = w{k};\n", output.binding));
    }
    text.push('}');
    text
}

/// The lines that load what is used, from the given input and constant on, and compute the instructions; declares
/// the functions of rows.
pub(super) fn body(
    step: &mut StepBuilder,
    fused: &Fused,
    (first_input, first_constant): (usize, usize),
) -> Result<String, String> {
    let mut text = String::new();
    for k in first_input..fused.input_dtypes.len() {
        let arg = Arg::Input(k as u32);
        if fused.args().any(|other| other == arg) {
            text.push_str(&format!("    let {} = load_{k}(i);\n", name(arg)));
        }
    }
    text.push_str(&constant_lines(fused, first_constant));
    for i in 0..fused.instrs.len() {
        text.push_str(&line(step, fused, i)?);
    }
    text.extend(fused.check.as_ref().map(check_line));
    Ok(text)
}

/// Declares what the line of a check needs, if there is one.
pub(super) fn declare_check(lowering: &Lowering<'_>, step: &mut StepBuilder, fused: &Fused) {
    if let Some(check) = &fused.check {
        step.kernel.size("below", check.below);
        lowering.report(step);
    }
}

/// The line of a check, of the element at position `i`.
pub(super) fn check_line(check: &Check) -> String {
    let index = format!("u32({})", name(check.arg));
    format!("    if {index} >= p.below {{ report(i, {index}, p.below); }}\n")
}

/// The lines that name the constants from number `first` on.
pub(super) fn constant_lines(fused: &Fused, first: usize) -> String {
    let line = |(i, constant): (usize, &HostTensor)| {
        let is_bool = constant.dtype() == DType::Bool;
        format!("    let c{i} = p.c{i}{};\n", if is_bool { " != 0u" } else { "" })
    };
    fused.constants.iter().enumerate().skip(first).map(line).collect()
}

/// The line of instruction `i`; declares the function of its row.
pub(super) fn line(step: &mut StepBuilder, fused: &Fused, i: usize) -> Result<String, String> {
    let instr = &fused.instrs[i];
    let result = expression(step, fused, instr)?;
    let result = rounded(step, instr.dtype, result);
    Ok(format!("    let t{i} = {result};\n"))
}

/// An expression, rounded to the dtype where functions compute in a wider one.
pub(super) fn rounded(step: &mut StepBuilder, dtype: DType, expression: String) -> String {
    if dtype != DType::F16 {
        return expression;
    }
    step.kernel.import("math");
    format!("round_f16({expression})")
}

/// What an argument is called.
pub(super) fn name(arg: Arg) -> String {
    match arg {
        Arg::Input(i) => format!("i{i}"),
        Arg::Constant(i) => format!("c{i}"),
        Arg::Instr(i) => format!("t{i}"),
    }
}

fn expression(step: &mut StepBuilder, fused: &Fused, instr: &Instr) -> Result<String, String> {
    let args: SmallVec<[String; 3]> = instr.args.iter().map(|&arg| name(arg)).collect();
    let dtype = |i: usize| instr.args.get(i).map_or(DType::String, |&arg| fused.dtype(arg));
    match instr.op {
        Elementwise::Row(row) => {
            let function = row_function(step, row, dtype(0))?;
            Ok(format!("{function}({})", args.join(", ")))
        }
        Elementwise::Select => match args.as_slice() {
            [condition, x, y] => {
                wgsl(dtype(1))?;
                Ok(format!("select({y}, {x}, {condition})"))
            }
            _ => Err(format!("select of {} arguments", args.len())),
        },
        Elementwise::Cast => match args.as_slice() {
            [x] => cast(step, x, dtype(0), instr.dtype),
            _ => Err(format!("cast of {} arguments", args.len())),
        },
        other => Err(format!("unsupported: {other:?} on a GPU")),
    }
}

/// Declares the function of a row, and gives its name.
fn row_function(step: &mut StepBuilder, row: &Row, dtype: DType) -> Result<String, String> {
    let unsupported = || format!("unsupported: {} of {dtype} on a GPU", row.name);
    let expression = row.wgsl(dtype).ok_or_else(unsupported)?;
    let result = row.output(dtype).ok_or_else(unsupported)?;
    let (ty, result) = (wgsl(dtype)?, wgsl(result)?);
    let function = format!("row_{}_{ty}", row.name);
    let params = if row.arity == 1 { format!("x: {ty}") } else { format!("x: {ty}, y: {ty}") };
    let expression = with_type(expression, ty);
    step.kernel
        .declare_once(format!("fn {function}({params}) -> {result} {{ return {expression}; }}"));
    if expression.contains(&format!("_{ty}(")) {
        step.kernel.import("math");
    }
    Ok(function)
}

/// The expression with the type for each `T`, and for the `T` at the end of names like `erf_T`.
fn with_type(expression: &str, ty: &str) -> String {
    let mut text = String::new();
    let mut word = String::new();
    for c in expression.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        match word.strip_suffix("_T") {
            Some(stem) => text.extend([stem, "_", ty]),
            None if word == "T" => text.push_str(ty),
            None => text.push_str(&word),
        }
        word.clear();
        text.push(c);
    }
    text.pop();
    text
}

/// The conversion of `x`, by the rules of `Tensor::cast`.
fn cast(step: &mut StepBuilder, x: &str, from: DType, to: DType) -> Result<String, String> {
    // Those of f16 are those of f32, rounded once more.
    let wide = |dtype| if dtype == DType::F16 { DType::F32 } else { dtype };
    let (from, to) = (wide(from), wide(to));
    let (source, target) = (wgsl(from)?, wgsl(to)?);
    Ok(match (from, to) {
        (a, b) if a == b => x.to_owned(),
        (DType::Bool, _) => format!("select({target}(0), {target}(1), {x})"),
        (DType::F32, _) => {
            step.kernel.import("math");
            format!("{source}_to_{target}({x})")
        }
        (_, DType::Bool) => format!("({x} != {source}(0))"),
        (_, DType::F32) => format!("f32({x})"),
        _ => format!("bitcast<{target}>({x})"),
    })
}

/// A scalar constant as a param.
fn param(constant: &HostTensor) -> Result<ParamValue, String> {
    let word = match constant.bytes() {
        [a, b, c, d] => u32::from_ne_bytes([*a, *b, *c, *d]),
        [a] => u32::from(*a),
        [a, b] if constant.dtype() == DType::F16 => {
            let value = f16::from_bits(u16::from_ne_bytes([*a, *b]));
            return Ok(ParamValue::F32(value.to_f32()));
        }
        _ => return Err(format!("unsupported: a constant {} on a GPU", constant.dtype())),
    };
    Ok(match constant.dtype() {
        DType::F32 => ParamValue::F32(f32::from_bits(word)),
        DType::I32 => ParamValue::I32(word as i32),
        DType::U32 | DType::Bool => ParamValue::U32(word),
        dtype => return Err(format!("unsupported: {dtype} on a GPU")),
    })
}

#[cfg(test)]
mod tests {
    use super::with_type;

    #[test]
    fn types_replace_whole_words_and_suffixes() {
        assert_eq!(with_type("max(x, T(0))", "f32"), "max(x, f32(0))");
        assert_eq!(with_type("erf_T(x)", "f16"), "erf_f16(x)");
        assert_eq!(with_type("T", "i32"), "i32");
        assert_eq!(with_type("Tx + xT", "i32"), "Tx + xT");
    }
}
