//! Work row by row: one function `row` per group, with a loop over the row for each of its stages. Columns, and
//! rows that are too long for that, are reduced in parts, as `reduce.rs` does it.

use convoke_compiler::{Arg, Group, Needs, Rows, Stage, TOTAL_INNER, TOTAL_ROWS};
use convoke_graph_core::{Layout, ReduceKind};
use convoke_shaders::ParamValue;
use smallvec::SmallVec;

use super::elementwise::{self, Outputs, name};
use super::reduce::{self, Elements, Input, accumulator, combined, identity};
use super::{Lowering, WG};
use crate::gpu::AdapterInfo;
use crate::segment::address::Axes;
use crate::segment::step::{Step, StepBuilder, wgsl};

/// Invocations of a workgroup of `rows_lanes`.
const LANES: u64 = TOTAL_ROWS as u64;

/// Elements of the longest row that one invocation walks over.
const SHORT: usize = TOTAL_INNER;

/// Elements of the longest row that a subgroup walks over on a GPU, for each of its lanes.
const SHORT_OF_SUBGROUP: usize = 4;

/// The same where a subgroup is best by itself.
const SHORT_OF_LONE_SUBGROUP: usize = 2048;

/// Who walks over a row together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Team {
    /// One invocation.
    Lane,
    /// A subgroup of `size` invocations, of a workgroup of `width`.
    Subgroup { size: u32, width: u32 },
    /// A workgroup of so many invocations.
    Group(u64),
}

impl Team {
    fn of(info: &AdapterInfo, n_inner: usize) -> Self {
        if n_inner <= SHORT {
            return Self::Lane;
        }
        if let Some(size) = info.subgroup_size() {
            let (short, width) = match info.lone_subgroup_size() {
                Some(_) => (SHORT_OF_LONE_SUBGROUP, size),
                None => (SHORT_OF_SUBGROUP, size.max(64)),
            };
            if n_inner <= short * size as usize {
                return Self::Subgroup { size, width };
            }
        }
        Self::Group(if n_inner as u64 <= 8 * WG { 64 } else { WG })
    }

    /// The file of the kernel.
    fn file(self) -> &'static str {
        match self {
            Self::Lane => "rows_lanes",
            Self::Subgroup { .. } => "rows_subgroups",
            Self::Group(_) => "rows",
        }
    }

    /// The workgroups of so many rows.
    fn n_groups(self, n_rows: u64) -> u64 {
        match self {
            Self::Lane => n_rows.div_ceil(LANES),
            Self::Subgroup { size, width } => n_rows.div_ceil(u64::from(width / size)),
            Self::Group(_) => n_rows,
        }
    }

    /// Declares how wide it is, where that is not the file's default.
    fn declare(self, step: &mut StepBuilder) {
        match self {
            Self::Lane | Self::Group(WG) => {}
            Self::Subgroup { size, width } => {
                step.kernel.declare(format!("const WG = {width}u;"));
                step.kernel.declare(format!("const STEP = {size}u;"));
            }
            Self::Group(_) => {
                step.kernel.declare("const WG = 64u;").declare("const SIDE = 8u;");
            }
        }
    }
}

/// The steps of a group.
pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    group: &Group,
    work: &Rows,
) -> Result<Vec<Step>, String> {
    let n_rows = work.n_rows() as u64;
    if work.is_in_parts() {
        let (Some(fold), &[output]) = (work.only_fold(), group.outputs.as_slice()) else {
            return Err("what is reduced in parts has one fold and one output".to_owned());
        };
        let dtype = work.dtype(&fold);
        let elements = Elements::Computed(group, work);
        let input = Input { elements, dtype, n_rows, n_inner: work.n_inner() as u64 };
        let target = lowering.target(output);
        return reduce::stages(lowering, input, fold.kind, target, dtype);
    }
    let team = Team::of(lowering.info, work.n_inner());
    let mut step = StepBuilder::new(team.file());
    step.kernel.size("rows", n_rows as u32).size("inner", work.n_inner() as u32);
    loads(lowering, &mut step, group)?;
    elementwise::constants(&mut step, &work.fused, 0)?;
    let outputs = elementwise::outputs(lowering, &mut step, group, 0)?;
    elementwise::declare_check(lowering, &mut step, &work.fused);
    let len = work.fused.shape.len();
    let by_element = |&id: &_| lowering.program.value(id).shape.len() == len;
    let writing = Writing {
        work,
        needs: work.needs(&group.inputs),
        outputs,
        by_element: group.outputs.iter().map(by_element).collect(),
        team,
    };
    let body = writing.body(&mut step)?;
    step.kernel.declare(format!("fn row(o: u32, lane: u32) {{\n{body}}}"));
    if !work.totals.is_empty() {
        if team != Team::Lane || n_rows > LANES {
            return Err(format!("totals of {n_rows} rows of {}", work.n_inner()));
        }
        writing.declare_totals(&mut step)?;
    }
    lowering.guard(&mut step);
    let n_groups = team.n_groups(n_rows);
    team.declare(&mut step);
    Ok(vec![step.finish(n_groups, &lowering.info.limits)?])
}

