//! Problems that grow: what was placed before stays there, and only what is new is placed, beside it.
//!
//! What is chosen among is the new classes, and those that pass tensors to or from them. All else stands in their problem
//! as one resource for each device, so that choosing takes what the new work takes, however much there is besides. What
//! the run is predicted to take is priced for all of it.

use std::sync::Arc;

use convoke_graph_core::Result;

use crate::Work;
use crate::choose::{Search, finished, solved};
use crate::explain::Solution;
use crate::legal::Classes;
use crate::price::{Pricer, Score};
use crate::problem::{HOST, Item, Problem, Producer, TensorEdge};

/// The part of all items that may be placed anew beside others that stay; of more, everything is placed.
const FREE_PART: usize = 8;

/// Gives every item a device, as [`solve`](crate::solve) does. Items that had a place `before` keep it where that is legal and nothing
/// new is beside them; if so much is new that it may well be better elsewhere altogether, none does.
///
/// # Errors
/// As [`solve`](crate::solve).
pub fn grow(problem: impl Into<Arc<Problem>>, before: &[Option<usize>]) -> Result<Solution> {
    let problem = problem.into();
    match grown(&problem, before)? {
        Some(solution) => Ok(solution),
        None => solved(problem),
    }
}

/// None if it is better to place everything.
fn grown(problem: &Arc<Problem>, before: &[Option<usize>]) -> Result<Option<Solution>> {
    let order = problem.check()?;
    let classes = Classes::new(problem)?;
    let Some(kept) = kept_places(problem, &classes, before) else { return Ok(None) };
    let mut pricer = Pricer::new(problem, &order);
    let Some(places) = placed_beside(problem, &classes, &mut pricer, &kept)? else {
        return Ok(None);
    };
    let (device, prediction, order) = finished(&classes, pricer, &places);
    let mut totals = prediction.devices.iter().zip(&problem.devices);
    if totals.any(|(total, model)| total.peak_bytes > model.memory_bytes) {
        return Ok(None);
    }
    let kept: Vec<bool> = (0..device.len()).map(|i| kept[classes.of(i)].is_some()).collect();
    let n_kept = kept.iter().filter(|&&is_kept| is_kept).count();
    let mut solution = Solution::new(problem.clone(), device, prediction, order);
    (solution.kept, solution.n_kept) = (kept, n_kept);
    Ok(Some(solution))
}

/// The place of each class that stays. None if too much would not.
fn kept_places(
    problem: &Problem,
    classes: &Classes,
    before: &[Option<usize>],
) -> Option<Vec<Option<usize>>> {
    let place_of = |&item: &usize| {
        let before = before.get(item).copied().flatten();
        before.or(problem.items[item].assigned)
    };
    let place = |class: usize| {
        // A resource of which nothing is known is where its users are.
        let says = |item: &&usize| !problem.items[**item].is_resource || place_of(item).is_some();
        let mut own = classes.members(class).iter().filter(says).map(place_of);
        let first = own.next()??;
        let is_one = own.all(|place| place == Some(first)) && first < problem.devices.len();
        (is_one && classes.legal(class, first)).then_some(first)
    };
    let had: Vec<Option<usize>> = (0..classes.len()).map(place).collect();
    let mut kept = had.clone();
    for tensor in &problem.tensors {
        let producer = tensor.producer.item().map(|item| classes.of(item));
        let consumers = || tensor.consumers.iter().map(|&item| classes.of(item));
        if producer.is_some_and(|class| had[class].is_none()) {
            consumers().for_each(|class| kept[class] = None);
        }
        if let Some(producer) = producer
            && consumers().any(|class| had[class].is_none())
        {
            kept[producer] = None;
        }
    }
    let free = (0..classes.len()).filter(|&class| kept[class].is_none());
    let n_free: usize = free.map(|class| classes.members(class).len()).sum();
    (n_free.saturating_mul(FREE_PART) <= problem.items.len()).then_some(kept)
}

/// The places of all classes, of which those that are free are where they are best beside those that stay. None if that is
/// not legal.
fn placed_beside(
    problem: &Problem,
    classes: &Classes,
    pricer: &mut Pricer<'_>,
    kept: &[Option<usize>],
) -> Result<Option<Vec<usize>>> {
    // What is new may need segments of its own, or go on in those that are there.
    let alone = chosen(problem, classes, kept, true)?;
    let joined = chosen(problem, classes, kept, false)?;
    let is_legal =
        |places: &Vec<usize>| (0..classes.len()).all(|class| classes.legal(class, places[class]));
    let mut best: Option<(Score, Vec<usize>)> = None;
    let is_one = alone == joined;
    for places in [alone, joined].into_iter().take(if is_one { 1 } else { 2 }).filter(is_legal) {
        let mut device = Vec::new();
        classes.spread(&places, &mut device);
        let score = if is_one { Score::WORST } else { pricer.score(&device) };
        if best.as_ref().is_none_or(|(best, _)| score < *best) {
            best = Some((score, places));
        }
    }
    Ok(best.map(|(_, places)| places))
}

