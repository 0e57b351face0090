//! The choice among legal places.
//!
//! What is minimised is the score (`price.rs`): bytes above what devices have, then the objective, neither of
//! which a cut can express. So the choice is the best of
//!
//! 1. everything on one device, for each device (what has no kernel there goes to the host, or else to
//!    where it is cheapest);
//! 2. minimum cuts (`cut.rs`), each exact in its own objective: with two devices one cut, with more
//!    repeated cuts between pairs, kept as long as the score falls; what makes room where devices have too
//!    little memory (`tight.rs`);
//! 3. for the makespan, each class where it is done first, those with the longest way to go first;
//! 4. from the best of these, moves of all that is in one segment, and of single classes, until none
//!    lowers the score. In large problems the moves stop when `MAX_STEPS` are used up, or do not begin;
//! 5. for the total time on two devices, a search that proves that nothing is better, or finds it
//!    (`exact.rs`), as far as its own number of steps goes.
//!
//! Every step only ever lowers the score, so the result is never above the best single device. Ties go to
//! the earlier candidate and to the device that comes first.

use std::sync::Arc;

use convoke_graph_core::Result;

use crate::cut::Swap;
use crate::exact::prove;
use crate::explain::Solution;
use crate::legal::Classes;
use crate::price::{Pricer, Score};
use crate::problem::{HOST, Objective, Problem};
use crate::{Picoseconds, early, memory, refuse, tight};

/// How much work refining by repeated pricing may take, in items, uses and tensors visited.
pub(crate) const MAX_STEPS: usize = 200_000;
/// Fewer pricings than this are not worth their time.
const MIN_MOVES: usize = 16;
/// How often all pairs of more than two devices are cut again.
const MAX_ROUNDS: usize = 4;

/// Gives every item a device. Why, the solution says when it is asked. An owned problem is not copied.
///
/// # Errors
/// - `FailedPrecondition` if there are no devices.
/// - `InvalidArgument` if an item has no kernel on any device, or a request can't be met: the message has
///   the items, what they asked for, the devices, and what would help, in at most 15 lines.
/// - `ResourceExhausted` if devices have too little memory for what can't be left out, with the numbers.
/// - `Internal` for a malformed problem.
pub fn solve(problem: impl Into<Arc<Problem>>) -> Result<Solution> {
    let problem = problem.into();
    let order = problem.check()?;
    let classes = Classes::new(&problem)?;
    let pricer = Pricer::new(&problem, &order);
    let mut search = Search::new(&problem, &classes, pricer);
    search.run();
    let bound = prove(&mut search);
    let Search { mut pricer, best, .. } = search;
    let mut device = Vec::new();
    classes.spread(&best.places, &mut device);
    if best.score.excess > 0 {
        let least = memory::least(&problem, &device);
        let is_over = |&d: &usize| least[d].n_bytes() > problem.devices[d].memory_bytes;
        if let Some(on) = (0..least.len()).find(is_over) {
            return Err(refuse::too_little_memory(&problem, &device, on, &least[on]));
        }
    }
    let prediction = pricer.predict_best(&device);
    let order = pricer.schedule.order;
    Ok(Solution::new(problem, device, order).predicted(prediction, bound))
}

/// A place for each class, and how good that is.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) places: Vec<usize>,
    pub(crate) score: Score,
}

/// The search for the cheapest places.
pub(crate) struct Search<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) classes: &'a Classes,
    pub(crate) pricer: Pricer<'a>,
    pub(crate) best: Choice,
    /// Each item's device, for pricing.
    device: Vec<usize>,
}

impl<'a> Search<'a> {
    /// Starts with everything on the host where that is legal.
    pub(crate) fn new(problem: &'a Problem, classes: &'a Classes, pricer: Pricer<'a>) -> Self {
        let places = all_on(problem, classes, HOST);
        let best = Choice { places: Vec::new(), score: Score::WORST };
        let mut search = Self { problem, classes, pricer, best, device: Vec::new() };
        let score = search.score(&places);
        search.best = Choice { places, score };
        search
    }

    /// Looks for the cheapest places.
    pub(crate) fn run(&mut self) {
        let n_devices = self.problem.devices.len();
        if n_devices == 1 {
            return;
        }
        for d in 1..n_devices {
            self.try_places(all_on(self.problem, self.classes, d));
        }
        self.cuts();
        if self.best.score.excess > 0 {
            tight::search(self);
        }
        if self.problem.objective == Objective::Makespan {
            let order = self.pricer.order();
            self.try_places(early::places(self.problem, self.classes, order));
        }
        self.moves();
    }

    fn score(&mut self, places: &[usize]) -> Score {
        self.classes.spread(places, &mut self.device);
        self.pricer.score(&self.device)
    }

    /// Takes these places if they are better.
    pub(crate) fn try_places(&mut self, places: Vec<usize>) -> bool {
        let score = self.score(&places);
        let better = score < self.best.score;
        if better {
            self.best = Choice { places, score };
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
                    let places = self.cut(&self.best.places, a, b, &[]);
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

    /// The best places of classes on `a` and `b` in the objective of the cut.
    pub(crate) fn cut(
        &self,
        places: &[usize],
        a: usize,
        b: usize,
        penalty: &[[Picoseconds; 2]],
    ) -> Vec<usize> {
        let (problem, classes) = (self.problem, self.classes);
        let swap = Swap { problem, classes, places, a, b, fixed: &[], penalty, latency: true };
        swap.solve().0
    }

    /// Moves of segments and of single classes, until none helps.
    fn moves(&mut self) {
        let mut left = MAX_STEPS / self.pricer.n_steps().max(1);
        if left < MIN_MOVES {
            return;
        }
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
    let place = |class: usize| {
        let wanted = [device, HOST].into_iter().find(|&d| classes.legal(class, d));
        wanted.unwrap_or_else(|| classes.cheapest(class))
    };
    debug_assert!(device < problem.devices.len(), "a device of the problem");
    (0..classes.len()).map(place).collect()
}
