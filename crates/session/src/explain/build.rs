//! An explanation is read off a program and its placement.

use std::sync::Arc;

use convoke_compiler::{Apart, Group, HOST, Plan, Program, Source, ValueId};
use convoke_graph_core::{Class, Error, GraphSnapshot, Host, Node, NodeId, Result};
use convoke_placement::{Picoseconds, Work};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    AbsentNode, Crossing, Explanation, Gap, ItemKind, Origin, PlacedItem, PlacedSegment,
    PlacedTensor,
};
use crate::executor::Compiled;
use crate::place::Placed;

impl Explanation {
    /// The explanation of a program of `plan`.
    ///
    /// # Errors
    /// `Internal` if the program was not placed.
    pub(crate) fn of(compiled: &Compiled, plan: &Plan, graph: &GraphSnapshot) -> Result<Self> {
        let placed = compiled.placed.as_ref();
        let placed = placed.ok_or_else(|| Error::internal("the program was not placed"))?;
        let builder = Builder { program: &compiled.program, placed, graph };
        let (items, segments) = builder.items();
        let (tensors, index) = builder.tensors(&items);
        let crossings = builder.crossings(&index);
        Ok(Self {
            solution: placed.solution.clone(),
            devices: placed.solution.device_names().to_vec(),
            absent: builder.absent(plan),
            gaps: builder.gaps(),
            memory: compiled.memory(),
            measured: None,
            parts: None,
            items,
            tensors,
            crossings,
            segments,
        })
    }
}

struct Builder<'a> {
    program: &'a Program,
    placed: &'a Placed,
    graph: &'a GraphSnapshot,
}

