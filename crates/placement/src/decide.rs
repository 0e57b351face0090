//! What decided each item's device, and what the next best choice would have cost.
//!
//! The price of another choice is that of moving the item's whole class while all else stays. It is
//! priced anew in problems of ordinary size; in very large ones it is the difference in the objective of
//! the cut, and [`NextBest::is_exact`] is false.

use crate::choose::MAX_STEPS;
use crate::explain::{Candidate, Decision, NextBest, Reason};
use crate::legal::Classes;
use crate::price::Pricer;
use crate::problem::{HOST, Problem, Producer};
use crate::{DeviceSpec, Picoseconds};

/// The reason of each item.
pub(crate) fn decide(
    problem: &Problem,
    classes: &Classes,
    places: &[usize],
    pricer: &mut Pricer<'_>,
) -> Vec<Reason> {
    let edges = Edges::new(problem, classes, places);
    let next = next_best(classes, places, pricer, &edges);
    let cause: Vec<Cause> = (0..classes.len())
        .map(|class| {
            let place = places[class];
            let own = |d: &usize| classes.cost(class, *d);
            let cheaper = classes.devices(class).min_by_key(own).filter(|d| own(d) < own(&place));
            match cheaper.and_then(|d| edges.dearest(class, place, d)) {
                Some(tensor) => Cause::Neighbour(tensor),
                None => Cause::Cost,
            }
        })
        .collect();
    let excluders = Excluders::new(problem, classes);
    (0..problem.items.len())
        .map(|item| {
            let class = classes.of(item);
            let place = places[class];
            let candidates = candidates(problem, classes, &excluders, item);
            let excluders = excluders.of(class);
            let decision = decision(problem, excluders, item, place, cause[class], next[class]);
            Reason { device: place, candidates, decision, next_best: next[class] }
        })
        .collect()
}

/// Why a class with several legal devices is where it is.
#[derive(Clone, Copy)]
enum Cause {
    Cost,
    Neighbour(usize),
}

/// For each class and device, the first member that by itself may not be there.
struct Excluders {
    n_devices: usize,
    first: Vec<Option<usize>>,
}

impl Excluders {
    fn new(problem: &Problem, classes: &Classes) -> Self {
        let n_devices = problem.devices.len();
        let first = |class: usize, d: usize| {
            classes.members(class).iter().copied().find(|&item| is_excluded(problem, item, d))
        };
        let classes = 0..classes.len();
        let first = classes.flat_map(|class| (0..n_devices).map(move |d| first(class, d)));
        Self { n_devices, first: first.collect() }
    }

    fn of(&self, class: usize) -> &[Option<usize>] {
        &self.first[class * self.n_devices..(class + 1) * self.n_devices]
    }
}

fn decision(
    problem: &Problem,
    excluders: &[Option<usize>],
    item: usize,
    place: usize,
    cause: Cause,
    next: Option<NextBest>,
) -> Decision {
    if let Some(asked) = &problem.items[item].requested {
        if !asked.matches(&problem.devices[place].name) {
            let why = why_softened(problem, excluders, item, asked);
            return Decision::Softened { requested: asked.clone(), why };
        }
        let excludes = |d: usize| {
            problem.refusal(item, d).is_none() && !asked.matches(&problem.devices[d].name)
        };
        if (0..problem.devices.len()).any(excludes) {
            return Decision::Requested { spec: asked.clone() };
        }
    }
    if problem.devices.len() == 1 {
        return Decision::OnlyDevice;
    }
    let refused = |d: usize| problem.refusal(item, d).map(|why| (d, why.to_owned()));
    let refusals: Vec<(usize, String)> = (0..problem.devices.len()).filter_map(refused).collect();
    if refusals.len() + 1 == problem.devices.len() {
        return Decision::OnlyKernel { refusals };
    }
    if next.is_none() {
        let others = (0..problem.devices.len()).filter(|&d| d != place);
        if let Some(with) = others.filter_map(|d| excluders[d]).find(|&with| with != item) {
            return Decision::Colocated { with };
        }
    }
    match cause {
        Cause::Neighbour(tensor) => Decision::Neighbour { tensor },
        Cause::Cost => Decision::Cheapest { saved: next.map_or(0, |next| next.more) },
    }
}

