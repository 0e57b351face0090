//! The choice among legal places.
//!
//! What is minimised is the price (`price.rs`), which a cut can't express. So the choice is the cheapest of
//!
//! 1. everything on one device, for each device (what has no kernel there goes to the host, or else to
//!    where it is cheapest);
//! 2. minimum cuts (`cut.rs`), each exact in its own objective: with two devices one cut, with more
//!    repeated cuts between pairs, kept as long as the price falls;
//! 3. from the best of these, moves of all that is in one segment, and of single classes, until none
//!    lowers the price. In large problems the moves stop when `MAX_STEPS` are used up.
//!
//! Every step only ever lowers the price, so the result is never above the best single device. Ties go to
//! the earlier candidate and to the device that comes first.

use convoke_graph_core::Result;

use crate::Picoseconds;
use crate::cut::swap;
use crate::decide::decide;
use crate::explain::Solution;
use crate::legal::Classes;
use crate::price::Pricer;
use crate::problem::{HOST, Problem};

/// How much work refining by repeated pricing may take, in items, uses and tensors visited.
pub(crate) const MAX_STEPS: usize = 200_000;
/// How often all pairs of more than two devices are cut again.
const MAX_ROUNDS: usize = 4;

/// Gives every item a device, and says why.
///
/// # Errors
/// - `FailedPrecondition` if there are no devices.
/// - `InvalidArgument` if an item has no kernel on any device, or a request can't be met: the message has
///   the items, what they asked for, the devices, and what would help, in at most 15 lines.
/// - `Internal` for a malformed problem.
pub fn solve(problem: &Problem) -> Result<Solution> {
    let order = problem.check()?;
    let classes = Classes::new(problem)?;
    let pricer = Pricer::new(problem, &order);
    let mut search = Search::new(problem, &classes, pricer);
    search.run();
    let Search { mut pricer, best, .. } = search;
    let mut device = Vec::new();
    classes.spread(&best.places, &mut device);
    let prediction = pricer.predict(&device);
    let reasons = decide(problem, &classes, &best.places, &mut pricer);
    Ok(Solution::new(problem, device, prediction, reasons))
}

/// A place for each class, and the price.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) places: Vec<usize>,
    pub(crate) total: Picoseconds,
}

/// The search for the cheapest places.
pub(crate) struct Search<'a> {
    problem: &'a Problem,
    classes: &'a Classes,
    pub(crate) pricer: Pricer<'a>,
    pub(crate) best: Choice,
    /// Each item's device, for pricing.
    device: Vec<usize>,
}

impl<'a> Search<'a> {
    /// Starts with everything on the host where that is legal.
    pub(crate) fn new(problem: &'a Problem, classes: &'a Classes, pricer: Pricer<'a>) -> Self {
        let places = all_on(problem, classes, HOST);
        let best = Choice { places, total: Picoseconds::MAX };
        let mut search = Self { problem, classes, pricer, best, device: Vec::new() };
        search.best.total = search.price(&search.best.places.clone());
        search
    }

    fn run(&mut self) {
        let n_devices = self.problem.devices.len();
        if n_devices == 1 {
            return;
        }
        for d in 1..n_devices {
            self.try_places(all_on(self.problem, self.classes, d));
        }
        self.cuts();
        self.moves();
    }

    fn price(&mut self, places: &[usize]) -> Picoseconds {
        self.classes.spread(places, &mut self.device);
        self.pricer.total(&self.device)
    }

    /// Takes these places if they are cheaper.
    fn try_places(&mut self, places: Vec<usize>) -> bool {
        let total = self.price(&places);
        let better = total < self.best.total;
        if better {
            self.best = Choice { places, total };
        }
        better
    }

    /// Cuts between pairs of devices.
    fn cuts(&mut self) {
        let n_devices = self.problem.devices.len();
        let rounds = if n_devices == 2 { 1 } else { MAX_ROUNDS };
        for _ in 0..rounds {
            let mut better = false;
            for b in 1..n_devices {
                for a in 0..b {
                    let places = swap(self.problem, self.classes, &self.best.places, a, b);
                    if places != self.best.places {
                        better |= self.try_places(places);
                    }
                }
            }
            if !better {
                break;
            }
        }
    }

    /// Moves of segments and of single classes, until none helps.
    fn moves(&mut self) {
        let mut left = MAX_STEPS / self.pricer.n_steps().max(1);
        while left > 0 {
            let segments = self.segments();
            let by_segment = self.sweep(&segments, &mut left);
            let singles: Vec<Vec<usize>> = (0..self.classes.len()).map(|c| vec![c]).collect();
            if !self.sweep(&singles, &mut left) && !by_segment {
                break;
            }
        }
    }

    /// The classes of each segment of the best places so far.
    fn segments(&mut self) -> Vec<Vec<usize>> {
        self.classes.spread(&self.best.places, &mut self.device);
        self.pricer.total(&self.device);
        let schedule = &self.pricer.schedule;
        let mut segments = vec![Vec::new(); schedule.devices.len()];
        for (item, &segment) in schedule.segment_of.iter().enumerate() {
            if !self.problem.items[item].is_resource {
                segments[segment as usize].push(self.classes.of(item));
            }
        }
        for segment in &mut segments {
            segment.sort_unstable();
            segment.dedup();
        }
        segments
    }

    /// Tries to move each set of classes to each other device, and keeps what is cheaper. `left` is the
    /// number of pricings that are still allowed.
    fn sweep(&mut self, sets: &[Vec<usize>], left: &mut usize) -> bool {
        let mut better = false;
        for set in sets {
            for d in 0..self.problem.devices.len() {
                let moves = |c: &usize| self.best.places[*c] != d && self.classes.legal(*c, d);
                if !set.iter().any(moves) {
                    continue;
                }
                if *left == 0 {
                    return better;
                }
                *left -= 1;
                let mut places = self.best.places.clone();
                for &class in set.iter().filter(|&&class| self.classes.legal(class, d)) {
                    places[class] = d;
                }
                better |= self.try_places(places);
            }
        }
        better
    }
}

/// Every class on `device`; what is not legal there on the host, or else where it is cheapest.
pub(crate) fn all_on(problem: &Problem, classes: &Classes, device: usize) -> Vec<usize> {
    let cheapest = |class: usize| {
        classes.devices(class).min_by_key(|&d| classes.cost(class, d)).unwrap_or(HOST)
    };
    let place = |class: usize| {
        let wanted = [device, HOST].into_iter().find(|&d| classes.legal(class, d));
        wanted.unwrap_or_else(|| cheapest(class))
    };
    debug_assert!(device < problem.devices.len(), "a device of the problem");
    (0..classes.len()).map(place).collect()
}
