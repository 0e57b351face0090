//! The segments of what stands, and which of them go on with what is new.

use super::Net;
use super::part::Free;
use crate::Picoseconds;
use crate::order::Schedule;
use crate::problem::{Problem, Producer};

/// The segments with work, in the order in which they run.
#[derive(Debug, Clone, Default)]
pub(super) struct Segments {
    /// Of each item; meaningless for resources.
    of: Vec<u32>,
    devices: Vec<usize>,
    /// How many items work in each.
    n_items: Vec<u32>,
    /// Those of each device, in ascending order.
    on: Vec<Vec<u32>>,
}

/// The segments of free items on some devices.
#[derive(Debug, Default)]
pub(super) struct Fit {
    of: Vec<u32>,
    /// Segments in which nothing works that stays.
    opened: Vec<u32>,
    /// The devices of segments that are new.
    more: Vec<usize>,
    /// The device of each segment that would not be but for what is free: of both.
    paid: Vec<usize>,
}

impl Fit {
    /// The first segment of a device among the new ones from `ready` on, or one more.
    fn add(&mut self, n_segments: usize, on: usize, ready: u32) -> u32 {
        let first = (ready as usize).saturating_sub(n_segments);
        let known = (first..self.more.len()).find(|&at| self.more[at] == on);
        let at = known.unwrap_or_else(|| {
            self.more.push(on);
            self.paid.push(on);
            self.more.len() - 1
        });
        (n_segments + at) as u32
    }

    /// What submitting takes that would not be but for what is free.
    pub fn submissions(&self, problem: &Problem) -> Picoseconds {
        let all = self.paid.iter().map(|&on| problem.devices[on].submission);
        all.fold(0, Picoseconds::saturating_add)
    }
}

impl Segments {
    /// Those of a schedule.
    pub fn of(problem: &Problem, schedule: &Schedule) -> Self {
        let n_segments = schedule.devices.len();
        let mut segments = Self {
            of: schedule.segment_of.clone(),
            n_items: vec![0; n_segments],
            on: vec![Vec::new(); problem.devices.len()],
            devices: schedule.devices.clone(),
        };
        for &item in &schedule.sequence {
            segments.n_items[segments.of[item as usize] as usize] += 1;
        }
        for (segment, &on) in schedule.devices.iter().enumerate() {
            segments.on[on].push(segment as u32);
        }
        segments
    }

    /// Takes items out of the segments in which they work.
    pub fn leave<'a>(&mut self, net: &Net, items: impl Iterator<Item = &'a usize>) {
        self.count(net, items, |n| *n -= 1);
    }

    /// Puts items back into the segments in which they worked.
    pub fn come_back<'a>(&mut self, net: &Net, items: impl Iterator<Item = &'a usize>) {
        self.count(net, items, |n| *n += 1);
    }

    fn count<'a>(
        &mut self,
        net: &Net,
        items: impl Iterator<Item = &'a usize>,
        change: impl Fn(&mut u32),
    ) {
        let placed = items.filter(|&&item| !net.items[item].is_resource);
        for &segment in placed.filter_map(|&item| self.of.get(item)) {
            change(&mut self.n_items[segment as usize]);
        }
    }

    /// The segments of free items, which are given with what they wait for first, on these devices. They have left theirs.
    pub fn fit(&self, net: &Net, free: &Free, sequence: &[usize], device: &[usize]) -> Fit {
        let works = |item: usize| !net.items[item].is_resource;
        let mut fit = Fit { of: vec![0; free.items.len()], ..Fit::default() };
        let own = sequence.iter().filter(|&&at| at < free.items.len() && works(free.items[at]));
        for &at in own {
            let (item, on) = (free.items[at], device[at]);
            let ready = net.read(item).filter_map(|tensor| {
                let Producer::Item(maker) = net.tensors[tensor].producer else { return None };
                let (segment, from) = match free.index(maker) {
                    _ if !works(maker) => return None,
                    Some(maker) => (fit.of[maker], device[maker]),
                    None => (self.of[maker], net.items[maker].device),
                };
                Some(segment + u32::from(from != on))
            });
            let ready = ready.max().unwrap_or(0);
            let stays = net.items[item].device == on;
            let before = self.of.get(item).copied().filter(|&before| stays && before >= ready);
            fit.of[at] = self.next(&mut fit, on, ready, before);
        }
        fit
    }

    /// The segment of a device that goes on with an item: the one in which it was `before` or an earlier one from `ready`
    /// on, else the first in which something works, else one in which nothing does, and else one more.
    fn next(&self, fit: &mut Fit, on: usize, ready: u32, before: Option<u32>) -> u32 {
        let later = &self.on[on][self.on[on].partition_point(|&segment| segment < ready)..];
        let works =
            |segment: &u32| self.n_items[*segment as usize] > 0 || fit.opened.contains(segment);
        let open = later.iter().copied().find(works);
        let next = [before, open].into_iter().flatten().min().or(later.first().copied());
        let Some(segment) = next else { return fit.add(self.devices.len(), on, ready) };
        if !works(&segment) {
            fit.opened.push(segment);
            fit.paid.push(on);
        }
        segment
    }

    #[cfg(test)]
    pub fn check_counts(&self, net: &Net) {
        let mut n_items = vec![0; self.n_items.len()];
        for (node, &segment) in net.items.iter().zip(&self.of) {
            let works = !node.is_gone && !node.is_resource;
            assert!(!works || self.devices[segment as usize] == node.device);
            if works {
                n_items[segment as usize] += 1;
            }
        }
        assert_eq!(n_items, self.n_items);
    }

    /// Takes what is free into the segments that were found for it.
    pub fn take(&mut self, net: &Net, free: &Free, fit: &Fit) {
        for &on in &fit.more {
            self.on[on].push(self.devices.len() as u32);
            self.devices.push(on);
            self.n_items.push(0);
        }
        self.of.resize(net.items.len(), 0);
        let works = |item: usize| !net.items[item].is_resource;
        for (&item, &segment) in free.items.iter().zip(&fit.of).filter(|(item, _)| works(**item)) {
            self.of[item] = segment;
            self.n_items[segment as usize] += 1;
        }
    }
}
