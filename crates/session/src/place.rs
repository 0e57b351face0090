//! Placement of a program's groups on the session's devices: the placement problem is filled in from the
//! program, solved, and its solution read back.

mod grown;
mod settle;

use std::cell::OnceCell;
use std::collections::hash_map;
use std::sync::Arc;

use convoke_compiler::alike::dispatches;
use convoke_compiler::{
    DeviceIndex, HOST, Places, Plan, Program, Source, Unplaced, Value, ValueId,
};
use convoke_graph_core::{
    Class, DType, GraphSnapshot, Node, NodeId, Output, Result, State as StateOp,
};
use convoke_placement::{
    Constant, DeviceSpec, Item, Link, Problem, Producer, Queues, Solution, TensorEdge, Work, solve,
};
use rustc_hash::FxHashMap;

use crate::autotune::{Known, MOVES_MAX};
use crate::devices::Devices;
use crate::executor::Refused;
use crate::session::{DevicePolicy, SessionOptions};
use crate::state::State;
pub(crate) use grown::LastGrown;
use grown::{Growing, Keys};

/// Where a program's groups and variables went and why.
#[derive(Debug)]
pub(crate) struct Placed {
    /// The variables are its first items, the groups follow.
    pub(crate) solution: Solution,
    /// The value that each tensor of the problem stands for.
    pub(crate) values: Vec<ValueId>,
    /// The variables, in the order of their items.
    pub(crate) variables: Vec<NodeId>,
    /// How many groups were placed. A program may have more: those that compute something again.
    pub(crate) n_groups: usize,
    /// The link from each device to each other, as in the problem.
    pub(crate) links: Vec<Link>,
    /// Which devices submit to one queue.
    pub(crate) queues: Queues,
    /// The fed values that GPUs have from the start.
    pub(crate) homes: FxHashMap<ValueId, DeviceIndex>,
}

/// What placing looks at.
pub(crate) struct Placing<'a> {
    pub(crate) devices: &'a Devices,
    pub(crate) graph: &'a GraphSnapshot,
    pub(crate) plan: &'a Plan,
    /// The device that has each feed.
    pub(crate) homes: &'a [DeviceIndex],
    pub(crate) state: &'a State,
    pub(crate) options: &'a SessionOptions,
    pub(crate) threads: usize,
    /// What runs of the session took.
    pub(crate) known: &'a Known,
    /// Whether variables may leave the devices where they have settled.
    pub(crate) unsettles: bool,
    /// Kernels that drivers refused to compile.
    pub(crate) refused: &'a [Refused],
    /// Where the groups of a large program went that this one may build on.
    pub(crate) grown: &'a LastGrown,
    pub(crate) placed: OnceCell<Placed>,
}

/// A kernel of whose bytes at least this part is of variables is taken to find them where all variables lie.
const RESIDENT_PART: u64 = 3;

/// The bytes of variables that a run reads.
fn resident_bytes(program: &Program) -> u64 {
    let mut read: FxHashMap<ValueId, u64> = FxHashMap::default();
    for (id, n_bytes) in program.groups.iter().flat_map(|group| group.resident(&program.values)) {
        let most = read.entry(id).or_default();
        *most = n_bytes.max(*most);
    }
    read.into_values().fold(0, u64::saturating_add)
}

