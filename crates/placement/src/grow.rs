//! Graphs that grow after they were placed: what is new is placed beside what stands, in time that what is new takes.
//!
//! What is chosen among is the new items, all that is tied to them, and what passes tensors to or from them. All else stands
//! in their problem as one resource for each device (`grow/part.rs`), and is looked at only where it meets what is free:
//! `grow/net.rs` knows what that is. Two problems are solved, in which segments beside what stands are paid for, or
//! none is; of the two choices that is taken which is cheaper with the segments that it would add
//! (`grow/segments.rs`). What the whole run is predicted to take, and whether there is memory for it, is found when somebody
//! asks the solution.

mod net;
mod part;
mod segments;

use std::collections::BTreeSet;
use std::sync::Arc;

use convoke_graph_core::{Error, Result};

use crate::choose::Search;
use crate::explain::Solution;
use crate::legal::Classes;
use crate::order::{Order, Schedule};
use crate::price::Pricer;
use crate::problem::{Item, Objective, Problem, Producer, TensorEdge};
use crate::{DeviceModel, Picoseconds};
use net::Net;
use part::{Free, part};
use segments::{Fit, Segments};

/// The part of what was placed together that may be new or gone since, and that may be placed anew beside the others.
const FREE_PART: usize = 8;

/// What a graph has more and less than when it was placed. Items and tensors are numbered on from those that stand: the
/// first new ones are [`Standing::len`] and [`Standing::n_tensors`].
#[derive(Debug, Clone, Default)]
pub struct Growth {
    /// The items that are new.
    pub items: Vec<Item>,
    /// The tensors that are new. What stands and makes or reads one is placed anew.
    pub tensors: Vec<TensorEdge>,
    /// Tensors that stand, with items that read them now, be they new or not. What stands of these is placed anew, and so is
    /// who makes the tensor.
    pub reads: Vec<(usize, usize)>,
    /// Tensors that stand, with items that stand and read them no more.
    pub unread: Vec<(usize, usize)>,
    /// Tensors that stand and that the host needs now in the end, or no more.
    pub fetched: Vec<(usize, bool)>,
    /// The new items that may fail by their data.
    pub fallible: Vec<usize>,
    /// As in [`Problem::resource_edges`]: those with a new item. They come after those that stand.
    pub resource_edges: Vec<(usize, usize)>,
    /// As in [`Problem::colocations`]: those with a new item. They come after those that stand.
    pub colocations: Vec<(usize, usize)>,
    /// Items that are there no more, with the tensors that they made.
    pub gone: Vec<usize>,
    /// Items that were free to move, and now are assigned to the device that they are on.
    pub settled: Vec<usize>,
}

/// How a tensor that stands is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Who makes it.
    pub producer: Producer,
    /// Whether the host needs it in the end.
    pub host_reads: bool,
}

/// A graph that has been placed and may grow.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Devices and what was asked of them, without any work.
    bare: Problem,
    /// The items are those of this problem, and then the others.
    first: Arc<Problem>,
    more: Vec<Item>,
    net: Net,
    segments: Segments,
    /// How many items are on each device.
    n_on: Vec<usize>,
    /// How many items were placed together, how many have come since, and how many have gone.
    n_together: usize,
    n_since: usize,
    n_gone: usize,
}

/// Places for what is free.
struct Choice {
    free: Free,
    /// Of the free items.
    device: Vec<usize>,
    fit: Fit,
}

impl Standing {
    /// What stands after a problem was solved.
    ///
    /// # Errors
    /// `Internal` for a malformed problem, which only a solution that was [put together](Solution::grown) may have.
    pub fn new(solution: &Solution) -> Result<Self> {
        let (problem, device) = (&solution.problem, &solution.device);
        let order = problem.check()?;
        let mut schedule = Schedule::by(solution.order);
        schedule.run(problem, &order, device);
        let mut n_on = vec![0; problem.devices.len()];
        device.iter().for_each(|&on| n_on[on] += 1);
        Ok(Self {
            bare: problem.without_work(),
            first: problem.clone(),
            more: Vec::new(),
            net: Net::of(problem, device),
            segments: Segments::of(problem, &schedule),
            n_on,
            n_together: device.len(),
            n_since: 0,
            n_gone: 0,
        })
    }

    /// How many items there have been: the number of the next one.
    pub fn len(&self) -> usize {
        self.net.items.len()
    }

