//! The proof that places are the cheapest, and the cheapest places where they were not found yet: branch and
//! bound for the host and one other device.
//!
//! A node of the search has some classes fixed. Its lower bound is a minimum cut over the others without what
//! a cut can't express, and what is certain of that: a submission for each device that works, stores, or has something
//! cross, a latency for each way that something certainly crosses. The places of that cut are priced as well, so that
//! good ones are found early.

use crate::Picoseconds;
use crate::choose::Search;
use crate::cut::Swap;
use crate::legal::Classes;
use crate::price::Score;
use crate::problem::{HOST, Objective, Problem, Producer};

/// How much work the search may take, in items, uses and tensors visited.
const MAX_STEPS: usize = 4_000_000;
/// Of more classes the search would hardly come to an end.
const MAX_FREE: usize = 64;
/// Of more classes not even the bound is worth its time.
const MAX_BOUND: usize = 4096;
/// How many times the work of a pricing a cut takes.
const CUT_STEPS: usize = 4;

/// The other device.
const DEVICE: usize = 1;

/// Improves the best places of a search until no others can be better, or it took `MAX_STEPS`. Gives a lower
/// bound for the total time of all legal places, which is that of the best if it is proven.
pub(crate) fn prove(search: &mut Search<'_>) -> Picoseconds {
    let problem = search.problem;
    if problem.devices.len() == 1 {
        return search.best.score.total;
    }
    if problem.devices.len() != 2 || problem.objective != Objective::Total {
        return 0;
    }
    let mut tree = Tree::new(problem, search.classes);
    if tree.order.len() > MAX_BOUND {
        return 0;
    }
    let (root, _) = tree.bound(&search.best.places);
    let is_small = tree.order.len() <= MAX_FREE;
    let steps = if is_small { MAX_STEPS } else { 0 };
    let mut left = steps / (CUT_STEPS * search.pricer.n_steps().max(1));
    let mut open: Vec<(usize, usize)> = Vec::new();
    tree.branch(search, 0, &mut open);
    while let Some((depth, device)) = open.pop() {
        if left == 0 {
            return root;
        }
        left -= 1;
        tree.fix(depth, device);
        tree.branch(search, depth + 1, &mut open);
    }
    search.best.score.total
}

/// The path from the root to the node at hand.
struct Tree<'a> {
    problem: &'a Problem,
    classes: &'a Classes,
    /// The classes that may be on either device, those with the most at stake first.
    order: Vec<usize>,
    fixed: Vec<bool>,
    places: Vec<usize>,
}

impl<'a> Tree<'a> {
    fn new(problem: &'a Problem, classes: &'a Classes) -> Self {
        let is_free = |class: usize| classes.legal(class, HOST) && classes.legal(class, DEVICE);
        let mut order: Vec<usize> = (0..classes.len()).filter(|&class| is_free(class)).collect();
        let stake =
            |&class: &usize| classes.cost(class, HOST).abs_diff(classes.cost(class, DEVICE));
        order.sort_by_key(|class| std::cmp::Reverse(stake(class)));
        let fixed = (0..classes.len()).map(|class| !is_free(class)).collect();
        let only = |class: usize| classes.devices(class).next().unwrap_or(HOST);
        let places = (0..classes.len()).map(only).collect();
        Self { problem, classes, order, fixed, places }
    }

    /// Goes to the node where the first `depth` classes of the order are as they are, and the next on `device`.
    fn fix(&mut self, depth: usize, device: usize) {
        for &class in &self.order[depth..] {
            self.fixed[class] = false;
        }
        self.fixed[self.order[depth]] = true;
        self.places[self.order[depth]] = device;
    }

    /// Looks at the node at hand, and opens its children if they may have better places.
    fn branch(&self, search: &mut Search<'_>, depth: usize, open: &mut Vec<(usize, usize)>) {
        let (bound, places) = self.bound(&search.best.places);
        let least = Score { excess: 0, time: bound, total: bound, n_moved: 0 };
        if least >= search.best.score {
            return;
        }
        let likely = self.order.get(depth).map(|&class| places[class]);
        search.try_places(places);
        if let Some(likely) = likely.filter(|_| least < search.best.score) {
            let other = if likely == HOST { DEVICE } else { HOST };
            open.extend([(depth, other), (depth, likely)]);
        }
    }

    /// A lower bound for all places that have what is fixed, and the places that look best. Classes that are not
    /// fixed start where `places` has them.
    fn bound(&self, places: &[usize]) -> (Picoseconds, Vec<usize>) {
        let at = |class: usize| if self.fixed[class] { self.places[class] } else { places[class] };
        let places: Vec<usize> = (0..self.classes.len()).map(at).collect();
        let swap = Swap {
            problem: self.problem,
            classes: self.classes,
            places: &places,
            a: HOST,
            b: DEVICE,
            fixed: &self.fixed,
            penalty: &[],
            latency: false,
        };
        let (best, value) = swap.solve();
        (value.saturating_add(self.certain()), best)
    }

    /// What submissions and latencies cost whatever happens to the classes that are not fixed.
    fn certain(&self) -> Picoseconds {
        let is_resource = |item: usize| self.problem.items[item].is_resource;
        let fixed = |item: usize| {
            let class = self.classes.of(item);
            self.fixed[class].then(|| self.places[class])
        };
        let mut works = [false; 2];
        for item in (0..self.problem.items.len()).filter(|&item| !is_resource(item)) {
            if let Some(device) = fixed(item) {
                works[device] = true;
            }
        }
        let mut crosses = [false; 2];
        for tensor in &self.problem.tensors {
            let from = match tensor.producer {
                Producer::Host => Some(HOST),
                Producer::Item(item) => fixed(item),
            };
            let Some(from) = from else { continue };
            let to = tensor.consumers.iter().filter_map(|&item| fixed(item));
            let to = to.chain(tensor.host_reads.then_some(HOST));
            for to in to.filter(|&to| to != from) {
                crosses[to] = true;
            }
        }
        let mut stored = self.problem.tensors.iter().map(|tensor| &tensor.consumers);
        let mut constants = self.problem.constants.iter().map(|constant| &constant.consumers);
        let is_there = |&item: &usize| is_resource(item) && fixed(item) == Some(DEVICE);
        // What crosses is in a segment of the device, and so is what is stored there.
        works[DEVICE] |= crosses.contains(&true)
            || stored.any(|consumers| consumers.iter().any(is_there))
            || constants.any(|consumers| consumers.iter().any(is_there));
        let submission = |d: usize| if works[d] { self.problem.devices[d].submission } else { 0 };
        let latency = |to: usize| {
            let link = self.problem.link(if to == HOST { DEVICE } else { HOST }, to);
            if crosses[to] { link.latency } else { 0 }
        };
        let run = self.problem.devices[HOST].run;
        let parts = [run, submission(HOST), submission(DEVICE), latency(HOST), latency(DEVICE)];
        parts.into_iter().fold(0, Picoseconds::saturating_add)
    }
}