/// Declares what reads the inputs.
fn loads(lowering: &Lowering<'_>, step: &mut StepBuilder, group: &Group) -> Result<(), String> {
    let layouts: SmallVec<[&Layout; 4]> = group.inputs.iter().map(|x| &x.layout).collect();
    let axes = Axes::of(&layouts);
    axes.size_params(&mut step.kernel, "d");
    let mut inputs = group.inputs.iter().enumerate();
    inputs.try_for_each(|(k, operand)| lowering.load(step, operand, &axes, k, "d", k))
}

/// The lines that return what the only fold is of, for element `i`; declares what they need.
pub(super) fn element(
    lowering: &Lowering<'_>,
    step: &mut StepBuilder,
    group: &Group,
    work: &Rows,
) -> Result<String, String> {
    let fold = work.only_fold().ok_or("what is reduced in parts has one fold")?;
    loads(lowering, step, group)?;
    elementwise::constants(step, &work.fused, 0)?;
    elementwise::declare_check(lowering, step, &work.fused);
    let mut fused = work.fused.clone();
    fused.input_dtypes.truncate(work.n_inputs());
    fused.stores = SmallVec::from_slice(&[fold.arg]);
    let body = elementwise::body(step, &fused, (0, 0))?;
    Ok(format!("{body}    return {};\n", name(fold.arg)))
}

/// The function of a group, while it is written.
struct Writing<'a> {
    work: &'a Rows,
    needs: Needs,
    outputs: Outputs,
    /// For each output, whether it has an element for each element, else for each row.
    by_element: SmallVec<[bool; 2]>,
    team: Team,
}

