//! Large programs that build on the last one: what of them is new is placed beside what stands.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, PoisonError};

use convoke_compiler::{Group, Program, Source, ValueId};
use convoke_graph_core::{Output, Result};
use convoke_placement::{
    Growth, Problem, Producer, SegmentOrder, Solution, Standing, TensorEdge, Use,
};
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use super::Placing;
use crate::sync::Mutex;

/// Fewer groups are placed anew in little time, and better.
const GROUPS_MIN: usize = 1024;

/// The last large program's.
pub(crate) type LastGrown = Mutex<Option<Grown>>;

/// What stands of the last large program, and what of it is what.
#[derive(Debug)]
pub(crate) struct Grown {
    standing: Standing,
    order: SegmentOrder,
    /// The items that are there, by what they do, and tensors by what they are. Of tensors some have gone.
    items: FxHashMap<u64, usize>,
    tensors: FxHashMap<u64, usize>,
    /// The device that each feed was on.
    homes: FxHashMap<Output, usize>,
}

/// A large program that may build on the last one.
pub(super) struct Growing {
    /// What each group does.
    groups: Vec<u64>,
    /// What is known of each group that stands: for each device, why it has no kernel.
    refusals: Vec<Option<Vec<Option<String>>>>,
}

impl Growing {
    /// Nothing of a program that is placed by itself: a small one, one that drivers refused kernels of, or one of a session
    /// that learns from its runs.
    pub fn of(placing: &Placing<'_>, program: &Program) -> Option<Self> {
        let is_alone = program.groups.len() < GROUPS_MIN
            || placing.devices.list().len() == 1
            || placing.options.autotune
            || !placing.refused.is_empty();
        if is_alone {
            return None;
        }
        let groups = groups(program);
        let last = placing.grown.lock().unwrap_or_else(PoisonError::into_inner);
        let refusals = |key| {
            let last = last.as_ref()?;
            last.items.get(key).map(|&item| last.standing.refusals(item).to_vec())
        };
        let refusals = groups.iter().map(refusals).collect();
        drop(last);
        Some(Self { groups, refusals })
    }

    /// For each device, why it has no kernel for a group, if the group stands.
    pub fn refusals(&self, group: usize) -> Option<Vec<Option<String>>> {
        self.refusals.get(group).cloned().flatten()
    }

    /// With the whole problem, in which groups come after variables, and the values that its tensors are.
    pub fn keys(
        self,
        program: &Program,
        problem: &Problem,
        values: &[ValueId],
        n_variables: usize,
    ) -> Keys {
        let items = items(&self.groups, problem, n_variables);
        let tensors = tensors(program, problem, values, &items);
        Keys { items, tensors }
    }
}

/// What the items and tensors of a program's problem are.
pub(super) struct Keys {
    items: Vec<u64>,
    tensors: Vec<u64>,
}

impl Keys {
    /// The problem's solution if the program builds on the last one.
    ///
    /// # Errors
    /// `Internal` only.
    pub fn grow(&self, placing: &Placing<'_>, problem: &Arc<Problem>) -> Result<Option<Solution>> {
        let mut last = placing.grown.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = last.as_mut() else { return Ok(None) };
        let is_moved = |(feed, home)| last.homes.get(&feed).is_some_and(|&at| at != home);
        if homes(placing).into_iter().any(is_moved) || !last.standing.is_on_devices_of(problem) {
            return Ok(None);
        }
        let Some(new) = New::of(self, problem, last) else { return Ok(None) };
        let placed = match last.standing.grow(&new.growth) {
            Ok(Some(placed)) => placed,
            Ok(None) => return Ok(None),
            // What all of the program asks for says whether it can be had, and why not.
            Err(error) => {
                tracing::debug!("placed as a whole, since beside what stands: {error}");
                return Ok(None);
            }
        };
        last.homes.extend(homes(placing));
        for gone in new.gone {
            last.items.remove(&gone);
        }
        last.items.extend(self.items.iter().copied().zip(new.items.iter().copied()));
        last.tensors.extend(self.tensors.iter().copied().zip(new.tensors));
        let device = new.items.iter().map(|&item| last.standing.device(item).unwrap_or_default());
        let kept = new.items.iter().map(|item| placed.binary_search(item).is_err()).collect();
        let solution = Solution::grown(problem.clone(), device.collect(), last.order, kept)?;
        Ok(solution.fits().then_some(solution))
    }