fn why_softened(
    problem: &Problem,
    excluders: &[Option<usize>],
    item: usize,
    asked: &DeviceSpec,
) -> String {
    let meets = |d: &usize| asked.matches(&problem.devices[*d].name);
    let Some(first) = (0..problem.devices.len()).find(meets) else {
        return "there is no such device".into();
    };
    if let Some(why) = problem.refusal(item, first) {
        return why.to_owned();
    }
    match excluders[first].filter(|&other| other != item) {
        Some(other) => {
            format!("'{}', colocated with it, can't be there", problem.items[other].name)
        }
        None => "the other requests of its colocation decided".into(),
    }
}

/// Whether an item by itself may not be on a device.
fn is_excluded(problem: &Problem, item: usize, device: usize) -> bool {
    let asked = problem.items[item].requested.as_ref();
    problem.refusal(item, device).is_some()
        || asked.is_some_and(|asked| !asked.matches(&problem.devices[device].name))
}

fn candidates(
    problem: &Problem,
    classes: &Classes,
    excluders: &Excluders,
    item: usize,
) -> Vec<Candidate> {
    let class = classes.of(item);
    let why = |d: usize| match (&problem.items[item].requested, excluders.of(class)[d]) {
        _ if classes.legal(class, d) => None,
        _ if problem.refusal(item, d).is_some() => problem.refusal(item, d).map(str::to_owned),
        (Some(asked), _) if is_excluded(problem, item, d) => Some(format!("{asked} is requested")),
        (_, Some(other)) => {
            Some(format!("'{}', colocated with it, can't be there", problem.items[other].name))
        }
        (_, None) => Some("its colocation can't be there".into()),
    };
    (0..problem.devices.len())
        .map(|d| Candidate { device: d, cost: problem.item_cost(item, d), excluded: why(d) })
        .collect()
}

/// The best other place of each class that has one.
fn next_best(
    classes: &Classes,
    places: &[usize],
    pricer: &mut Pricer<'_>,
    edges: &Edges<'_>,
) -> Vec<Option<NextBest>> {
    let others = |class: usize| classes.devices(class).filter(move |&d| d != places[class]);
    let n_others: usize = (0..classes.len()).map(|class| others(class).count()).sum();
    let is_exact = n_others.saturating_mul(pricer.n_steps()) <= MAX_STEPS;
    let mut device = Vec::new();
    classes.spread(places, &mut device);
    let now = if is_exact { pricer.score(&device).time } else { 0 };
    let mut next = Vec::with_capacity(classes.len());
    for (class, &place) in places.iter().enumerate() {
        let mut best: Option<NextBest> = None;
        for d in others(class) {
            let more = if is_exact {
                for &item in classes.members(class) {
                    device[item] = d;
                }
                difference(pricer.score(&device).time, now)
            } else {
                edges.difference(class, place, d)
            };
            if best.is_none_or(|best| more < best.more) {
                best = Some(NextBest { device: d, more, is_exact });
            }
        }
        for &item in classes.members(class) {
            device[item] = place;
        }
        next.push(best);
    }
    next
}

/// How much more `after` is than `before`.
fn difference(after: Picoseconds, before: Picoseconds) -> i64 {
    let difference = i128::from(after) - i128::from(before);
    let bounded = difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
    i64::try_from(bounded).unwrap_or(i64::MAX)
}

/// What crosses when one class moves, in the objective of the cut.
struct Edges<'a> {
    problem: &'a Problem,
    classes: &'a Classes,
    /// For tensor `t`, how many of its consumers are on device `d`, at `t * devices + d`; the end of the
    /// run is one on the host for a fetch.
    consumers: Vec<u32>,
    /// Where each tensor is made.
    from: Vec<usize>,
    /// The uses of class `c` are at `first[c]..first[c + 1]`.
    first: Vec<u32>,
    uses: Vec<Use>,
}

/// What a class has to do with a tensor. A class may have several of one tensor.
#[derive(Clone, Copy)]
struct Use {
    tensor: u32,
    makes: bool,
}

