//! Elementwise steps of one level that do the same to each element become one step: what updates an optimizer's
//! variables, say.
//!
//! Steps of a level wait for nobody among them, and starting each takes a GPU longer than the work of a small one. Those
//! of one kind need as many registers together as alone.

use convoke_compiler::{Arg, Fused, Group, Kernel, Program};
use convoke_graph_core::{DType, Elementwise, Error};
use rustc_hash::{FxHashMap, FxHashSet};

use super::lower::Lowering;
use super::step::{Origin, Place, Step};

/// The most groups that become one step: each is some lines of its kernel, and a comparison for those after it.
const GROUPS_MOST: usize = 16;
/// The most operations of all its groups: its kernel is compiled when it is first met.
const OPERATIONS_MOST: usize = 256;
/// The most elements of a group that is one of several: more take longer than it takes to start a step.
const ELEMENTS_MOST: u64 = 1 << 18;
/// The most bytes of its params, which every device takes.
const PARAMS_MOST: usize = 16 << 10;
/// The most places that such a step binds, if the device allows as many.
const PLACES_MOST: usize = 64;

/// A step that may be one of several, and its group.
struct Candidate<'a> {
    at: usize,
    group: &'a Group,
    fused: &'a Fused,
}

impl Candidate<'_> {
    fn len(&self) -> u64 {
        self.fused.shape.len() as u64
    }
}

/// The steps, fewer of them where some of one level are of one kind; in order.
///
/// # Errors
/// `InvalidArgument` for what the device refuses.
pub(super) fn together(
    lowering: &Lowering<'_>,
    program: &Program,
    steps: Vec<(u32, Step)>,
) -> Result<Vec<(u32, Step)>, Error> {
    let mut steps: Vec<Option<(u32, Step)>> = steps.into_iter().map(Some).collect();
    for candidates in alike(program, &steps) {
        for some in parts(lowering, &steps, candidates) {
            let [first, others @ ..] = some.as_slice() else { continue };
            let groups: Vec<&Group> = some.iter().map(|candidate| candidate.group).collect();
            let mut step = lowering.together(&groups).map_err(Error::invalid)?;
            if step.kernel.param_bytes().len() > PARAMS_MOST {
                continue;
            }
            let origins = some.iter().filter_map(|candidate| {
                let (_, step) = steps[candidate.at].as_ref()?;
                let group = step.origins.first()?.group;
                Some(Origin { group, share: candidate.len().max(1) })
            });
            step.origins = origins.collect();
            others.iter().for_each(|other| steps[other.at] = None);
            if let Some((_, kept)) = &mut steps[first.at] {
                *kept = step;
            }
        }
    }
    Ok(steps.into_iter().flatten().collect())
}

/// Candidates of one level and one kind, where there are several.
fn alike<'a>(program: &'a Program, steps: &[Option<(u32, Step)>]) -> Vec<Vec<Candidate<'a>>> {
    let mut levels: Vec<(u32, Vec<Candidate<'a>>)> = Vec::new();
    for (at, (level, step)) in steps.iter().enumerate().filter_map(|(i, s)| Some((i, s.as_ref()?)))
    {
        let Some(candidate) = candidate(program, step, at) else { continue };
        match levels.last_mut() {
            Some((last, candidates)) if last == level => candidates.push(candidate),
            _ => levels.push((*level, vec![candidate])),
        }
    }
    let mut all: Vec<Vec<Candidate<'a>>> = Vec::new();
    for (_, candidates) in levels {
        // Those that can't be alike are not compared.
        let mut kinds: FxHashMap<[usize; 4], Vec<usize>> = FxHashMap::default();
        for candidate in candidates {
            let kinds = kinds.entry(counts(candidate.fused)).or_default();
            match kinds.iter().find(|&&kind| is_alike(all[kind][0].fused, candidate.fused)) {
                Some(&kind) => all[kind].push(candidate),
                None => {
                    kinds.push(all.len());
                    all.push(vec![candidate]);
                }
            }
        }
    }
    all.retain(|candidates| candidates.len() > 1);
    all
}

