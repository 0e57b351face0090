//! A segment as a list of steps: what runs, in which order, and what is copied before.
//!
//! Steps are ordered in levels: those of one level don't depend on each other. Commits come last. Elementwise
//! work whose results go into variables, a tail's too, is itself the commit, and stores in place; what else it
//! gives may only go to other such work. Nothing of a commit is stored once the status word is set, so that a
//! failed run changes no variable. What goes where a donated feed lies is stored as if that were a variable.

use std::fmt;

use convoke_compiler::{Group, Kernel, Operand, Program, Segment, ValueId};
use convoke_graph_core::{DType, Error};
use convoke_shaders::Access;
use rustc_hash::{FxHashMap, FxHashSet};

use super::beside::together;
use super::lower::Lowering;
use super::parts::Parts;
use super::step::{Origin, Place, Step};
use crate::gpu::AdapterInfo;

/// The work of a segment, before it has buffers.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// The steps, in order, each with its level. Level 0 is before all of them.
    pub steps: Vec<(u32, Step)>,
    /// Variables and donated feeds of which a run sees the elements at its start after their commit, and the
    /// scratch memory that keeps those.
    pub snapshots: Vec<(Place, Place)>,
    /// Bytes of each scratch memory.
    pub scratch: Vec<u64>,
    /// Whether a step can set the status word.
    pub can_fail: bool,
    /// Where each download lies, and then each value that stays on the device.
    pub downloads: Vec<Place>,
    /// Where each value lies that later segments take.
    pub kept: Vec<Place>,
}

/// Which steps become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merging {
    /// Those of one level that do the same: see `beside.rs`.
    Alike,
    /// None, where a driver refuses the kernel of several.
    None,
}

/// Orders the work of a segment.
///
/// # Errors
/// A group that the device doesn't support, or a program that doesn't fit together.
pub(crate) fn schedule(
    info: &AdapterInfo,
    program: &Program,
    segment: &Segment,
    merging: Merging,
) -> Result<Schedule, Error> {
    let together = |lowering: &Lowering<'_>, steps| match merging {
        Merging::Alike => together(lowering, program, steps),
        Merging::None => Ok(steps),
    };
    let mut lowering = Lowering::new(info, program);
    let carried = segment.carried.iter().map(|(id, _)| id).chain(&segment.borrowed);
    lowering.uploaded = segment.uploads.iter().chain(carried).copied().collect();
    lowering.parts = Parts::of(program, segment);
    let mut commits = Commits::of(segment)?;
    let mut last = Vec::new();
    for &index in segment.groups.iter().rev() {
        let group = group(program, index)?;
        match commits.in_place(&lowering, group) {
            Some(redirect) => last.push((index, redirect)),
            None => commits.wanted.extend(group.inputs.iter().map(|input| input.value)),
        }
    }
    last.reverse();
    let mut steps: Vec<Step> = Vec::new();
    for &index in segment.groups.iter().filter(|&&index| last.iter().all(|(l, _)| *l != index)) {
        steps.extend(lower(&mut lowering, index, group(program, index)?)?);
    }
    let can_fail = steps.iter().any(Step::can_fail);
    let mut steps = together(&lowering, in_levels(steps, &program.late))?;
    lowering.guarded = can_fail;
    let top = steps.iter().map(|(level, _)| level + 1).max().unwrap_or(1);

    let mut placed = FxHashSet::default();
    let mut stores = Vec::new();
    for (index, redirect) in last {
        placed.extend(redirect.keys().copied());
        // No group reads where another's outputs go.
        lowering.redirect.extend(redirect);
        stores.extend(lower(&mut lowering, index, group(program, index)?)?);
    }
    let stores = together(&lowering, in_levels(stores, &[]))?;
    lowering.redirect = FxHashMap::default();
    steps.extend(stores.into_iter().map(|(level, step)| (top - 1 + level, step)));
    let top = steps.last().map_or(top, |(level, _)| top.max(*level));

    let mut snapshots = Snapshots { program, commits: &commits, taken: Vec::new() };
    let refuse = |reason: String| Error::invalid(reason);
    for (id, to) in stores_of(segment) {
        let value = program.value(id);
        if placed.contains(&id) || value.shape.is_empty() {
            continue;
        }
        let from = snapshots.place(&mut lowering, id)?;
        if from != to {
            let step = lowering.copy(from, to, value.n_bytes() as u64).map_err(refuse)?;
            steps.push((top, step));
        }
    }
    let downloads = segment.downloads.iter().chain(&segment.residents);
    let downloads: Result<_, _> = downloads.map(|&id| snapshots.place(&mut lowering, id)).collect();
    let downloads = downloads?;
    let kept: Result<_, _> =
        segment.kept.iter().map(|&id| snapshots.place(&mut lowering, id)).collect();
    let kept = kept?;
    let snapshots = snapshots.taken;
    Ok(Schedule { steps, snapshots, scratch: lowering.scratch, can_fail, downloads, kept })
}