impl Writing<'_> {
    fn body(&self, step: &mut StepBuilder) -> Result<String, String> {
        let mut text = "    let first = o * p.inner;\n".to_owned();
        text.push_str(&elementwise::constant_lines(&self.work.fused, 0));
        for k in 0..self.work.n_inputs() {
            let arg = Arg::Input(k as u32);
            if !self.needs.of(arg).varies && self.is_used(arg) {
                text.push_str(&format!("    let {} = load_{k}(first);\n", name(arg)));
            }
        }
        for stage in 0..self.needs.n_stages {
            text.push_str(&self.of_rows(step, stage)?);
            text.push_str(&self.walk(step, stage)?);
        }
        for (k, total) in self.work.totals.iter().enumerate() {
            text.push_str(&format!("    own{k} = {};\n", name(total.arg)));
        }
        let check = self.check(|needs| !needs.varies);
        let last: String = check.into_iter().chain(self.stores(false, |_| true)).collect();
        if !last.is_empty() {
            text.push_str(&format!("    let i = o;\n    if lane == 0u {{\n{last}    }}\n"));
        }
        Ok(text)
    }

    fn is_used(&self, arg: Arg) -> bool {
        let Rows { fused, folds, totals, .. } = self.work;
        fused
            .args()
            .chain(folds.iter().chain(totals).map(|fold| fold.arg))
            .any(|other| other == arg)
    }

    /// The instructions of a stage that have one result for a row.
    fn of_rows(&self, step: &mut StepBuilder, stage: usize) -> Result<String, String> {
        let mut text = String::new();
        for i in 0..self.work.fused.instrs.len() {
            let needs = self.needs.of(Arg::Instr(i as u32));
            if !needs.varies && needs.index == stage {
                text.push_str(&elementwise::line(step, &self.work.fused, i)?);
            }
        }
        Ok(text)
    }

    /// The lines that store what a stage can, by element or by row.
    fn stores(
        &self,
        by_element: bool,
        is_known: impl Fn(Arg) -> bool,
    ) -> impl Iterator<Item = String> {
        let stores = self.work.fused.stores.iter().zip(&self.outputs).zip(&self.by_element);
        let own = stores.filter(move |((arg, _), own)| **own == by_element && is_known(**arg));
        own.map(|((&arg, output), _)| format!("    {}\n", output.store("i", &name(arg))))
    }

    /// The line of the check, if its argument is of such a stage.
    fn check(&self, is_wanted: impl Fn(Stage) -> bool) -> Option<String> {
        let check = self.work.fused.check.as_ref()?;
        is_wanted(self.needs.of(check.arg)).then(|| elementwise::check_line(check))
    }

    /// The loop of a stage over the elements, with what it folds and stores.
    fn walk(&self, step: &mut StepBuilder, stage: usize) -> Result<String, String> {
        let Rows { fused, folds, .. } = self.work;
        let is_now = |arg: Arg| self.needs.of(arg).index == stage;
        let mut wanted: Vec<Arg> =
            folds.iter().map(|fold| fold.arg).filter(|&a| is_now(a)).collect();
        let stored = fused.stores.iter().zip(&self.by_element).filter(|(_, own)| **own);
        wanted.extend(stored.map(|(&arg, _)| arg).filter(|&a| is_now(a)));
        let checked = fused.check.iter().map(|check| check.arg);
        wanted.extend(checked.filter(|&arg| is_now(arg) && self.needs.of(arg).varies));
        if wanted.is_empty() {
            return Ok(String::new());
        }
        let mut starts = String::new();
        let mut inside = self.elements(step, wanted)?;
        let mut ends = String::new();
        for (k, fold) in folds.iter().enumerate().filter(|(_, fold)| is_now(fold.arg)) {
            let dtype = accumulator(self.work.dtype(fold));
            step.kernel.param(format!("identity{k}"), identity(fold.kind, dtype)?);
            let combine = declare_fold(step, fold.kind, wgsl(dtype)?);
            if let Team::Group(_) = self.team {
                declare_fold_of_all(step, &combine, wgsl(dtype)?);
            }
            starts.push_str(&format!("    var a{k} = p.identity{k};\n"));
            inside.push_str(&format!("    a{k} = {combine}(a{k}, {});\n", name(fold.arg)));
            let mut result = match self.team {
                Team::Lane => format!("a{k}"),
                Team::Subgroup { .. } => format!("{}(a{k})", fold_of_subgroup(fold.kind)),
                Team::Group(_) => format!("all_{combine}(lane, a{k})"),
            };
            if fold.kind == ReduceKind::Mean {
                step.kernel.param(format!("count{k}"), ParamValue::F32(self.work.n_inner() as f32));
                result = format!("{result} / p.count{k}");
            }
            let result = elementwise::rounded(step, self.work.dtype(fold), result);
            let of = Arg::Input((self.work.n_inputs() + k) as u32);
            ends.push_str(&format!("    let {} = {result};\n", name(of)));
        }
        inside.extend(self.check(|needs| needs.varies && needs.index == stage));
        inside.extend(self.stores(true, is_now));
        Ok(format!(
            "{starts}    for (var j = lane; j < p.inner; j += STEP) {{\n    let i = first + j;\n{inside}    }}\n{ends}"
        ))
    }

    /// The lines that compute these arguments, of loads and instructions that differ along the row.
    fn elements(&self, step: &mut StepBuilder, mut wanted: Vec<Arg>) -> Result<String, String> {
        let fused = &self.work.fused;
        let mut is_needed = vec![false; fused.instrs.len()];
        let mut loaded = vec![false; self.work.n_inputs()];
        while let Some(arg) = wanted.pop() {
            if !self.needs.of(arg).varies {
                continue;
            }
            match arg {
                Arg::Input(k) => loaded[k as usize] = true,
                Arg::Instr(i) if !is_needed[i as usize] => {
                    is_needed[i as usize] = true;
                    wanted.extend(&fused.instrs[i as usize].args);
                }
                _ => {}
            }
        }
        let mut text = String::new();
        for k in (0..loaded.len()).filter(|&k| loaded[k]) {
            text.push_str(&format!("    let i{k} = load_{k}(i);\n"));
        }
        for i in (0..is_needed.len()).filter(|&i| is_needed[i]) {
            text.push_str(&elementwise::line(step, fused, i)?);
        }
        Ok(text)
    }

    /// Declares what adds up what all rows have, an invocation each; those without a row have what changes nothing.
    fn declare_totals(&self, step: &mut StepBuilder) -> Result<(), String> {
        let Rows { fused, totals, .. } = self.work;
        let mut text = String::new();
        let outputs = &self.outputs[fused.stores.len()..];
        for (k, (total, output)) in totals.iter().zip(outputs).enumerate() {
            let ty = wgsl(output.dtype)?;
            let combine = declare_fold(step, total.kind, ty);
            declare_fold_of_all(step, &combine, ty);
            let kernel = &mut step.kernel;
            kernel.param(format!("total{k}"), identity(total.kind, output.dtype)?);
            kernel.declare(format!("var<private> own{k}: {ty};"));
            let mut result = format!("total{k}");
            if total.kind == ReduceKind::Mean {
                result = format!("{result} / f32(p.rows)");
            }
            let store = output.store("0u", &result);
            text.push_str(&format!(
                "    if o >= p.rows {{ own{k} = p.total{k}; }}\n    \
                 let total{k} = all_{combine}(lane, own{k});\n    \
                 if lane == 0u {{ {store} }}\n"
            ));
        }
        step.kernel.declare(format!("fn total(o: u32, lane: u32) {{\n{text}}}"));
        Ok(())
    }
}