fn counts(fused: &Fused) -> [usize; 4] {
    let Fused { input_dtypes, constants, instrs, stores, .. } = fused;
    [input_dtypes.len(), constants.len(), instrs.len(), stores.len()]
}

/// Whether two do the same to each element, whatever the constants are, however the elements lie, and in whichever order
/// their inputs stand.
fn is_alike(a: &Fused, b: &Fused) -> bool {
    let same_op = |a: Elementwise, b: Elementwise| match (a, b) {
        (Elementwise::Row(a), Elementwise::Row(b)) => std::ptr::eq(a, b),
        (Elementwise::Select, Elementwise::Select) | (Elementwise::Cast, Elementwise::Cast) => true,
        _ => false,
    };
    let both = a.instrs.iter().zip(&b.instrs);
    let same = counts(a) == counts(b)
        && both.clone().all(|(a, b)| {
            same_op(a.op, b.op) && a.dtype == b.dtype && a.args.len() == b.args.len()
        });
    let args =
        both.flat_map(|(a, b)| a.args.iter().zip(&b.args)).chain(a.stores.iter().zip(&b.stores));
    let mut pairs: FxHashMap<Arg, Arg> = FxHashMap::default();
    let mut taken: FxHashSet<Arg> = FxHashSet::default();
    same && args.into_iter().all(|(&x, &y)| {
        let is_same = match (x, y) {
            (Arg::Instr(_), _) | (_, Arg::Instr(_)) => return x == y,
            (Arg::Input(_), Arg::Input(_)) | (Arg::Constant(_), Arg::Constant(_)) => {
                a.dtype(x) == b.dtype(y)
            }
            _ => false,
        };
        is_same
            && match pairs.get(&x) {
                Some(known) => *known == y,
                None => taken.insert(y) && pairs.insert(x, y).is_none(),
            }
    })
}

/// Step number `at`, if it may be one of several.
fn candidate<'a>(program: &'a Program, step: &Step, at: usize) -> Option<Candidate<'a>> {
    let [origin] = step.origins.as_slice() else { return None };
    let group = program.groups.get(origin.group as usize)?;
    let Kernel::Elementwise(fused) = &group.kernel else { return None };
    let is_word = |&id| program.value(id).dtype == DType::Bool;
    let is_plain = fused.check.is_none()
        && fused.shape.len() as u64 <= ELEMENTS_MOST
        && !group.outputs.iter().any(is_word);
    is_plain.then_some(Candidate { at, group, fused })
}

/// Candidates that one step each can bind and count.
fn parts<'a>(
    lowering: &Lowering<'_>,
    steps: &[Option<(u32, Step)>],
    candidates: Vec<Candidate<'a>>,
) -> Vec<Vec<Candidate<'a>>> {
    let bound = lowering.info.limits.max_storage_buffers_per_shader_stage as usize;
    let most = bound.min(PLACES_MOST);
    let each = candidates.first().map_or(1, |candidate| candidate.fused.instrs.len().max(1));
    let n_most = GROUPS_MOST.min(OPERATIONS_MOST / each);
    let mut parts: Vec<Vec<Candidate<'a>>> = Vec::new();
    let mut places: FxHashSet<Place> = FxHashSet::default();
    // The status word, which commits read.
    let with = |places: &FxHashSet<Place>, own: &[Place]| {
        let status = [Place::Status];
        places.iter().chain(own).chain(&status).collect::<FxHashSet<_>>().len()
    };
    for candidate in candidates {
        let Some((_, step)) = &steps[candidate.at] else { continue };
        let fits = with(&places, &step.places) <= most;
        match parts.last_mut() {
            Some(part) if fits && part.len() < n_most => part.push(candidate),
            _ => {
                places.clear();
                parts.push(vec![candidate]);
            }
        }
        places.extend(step.places.iter().copied());
    }
    parts.retain(|part| part.len() > 1);
    parts
}