impl Builder<'_> {
    /// The variables, then the groups; and the segments.
    fn items(&self) -> (Vec<PlacedItem>, Vec<PlacedSegment>) {
        let n = self.placed.variables.len();
        let segment = |segment: &convoke_compiler::Segment| PlacedSegment {
            device: segment.device.0 as usize,
            items: segment.groups.iter().map(|&group| n + group as usize).collect(),
        };
        let segments: Vec<PlacedSegment> = self.program.segments.iter().map(segment).collect();
        let mut segment_of = vec![None; n + self.program.groups.len()];
        for (at, segment) in segments.iter().enumerate() {
            segment.items.iter().for_each(|&item| segment_of[item] = Some(at));
        }
        let variables = self.placed.variables.iter().enumerate();
        let mut items: Vec<PlacedItem> = variables.map(|(i, &v)| self.variable(i, v)).collect();
        // Groups that compute again come after those that were placed, and have their nodes.
        let groups = self.program.groups.iter().enumerate();
        let placed = groups.clone().take(self.placed.n_groups);
        let mut first: FxHashMap<&[NodeId], usize> = FxHashMap::default();
        for (i, group) in placed {
            first.entry(&group.nodes).or_insert(i);
        }
        for (i, group) in groups {
            let of = first.get(&group.nodes[..]).copied().filter(|_| i >= self.placed.n_groups);
            let kind = if of.is_some() { ItemKind::Again } else { ItemKind::Kernel };
            let segment = segment_of[n + i];
            let device = segment.map_or(0, |segment: usize| segments[segment].device);
            let item = self.kernel(i, group, n + of.unwrap_or(i));
            items.push(PlacedItem { kind, device, segment, ..item });
        }
        (items, segments)
    }

    fn variable(&self, item: usize, variable: NodeId) -> PlacedItem {
        let node = self.graph.node(variable);
        PlacedItem {
            kind: ItemKind::Variable,
            name: node.name.clone(),
            nodes: vec![node.name.clone()],
            location: location(node),
            device: self.placed.solution.device.get(item).copied().unwrap_or(0),
            segment: None,
            kernel: "variable".into(),
            work: Work::NONE,
            cost: 0,
            group: None,
            at: item,
        }
    }

    fn kernel(&self, index: usize, group: &Group, at: usize) -> PlacedItem {
        let last = group.nodes.last().map(|&node| self.graph.node(node));
        let work = group.work(&self.program.values);
        let reason = self.placed.solution.reasons().get(at);
        let cost = reason.and_then(|reason| Some(reason.candidates.get(reason.device)?.cost));
        PlacedItem {
            kind: ItemKind::Kernel,
            name: last.map_or_else(|| "?".into(), |node| node.name.clone()),
            nodes: group.nodes.iter().map(|&node| self.graph.node(node).name.clone()).collect(),
            location: last.map_or_else(String::new, |node| location(node)),
            device: 0,
            segment: None,
            kernel: group.work_text(),
            work,
            cost: cost.unwrap_or(0),
            group: Some(index),
            at,
        }
    }

    /// The tensors that somebody needs, and the place of each value among them.
    fn tensors(&self, items: &[PlacedItem]) -> (Vec<PlacedTensor>, FxHashMap<ValueId, usize>) {
        let n = self.placed.variables.len();
        let mut from: Vec<Option<usize>> = vec![None; self.program.values.len()];
        let mut to: Vec<Vec<usize>> = vec![Vec::new(); self.program.values.len()];
        let variable = |node: &NodeId| self.placed.variables.binary_search(node).ok();
        for (i, group) in self.program.groups.iter().enumerate() {
            group.outputs.iter().for_each(|output| from[output.0 as usize] = Some(n + i));
            for input in &group.inputs {
                let readers = &mut to[input.value.0 as usize];
                if readers.last() != Some(&(n + i)) {
                    readers.push(n + i);
                }
            }
        }
        for commit in self.program.segments.iter().flat_map(|segment| &segment.commits) {
            to[commit.value.0 as usize].extend(variable(&commit.variable));
        }
        let fetched: FxHashSet<ValueId> = self.program.fetches.iter().map(|f| f.value).collect();
        let mut tensors = Vec::new();
        let mut index = FxHashMap::default();
        for ((i, value), to) in self.program.values.iter().enumerate().zip(to) {
            let id = ValueId(i as u32);
            if to.is_empty() && !fetched.contains(&id) {
                continue;
            }
            let from = match (&value.source, from[i]) {
                (Source::Variable(node), _) => variable(node).map_or(Origin::Session, Origin::Item),
                (_, Some(item)) => Origin::Item(item),
                (Source::Feed(_), _) => Origin::Feed,
                (Source::Constant(_), _) => Origin::Constant,
                _ => Origin::Session,
            };
            index.insert(id, tensors.len());
            tensors.push(PlacedTensor {
                name: self.tensor_name(id, from, items),
                shape: format!("{}{}", value.dtype, value.shape),
                bytes: value.n_bytes() as u64,
                is_fetched: fetched.contains(&id),
                value: i,
                from,
                to,
            });
        }
        (tensors, index)
    }

    fn tensor_name(&self, id: ValueId, from: Origin, items: &[PlacedItem]) -> Arc<str> {
        match (&self.program.value(id).source, from) {
            (Source::Feed(output), _) => self.graph.node(output.node).name.clone(),
            (_, Origin::Item(item)) => items[item].name.clone(),
            _ => id.to_string().into(),
        }
    }

    /// What the segments send and are sent.
    fn crossings(&self, index: &FxHashMap<ValueId, usize>) -> Vec<Crossing> {
        let transfers = &self.placed.solution.prediction().transfers;
        let predicted: FxHashMap<(ValueId, usize, usize), Picoseconds> = transfers
            .iter()
            .filter_map(|t| Some(((*self.placed.values.get(t.tensor)?, t.from, t.to), t.time)))
            .collect();
        let n_devices = self.placed.solution.device_names().len();
        let mut crossings = Vec::new();
        for at in 0..self.program.segments.len() {
            for (value, from, to) in self.ways(at) {
                let bytes = self.program.value(value).n_bytes() as u64;
                let Some(&tensor) = index.get(&value).filter(|_| bytes > 0) else { continue };
                // What placement did not foresee: values that are computed again, tensors without elements.
                let link = self.placed.links.get(from * n_devices + to);
                let time = predicted.get(&(value, from, to)).copied();
                let time = time.or(link.map(|link| link.bytes_time(bytes))).unwrap_or(0);
                crossings.push(Crossing { tensor, from, to, bytes, time, segment: at });
            }
        }
        crossings
    }

    /// What a segment is sent, copies from other devices, and sends: each value with the devices that have and need it.
    fn ways(&self, at: usize) -> Vec<(ValueId, usize, usize)> {
        let segment = &self.program.segments[at];
        let (host, device) = (HOST.0 as usize, segment.device.0 as usize);
        let home = |value: &ValueId| self.placed.homes.get(value).map(|home| home.0 as usize);
        let is_direct = |from: usize| self.placed.queues.is_direct(from, device);
        let sent = segment.uploads.iter().map(|&value| {
            let home = home(&value).filter(|&home| home == device || is_direct(home));
            (value, home.unwrap_or(host), device)
        });
        let carried = segment.carried.iter().map(|&(value, from)| {
            (value, self.program.segments[from as usize].device.0 as usize, device)
        });
        let borrowed = segment.borrowed.iter().map(|&value| {
            let homes = &self.program.variables;
            let home = homes.iter().find(|&&(own, _)| self.is_of(value, own));
            (value, home.map_or(host, |&(_, home)| home.0 as usize), device)
        });
        let down = segment.downloads.iter().map(|&value| (value, device, host));
        // What the device that reads it has does not cross.
        let all = sent.chain(carried).chain(borrowed).chain(down);
        all.filter(|(_, from, to)| from != to).collect()
    }

    /// Whether a value is the elements of a variable.
    fn is_of(&self, value: ValueId, variable: NodeId) -> bool {
        matches!(self.program.value(value).source, Source::Variable(own) if own == variable)
    }

    /// What is fed, and the needed nodes that are in no group.
    fn absent(&self, plan: &Plan) -> Vec<AbsentNode> {
        let groups = self.program.groups.iter().flat_map(|group| &group.nodes);
        let items: FxHashSet<NodeId> = groups.chain(&self.placed.variables).copied().collect();
        let feeds = plan.signature.feeds.iter().map(|feed| feed.node);
        let feeds: FxHashSet<NodeId> = feeds.filter(|node| !items.contains(node)).collect();
        let mut fed: Vec<NodeId> = feeds.iter().copied().collect();
        fed.sort_unstable();
        let fed = fed
            .into_iter()
            .map(|node| AbsentNode { name: self.graph.node(node).name.clone(), why: FED });
        let absent = |node: &&Arc<Node>| !items.contains(&node.id) && !feeds.contains(&node.id);
        let nodes = plan.nodes.iter().filter(absent);
        let folded =
            nodes.map(|node| AbsentNode { name: node.name.clone(), why: why_absent(node) });
        fed.chain(folded).collect()
    }

    fn gaps(&self) -> Vec<Gap> {
        let last = |group: &Group| group.nodes.last().copied();
        let mut made: FxHashMap<ValueId, Option<NodeId>> = FxHashMap::default();
        for group in &self.program.groups {
            made.extend(group.outputs.iter().map(|&output| (output, last(group))));
        }
        let name = |value: ValueId| {
            let node = made.get(&value).copied().flatten();
            node.map_or_else(String::new, |node| self.graph.node(node).name.to_string())
        };
        let gap = |(value, why): &(ValueId, Apart)| Gap {
            node: name(*value),
            bytes: self.program.value(*value).n_bytes() as u64,
            why: why.clone(),
        };
        self.program.apart.iter().map(gap).collect()
    }
}