    /// Notes a program that was placed as a whole.
    ///
    /// # Errors
    /// As [`Standing::new`].
    pub fn note(self, placing: &Placing<'_>, solution: &Solution) -> Result<()> {
        let grown = Grown {
            standing: Standing::new(solution)?,
            order: solution.order,
            items: self.items.into_iter().zip(0..).collect(),
            tensors: self.tensors.into_iter().zip(0..).collect(),
            homes: homes(placing),
        };
        *placing.grown.lock().unwrap_or_else(PoisonError::into_inner) = Some(grown);
        Ok(())
    }
}

/// What a program has that did not stand.
struct New {
    /// The number of each item and each tensor among those that stand, or will.
    items: Vec<usize>,
    tensors: Vec<usize>,
    /// Whether each item that stands is there.
    stays: Vec<bool>,
    /// What items did that are there no more.
    gone: Vec<u64>,
    growth: Growth,
}

impl New {
    /// None if what stands is tied in other ways than before, or what is new was asked for in between.
    fn of(keys: &Keys, problem: &Problem, last: &Grown) -> Option<Self> {
        let first = last.standing.len();
        let mut new = Self {
            items: Vec::with_capacity(keys.items.len()),
            tensors: Vec::with_capacity(keys.tensors.len()),
            stays: vec![false; first],
            gone: Vec::new(),
            growth: Growth::default(),
        };
        new.add_items(keys, problem, last);
        new.add_tensors(keys, problem, last);
        let ties = |pairs: &[(usize, usize)], is_resource: bool| {
            let all = pairs.iter().map(|&(a, b)| (new.items[a], new.items[b]));
            let all: Vec<(usize, usize)> = all.collect();
            let n_standing = all.iter().take_while(|(a, b)| *a.max(b) < first).count();
            let (standing, more) = all.split_at(n_standing);
            let stays = |&(a, b): &(usize, usize)| new.stays[a] && new.stays[b];
            let before = last.standing.ties(is_resource).filter(stays);
            let is_same = before.eq(standing.iter().copied());
            (is_same && more.iter().all(|(a, b)| *a.max(b) >= first)).then(|| more.to_vec())
        };
        let resource_edges = ties(&problem.resource_edges, true)?;
        let colocations = ties(&problem.colocations, false)?;
        let fallible = problem.fallible.iter().map(|&item| new.items[item]);
        let fallible = fallible.filter(|&item| item >= first).collect();
        let growth = Growth { fallible, resource_edges, colocations, ..new.growth };
        Some(Self { growth, ..new })
    }

    /// Finds the items that stand, and adds the others.
    fn add_items(&mut self, keys: &Keys, problem: &Problem, last: &Grown) {
        let standing = &last.standing;
        for (key, item) in keys.items.iter().zip(&problem.items) {
            let known = last.items.get(key).copied();
            // A variable that has moved is another, and so is one that was reset.
            let is_there = |&known: &usize| match item.assigned {
                Some(home) => standing.device(known) == Some(home),
                None => standing.assigned(known).is_none(),
            };
            self.items.push(match known.filter(is_there) {
                Some(known) => {
                    self.stays[known] = true;
                    if item.assigned.is_some() {
                        self.growth.settled.push(known);
                    }
                    known
                }
                None => {
                    self.growth.items.push(item.clone());
                    standing.len() + self.growth.items.len() - 1
                }
            });
        }
        for (&key, &item) in last.items.iter().filter(|&(_, &item)| !self.stays[item]) {
            self.gone.push(key);
            self.growth.gone.push(item);
        }
    }

    /// Finds the tensors that stand, and how they are used otherwise than before, and adds the others.
    fn add_tensors(&mut self, keys: &Keys, problem: &Problem, last: &Grown) {
        let standing = &last.standing;
        let mut is_used = vec![false; standing.n_tensors()];
        for (key, tensor) in keys.tensors.iter().zip(&problem.tensors) {
            let producer = match tensor.producer {
                Producer::Item(item) => Producer::Item(self.items[item]),
                Producer::Host => Producer::Host,
            };
            let consumers: Vec<usize> =
                tensor.consumers.iter().map(|&item| self.items[item]).collect();
            let known = last.tensors.get(key).copied();
            let used = known.and_then(|known| Some((known, standing.tensor(known)?)));
            match used.filter(|(_, used)| used.producer == producer) {
                Some((known, used)) => {
                    is_used[known] = true;
                    self.tensors.push(known);
                    self.use_tensor(standing, known, used, &consumers, tensor.host_reads);
                }
                None => {
                    self.tensors.push(standing.n_tensors() + self.growth.tensors.len());
                    self.growth.tensors.push(TensorEdge {
                        name: String::new(),
                        bytes: tensor.bytes,
                        producer,
                        consumers,
                        host_reads: tensor.host_reads,
                    });
                }
            }
        }
        for tensor in (0..is_used.len()).filter(|&tensor| !is_used[tensor]) {
            let Some(used) = standing.tensor(tensor) else { continue };
            if !matches!(used.producer, Producer::Item(item) if !self.stays[item]) {
                self.use_tensor(standing, tensor, used, &[], false);
            }
        }
    }