impl Placing<'_> {
    /// Chooses a device for each group and variable.
    pub(crate) fn place(&self, unplaced: &Unplaced<'_>) -> Result<Places> {
        let variables = unplaced.variables();
        let program = unplaced.program;
        let growing = Growing::of(self, program);
        let (problem, values) = self.problem(unplaced, &variables, growing.as_ref())?;
        let problem = Arc::new(problem);
        let keys = growing.map(|it| it.keys(program, &problem, &values, variables.len()));
        let solution = match keys {
            Some(keys) => self.placed_beside(keys, &problem)?,
            None => solve(problem.clone())?,
        };
        let device = |item: usize| DeviceIndex(solution.device[item] as u32);
        let n = variables.len();
        let n_groups = program.groups.len();
        let places = Places {
            groups: (0..n_groups).map(|i| device(n + i)).collect(),
            variables: variables.iter().enumerate().map(|(i, &v)| (v, device(i))).collect(),
            order: solution.order,
            queues: problem.queues.clone(),
        };
        // Placing is done once for a program.
        let (links, queues) = (problem.links.clone(), problem.queues.clone());
        let homes = self.fed_homes(program);
        let placed = Placed { solution, values, variables, n_groups, links, queues, homes };
        let _ = self.placed.set(placed);
        Ok(places)
    }

    /// The solution for a large program: beside what stands of the last one if it builds on that, and else as a whole.
    fn placed_beside(&self, keys: Keys, problem: &Arc<Problem>) -> Result<Solution> {
        if let Some(solution) = keys.grow(self, problem)? {
            return Ok(solution);
        }
        let solution = solve(problem.clone())?;
        keys.note(self, &solution)?;
        Ok(solution)
    }

    /// The problem, and the value that each of its tensors stands for.
    fn problem(
        &self,
        unplaced: &Unplaced<'_>,
        variables: &[NodeId],
        growing: Option<&Growing>,
    ) -> Result<(Problem, Vec<ValueId>)> {
        let mut problem = self.devices.problem(self.threads);
        for (device, model) in problem.devices.iter_mut().enumerate() {
            model.memory_bytes = self.memory_bytes(device, variables);
        }
        problem.objective = self.options.objective;
        problem.soft_placement = self.options.soft_placement;
        problem.preferred = match &self.options.policy {
            DevicePolicy::Auto => None,
            DevicePolicy::Prefer(name) => Some(self.devices.index_of(name)?),
        };
        for node in self.plan.all_nodes() {
            self.requested(node.device.as_deref(), node.id)?;
        }
        for &variable in variables {
            problem.items.push(self.variable_item(variable)?);
        }
        let resident = resident_bytes(unplaced.program);
        for (group, beside) in dispatches(unplaced.program).into_iter().enumerate() {
            let refusals = growing.and_then(|growing| growing.refusals(group));
            let mut item = self.group_item(unplaced.program, group, resident, refusals)?;
            item.work.beside = beside;
            problem.items.push(item);
        }
        let groups = unplaced.program.groups.iter().enumerate();
        let fallible = groups.filter(|(_, group)| group.can_fail_late(&unplaced.program.values));
        problem.fallible = fallible.map(|(i, _)| variables.len() + i).collect();
        self.tie(unplaced.program, variables, &mut problem)?;
        let feeds = self.feed_items(&mut problem);
        let mut values = Vec::new();
        for (value, edge) in self.tensors(unplaced, variables, &feeds, &mut problem.constants) {
            values.push(value);
            problem.tensors.push(edge);
        }
        Ok((problem, values))
    }

    /// The bytes of a device that this program may take: of a GPU, its budget without what the session's variables
    /// that are no part of the program take there.
    fn memory_bytes(&self, device: usize, variables: &[NodeId]) -> u64 {
        if device == HOST.0 as usize {
            return self.options.host_budget_bytes;
        }
        let Some(budget) = self.devices.budget_bytes(device) else { return u64::MAX };
        let kept = self.state.lock();
        let elsewhere = kept.variables.iter().filter(|(variable, entry)| {
            entry.device.0 as usize == device && variables.binary_search(variable).is_err()
        });
        let bytes = elsewhere.map(|(_, entry)| entry.n_bytes());
        budget.saturating_sub(bytes.fold(0, u64::saturating_add))
    }

    fn requested(&self, device: Option<&str>, node: NodeId) -> Result<Option<DeviceSpec>> {
        let parse = |name: &str| {
            let spec = name.parse::<DeviceSpec>();
            // Only the message needs the devices.
            let spec = spec.or_else(|_| self.devices.problem(self.threads).device_spec(name));
            let node = self.graph.node(node);
            spec.map_err(|e| e.with_node(&*node.name).with_location(node.location))
        };
        device.map(parse).transpose()
    }

    fn variable_item(&self, variable: NodeId) -> Result<Item> {
        let node = self.graph.node(variable);
        let n_devices = self.devices.list().len();
        let kept = self.state.lock();
        let entry = kept.variables.get(&variable).filter(|entry| entry.version > 0);
        let now = entry.map(|entry| entry.device.0 as usize);
        let moves = kept.variables.get(&variable).map_or(0, |entry| entry.moves);
        let stays = !self.unsettles || moves >= MOVES_MAX;
        let settled = kept.settled(variable).filter(|_| stays);
        let assigned = settled.map(|home| home.0 as usize);
        drop(kept);
        Ok(Item {
            assigned,
            now,
            refusals: (0..n_devices).map(|d| self.variable_refusal(d, node)).collect(),
            ..self.resource_item(node)?
        })
    }

    /// A resource, or what is done to one where it lies.
    fn resource_item(&self, node: &Node) -> Result<Item> {
        Ok(Item {
            name: node.name.to_string(),
            requested: self.requested(node.device.as_deref(), node.id)?,
            assigned: None,
            refusals: Vec::new(),
            known: Vec::new(),
            work: Work::NONE,
            is_resource: true,
            now: None,
            location: Some(location(node)),
        })
    }

    /// Why no kernel of a device can read a variable.
    fn variable_refusal(&self, device: usize, variable: &Node) -> Option<String> {
        let is_string = variable.facts.first().is_some_and(|fact| fact.dtype == DType::String);
        if is_string && device != HOST.0 as usize {
            return Some(
                "unsupported: a variable of strings, which are on the host only".to_owned(),
            );
        }
        let n_bytes = variable_bytes(variable);
        #[cfg(feature = "gpu")]
        {
            let most = self.devices.adapter(device).ok()?.limits.max_storage_buffer_binding_size;
            (n_bytes > most).then(|| {
                format!("unsupported: a variable of {n_bytes} bytes, and a binding holds {most}")
            })
        }
        #[cfg(not(feature = "gpu"))]
        {
            let _ = (device, n_bytes);
            None
        }
    }

    /// Work, of which it may be known already why devices have no kernel for it.
    fn group_item(
        &self,
        program: &Program,
        index: usize,
        resident: u64,
        refusals: Option<Vec<Option<String>>>,
    ) -> Result<Item> {
        let group = &program.groups[index];
        let last = group.nodes.last().copied().unwrap_or(NodeId(0));
        let node = self.graph.node(last);
        let requested = self.requested(group.asked.device.as_deref(), last)?;
        let refusals = refusals.unwrap_or_else(|| {
            (0..self.devices.list().len()).map(|d| self.refusal(d, program, index)).collect()
        });
        let more = group.nodes.len() - 1;
        let name = if more == 0 {
            node.name.to_string()
        } else {
            format!("{} and {more} more", node.name)
        };
        let mut work = group.work(&program.values);
        let known = self.known.of(self.devices.list().len(), &work);
        let own: u64 = group.resident(&program.values).map(|(_, n_bytes)| n_bytes).sum();
        // Since these variables were read last, all others have gone through the caches.
        if own >= work.bytes / RESIDENT_PART {
            work.among = work.among.max(resident);
        }
        Ok(Item {
            name,
            requested,
            assigned: None,
            refusals,
            known,
            work,
            is_resource: false,
            now: None,
            location: Some(location(node)),
        })
    }

    /// Why a device has no kernel for a group.
    fn refusal(&self, device: usize, program: &Program, group: usize) -> Option<String> {
        if device == HOST.0 as usize {
            return None;
        }
        let is_it = |refused: &&Refused| {
            refused.device == device && refused.groups.contains(&(group as u32))
        };
        if let Some(refused) = self.refused.iter().find(is_it) {
            return Some(refused.reason.clone());
        }
        #[cfg(feature = "gpu")]
        {
            let adapter = self.devices.adapter(device).ok()?;
            convoke_wgpu_backend::supports(adapter, program, &program.groups[group]).err()
        }
        #[cfg(not(feature = "gpu"))]
        {
            let _ = (program, group);
            Some("this build has no GPU support".to_owned())
        }
    }

    /// Ties items that are to share a device. An assignment that asks for a device, or to be with something,
    /// becomes an item that uses its variable; others, and reads, are only transfers.
    fn tie(&self, program: &Program, variables: &[NodeId], problem: &mut Problem) -> Result<()> {
        let is_tied = |node: &Node| {
            let stores = || accessed(node).is_some() && !reads(node);
            !node.colocated.is_empty() || (node.device.is_some() && stores())
        };
        let holders = variables.iter().map(|&variable| self.graph.node(variable));
        if !self.plan.all_nodes().into_iter().chain(holders).any(|node| is_tied(node)) {
            return Ok(());
        }
        // A node of a loop that is written out is in an item of each iteration.
        let mut items_of: FxHashMap<NodeId, Vec<usize>> =
            variables.iter().enumerate().map(|(i, &v)| (v, vec![i])).collect();
        for (i, group) in program.groups.iter().enumerate() {
            for &node in &group.nodes {
                items_of.entry(node).or_default().push(variables.len() + i);
            }
        }
        for node in &self.plan.nodes {
            let asks = node.device.is_some() || !node.colocated.is_empty();
            let Some(variable) = accessed(node).filter(|_| asks && !reads(node)) else { continue };
            let holder = items_of.get(&variable).and_then(|items| items.first().copied());
            let Some(holder) = holder else { continue };
            if let hash_map::Entry::Vacant(entry) = items_of.entry(node.id) {
                problem.resource_edges.push((holder, problem.items.len()));
                entry.insert(vec![problem.items.len()]);
                problem.items.push(self.resource_item(node)?);
            }
        }
        self.stand_in(&mut items_of, problem)?;
        let mut nodes: Vec<(NodeId, &[usize])> =
            items_of.iter().map(|(&node, items)| (node, &**items)).collect();
        nodes.sort_unstable();
        for (node, items) in nodes {
            for &target in &self.graph.node(node).colocated {
                let variable = accessed(self.graph.node(target));
                let with = items_of.get(&target).or_else(|| items_of.get(&variable?));
                let (Some(&[first, ref others @ ..]), Some(&asks)) =
                    (with.map(|with| &**with), items.first())
                else {
                    continue;
                };
                let own = items.iter().map(|&item| (item, first));
                let pairs = own.chain(others.iter().map(|&other| (asks, other)));
                problem.colocations.extend(pairs.filter(|(item, with)| item != with));
            }
        }
        Ok(())
    }

    /// Adds items for what others are to be with and the program does not compute: what they ask for counts.
    fn stand_in(
        &self,
        items_of: &mut FxHashMap<NodeId, Vec<usize>>,
        problem: &mut Problem,
    ) -> Result<()> {
        let mut nodes: Vec<NodeId> = items_of.keys().copied().collect();
        nodes.sort_unstable();
        nodes.reverse();
        while let Some(node) = nodes.pop() {
            for &target in &self.graph.node(node).colocated {
                let variable = accessed(self.graph.node(target));
                let target = if items_of.contains_key(&target) {
                    target
                } else {
                    variable.unwrap_or(target)
                };
                let hash_map::Entry::Vacant(entry) = items_of.entry(target) else { continue };
                let (node, at) = (self.graph.node(target), problem.items.len());
                if matches!(node.op.class(), Class::State(StateOp::Variable)) {
                    problem.items.push(self.variable_item(target)?);
                } else {
                    problem.items.push(self.resource_item(node)?);
                    problem.resource_edges.push((at, at));
                }
                entry.insert(vec![at]);
                nodes.push(target);
            }
        }
        Ok(())
    }

    /// The fed values that GPUs have.
    fn fed_homes(&self, program: &Program) -> FxHashMap<ValueId, DeviceIndex> {
        let home = |(id, value): (u32, &Value)| {
            let Source::Feed(output) = value.source else { return None };
            let at = self.plan.signature.feeds.iter().position(|feed| *feed == output)?;
            let home = self.homes.get(at).copied().filter(|home| *home != HOST)?;
            Some((ValueId(id), home))
        };
        (0u32..).zip(&program.values).filter_map(home).collect()
    }

    /// Adds an item for each feed that a GPU has: it is there from the start, and stays.
    fn feed_items(&self, problem: &mut Problem) -> FxHashMap<Output, usize> {
        let mut items = FxHashMap::default();
        let feeds = self.plan.signature.feeds.iter().zip(self.homes);
        for (&feed, home) in feeds.filter(|(_, home)| **home != HOST) {
            let node = self.graph.node(feed.node);
            items.insert(feed, problem.items.len());
            problem.items.push(Item {
                name: format!("{}, fed", node.name),
                requested: None,
                assigned: Some(home.0 as usize),
                refusals: Vec::new(),
                known: Vec::new(),
                work: Work::NONE,
                is_resource: true,
                now: Some(home.0 as usize),
                location: Some(location(node)),
            });
        }
        items
    }

    fn tensors(
        &self,
        unplaced: &Unplaced<'_>,
        variables: &[NodeId],
        feeds: &FxHashMap<Output, usize>,
        constants: &mut Vec<Constant>,
    ) -> Vec<(ValueId, TensorEdge)> {
        let program = unplaced.program;
        let n = variables.len();
        let mut edges: Vec<TensorEdge> = Vec::with_capacity(program.values.len());
        let variable_item = |node: &NodeId| variables.binary_search(node).ok();
        for (i, value) in program.values.iter().enumerate() {
            let producer = producer(&value.source, variables, feeds);
            let name = match &value.source {
                Source::Variable(node) => self.graph.node(*node).name.to_string(),
                Source::Feed(output) => self.graph.node(output.node).name.to_string(),
                _ => format!("v{i}"),
            };
            let (consumers, bytes) = (Vec::new(), value.n_bytes() as u64);
            edges.push(TensorEdge { name, bytes, producer, consumers, host_reads: false });
        }
        let edge = |edges: &mut Vec<TensorEdge>, id: ValueId, change: &dyn Fn(&mut TensorEdge)| {
            change(&mut edges[id.0 as usize]);
        };
        for (i, group) in program.groups.iter().enumerate() {
            for input in &group.inputs {
                edge(&mut edges, input.value, &|e| {
                    if e.consumers.last() != Some(&(n + i)) {
                        e.consumers.push(n + i);
                    }
                });
            }
            let name = group.nodes.last().map(|&node| self.graph.node(node).name.to_string());
            for &output in &group.outputs {
                edge(&mut edges, output, &|e| {
                    e.producer = Producer::Item(n + i);
                    if let Some(name) = &name {
                        e.name.clone_from(name);
                    }
                });
            }
        }
        for commit in unplaced.commits {
            if let Some(item) = variable_item(&commit.variable) {
                edge(&mut edges, commit.value, &|e| e.consumers.push(item));
            }
        }
        for value in program.host_fetches() {
            edge(&mut edges, value, &|e| e.host_reads = true);
        }
        // Constants are sent once, when a program is made, and then stay.
        let is_constant = |value: &Value| matches!(value.source, Source::Constant(_));
        let fixed = program.values.iter().zip(&mut edges).filter(|(value, _)| is_constant(value));
        let fixed = fixed.map(|(_, edge)| Constant {
            bytes: std::mem::take(&mut edge.bytes),
            consumers: std::mem::take(&mut edge.consumers),
        });
        constants.extend(fixed.filter(|constant| !constant.consumers.is_empty()));
        let moves = |e: &TensorEdge| e.bytes > 0 && (e.host_reads || !e.consumers.is_empty());
        let values = (0u32..).map(ValueId).zip(edges);
        values.filter(|(_, edge)| moves(edge)).collect()
    }
}