/// Why nothing runs for a node, as far as its class tells.
/// Why nothing runs for what is fed.
pub(super) const FED: &str = "fed: it is given to the run";
/// Why nothing runs in a program for what it is given by another step of the run.
pub(super) const GIVEN: &str = "given by an earlier step of the run";

fn why_absent(node: &Node) -> &'static str {
    match node.op.class() {
        Class::Host(Host::Constant(_)) => {
            "a constant: it lies on the host, and on devices that read it since the program was made"
        }
        Class::Host(_) => {
            "known on the host before the run: shape arithmetic, folded into the program"
        }
        Class::View(_) => "a view: its readers see the same elements in another layout",
        Class::State(state) if state.is_assign() => {
            "an assignment: what it stores is computed by others, and stored when the run commits"
        }
        Class::State(_) => "a read of a variable: its readers take the variable's elements",
        Class::Queue(_) => {
            "queues are the host's: what is taken is fed, and what is put is fetched"
        }
        Class::Table(_) => {
            "tables are the host's: what they give is fed, and what is put is fetched"
        }
        Class::Reader(_) => "readers are the host's: what is read is fed",
        Class::Control(_) => "it orders others, and computes nothing",
        _ => {
            "folded into the program, shared with an equal operation, or left out since it changes nothing"
        }
    }
}

pub(super) fn location(node: &Node) -> String {
    let at = node.location;
    format!("{}:{}:{}", at.file(), at.line(), at.column())
}