fn group(program: &Program, index: u32) -> Result<&Group, Error> {
    let group = program.groups.get(index as usize);
    group
        .ok_or_else(|| Error::internal(format!("a segment names group {index}, which isn't there")))
}

fn lower(lowering: &mut Lowering<'_>, index: u32, group: &Group) -> Result<Vec<Step>, Error> {
    lowering.number = index;
    let steps = lowering.group(group);
    let mut steps =
        steps.map_err(|reason| Error::invalid(format!("{}: {reason}", group.kernel)))?;
    for step in &mut steps {
        step.origins.push(Origin { group: index, share: 1 });
    }
    Ok(steps)
}

/// Each step with its level: one more than that of the last step that wrote what it reads or writes, or that
/// read what it writes; parts that it writes wait for nobody. Of a step of a `late` group, one more than that of
/// all steps before it. Stable within a level.
fn in_levels(steps: Vec<Step>, late: &[u32]) -> Vec<(u32, Step)> {
    let mut written: FxHashMap<Place, u32> = FxHashMap::default();
    let mut read: FxHashMap<Place, u32> = FxHashMap::default();
    let mut leveled: Vec<(u32, Step)> = Vec::with_capacity(steps.len());
    let mut highest = 0;
    for step in steps {
        let level_of = |map: &FxHashMap<Place, u32>, place: Place| {
            // Which of several faults is reported does not matter, so the status word orders nothing.
            map.get(&place).copied().filter(|_| place != Place::Status).unwrap_or(0)
        };
        let reads = step.with_access(Access::Read).map(|place| level_of(&written, place));
        let writes = step.with_access(Access::ReadWrite).map(|place| {
            match step.parts.iter().find(|(part, _)| *part == place) {
                Some((_, false)) => 0,
                Some((_, true)) => level_of(&written, place),
                None => level_of(&written, place).max(level_of(&read, place)),
            }
        });
        let is_late = step.origins.iter().any(|origin| late.contains(&origin.group));
        let before = if is_late { highest } else { 0 };
        let level = 1 + reads.chain(writes).max().unwrap_or(0).max(before);
        highest = highest.max(level);
        for place in step.with_access(Access::Read) {
            let last = read.entry(place).or_default();
            *last = level.max(*last);
        }
        for place in step.with_access(Access::ReadWrite) {
            let last = written.entry(place).or_default();
            *last = level.max(*last);
        }
        leveled.push((level, step));
    }
    leveled.sort_by_key(|(level, _)| *level);
    leveled
}

/// The values of a segment that somebody wants after it.
pub(super) fn needed_after(segment: &Segment) -> impl Iterator<Item = ValueId> {
    segment.downloads.iter().chain(&segment.residents).chain(&segment.kept).copied()
}

/// What a segment stores into variables and donated feeds, and where.
fn stores_of(segment: &Segment) -> impl Iterator<Item = (ValueId, Place)> {
    let commits = segment.commits.iter().map(|c| (c.value, Place::Variable(c.variable)));
    commits.chain(segment.donations.iter().map(|d| (d.value, Place::Value(d.feed))))
}

