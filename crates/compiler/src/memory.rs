//! Host memory of a program: which slot each value that a run makes lies in, and how large the slots are.
//! Values whose lives do not overlap share a slot.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use crate::{Commit, HOST, Program, ValueId};

/// The slots of a program's host values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSlots {
    /// For each value, its slot, if a run makes it on the host or brings it there.
    pub of: Vec<Option<u32>>,
    /// The size of each slot in bytes.
    pub sizes: Vec<usize>,
    /// The largest sum of the bytes that live at once: no slots take less.
    pub live_bytes: u64,
}

/// The life of a value: the steps where it is made and last read.
#[derive(Debug, Clone, Copy)]
struct Life {
    first: usize,
    last: usize,
}

/// Gives each value that a run makes on the host a slot.
///
/// A step is a group or the crossing at an end of a segment. A value is never in the slot of an input of
/// the group that makes it.
pub fn host_slots(program: &Program) -> HostSlots {
    let lives = lives(program);
    let mut order: Vec<(usize, Life)> =
        lives.iter().enumerate().filter_map(|(v, life)| life.map(|life| (v, life))).collect();
    // The largest first: what comes later fits into slots that are there.
    order.sort_by_key(|&(v, life)| (Reverse(program.values[v].n_bytes()), life.first, v));
    let live_bytes = most_alive(order.iter().map(|&(v, life)| (life, program.values[v].n_bytes())));
    let of = vec![None; program.values.len()];
    let mut slots = HostSlots { of, sizes: Vec::new(), live_bytes };
    // For each slot, the lives in it by their start.
    let mut taken: Vec<BTreeMap<usize, usize>> = Vec::new();
    for (v, life) in order {
        let size = program.values[v].n_bytes();
        // What outlives the run changes places with a variable's buffer, so that its slot is its own.
        let shared = life.last != usize::MAX;
        let is_free = |lives: &BTreeMap<usize, usize>| {
            lives.range(..=life.last).next_back().is_none_or(|(_, &last)| last < life.first)
        };
        // The smallest slot is the last that was made.
        let free = (0..taken.len()).rev().find(|&slot| shared && is_free(&taken[slot]));
        let slot = free.unwrap_or_else(|| {
            taken.push(BTreeMap::new());
            slots.sizes.push(size);
            taken.len() - 1
        });
        taken[slot].insert(life.first, life.last);
        slots.of[v] = Some(slot as u32);
    }
    slots
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
    let kept = fetched.chain(commits.iter().map(|commit| commit.value)).chain(again);
    for value in kept {
        read(&mut lives, value, usize::MAX);
    }
    lives
}

impl HostSlots {
    /// All bytes together.
    pub fn n_bytes(&self) -> u64 {
        self.sizes.iter().fold(0, |sum, &size| sum.saturating_add(size as u64))
    }
}

impl fmt::Display for HostSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (slot, size) in self.sizes.iter().enumerate() {
            let values = self.of.iter().enumerate().filter(|(_, s)| **s == Some(slot as u32));
            let names: Vec<String> = values.map(|(v, _)| format!("v{v}")).collect();
            writeln!(f, "slot {slot} of {size} bytes: {}", names.join(", "))?;
        }
        Ok(())
    }
}