impl<'a> Edges<'a> {
    fn new(problem: &'a Problem, classes: &'a Classes, places: &[usize]) -> Self {
        let n_devices = problem.devices.len();
        let mut consumers = vec![0; problem.tensors.len() * n_devices];
        let mut from = Vec::with_capacity(problem.tensors.len());
        let mut all: Vec<(u32, Use)> = Vec::new();
        for (t, tensor) in problem.tensors.iter().enumerate() {
            let made_by = match tensor.producer {
                Producer::Item(item) => Some(classes.of(item)),
                Producer::Host => None,
            };
            from.push(made_by.map_or(HOST, |class| places[class]));
            consumers[t * n_devices + HOST] += u32::from(tensor.host_reads);
            let tensor_id = t as u32;
            all.extend(made_by.map(|c| (c as u32, Use { tensor: tensor_id, makes: true })));
            for &item in &tensor.consumers {
                let class = classes.of(item);
                consumers[t * n_devices + places[class]] += 1;
                all.push((class as u32, Use { tensor: tensor_id, makes: false }));
            }
        }
        // Stable, so that the uses of a class stay in the order of the tensors.
        all.sort_by_key(|&(class, _)| class);
        let mut first = vec![0u32; classes.len() + 1];
        for &(class, _) in &all {
            first[class as usize + 1] += 1;
        }
        for class in 0..classes.len() {
            first[class + 1] += first[class];
        }
        let uses = all.into_iter().map(|(_, used)| used).collect();
        Self { problem, classes, consumers, from, first, uses }
    }

    /// The uses of a class, those of one tensor together.
    fn uses(&self, class: usize) -> impl Iterator<Item = &[Use]> {
        let all = &self.uses[self.first[class] as usize..self.first[class + 1] as usize];
        all.chunk_by(|a, b| a.tensor == b.tensor)
    }

    /// What a tensor's transfers take, with and without a class moved from `place` to `to`.
    fn before_and_after(
        &self,
        uses: &[Use],
        place: usize,
        to: usize,
    ) -> (Picoseconds, Picoseconds) {
        let n_devices = self.problem.devices.len();
        let tensor = uses[0].tensor as usize;
        let consumers = &self.consumers[tensor * n_devices..(tensor + 1) * n_devices];
        let n_moved = uses.iter().filter(|used| !used.makes).count() as u32;
        let makes = n_moved < uses.len() as u32;
        let from = self.from[tensor];
        let new_from = if makes { to } else { from };
        let n_bytes = self.problem.tensors[tensor].bytes;
        let (mut before, mut after) = (0, 0);
        for (d, &n) in consumers.iter().enumerate() {
            let moved = if d == place { n - n_moved } else { n };
            let moved = if d == to { moved + n_moved } else { moved };
            for (n, from, sum) in [(n, from, &mut before), (moved, new_from, &mut after)] {
                if n > 0 && d != from {
                    *sum =
                        Picoseconds::saturating_add(*sum, self.problem.link(from, d).cost(n_bytes));
                }
            }
        }
        (before, after)
    }

    /// How much more a class's move costs.
    fn difference(&self, class: usize, place: usize, to: usize) -> i64 {
        let mut before = self.classes.cost(class, place);
        let mut after = self.classes.cost(class, to);
        for uses in self.uses(class) {
            let (b, a) = self.before_and_after(uses, place, to);
            before = before.saturating_add(b);
            after = after.saturating_add(a);
        }
        difference(after, before)
    }

    /// The tensor whose transfers would cost most more if a class moved.
    fn dearest(&self, class: usize, place: usize, to: usize) -> Option<usize> {
        let mut dearest: Option<(Picoseconds, usize)> = None;
        for uses in self.uses(class) {
            let (before, after) = self.before_and_after(uses, place, to);
            let more = after.saturating_sub(before);
            if more > dearest.map_or(0, |(most, _)| most) {
                dearest = Some((more, uses[0].tensor as usize));
            }
        }
        dearest.map(|(_, tensor)| tensor)
    }
}
