//! Elementwise steps of one level that do the same to each element become one step: what updates an optimizer's
//! variables, say.
//!
//! Steps of a level wait for nobody among them, and starting each takes a GPU longer than the work of a small one. Those
//! of one kind need as many registers together as alone.

use convoke_compiler::alike::{PLACES_MOST, beside, by_kind, most_beside};
use convoke_compiler::{Fused, Group, Program};
use convoke_graph_core::Error;
use rustc_hash::FxHashSet;

use super::lower::Lowering;
use super::step::{Origin, Place, Step};

/// The most bytes of its params, which every device takes.
const PARAMS_MOST: usize = 16 << 10;

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
    let by_kind =
        |(_, candidates)| by_kind(candidates, |candidate: &Candidate<'a>| candidate.fused);
    let mut all: Vec<Vec<Candidate<'a>>> = levels.into_iter().flat_map(by_kind).collect();
    all.retain(|candidates| candidates.len() > 1);
    all
}

/// Step number `at`, if it may be one of several.
fn candidate<'a>(program: &'a Program, step: &Step, at: usize) -> Option<Candidate<'a>> {
    let [origin] = step.origins.as_slice() else { return None };
    let group = program.groups.get(origin.group as usize)?;
    beside(program, group).map(|fused| Candidate { at, group, fused })
}

/// Candidates that one step each can bind and count.
fn parts<'a>(
    lowering: &Lowering<'_>,
    steps: &[Option<(u32, Step)>],
    candidates: Vec<Candidate<'a>>,
) -> Vec<Vec<Candidate<'a>>> {
    let bound = lowering.info.limits.max_storage_buffers_per_shader_stage as usize;
    let most = bound.min(PLACES_MOST);
    let n_most = candidates.first().map_or(1, |candidate| most_beside(candidate.fused));
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