/// What is stored into variables and donated feeds, and who else wants it.
struct Commits {
    /// Where each value goes, for those that go somewhere.
    targets: FxHashMap<ValueId, Place>,
    /// What is stored into.
    stored: FxHashSet<Place>,
    /// Values that something else needs before variables are stored into: another group, a download, a second
    /// variable.
    wanted: FxHashSet<ValueId>,
    /// Values that work which stores in place reads.
    read_last: FxHashSet<ValueId>,
}

impl Commits {
    fn of(segment: &Segment) -> Result<Commits, Error> {
        let mut commits = Commits {
            targets: FxHashMap::default(),
            stored: FxHashSet::default(),
            wanted: needed_after(segment).collect(),
            read_last: FxHashSet::default(),
        };
        for (value, place) in stores_of(segment) {
            if commits.targets.insert(value, place).is_some() {
                commits.wanted.insert(value);
            }
            if !commits.stored.insert(place) {
                return Err(Error::internal(format!("two commits of {place}")));
            }
        }
        Ok(commits)
    }

    /// The variables that a group's outputs can be stored into as they are computed: nobody else wants the
    /// outputs, but that those which go to no variable may be wanted by work of this kind that was asked
    /// about before; and the group reads no variable that is stored into, but at the place that it stores to.
    fn in_place(
        &mut self,
        lowering: &Lowering<'_>,
        group: &Group,
    ) -> Option<FxHashMap<ValueId, Place>> {
        let n_core = match (&group.kernel, &group.tail) {
            (Kernel::Elementwise(_), None) if !group.can_fail() => 0,
            (_, Some(_)) => group.core().inputs.len(),
            _ => return None,
        };
        let mut targets: FxHashMap<ValueId, Place> = FxHashMap::default();
        for value in &group.outputs {
            if self.wanted.contains(value) {
                return None;
            }
            match self.targets.get(value) {
                Some(_) if self.read_last.contains(value) => return None,
                Some(&place) => {
                    targets.insert(*value, place);
                }
                None => {}
            }
        }
        let dtype = |value: &ValueId| lowering.program.value(*value).dtype;
        let own: FxHashMap<Place, DType> =
            targets.iter().map(|(value, &place)| (place, dtype(value))).collect();
        let harmless = |(k, input): (usize, &Operand)| {
            let (place, value) = (lowering.place(input.value), lowering.program.value(input.value));
            !self.stored.contains(&place)
                || k >= n_core
                    // A binding has one type of elements.
                    && own.get(&place) == Some(&value.dtype)
                    && input.layout.is_packed()
                    && input.layout.offset() == 0
                    && input.layout.shape().len() == value.shape.len()
        };
        let in_place = !own.is_empty() && group.inputs.iter().enumerate().all(harmless);
        in_place.then(|| {
            self.read_last.extend(group.inputs.iter().map(|input| input.value));
            targets
        })
    }
}

/// Copies of variables and donated feeds as they were when the run began.
struct Snapshots<'a> {
    program: &'a Program,
    commits: &'a Commits,
    taken: Vec<(Place, Place)>,
}

impl Snapshots<'_> {
    /// Where a value lies once commits have begun.
    fn place(&mut self, lowering: &mut Lowering<'_>, id: ValueId) -> Result<Place, Error> {
        let place = lowering.place(id);
        if !self.commits.stored.contains(&place) {
            return Ok(place);
        }
        if let Some((_, taken)) = self.taken.iter().find(|(other, _)| *other == place) {
            return Ok(*taken);
        }
        let n_bytes = self.program.value(id).n_bytes() as u64;
        let taken = lowering.new_scratch(n_bytes).map_err(Error::invalid)?;
        self.taken.push((place, taken));
        Ok(taken)
    }
}

/// One line per step: `1: elementwise [1, 1, 1] v0 =v1`.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (from, place) in &self.snapshots {
            writeln!(f, "0: {from} -> {place}")?;
        }
        for (level, step) in &self.steps {
            writeln!(f, "{level}: {step}")?;
        }
        for place in &self.downloads {
            writeln!(f, "download {place}")?;
        }
        Ok(())
    }
}
