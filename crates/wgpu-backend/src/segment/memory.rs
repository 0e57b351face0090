//! Where values lie: offsets in a few buffers, so that memory is used again once nobody reads it.
//!
//! wgpu forbids one buffer as read-only and read-write in a dispatch, and puts a barrier between two dispatches
//! that write one buffer. So: no step writes a slab that it reads, and steps of one level write different
//! slabs, as far as eight go and unless they store parts of one value. Two values share bytes only if no level
//! has both.

use std::fmt;

use rustc_hash::FxHashSet;

/// Slabs are made freely up to this number; more only where a rule needs one.
const MAX_SLABS: usize = 8;

/// Memory that is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// Bytes.
    pub n_bytes: u64,
    /// The level that writes it first.
    pub first: u32,
    /// The level that reads it last.
    pub last: u32,
}

/// A step, as far as memory goes: indices of slots.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses {
    /// The step's level.
    pub level: u32,
    /// What it reads.
    pub reads: Vec<usize>,
    /// What it writes.
    pub writes: Vec<usize>,
}

/// Where a slot lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    /// The slab.
    pub slab: usize,
    /// Bytes from its start.
    pub offset: u64,
}

/// Where all slots lie.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// Bytes of each slab.
    pub slabs: Vec<u64>,
    /// The largest sum over a level of the bytes of the slots that live then: no plan takes less.
    pub live_bytes: u64,
    /// One for each slot.
    pub spots: Vec<Spot>,
    sizes: Vec<Slot>,
}

/// Gives each slot a place. `uses` are in the order in which they run.
pub(crate) fn plan(slots: &[Slot], uses: &[Uses], alignment: u64, max_slab: u64) -> Plan {
    let mut planner = Planner {
        slots,
        alignment: alignment.max(16),
        max_slab,
        spots: vec![None; slots.len()],
        slabs: Vec::new(),
    };
    // Slots that no step writes are filled before the first.
    for slot in 0..slots.len() {
        if !uses.iter().any(|step| step.writes.contains(&slot)) {
            planner.place(slot, uses, &FxHashSet::default());
        }
    }
    for (at, step) in uses.iter().enumerate() {
        let begin = uses[..at].iter().rposition(|other| other.level != step.level);
        let level = begin.map_or(0, |i| i + 1);
        let mut busy: FxHashSet<usize> = FxHashSet::default();
        let mates = uses[level..].iter().take_while(|other| other.level == step.level);
        for slot in mates.flat_map(|other| other.reads.iter().chain(&other.writes)) {
            busy.extend(planner.spots[*slot].map(|spot| spot.slab));
        }
        for &slot in step.writes.iter().filter(|&&slot| slot < slots.len()) {
            if planner.spots[slot].is_none() {
                planner.place(slot, uses, &busy);
            }
        }
    }
    let spot = |spot: &Option<Spot>| spot.unwrap_or(Spot { slab: 0, offset: 0 });
    Plan {
        slabs: planner.slabs.iter().map(|slab| slab.n_bytes).collect(),
        live_bytes: live_bytes(slots, planner.alignment),
        spots: planner.spots.iter().map(spot).collect(),
        sizes: slots.to_vec(),
    }
}

fn live_bytes(slots: &[Slot], alignment: u64) -> u64 {
    let at = |level: u32| {
        let live = slots.iter().filter(|slot| slot.first <= level && level <= slot.last);
        live.map(|slot| slot.n_bytes.next_multiple_of(alignment).max(alignment)).sum()
    };
    slots.iter().map(|slot| at(slot.first)).max().unwrap_or(0)
}

struct Slab {
    n_bytes: u64,
    slots: Vec<usize>,
}

struct Planner<'a> {
    slots: &'a [Slot],
    alignment: u64,
    max_slab: u64,
    spots: Vec<Option<Spot>>,
    slabs: Vec<Slab>,
}

impl Planner<'_> {
    /// Puts a slot into the slab that grows least, of those that are allowed and not busy if there are any.
    fn place(&mut self, slot: usize, uses: &[Uses], busy: &FxHashSet<usize>) {
        let forbidden = self.forbidden(slot, uses);
        let size = self.slots[slot].n_bytes.next_multiple_of(self.alignment).max(self.alignment);
        let candidates = (0..self.slabs.len()).filter(|slab| !forbidden.contains(slab));
        let best = candidates
            .map(|slab| {
                let offset = self.gap(slab, slot, size);
                let grows = (offset + size).saturating_sub(self.slabs[slab].n_bytes);
                (busy.contains(&slab), grows, slab, offset)
            })
            .filter(|(_, _, _, offset)| offset + size <= self.max_slab)
            .min();
        let (slab, offset) = match best {
            Some((is_busy, _, slab, offset)) if !is_busy || self.slabs.len() >= MAX_SLABS => {
                (slab, offset)
            }
            _ => {
                self.slabs.push(Slab { n_bytes: 0, slots: Vec::new() });
                (self.slabs.len() - 1, 0)
            }
        };
        let own = &mut self.slabs[slab];
        own.n_bytes = own.n_bytes.max(offset + size);
        own.slots.push(slot);
        self.spots[slot] = Some(Spot { slab, offset });
    }

    /// Slabs that a step which writes the slot reads, or that a step which reads the slot writes.
    fn forbidden(&self, slot: usize, uses: &[Uses]) -> FxHashSet<usize> {
        let mut forbidden = FxHashSet::default();
        for step in uses {
            for (own, other) in [(&step.writes, &step.reads), (&step.reads, &step.writes)] {
                if own.contains(&slot) {
                    let slabs = other.iter().filter_map(|&other| self.spots[other]);
                    forbidden.extend(slabs.map(|spot| spot.slab));
                }
            }
        }
        forbidden
    }

    /// The lowest offset in a slab where `size` bytes are free for the slot's life.
    fn gap(&self, slab: usize, slot: usize, size: u64) -> u64 {
        let own = self.slots[slot];
        let mut taken: Vec<(u64, u64)> = self.slabs[slab]
            .slots
            .iter()
            .filter(|&&other| {
                let other = self.slots[other];
                other.first <= own.last && own.first <= other.last
            })
            .filter_map(|&other| {
                let offset = self.spots[other]?.offset;
                let n_bytes = self.slots[other].n_bytes.next_multiple_of(self.alignment);
                Some((offset, offset + n_bytes.max(self.alignment)))
            })
            .collect();
        taken.sort_unstable();
        let mut at = 0;
        for (begin, end) in taken {
            if at + size <= begin {
                break;
            }
            at = at.max(end);
        }
        at
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (slab, n_bytes) in self.slabs.iter().enumerate() {
            writeln!(f, "slab {slab}: {n_bytes} bytes")?;
            let mut own: Vec<usize> =
                (0..self.spots.len()).filter(|&slot| self.spots[slot].slab == slab).collect();
            own.sort_by_key(|&slot| (self.sizes[slot].first, self.spots[slot].offset));
            for slot in own {
                let Slot { n_bytes, first, last } = self.sizes[slot];
                let at = self.spots[slot].offset;
                writeln!(f, "  {slot}: {n_bytes} bytes at {at}, levels {first} to {last}")?;
            }
        }
        Ok(())
    }
}
