//! Totals: a reduction of what a few short rows have once, done by the kernel that computes the rows.
//!
//! The mean of a batch's losses is one: each row of scores gives a loss and a gradient, and a workgroup that has
//! all rows at hand adds the losses up.

use convoke_graph_core::{DType, ReduceKind, Shape};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use crate::lower::Lowered;
use crate::{Arg, Fold, Fused, Group, GroupLimits, Kernel, Rows, Value, ValueId};

/// The most rows that are added up so: one workgroup has an invocation for each.
pub const TOTAL_ROWS: usize = 64;

/// The most elements of such a row, which one invocation walks over.
pub const TOTAL_INNER: usize = 32;

/// Makes reductions totals of the groups before them.
pub(crate) fn attach(lowered: &mut Lowered, limits: GroupLimits) {
    let mut readers: FxHashMap<ValueId, Vec<usize>> = FxHashMap::default();
    let mut makers: FxHashMap<ValueId, usize> = FxHashMap::default();
    for (i, group) in lowered.groups.iter().enumerate() {
        let inputs: FxHashSet<ValueId> = group.inputs.iter().map(|input| input.value).collect();
        inputs.into_iter().for_each(|id| readers.entry(id).or_default().push(i));
        group.outputs.iter().for_each(|&id| _ = makers.insert(id, i));
    }
    let committed: FxHashSet<ValueId> = lowered.commits.iter().map(|c| c.value).collect();
    let fetched: FxHashSet<ValueId> = lowered.fetches.iter().map(|f| f.value).collect();
    for i in 0..lowered.groups.len() {
        let Some(reduction) = Reduction::of(&lowered.groups[i], &lowered.values) else { continue };
        let Some(&rows) = makers.get(&reduction.of) else { continue };
        // A total comes out where the rows do, before what others may have stored meanwhile.
        if committed.contains(&lowered.groups[i].outputs[0]) {
            continue;
        }
        let stays = fetched.contains(&reduction.of)
            || committed.contains(&reduction.of)
            || readers.get(&reduction.of).is_some_and(|all| all.len() > 1);
        let (core, total) = (&lowered.groups[rows], &lowered.groups[i]);
        let joined = join(&lowered.values, core, total, &reduction, stays);
        if let Some(joined) = joined.filter(|joined| joined.n_buffers() <= limits.buffers) {
            lowered.groups[rows] = joined;
            lowered.groups[i].outputs.clear();
        }
    }
    lowered.groups.retain(|group| !group.outputs.is_empty());
}

/// A group that reduces one packed value of a few elements to one, after elementwise work on them.
struct Reduction {
    of: ValueId,
    work: Fused,
    fold: Fold,
}

impl Reduction {
    fn of(group: &Group, values: &[Value]) -> Option<Self> {
        let first = group.inputs.first()?;
        let n = values[first.value.0 as usize].shape.len();
        let is_all = |input: &crate::Operand| {
            let layout = &input.layout;
            let packed = layout.is_packed() && layout.offset() == 0;
            input.value == first.value && packed && layout.shape().len() == n
        };
        let fits = group.tail.is_none()
            && (2..=TOTAL_ROWS).contains(&n)
            && group.outputs.len() == 1
            && values[group.outputs[0].0 as usize].shape.len() == 1
            && group.inputs.iter().all(is_all);
        let (work, fold) = match &group.kernel {
            _ if !fits => return None,
            Kernel::Rows(rows) if rows.n_rows() == 1 && rows.fused.check.is_none() => {
                (rows.fused.clone(), rows.only_fold()?)
            }
            Kernel::Reduce(reduction) if !is_index(reduction.kind) => {
                let fold = Fold { kind: reduction.kind, arg: Arg::Input(0) };
                (nothing(), fold)
            }
            _ => return None,
        };
        let dtypes = work.instrs.iter().map(|instr| instr.dtype);
        let dtype = values[first.value.0 as usize].dtype;
        let is_float = dtypes.chain([dtype]).all(|dtype| dtype == DType::F32);
        is_float.then_some(Self { of: first.value, work, fold })
    }
}

/// Work without operations.
fn nothing() -> Fused {
    Fused {
        shape: Shape::scalar(),
        input_dtypes: SmallVec::new(),
        constants: Vec::new(),
        instrs: Vec::new(),
        stores: SmallVec::new(),
        check: None,
    }
}

fn is_index(kind: ReduceKind) -> bool {
    matches!(kind, ReduceKind::ArgMax | ReduceKind::ArgMin)
}

/// The rows with the total, if their kernel can add it up.
fn join(
    values: &[Value],
    core: &Group,
    total: &Group,
    reduction: &Reduction,
    stays: bool,
) -> Option<Group> {
    let Kernel::Rows(rows) = &core.kernel else { return None };
    let n = values[reduction.of.0 as usize].shape.len();
    let at = core.outputs.iter().position(|&id| id == reduction.of)?;
    let of = *rows.fused.stores.get(at)?;
    let fits = core.tail.is_none()
        && core.asked == total.asked
        && rows.n_rows() == n
        && rows.seen.is_none()
        && rows.n_inner() <= TOTAL_INNER
        && !rows.needs(&core.inputs).of(of).varies;
    if !fits {
        return None;
    }
    let Rows { n_outer, mut fused, folds, seen, mut totals } = rows.clone();
    let (first_instr, first_constant) = (fused.instrs.len() as u32, fused.constants.len() as u32);
    let placed = |arg: Arg| match arg {
        Arg::Input(_) => of,
        Arg::Constant(c) => Arg::Constant(first_constant + c),
        Arg::Instr(i) => Arg::Instr(first_instr + i),
    };
    fused.constants.extend(reduction.work.constants.iter().cloned());
    for instr in &reduction.work.instrs {
        let args = instr.args.iter().map(|&arg| placed(arg)).collect();
        fused.instrs.push(crate::Instr { args, ..instr.clone() });
    }
    totals.push(Fold { arg: placed(reduction.fold.arg), ..reduction.fold });
    let mut outputs = core.outputs.clone();
    if !stays {
        outputs.remove(at);
        fused.stores.remove(at);
    }
    outputs.extend(total.outputs.iter().copied());
    Some(Group {
        kernel: Kernel::Rows(Rows { n_outer, fused, folds, seen, totals }),
        outputs,
        nodes: core.nodes.iter().chain(&total.nodes).copied().collect(),
        ..core.clone()
    })
}

impl Group {
    /// The buffers that its kernel binds.
    fn n_buffers(&self) -> usize {
        let sources: FxHashSet<ValueId> = self.inputs.iter().map(|input| input.value).collect();
        sources.len() + self.outputs.len()
    }
}
