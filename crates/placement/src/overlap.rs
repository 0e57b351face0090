//! When a run is done if devices work beside each other: the rule of the session's executor.
//!
//! The host walks through the segments. It computes its own, and hands those of other devices over, which
//! start when their queue is free. It waits before an item that reads what another device sends, before it hands over a
//! segment that does, and for all others before it hands over one that stores.

use crate::order::Schedule;
use crate::problem::{HOST, Problem};
use crate::{DeviceKind, Picoseconds};

/// The clocks of one walk, kept for the next.
#[derive(Debug, Default)]
pub(crate) struct Overlap {
    /// What each segment's transfers take: those that it waits for, and those that it sends.
    crossing: Vec<Picoseconds>,
    /// When each segment is done, with what it sends.
    end: Vec<Picoseconds>,
    /// When the queue of each device is free.
    free: Vec<Picoseconds>,
    /// Who waits for whom: a place in the sequence, and a segment of a device that is not a CPU.
    waits: Vec<(u32, u32)>,
    position: Vec<u32>,
}

impl Overlap {
    /// The time until all segments are done. `cost` is that of an item on its device, `crossings` are segments
    /// with the time of what they take or send, `waits` pairs of an item and a segment of another device whose
    /// results it reads.
    pub(crate) fn makespan(
        &mut self,
        problem: &Problem,
        schedule: &Schedule,
        cost: impl Fn(usize) -> Picoseconds,
        crossings: impl Iterator<Item = (u32, Picoseconds)>,
        waits: impl Iterator<Item = (u32, u32)>,
    ) -> Picoseconds {
        let n_segments = schedule.devices.len();
        for times in [&mut self.crossing, &mut self.end] {
            times.clear();
            times.resize(n_segments, 0);
        }
        self.free.clear();
        self.free.resize(problem.devices.len(), 0);
        for (segment, time) in crossings {
            let sum = &mut self.crossing[segment as usize];
            *sum = sum.saturating_add(time);
        }
        self.position.clear();
        self.position.resize(schedule.segment_of.len(), 0);
        for (at, &item) in schedule.sequence.iter().enumerate() {
            self.position[item as usize] = at as u32;
        }
        self.waits.clear();
        let position = &self.position;
        self.waits.extend(waits.map(|(item, sender)| (position[item as usize], sender)));
        self.waits.sort_unstable();
        self.walk(problem, schedule, cost)
    }

    fn walk(
        &mut self,
        problem: &Problem,
        schedule: &Schedule,
        cost: impl Fn(usize) -> Picoseconds,
    ) -> Picoseconds {
        let (mut now, mut wait, mut start) = (problem.devices[HOST].run, 0, 0);
        for (segment, &d) in schedule.devices.iter().enumerate() {
            let (model, queue) = (&problem.devices[d], problem.queues.of(d));
            let is_cpu = model.kind == DeviceKind::Cpu;
            let here = |item: &&u32| schedule.segment_of[**item as usize] as usize == segment;
            let n_items = schedule.sequence[start..].iter().take_while(here).count();
            let end = start + n_items;
            let mut busy = self.crossing[segment];
            for at in start..end {
                let spent = cost(schedule.sequence[at] as usize);
                // Another device takes all that it needs before it starts.
                while let Some(&(_, sender)) =
                    self.waits.get(wait).filter(|&&(waiting, _)| waiting as usize <= at)
                {
                    now = now.max(self.end[sender as usize]);
                    wait += 1;
                }
                if is_cpu {
                    now = now.saturating_add(spent);
                } else {
                    busy = busy.saturating_add(spent);
                }
            }
            start = end;
            if schedule.stores[segment] && !is_cpu {
                now = self.end[..segment].iter().fold(now, |latest, &end| latest.max(end));
            }
            now = now.saturating_add(model.submission);
            let done = if is_cpu { now } else { now.max(self.free[queue]) };
            let done = done.saturating_add(busy);
            self.end[segment] = done;
            if is_cpu {
                now = done;
            } else {
                self.free[queue] = done;
            }
        }
        self.end.iter().fold(now, |latest, &end| latest.max(end))
    }
}
