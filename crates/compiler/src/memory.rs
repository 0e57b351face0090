//! Host memory of a program: where each value that a run makes lies. Values whose lives do not overlap share bytes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use convoke_graph_core::DType;

use crate::{Commit, HOST, Program, ValueId};

/// Where a program's host values lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMemory {
    /// For each value but strings, its place, if a run makes it on the host or brings it there.
    pub of: Vec<Option<HostPlace>>,
    /// The size in bytes of each buffer that holds one value, which outlives the run.
    pub slots: Vec<usize>,
    /// The size in bytes of the buffer that all others share.
    pub arena: usize,
    /// The largest sum of the bytes that live at once: no memory takes less.
    pub live_bytes: u64,
}

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPlace {
    /// In a buffer of its own, which may go to a tensor or a variable.
    Slot(u32),
    /// At this offset in the arena.
    Arena(usize),
}

/// What offsets in the arena are multiples of: a cache line.
const ALIGNMENT: usize = 64;

/// So many values at most are placed in the order of their sizes, for which each is compared with all before.
const BY_SIZE_MAX: usize = 2048;

/// The life of a value: the steps where it is made and last read. What outlives the run lies in memory of its own, of the
/// caller's maybe, which is there from the start.
#[derive(Debug, Clone, Copy)]
struct Life {
    first: usize,
    last: usize,
}