/// Declares how two become one; gives the function's name.
fn declare_fold(step: &mut StepBuilder, kind: ReduceKind, ty: &str) -> String {
    let what = match kind {
        ReduceKind::Sum | ReduceKind::Mean => "sum",
        ReduceKind::Prod => "prod",
        ReduceKind::Max => "max",
        _ => "min",
    };
    let function = format!("fold_{what}_{ty}");
    let combined = combined(kind);
    step.kernel
        .declare_once(format!("fn {function}(a: {ty}, b: {ty}) -> {ty} {{ return {combined}; }}"));
    function
}

/// The function by which those of a subgroup become one.
pub(super) fn fold_of_subgroup(kind: ReduceKind) -> &'static str {
    match kind {
        ReduceKind::Sum | ReduceKind::Mean => "subgroupAdd",
        ReduceKind::Prod => "subgroupMul",
        ReduceKind::Max | ReduceKind::Any => "subgroupMax",
        _ => "subgroupMin",
    }
}

/// Declares how those of all lanes become one by `function`: the lanes of a side each take as many others
/// together, then all take those. Its loops end at constants: where a short one of few steps ends at a parameter,
/// lavapipe compiles the kernel anew for each dispatch.
fn declare_fold_of_all(step: &mut StepBuilder, function: &str, ty: &str) {
    let kernel = &mut step.kernel;
    kernel.declare_once(format!("var<workgroup> lanes_{ty}: array<{ty}, WG>;"));
    kernel.declare_once(format!("var<workgroup> sides_{ty}: array<{ty}, SIDE>;"));
    kernel.declare_once(format!(
        "fn all_{function}(lane: u32, own: {ty}) -> {ty} {{\n    \
         lanes_{ty}[lane] = own;\n    workgroupBarrier();\n    \
         if lane < SIDE {{\n        var some = lanes_{ty}[lane];\n        \
         for (var at = lane + SIDE; at < WG; at += SIDE) {{ some = {function}(some, lanes_{ty}[at]); }}\n        \
         sides_{ty}[lane] = some;\n    }}\n    workgroupBarrier();\n    \
         var all = sides_{ty}[0];\n    \
         for (var at = 1u; at < SIDE; at++) {{ all = {function}(all, sides_{ty}[at]); }}\n    \
         return all;\n}}"
    ));
}