    /// Whether there has never been an item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tensors there have been: the number of the next one.
    pub fn n_tensors(&self) -> usize {
        self.net.tensors.len()
    }

    /// The device of an item; `None` for one that has gone, or was never there.
    pub fn device(&self, item: usize) -> Option<usize> {
        self.net.items.get(item).filter(|node| !node.is_gone).map(|node| node.device)
    }

    /// For each device, why an item can't run there, as in [`Item::refusals`]; empty for an item that was never there.
    pub fn refusals(&self, item: usize) -> &[Option<String>] {
        if item < self.len() { &self.asked(item).refusals } else { &[] }
    }

    /// The device that an item may not leave, if there is one and the item is there.
    pub fn assigned(&self, item: usize) -> Option<usize> {
        let device = self.device(item)?;
        let is_assigned = self.net.items[item].is_settled || self.asked(item).assigned.is_some();
        is_assigned.then_some(device)
    }

    /// How a tensor is used; `None` for one that has gone with its producer, or was never there.
    pub fn tensor(&self, tensor: usize) -> Option<Use> {
        let wire = self.net.tensors.get(tensor).filter(|_| self.net.is_made(tensor))?;
        Some(Use { producer: wire.producer, host_reads: wire.host_reads })
    }

    /// The items that read a tensor, in the order in which they came.
    pub fn readers(&self, tensor: usize) -> impl Iterator<Item = usize> {
        (tensor < self.n_tensors()).then(|| self.net.consumers(tensor)).into_iter().flatten()
    }

    /// The tensors that an item reads.
    pub fn reads(&self, item: usize) -> impl Iterator<Item = usize> {
        self.device(item).map(|_| self.net.read(item)).into_iter().flatten()
    }

    /// The pairs of items that were tied and are both there: by resource edges, or else by colocations.
    pub fn ties(&self, is_resource: bool) -> impl Iterator<Item = (usize, usize)> {
        let ties = self.net.ties().filter(move |tie| tie.is_resource == is_resource);
        ties.map(|tie| tie.ends)
    }

    /// Whether a problem is about the same devices, and asks the same of them, but for memory.
    pub fn is_on_devices_of(&self, problem: &Problem) -> bool {
        let bare = &self.bare;
        let models = || bare.devices.iter().zip(&problem.devices);
        let same = models().all(|(own, model)| {
            DeviceModel { memory_bytes: own.memory_bytes, ..model.clone() } == *own
        });
        let asked = |problem: &Problem| {
            (problem.preferred, problem.soft_placement, problem.objective, problem.devices.len())
        };
        same && asked(bare) == asked(problem)
            && bare.links == problem.links
            && bare.queues == problem.queues
    }

    /// Places what is new, with what it is tied to and what is next to it; all else stays. Takes time for those, however
    /// much stands besides. Gives the items that were placed, in ascending order. None if all of it is better placed again,
    /// by [`solve`](crate::solve): where what has come and gone since all was placed together is more than an eighth of it,
    /// or more than an eighth would be placed now. Memory is not looked at: see [`Solution::fits`].
    ///
    /// # Errors
    /// As [`solve`](crate::solve), but for work that waits for itself through what stays; `Internal` for a growth that names
    /// what is not there. With an error or none, nothing has changed.
    pub fn grow(&mut self, growth: &Growth) -> Result<Option<Vec<usize>>> {
        self.check(growth)?;
        let is_much = |n: usize| n.saturating_mul(FREE_PART) > self.n_together;
        if is_much(self.n_since + growth.items.len()) || is_much(self.n_gone + growth.gone.len()) {
            return Ok(None);
        }
        let n_placed = self.len();
        let n_more = self.more.len();
        self.more.extend_from_slice(&growth.items);
        self.segments.leave(&self.net, growth.gone.iter());
        let before = self.net.put(growth);
        match self.choose(growth, n_placed) {
            Ok(Some(choice)) => {
                self.take(growth, n_placed, &choice);
                Ok(Some(choice.free.items))
            }
            refused => {
                self.net.take_back(growth, before);
                self.segments.come_back(&self.net, growth.gone.iter());
                self.more.truncate(n_more);
                refused.map(|_| None)
            }
        }
    }

    /// An item, as it is asked for now.
    fn item(&self, item: usize) -> Item {
        let (own, node) = (self.asked(item), &self.net.items[item]);
        let settled = node.is_settled.then_some(node.device);
        Item { assigned: settled.or(own.assigned), ..own.clone() }
    }