    /// Finds how a tensor that stands is used otherwise than before.
    fn use_tensor(
        &mut self,
        standing: &Standing,
        tensor: usize,
        before: Use,
        consumers: &[usize],
        host_reads: bool,
    ) {
        if before.host_reads != host_reads {
            self.growth.fetched.push((tensor, host_reads));
        }
        let is_new = |item: &usize| *item >= standing.len();
        let new = consumers.iter().copied().filter(is_new);
        self.growth.reads.extend(new.map(|item| (tensor, item)));
        let stay = consumers.iter().copied().filter(|item| !is_new(item));
        let had = standing.readers(tensor).filter(|&item| self.stays[item]);
        if had.eq(stay.clone()) {
            return;
        }
        let had: BTreeSet<usize> =
            standing.readers(tensor).filter(|&item| self.stays[item]).collect();
        let stay: BTreeSet<usize> = stay.collect();
        self.growth.reads.extend(stay.difference(&had).map(|&item| (tensor, item)));
        self.growth.unread.extend(had.difference(&stay).map(|&item| (tensor, item)));
    }
}

fn homes(placing: &Placing<'_>) -> FxHashMap<Output, usize> {
    let feeds = placing.plan.signature.feeds.iter().copied();
    feeds.zip(placing.homes.iter().map(|home| home.0 as usize)).collect()
}

/// Hashes of what is equal are made different.
#[derive(Default)]
struct Seen(FxHashMap<u64, u32>);

impl Seen {
    /// The hash of something, and of how many before were equal.
    fn key(&mut self, mut hasher: FxHasher) -> u64 {
        let earlier = self.0.entry(hasher.finish()).or_insert(0);
        earlier.hash(&mut hasher);
        *earlier += 1;
        hasher.finish()
    }
}

/// What each group does: which nodes it computes, from and in what shapes and layouts, and what of it is fetched.
fn groups(program: &Program) -> Vec<u64> {
    let mut seen = Seen::default();
    let fetched: FxHashSet<ValueId> = program.fetches.iter().map(|fetch| fetch.value).collect();
    let groups = program.groups.iter().map(|group| {
        let mut hasher = FxHasher::default();
        hash_group(group, program, &fetched, &mut hasher);
        seen.key(hasher)
    });
    groups.collect()
}

/// What each item does. Those that are no groups are known by their names.
fn items(groups: &[u64], problem: &Problem, n_variables: usize) -> Vec<u64> {
    let mut seen = Seen::default();
    let items = problem.items.iter().enumerate().map(|(at, item)| {
        let group = at.checked_sub(n_variables).and_then(|at| groups.get(at));
        group.copied().unwrap_or_else(|| {
            let mut hasher = FxHasher::default();
            item.name.hash(&mut hasher);
            seen.key(hasher)
        })
    });
    items.collect()
}

fn hash_group(
    group: &Group,
    program: &Program,
    fetched: &FxHashSet<ValueId>,
    hasher: &mut FxHasher,
) {
    group.nodes.hash(hasher);
    for &output in &group.outputs {
        let value = program.value(output);
        (value.dtype, &value.shape, fetched.contains(&output)).hash(hasher);
    }
    for input in &group.inputs {
        let value = program.value(input.value);
        (value.dtype, &value.shape, &input.layout).hash(hasher);
    }
}

/// What each tensor is: of whom, how large, and how many of the same are before it.
fn tensors(program: &Program, problem: &Problem, values: &[ValueId], items: &[u64]) -> Vec<u64> {
    let mut seen = Seen::default();
    let tensors = problem.tensors.iter().zip(values).map(|(tensor, &value)| {
        let mut hasher = FxHasher::default();
        tensor.bytes.hash(&mut hasher);
        match (tensor.producer, &program.value(value).source) {
            (Producer::Item(item), _) => items[item].hash(&mut hasher),
            (Producer::Host, Source::Feed(output)) => output.hash(&mut hasher),
            (Producer::Host, Source::Initialized(node) | Source::Draws(node, _)) => {
                node.hash(&mut hasher);
            }
            (Producer::Host, _) => {}
        }
        seen.key(hasher)
    });
    tensors.collect()
}