/// Who makes a value that no group computes.
fn producer(source: &Source, variables: &[NodeId], feeds: &FxHashMap<Output, usize>) -> Producer {
    let item = match source {
        Source::Variable(node) => variables.binary_search(node).ok(),
        Source::Feed(output) => feeds.get(output).copied(),
        _ => None,
    };
    item.map_or(Producer::Host, Producer::Item)
}

/// The bytes of a variable's elements; 0 if they are not known yet.
pub(crate) fn variable_bytes(node: &Node) -> u64 {
    let fact = node.facts.first();
    let bytes = fact.and_then(|fact| Some(fact.shape()?.len() * fact.dtype.n_bytes()));
    bytes.unwrap_or(0) as u64
}

/// The variable that a node reads or stores into.
fn accessed(node: &Node) -> Option<NodeId> {
    match node.op.class() {
        Class::State(StateOp::Variable) => None,
        Class::State(_) => node.inputs.first().map(|handle| handle.node),
        _ => None,
    }
}

fn reads(node: &Node) -> bool {
    matches!(
        node.op.class(),
        Class::State(StateOp::Read | StateOp::ReadOr | StateOp::IsInitialized)
    )
}

fn location(node: &Node) -> String {
    let at = node.location;
    format!("{}:{}:{}", at.file(), at.line(), at.column())
}

#[cfg(test)]
mod tests;
