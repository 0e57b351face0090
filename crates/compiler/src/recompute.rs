//! Recomputation: what is cheap to compute is computed again where it is read late, or only there, so that less
//! memory lives at once. Done where a budget asks for it.

use rustc_hash::FxHashMap;

use crate::{Group, Kernel, Program, Source, ValueId};

/// The life of a value within a segment, as places in the segment's order.
#[derive(Debug, Default)]
struct Life {
    made: Option<usize>,
    reads: Vec<usize>,
    /// Whether others than the segment's groups need it.
    leaves: bool,
}

impl Life {
    fn last(&self, n: usize) -> usize {
        if self.leaves { n } else { self.reads.last().copied().or(self.made).unwrap_or(0) }
    }
}

/// A value that is not kept from one read to the next.
struct Gap {
    value: ValueId,
    /// The first read after it.
    until: usize,
}

/// The largest sum of the bytes that the groups of a segment compute and that live at once, in the order of its
/// groups.
pub fn live_bytes(program: &Program, segment: usize) -> u64 {
    peak(program, segment, &lives(program, segment)).1
}

/// Values that are computed again in one segment, at most.
const RECOMPUTE_MAX: usize = 1000;

/// Makes groups of a segment compute values again, the largest first, until the program `fits`. False if nothing
/// is left that could be.
pub fn recompute(program: &mut Program, segment: usize, fits: impl Fn(&Program) -> bool) -> bool {
    for _ in 0..RECOMPUTE_MAX {
        if fits(program) {
            return true;
        }
        let lives = lives(program, segment);
        let (at, _) = peak(program, segment, &lives);
        match gap(program, segment, &lives, at) {
            Some(gap) => open(program, segment, &gap),
            None => return false,
        }
    }
    fits(program)
}

fn lives(program: &Program, segment: usize) -> FxHashMap<ValueId, Life> {
    let mut lives: FxHashMap<ValueId, Life> = FxHashMap::default();
    let own = &program.segments[segment];
    for (at, &group) in own.groups.iter().enumerate() {
        let group = &program.groups[group as usize];
        for input in &group.inputs {
            let reads = &mut lives.entry(input.value).or_default().reads;
            if reads.last() != Some(&at) {
                reads.push(at);
            }
        }
        group.outputs.iter().for_each(|&id| lives.entry(id).or_default().made = Some(at));
    }
    let others = program.segments.iter().enumerate().filter(|&(other, _)| other != segment);
    let read_there = others.flat_map(|(_, other)| {
        let groups = other.groups.iter().flat_map(|&g| &program.groups[g as usize].inputs);
        groups.map(|input| input.value).chain(other.uploads.iter().copied())
    });
    let committed = program.segments.iter().flat_map(|s| s.commits.iter().map(|c| c.value));
    let fetched = program.fetches.iter().map(|fetch| fetch.value);
    for id in read_there.chain(committed).chain(fetched).chain(own.downloads.iter().copied()) {
        lives.entry(id).or_default().leaves = true;
    }
    lives
}

/// Where most bytes live, and how many.
fn peak(program: &Program, segment: usize, lives: &FxHashMap<ValueId, Life>) -> (usize, u64) {
    let n = program.segments[segment].groups.len();
    let mut changes = vec![(0u64, 0u64); n + 2];
    for (&id, life) in lives {
        if let Some(made) = life.made {
            let bytes = program.value(id).n_bytes() as u64;
            changes[made].0 = changes[made].0.saturating_add(bytes);
            let end = life.last(n) + 1;
            changes[end].1 = changes[end].1.saturating_add(bytes);
        }
    }
    let (mut alive, mut most) = (0u64, (0, 0));
    for (at, (made, ended)) in changes.into_iter().enumerate() {
        alive = alive.saturating_sub(ended).saturating_add(made);
        if alive > most.1 {
            most = (at, alive);
        }
    }
    most
}

/// The largest value that lives at `at`, is not used there, and can be computed again later.
fn gap(
    program: &Program,
    segment: usize,
    lives: &FxHashMap<ValueId, Life>,
    at: usize,
) -> Option<Gap> {
    let groups = &program.segments[segment].groups;
    let n = groups.len();
    let candidate = |(&value, life): (&ValueId, &Life)| {
        let made = life.made.filter(|&made| made < at && !life.leaves)?;
        let until = *life.reads.iter().find(|&&read| read >= at)?;
        let group = &program.groups[groups[made] as usize];
        let is_there = |id: ValueId| {
            let input = lives.get(&id);
            let is_source = !matches!(program.value(id).source, Source::Computed);
            is_source || input.is_some_and(|life| life.last(n) >= until)
        };
        // What waits for its reader already cannot be put off further.
        let waits = program.late.contains(&groups[made]) && life.reads.first() == Some(&until);
        let can = until > at
            && !waits
            && is_cheap(group)
            && program.value(value).n_bytes() > 0
            && group.inputs.iter().all(|input| is_there(input.value));
        can.then_some(Gap { value, until })
    };
    let gaps = lives.iter().filter_map(candidate);
    gaps.max_by_key(|gap| (program.value(gap.value).n_bytes(), std::cmp::Reverse(gap.value)))
}

/// Elementwise work that cannot fail and has one result.
fn is_cheap(group: &Group) -> bool {
    matches!(group.kernel, Kernel::Elementwise(_))
        && group.outputs.len() == 1
        && group.tail.is_none()
        && !group.can_fail()
}

/// Computes the value of a gap anew just before it ends; at its start no more if nobody reads it there.
fn open(program: &mut Program, segment: usize, gap: &Gap) {
    let Program { values, groups, segments, late, .. } = program;
    let order = &mut segments[segment].groups;
    let makes = |&group: &u32| groups[group as usize].outputs.contains(&gap.value);
    let Some(made) = order.iter().position(makes) else { return };
    let read = |&group: &u32| groups[group as usize].inputs.iter().any(|x| x.value == gap.value);
    if !order[made + 1..gap.until].iter().any(read) {
        let group = order.remove(made);
        order.insert(gap.until - 1, group);
        late.push(group);
        return;
    }
    let again = ValueId(values.len() as u32);
    values.push(values[gap.value.0 as usize].clone());
    let mut group = groups[order[made] as usize].clone();
    group.outputs[0] = again;
    for &reader in &order[gap.until..] {
        for input in &mut groups[reader as usize].inputs {
            if input.value == gap.value {
                input.value = again;
            }
        }
    }
    order.insert(gap.until, groups.len() as u32);
    late.push(groups.len() as u32);
    groups.push(group);
}