    /// An item as it was asked for when it came.
    fn asked(&self, item: usize) -> &Item {
        let n_first = self.first.items.len();
        self.first.items.get(item).unwrap_or_else(|| &self.more[item - n_first])
    }

    fn check(&self, growth: &Growth) -> Result<()> {
        let n_placed = self.len();
        let n_items = n_placed.saturating_add(growth.items.len());
        let n_tensors = self.n_tensors().saturating_add(growth.tensors.len());
        if u32::try_from(n_items).is_err() || u32::try_from(n_tensors.saturating_mul(2)).is_err() {
            return Err(Error::internal("more items or tensors than fit 31 bits"));
        }
        self.bare.check_asked(&growth.items)?;
        let gone = sorted(growth.gone.clone());
        let stands =
            |&item: &usize| self.device(item).is_some() && gone.binary_search(&item).is_err();
        let is_new = |item: &usize| (n_placed..n_items).contains(item);
        let is_there = |item: &usize| is_new(item) || stands(item);
        let is_tensor = |&tensor: &usize| {
            let producer = self.tensor(tensor).map(|used| used.producer.item());
            producer.is_some_and(|producer| producer.is_none_or(|item| stands(&item)))
        };
        let ends = |tensor: &TensorEdge| {
            tensor.consumers.iter().chain(&tensor.producer.item()).all(is_there)
        };
        let unread = sorted(growth.unread.clone());
        let was_read = |&(tensor, item): &(usize, usize)| {
            is_tensor(&tensor) && stands(&item) && self.reads(item).any(|read| read == tensor)
        };
        let mut ties = growth.resource_edges.iter().chain(&growth.colocations);
        let checks = [
            ("what has gone was not there", gone.iter().all(|&item| self.device(item).is_some())),
            ("an item goes twice", gone.windows(2).all(|pair| pair[0] != pair[1])),
            ("a tensor names an item that is not there", growth.tensors.iter().all(ends)),
            (
                "what is read is not there, or who reads it",
                growth.reads.iter().all(|(tensor, item)| is_tensor(tensor) && is_there(item)),
            ),
            ("what is no more read was not", unread.iter().all(was_read)),
            ("a read goes twice", unread.windows(2).all(|pair| pair[0] != pair[1])),
            ("what is fetched is not there", growth.fetched.iter().all(|(t, _)| is_tensor(t))),
            (
                "a tie names an item that is not there, or none that is new",
                ties.all(|(a, b)| is_there(a) && is_there(b) && is_new(a.max(b))),
            ),
            ("what is settled is not there", growth.settled.iter().all(stands)),
            ("what may fail is not new", growth.fallible.iter().all(is_new)),
        ];
        match checks.into_iter().find(|(_, holds)| !holds) {
            Some((what, _)) => Err(Error::internal(format!("growth: {what}"))),
            None => Ok(()),
        }
    }

    /// Places for what is new and what is next to it, which has left its segments then. None if there is too much of that.
    fn choose(&mut self, growth: &Growth, n_placed: usize) -> Result<Option<Choice>> {
        let Some(free) = self.free(growth, n_placed) else { return Ok(None) };
        self.segments.leave(&self.net, free.items.iter());
        match self.cheapest(growth, &free, n_placed) {
            Ok((device, fit)) => Ok(Some(Choice { free, device, fit })),
            Err(error) => {
                self.segments.come_back(&self.net, free.items.iter());
                Err(error)
            }
        }
    }

