//! What decided each item's device, and what the next best choice would have cost.
//!
//! The price of another choice is that of moving the item's whole class while all else stays. It is
//! priced anew in problems of ordinary size; in very large ones it is the difference in the objective of
//! the cut, and [`NextBest::is_exact`] is false.

use crate::choose::MAX_STEPS;
use crate::explain::{Candidate, Decision, NextBest, Reason, Solution};
use crate::legal::Classes;
use crate::price::Pricer;
use crate::problem::{HOST, Problem, Producer};
use crate::{DeviceSpec, Picoseconds};

/// The reason of each item of a solution.
pub(crate) fn reasons(solution: &Solution) -> Vec<Reason> {
    let problem = &*solution.problem;
    // A problem that was solved is neither malformed nor refused.
    let (Ok(order), Ok(classes)) = (problem.check(), Classes::new(problem)) else {
        return Vec::new();
    };
    let place = |class: usize| classes.members(class).first().map_or(HOST, |&i| solution.device[i]);
    let places: Vec<usize> = (0..classes.len()).map(place).collect();
    let mut reasons = decide(problem, &classes, &places, &mut Pricer::new(problem, &order));
    for (reason, _) in reasons.iter_mut().zip(&solution.kept).filter(|(_, is_kept)| **is_kept) {
        if matches!(reason.decision, Decision::Cheapest { .. } | Decision::Neighbour { .. }) {
            reason.decision = Decision::Kept;
        }
    }
    reasons
}

fn decide(
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
    let deciding = Deciding { problem, classes, places, excluders, cause, next };
    let reason = |item: usize| Reason {
        device: places[classes.of(item)],
        candidates: deciding.candidates(item),
        decision: deciding.decision(item),
        next_best: deciding.next[classes.of(item)],
        dropped: Vec::new(),
    };
    let mut reasons: Vec<Reason> = (0..problem.items.len()).map(reason).collect();
    for (item, dropped) in classes.dropped() {
        reasons[*item].dropped.push(dropped.clone());
    }
    reasons
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
            let mut members = classes.members(class).iter().copied();
            members.find(|&item| is_excluded(problem, classes, item, d))
        };
        let classes = 0..classes.len();
        let first = classes.flat_map(|class| (0..n_devices).map(move |d| first(class, d)));
        Self { n_devices, first: first.collect() }
    }

    fn of(&self, class: usize) -> &[Option<usize>] {
        &self.first[class * self.n_devices..(class + 1) * self.n_devices]
    }
}

/// Whether an item by itself may not be on a device.
fn is_excluded(problem: &Problem, classes: &Classes, item: usize, device: usize) -> bool {
    let claim = problem.claim(item).filter(|_| classes.overruled_by(item).is_none());
    problem.refusal(item, device).is_some()
        || claim.is_some_and(|claim| !claim.matches(&problem.devices[device].name))
}

/// What the reasons of items are made from.
struct Deciding<'a> {
    problem: &'a Problem,
    classes: &'a Classes,
    places: &'a [usize],
    excluders: Excluders,
    /// Of each class.
    cause: Vec<Cause>,
    next: Vec<Option<NextBest>>,
}

impl Deciding<'_> {
    fn decision(&self, item: usize) -> Decision {
        let (problem, class) = (self.problem, self.classes.of(item));
        if problem.items[item].assigned.is_some() {
            return Decision::Assigned;
        }
        if let Some(decided) = self.by_request(item) {
            return decided;
        }
        if problem.devices.len() == 1 {
            return Decision::OnlyDevice;
        }
        let refused = |d: usize| problem.refusal(item, d).map(|why| (d, why.to_owned()));
        let refusals: Vec<(usize, String)> =
            (0..problem.devices.len()).filter_map(refused).collect();
        if refusals.len() + 1 == problem.devices.len() {
            return Decision::OnlyKernel { refusals };
        }
        if self.classes.is_preferred(class) {
            return Decision::Preferred;
        }
        let next = self.next[class];
        if next.is_none() {
            let others = (0..problem.devices.len()).filter(|&d| d != self.places[class]);
            let excluders = self.excluders.of(class);
            if let Some(with) = others.filter_map(|d| excluders[d]).find(|&with| with != item) {
                return Decision::Colocated { with };
            }
        }
        match self.cause[class] {
            Cause::Neighbour(tensor) => Decision::Neighbour { tensor },
            Cause::Cost => Decision::Cheapest { saved: next.map_or(0, |next| next.more) },
        }
    }

    /// What became of an item's request, if that is what there is to say.
    fn by_request(&self, item: usize) -> Option<Decision> {
        let problem = self.problem;
        let requested = problem.items[item].requested.clone()?;
        let place = self.places[self.classes.of(item)];
        let overruled = self.classes.overruled_by(item);
        if !requested.matches(&problem.devices[place].name) {
            return Some(match overruled {
                Some(by) => Decision::Overruled { requested, by },
                None => {
                    let why = self.why_softened(item, &requested);
                    Decision::Softened { requested, why }
                }
            });
        }
        let excludes = |d: usize| {
            problem.refusal(item, d).is_none() && !requested.matches(&problem.devices[d].name)
        };
        let decides = overruled.is_none() && (0..problem.devices.len()).any(excludes);
        decides.then_some(Decision::Requested { spec: requested })
    }

    fn why_softened(&self, item: usize, asked: &DeviceSpec) -> String {
        let problem = self.problem;
        let meets = |d: &usize| asked.matches(&problem.devices[*d].name);
        let Some(first) = (0..problem.devices.len()).find(meets) else {
            return "there is no such device".into();
        };
        if let Some(why) = problem.refusal(item, first) {
            return why.to_owned();
        }
        let excluder = self.excluders.of(self.classes.of(item))[first];
        let Some(other) = excluder.filter(|&other| other != item) else {
            return "the other requests of its colocation decided".into();
        };
        let name = &problem.items[other].name;
        match (problem.refusal(other, first), problem.claim(other)) {
            (None, Some(claim)) => {
                let assigned = problem.items[other].assigned.is_some();
                let verb = if assigned { "is assigned to" } else { "asks for" };
                format!("'{name}', colocated with it, {verb} {}", claim.short())
            }
            _ => format!("'{name}', colocated with it, can't be there"),
        }
    }

    fn candidates(&self, item: usize) -> Vec<Candidate> {
        let candidate = |device: usize| Candidate {
            device,
            cost: self.problem.item_cost(item, device),
            is_known: self.problem.known_cost(item, device).is_some(),
            excluded: self.why_excluded(item, device),
        };
        (0..self.problem.devices.len()).map(candidate).collect()
    }

    fn why_excluded(&self, item: usize, device: usize) -> Option<String> {
        let (problem, class) = (self.problem, self.classes.of(item));
        if self.classes.legal(class, device) {
            return None;
        }
        if let Some(why) = problem.refusal(item, device) {
            return Some(why.to_owned());
        }
        let claim = problem.claim(item);
        let excluder = self.excluders.of(class)[device];
        Some(match (claim, excluder) {
            (Some(claim), _) if is_excluded(problem, self.classes, item, device) => {
                let assigned = problem.items[item].assigned.is_some();
                format!("{claim} is {}", if assigned { "assigned" } else { "requested" })
            }
            (_, Some(other)) => {
                format!("'{}', colocated with it, can't be there", problem.items[other].name)
            }
            (_, None) if self.classes.is_preferred(class) => {
                "the session prefers another device".into()
            }
            (_, None) => "its colocation can't be there".into(),
        })
    }
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