/// The places of all classes, where those that are free are best in the problem of their own.
fn chosen(
    problem: &Problem,
    classes: &Classes,
    kept: &[Option<usize>],
    is_submitted: bool,
) -> Result<Vec<usize>> {
    let (part, items) = part(problem, classes, kept, is_submitted);
    let order = part.check()?;
    let part_classes = Classes::new(&part)?;
    let mut search = Search::new(&part, &part_classes, Pricer::new(&part, &order));
    search.run();
    let mut places: Vec<usize> = kept.iter().map(|place| place.unwrap_or(HOST)).collect();
    for (at, &item) in items.iter().enumerate() {
        places[classes.of(item)] = search.best.places[part_classes.of(at)];
    }
    Ok(places)
}

/// The problem of the classes that have no place yet, and its items as those of the whole; behind them comes a resource
/// for each device but the host, which stands for all that stays there.
fn part(
    problem: &Problem,
    classes: &Classes,
    kept: &[Option<usize>],
    is_submitted: bool,
) -> (Problem, Vec<usize>) {
    let mut items = Vec::new();
    for class in (0..classes.len()).filter(|&class| kept[class].is_none()) {
        items.extend_from_slice(classes.members(class));
    }
    items.sort_unstable();
    let n_own = items.len();
    let end = |item: usize| match kept[classes.of(item)] {
        Some(HOST) => End::Host,
        Some(device) => End::Own(n_own + device - 1),
        None => items.binary_search(&item).map_or(End::Host, End::Own),
    };
    let mut part = Problem::new(problem.devices.clone());
    for (device, model) in part.devices.iter_mut().enumerate() {
        // What all of it takes is seen when it is priced.
        model.memory_bytes = u64::MAX;
        if !is_submitted && kept.contains(&Some(device)) {
            model.submission = 0;
        }
    }
    part.links.clone_from(&problem.links);
    part.queues.clone_from(&problem.queues);
    (part.preferred, part.objective) = (problem.preferred, problem.objective);
    part.soft_placement = problem.soft_placement;
    part.items = items.iter().map(|&item| problem.items[item].clone()).collect();
    part.items.extend((1..problem.devices.len()).map(what_stays));
    let is_own = |item: usize| kept[classes.of(item)].is_none();
    for tensor in &problem.tensors {
        let made_by = tensor.producer.item();
        if made_by.into_iter().chain(tensor.consumers.iter().copied()).any(is_own) {
            part.tensors.push(edge(tensor, &end));
        }
    }
    let both = |&&(a, b): &&(usize, usize)| is_own(a) && is_own(b);
    let mapped = |&(a, b): &(usize, usize)| match (end(a), end(b)) {
        (End::Own(a), End::Own(b)) => Some((a, b)),
        _ => None,
    };
    let fallible = problem.fallible.iter().filter(|&&item| is_own(item));
    part.fallible = fallible.filter_map(|item| items.binary_search(item).ok()).collect();
    part.resource_edges = problem.resource_edges.iter().filter(both).filter_map(mapped).collect();
    part.colocations = problem.colocations.iter().filter(both).filter_map(mapped).collect();
    (part, items)
}

/// Who makes or reads a tensor, as the problem of a part sees it.
#[derive(Clone, Copy)]
enum End {
    /// The host, which has it before the run, or needs it.
    Host,
    /// An item of the part.
    Own(usize),
}

/// A tensor in the problem of a part.
fn edge(tensor: &TensorEdge, end: &impl Fn(usize) -> End) -> TensorEdge {
    let producer = match tensor.producer {
        Producer::Item(item) => match end(item) {
            End::Host => Producer::Host,
            End::Own(item) => Producer::Item(item),
        },
        Producer::Host => Producer::Host,
    };
    let mut consumers = Vec::new();
    let mut host_reads = tensor.host_reads;
    for &item in &tensor.consumers {
        match end(item) {
            End::Host => host_reads = true,
            // What stays on a device is not stored there again.
            End::Own(item) if producer == Producer::Item(item) => {}
            End::Own(item) => consumers.push(item),
        }
    }
    consumers.sort_unstable();
    consumers.dedup();
    TensorEdge { name: String::new(), bytes: tensor.bytes, producer, consumers, host_reads }
}

/// What stands for all that stays on a device.
fn what_stays(device: usize) -> Item {
    Item {
        name: String::new(),
        requested: None,
        assigned: Some(device),
        refusals: Vec::new(),
        known: Vec::new(),
        work: Work::NONE,
        is_resource: true,
        now: None,
        location: None,
    }
}