    /// What is new, what is tied to it, and what passes tensors to or from these or passes others than before, or has lost
    /// who read its tensors or was tied to it, with what is tied to that. None if it is too much.
    fn free(&self, growth: &Growth, n_placed: usize) -> Option<Free> {
        let net = &self.net;
        let n_items = self.n_on.iter().sum::<usize>() + net.items.len() - n_placed;
        let most = n_items / FREE_PART;
        let mut free = BTreeSet::new();
        if !net.tied((n_placed..net.items.len()).collect(), &mut free, most) {
            return None;
        }
        let maker = |tensor: usize| net.tensors[tensor].producer.item();
        let passed = free.iter().flat_map(|&item| {
            let makers = net.read(item).filter_map(maker);
            makers.chain(net.made(item).flat_map(|tensor| net.consumers(tensor)))
        });
        let new = (net.tensors.len() - growth.tensors.len()..net.tensors.len())
            .flat_map(|tensor| maker(tensor).into_iter().chain(net.consumers(tensor)));
        let uses = growth.reads.iter().chain(&growth.unread);
        let changed = uses.flat_map(|&(tensor, item)| maker(tensor).into_iter().chain([item]));
        let fetched = growth.fetched.iter().filter_map(|&(tensor, _)| maker(tensor));
        let left = growth
            .gone
            .iter()
            .flat_map(|&item| net.read(item).filter_map(maker).chain(net.was_tied_to(item)));
        let mut beside = BTreeSet::new();
        for item in passed.chain(new).chain(changed).chain(fetched).chain(left) {
            beside.insert(item);
            if beside.len() > most {
                return None;
            }
        }
        let fits = net.tied(beside.into_iter().collect(), &mut free, most);
        fits.then(|| Free::new(net, free.into_iter().collect(), n_placed))
    }

    /// The cheaper of two choices, with its segments: what is new may need segments of its own, or go on in those that are
    /// there.
    fn cheapest(&self, growth: &Growth, free: &Free, n_placed: usize) -> Result<(Vec<usize>, Fit)> {
        let mut n_on = self.n_on.clone();
        let old = free.items.iter().filter(|&&item| item < n_placed);
        old.chain(&growth.gone).for_each(|&item| n_on[self.net.items[item].device] -= 1);
        let used: Vec<bool> = n_on.iter().map(|&n| n > 0).collect();
        let joined = part(self, free, &used, false);
        let order = joined.check()?;
        let sequence = order.sequence();
        let mut pricer = Pricer::new(&joined, &order);
        let mut priced = |problem: &Problem| -> Result<(Picoseconds, Vec<usize>, Fit)> {
            let device = chosen(problem, &order)?;
            let fit = self.segments.fit(&self.net, free, &sequence, &device);
            let prediction = pricer.predict_best(&device);
            let time = match joined.objective {
                Objective::Total => prediction.total,
                Objective::Makespan => prediction.makespan,
            };
            // What the part pays for submitting, the run may not.
            let paid = prediction.devices.iter().map(|total| total.submission);
            let time = paid.fold(time, Picoseconds::saturating_sub);
            Ok((time.saturating_add(fit.submissions(&self.bare)), device, fit))
        };
        let alone = priced(&part(self, free, &used, true))?;
        let joined = priced(&joined)?;
        let (_, device, fit) = if joined.0 < alone.0 { joined } else { alone };
        Ok((device, fit))
    }

    /// Counts all that is counted step by step anew.
    #[cfg(test)]
    pub(crate) fn check_counts(&self) {
        let there = || (0..self.len()).filter(|&item| self.device(item).is_some());
        let mut n_on = vec![0; self.n_on.len()];
        there().for_each(|item| n_on[self.net.items[item].device] += 1);
        assert_eq!(n_on, self.n_on);
        for tensor in 0..self.n_tensors() {
            let mut needs = vec![0; n_on.len()];
            self.readers(tensor).for_each(|item| needs[self.net.items[item].device] += 1);
            assert_eq!(needs, self.net.needs(tensor), "{tensor}");
        }
        self.segments.check_counts(&self.net);
    }

    /// Puts what is free where it was chosen to be.
    fn take(&mut self, growth: &Growth, n_placed: usize, choice: &Choice) {
        let Choice { free, device, fit } = choice;
        for &item in &growth.gone {
            self.n_on[self.net.items[item].device] -= 1;
        }
        for (&item, &on) in free.items.iter().zip(device) {
            let is_new = item >= n_placed;
            if !is_new {
                self.n_on[self.net.items[item].device] -= 1;
            }
            self.n_on[on] += 1;
            self.net.place(item, on, is_new);
        }
        self.segments.take(&self.net, free, fit);
        self.n_since += growth.items.len();
        self.n_gone += growth.gone.len();
    }
}

fn sorted<T: Ord>(mut all: Vec<T>) -> Vec<T> {
    all.sort_unstable();
    all
}

/// The best places in the problem of a part by itself.
fn chosen(part: &Problem, order: &Order) -> Result<Vec<usize>> {
    let classes = Classes::new(part)?;
    let mut search = Search::new(part, &classes, Pricer::new(part, order));
    search.run();
    let mut device = Vec::new();
    classes.spread(&search.best.places, &mut device);
    Ok(device)
}