impl Life {
    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A value in the arena.
#[derive(Debug, Clone, Copy)]
struct Inner {
    value: usize,
    life: Life,
    n_bytes: usize,
}

/// Offsets in the order of the values, and the end of the last.
type Packed = (Vec<usize>, usize);

/// Gives each value that a run makes on the host a place.
///
/// A step is a group or the crossing at an end of a segment. A value never shares bytes with an input of the group
/// that makes it.
pub fn host_memory(program: &Program) -> HostMemory {
    let lives = lives(program);
    let size = |v: usize| program.values[v].n_bytes();
    let alive = lives.iter().enumerate().filter_map(|(v, life)| Some(((*life)?, size(v))));
    let live_bytes = most_alive(alive);
    let of = vec![None; program.values.len()];
    let mut memory = HostMemory { of, slots: Vec::new(), arena: 0, live_bytes };
    let mut inner: Vec<Inner> = Vec::new();
    for (value, life) in lives.iter().enumerate() {
        let Some(life) = *life else { continue };
        if program.values[value].dtype == DType::String {
            // Strings have no size before a run, and are tensors of their own.
            continue;
        }
        if life.last == usize::MAX {
            memory.of[value] = Some(HostPlace::Slot(memory.slots.len() as u32));
            memory.slots.push(size(value));
        } else {
            let n_bytes = size(value).next_multiple_of(ALIGNMENT);
            inner.push(Inner { value, life, n_bytes });
        }
    }
    let (offsets, arena) = packed(&inner);
    memory.arena = arena;
    for (inner, offset) in inner.iter().zip(offsets) {
        memory.of[inner.value] = Some(HostPlace::Arena(offset));
    }
    memory
}

/// The best of three ways: as they are made, the largest first, or the largest first in pieces that they have alone.
fn packed(inner: &[Inner]) -> Packed {
    let mut best = by_time(inner);
    if inner.len() <= BY_SIZE_MAX {
        for other in [by_size(inner), by_pieces(inner)] {
            if other.1 < best.1 {
                best = other;
            }
        }
    }
    best
}

/// Each value, as it is made, at the lowest offset where it fits.
fn by_time(inner: &[Inner]) -> Packed {
    let mut order: Vec<usize> = (0..inner.len()).collect();
    order.sort_by_key(|&i| (inner[i].life.first, Reverse(inner[i].n_bytes), i));
    let mut offsets = vec![0; inner.len()];
    let mut end = 0;
    // What is there, by offset, and by when it ends.
    let mut taken: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut ends: BTreeSet<(usize, usize)> = BTreeSet::new();
    for i in order {
        let Inner { life, n_bytes, .. } = inner[i];
        while let Some(&(last, gone)) = ends.first().filter(|(last, _)| *last < life.first) {
            ends.remove(&(last, gone));
            taken.remove(&(offsets[gone], gone));
        }
        offsets[i] = gap(taken.iter().map(|(&(at, _), &size)| (at, size)), n_bytes);
        taken.insert((offsets[i], i), n_bytes);
        ends.insert((life.last, i));
        end = end.max(offsets[i].saturating_add(n_bytes));
    }
    (offsets, end)
}

/// Each value, the largest first, at the lowest offset where it fits.
fn by_size(inner: &[Inner]) -> Packed {
    let mut order: Vec<usize> = (0..inner.len()).collect();
    order.sort_by_key(|&i| (Reverse(inner[i].n_bytes), inner[i].life.first, i));
    let mut offsets = vec![0; inner.len()];
    let mut end = 0;
    // By offset.
    let mut placed: Vec<usize> = Vec::new();
    for i in order {
        let Inner { life, n_bytes, .. } = inner[i];
        let taken = placed.iter().filter(|&&other| inner[other].life.overlaps(life));
        offsets[i] = gap(taken.map(|&other| (offsets[other], inner[other].n_bytes)), n_bytes);
        let at = placed.partition_point(|&other| offsets[other] <= offsets[i]);
        placed.insert(at, i);
        end = end.max(offsets[i].saturating_add(n_bytes));
    }
    (offsets, end)
}

/// Each value, the largest first, at the begin of a piece in which nothing else lives meanwhile: the smallest there is.
fn by_pieces(inner: &[Inner]) -> Packed {
    let mut order: Vec<usize> = (0..inner.len()).collect();
    order.sort_by_key(|&i| (Reverse(inner[i].n_bytes), inner[i].life.first, i));
    let mut offsets = vec![0; inner.len()];
    let mut end = 0usize;
    // For each piece, its offset and who has it in turn.
    let mut pieces: Vec<(usize, Vec<Life>)> = Vec::new();
    for i in order {
        let Inner { life, n_bytes, .. } = inner[i];
        let is_free = |lives: &[Life]| !lives.iter().any(|other| other.overlaps(life));
        if let Some((offset, lives)) = pieces.iter_mut().rev().find(|(_, lives)| is_free(lives)) {
            offsets[i] = *offset;
            lives.push(life);
        } else {
            offsets[i] = end;
            pieces.push((end, vec![life]));
            end = end.saturating_add(n_bytes);
        }
    }
    (offsets, end)
}

/// The lowest offset where so many bytes are free between those that are taken, which come by offset.
fn gap(taken: impl Iterator<Item = (usize, usize)>, n_bytes: usize) -> usize {
    let mut at = 0usize;
    for (offset, size) in taken {
        if at.saturating_add(n_bytes) <= offset {
            break;
        }
        at = at.max(offset.saturating_add(size));
    }
    at
}

/// The largest sum of bytes whose lives overlap.
fn most_alive(values: impl Iterator<Item = (Life, usize)>) -> u64 {
    // At one step, what is made comes before what ends: a group's inputs live until it is done.
    let mut changes: Vec<(usize, bool, u64)> = Vec::new();
    for (life, n_bytes) in values {
        changes.push((life.first, false, n_bytes as u64));
        changes.push((life.last, true, n_bytes as u64));
    }
    changes.sort_unstable();
    let (mut alive, mut most) = (0u64, 0);
    for (_, ends, n_bytes) in changes {
        alive = if ends { alive.saturating_sub(n_bytes) } else { alive.saturating_add(n_bytes) };
        most = most.max(alive);
    }
    most
}

fn lives(program: &Program) -> Vec<Option<Life>> {
    let mut lives: Vec<Option<Life>> = vec![None; program.values.len()];
    let made = |lives: &mut Vec<Option<Life>>, id: ValueId, step: usize| {
        lives[id.0 as usize].get_or_insert(Life { first: step, last: step });
    };
    let read = |lives: &mut Vec<Option<Life>>, id: ValueId, step: usize| {
        if let Some(life) = &mut lives[id.0 as usize] {
            life.last = life.last.max(step);
        }
    };
    let mut step = 0;
    for segment in &program.segments {
        for &upload in &segment.uploads {
            read(&mut lives, upload, step);
        }
        for &group in segment.groups.iter().filter(|_| segment.device == HOST) {
            step += 1;
            let group = &program.groups[group as usize];
            for input in &group.inputs {
                read(&mut lives, input.value, step);
            }
            for &output in &group.outputs {
                made(&mut lives, output, step);
            }
        }
        step += 1;
        for &download in &segment.downloads {
            made(&mut lives, download, step);
        }
    }
    let fetched = program.fetches.iter().map(|fetch| fetch.value);
    let on_host = program.segments.iter().filter(|segment| segment.device == HOST);
    let commits: Vec<&Commit> = on_host.flat_map(|segment| &segment.commits).collect();
    // The group of an accumulating commit may have to run again at the end.
    let again = commits.iter().filter(|commit| commit.accumulates).flat_map(|commit| {
        let group = program.groups.iter().find(|group| group.outputs.contains(&commit.value));
        group.into_iter().flat_map(|group| group.inputs.iter().map(|input| input.value))
    });
    again.for_each(|value| read(&mut lives, value, step));
    for value in fetched.chain(commits.iter().map(|commit| commit.value)) {
        if let Some(life) = &mut lives[value.0 as usize] {
            *life = Life { first: 0, last: usize::MAX };
        }
    }
    lives
}

impl HostMemory {
    /// All bytes together.
    pub fn n_bytes(&self) -> u64 {
        let slots = self.slots.iter().map(|&size| size as u64);
        slots.fold(self.arena as u64, u64::saturating_add)
    }
}

impl fmt::Display for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "arena of {} bytes", self.arena)?;
        for (v, place) in self.of.iter().enumerate() {
            match place {
                Some(HostPlace::Slot(slot)) => {
                    writeln!(f, "v{v}: {} bytes of its own", self.slots[*slot as usize])?;
                }
                Some(HostPlace::Arena(offset)) => writeln!(f, "v{v}: in the arena at {offset}")?,
                None => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(rows: &[(usize, usize, usize)]) -> Vec<Inner> {
        let one = |(value, &(n_bytes, first, last)): (usize, &_)| Inner {
            value,
            life: Life { first, last },
            n_bytes,
        };
        rows.iter().enumerate().map(one).collect()
    }

    fn check(inner: &[Inner]) -> usize {
        for (offsets, end) in [by_time(inner), by_size(inner), by_pieces(inner)] {
            for (i, a) in inner.iter().enumerate() {
                assert!(offsets[i] + a.n_bytes <= end);
                for (j, b) in inner.iter().enumerate().skip(i + 1) {
                    let apart = offsets[i] + a.n_bytes <= offsets[j]
                        || offsets[j] + b.n_bytes <= offsets[i];
                    assert!(apart || !a.life.overlaps(b.life), "{i} and {j} in {inner:?}");
                }
            }
        }
        packed(inner).1
    }

    /// Many small parts become one value, from which a large one is made, as in a recurrent network of two layers.
    #[test]
    fn large_values_lie_where_small_ones_were() {
        let mut rows = vec![(2048, 0, 8)];
        rows.extend((0..8).map(|i| (64, 1 + i, 9)));
        rows.extend([(512, 9, 10), (2048, 10, 11)]);
        // The first and all its parts: 2,048 and 512 bytes.
        assert_eq!(check(&inner(&rows)), 2560);
    }

    #[test]
    fn nothing_shares_bytes_while_it_lives() {
        assert_eq!(check(&[]), 0);
        let mut state = 1u64;
        let mut next = |n: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for n in [1, 2, 3, 10, 60, 300] {
            let mut rows = Vec::new();
            for _ in 0..n {
                let (size, first, long) =
                    (next(40) as usize * 64, next(n) as usize, next(9) as usize);
                rows.push((size, first, first + long));
            }
            let inner = inner(&rows);
            let least = most_alive(inner.iter().map(|inner| (inner.life, inner.n_bytes))) as usize;
            let found = check(&inner);
            assert!(found >= least && found <= least + least / 5, "{found} for {least}");
        }
    }
}
