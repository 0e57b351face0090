//! Placement of a program's groups on the session's devices: the placement problem is filled in from the
//! program, solved, and its solution read back.

use std::cell::OnceCell;
use std::fmt;
use std::time::Duration;

use convoke_compiler::{
    Apart, DeviceIndex, Group, HOST, Places, Program, Source, Unplaced, ValueId,
};
use convoke_graph_core::{GraphSnapshot, Node, NodeId, Result};
use convoke_placement::{
    DeviceSpec, Item, Picoseconds, Prediction, Problem, Producer, Solution, TensorEdge, Work, solve,
};
use rustc_hash::FxHashMap;

use crate::devices::{Devices, Gpus};
use crate::executor::Refused;
use crate::session::{DevicePolicy, SessionOptions};
use crate::state::{Entry, State};

/// Where a program's groups and variables go, with reasons; why they are not fewer; and the memory that a
/// run takes. Prints as a table.
#[derive(Debug, Clone)]
pub struct Explanation {
    solution: Solution,
    devices: Vec<String>,
    kernels: Vec<KernelCost>,
    gaps: Vec<Gap>,
    memory: Vec<MemoryUse>,
}

/// What a kernel does, and what that is predicted to take where it runs.
#[derive(Debug, Clone)]
pub struct KernelCost {
    /// The node that it computes last, by name.
    pub node: String,
    /// The device's name.
    pub device: String,
    /// What it does.
    pub work: Work,
    /// What it is predicted to take.
    pub predicted: Duration,
}

/// A tensor that goes through memory from one kernel to another.
#[derive(Debug, Clone)]
pub struct Gap {
    /// The node that computes it.
    pub node: String,
    /// Its bytes.
    pub bytes: u64,
    /// Why the work at its two ends is not one kernel.
    pub why: Apart,
}

/// The memory of one device that a run's values and intermediate results lie in.
#[derive(Debug, Clone)]
pub struct MemoryUse {
    /// The device's name.
    pub device: String,
    /// Bytes of its slots or slabs: the peak of a run.
    pub planned_bytes: u64,
    /// The largest sum of the bytes that live at once: no plan takes less.
    pub live_bytes: u64,
}

impl Explanation {
    /// What the run is predicted to take, and what crosses.
    pub fn prediction(&self) -> &Prediction {
        &self.solution.prediction
    }

    /// The time that a run is predicted to take.
    pub fn predicted(&self) -> Duration {
        duration(self.solution.prediction.total)
    }

    /// What each kernel is predicted to take by itself, in the order of the program.
    pub fn kernels(&self) -> &[KernelCost] {
        &self.kernels
    }

    /// For each device, how much runs there, then what crosses in a run.
    pub fn summary(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        for (name, total) in self.devices.iter().zip(&self.solution.prediction.devices) {
            // Writing into a string does not fail.
            let _ = writeln!(
                text,
                "  {name}: {} groups of operations, {} bytes read and written",
                total.items, total.bytes
            );
        }
        let bytes: u64 = self.solution.prediction.transfers.iter().map(|t| t.bytes).sum();
        let count = self.solution.prediction.transfers.len();
        let _ = write!(text, "  {count} tensors of {bytes} bytes cross in a step");
        text
    }

    /// The tensors that go through memory from kernel to kernel, and why.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// The memory that a run takes on each device, known before it runs. Feeds, constants and variables come
    /// on top.
    pub fn memory(&self) -> &[MemoryUse] {
        &self.memory
    }

    pub(crate) fn with_memory(self, memory: Vec<MemoryUse>) -> Self {
        Self { memory, ..self }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.solution.fmt(f)?;
        if !self.gaps.is_empty() {
            writeln!(f, "through memory from kernel to kernel:")?;
        }
        for gap in &self.gaps {
            writeln!(f, "  {} ({} bytes): {}", gap.node, gap.bytes, gap.why)?;
        }
        for MemoryUse { device, planned_bytes, live_bytes } in &self.memory {
            writeln!(
                f,
                "memory of a run on {device}: {planned_bytes} bytes; {live_bytes} live at once"
            )?;
        }
        Ok(())
    }
}

/// What placing looks at.
pub(crate) struct Placing<'a> {
    pub(crate) devices: &'a Devices,
    pub(crate) graph: &'a GraphSnapshot,
    pub(crate) state: &'a State,
    pub(crate) options: &'a SessionOptions,
    pub(crate) threads: usize,
    /// Kernels that drivers refused to compile.
    pub(crate) refused: &'a [Refused],
    pub(crate) explanation: OnceCell<Explanation>,
}

impl Placing<'_> {
    /// Chooses a device for each group and variable.
    pub(crate) fn place(&self, unplaced: &Unplaced<'_>) -> Result<Places> {
        let variables = unplaced.variables();
        let problem = self.problem(unplaced, &variables)?;
        let solution = solve(&problem)?;
        let device = |item: usize| DeviceIndex(solution.device[item] as u32);
        let n = variables.len();
        let places = Places {
            groups: (0..unplaced.program.groups.len()).map(|i| device(n + i)).collect(),
            variables: variables.iter().enumerate().map(|(i, &v)| (v, device(i))).collect(),
        };
        let devices = self.devices.list().iter().map(|info| info.name.to_string()).collect();
        // Placing is done once for a program.
        let kernels = self.kernels(unplaced.program, &problem, &solution);
        let gaps = self.gaps(unplaced.program);
        let memory = Vec::new();
        let _ = self.explanation.set(Explanation { solution, devices, kernels, gaps, memory });
        Ok(places)
    }

    fn kernels(
        &self,
        program: &Program,
        problem: &Problem,
        solution: &Solution,
    ) -> Vec<KernelCost> {
        let first = problem.items.len() - program.groups.len();
        let kernel = |(i, group): (usize, &Group)| {
            let (item, device) = (&problem.items[first + i], solution.device[first + i]);
            let node = group.nodes.last().map(|&node| self.graph.node(node).name.to_string());
            KernelCost {
                node: node.unwrap_or_default(),
                device: self.devices.list()[device].name.to_string(),
                work: item.work,
                predicted: duration(problem.devices[device].cost(&item.work)),
            }
        };
        program.groups.iter().enumerate().map(kernel).collect()
    }

    fn gaps(&self, program: &Program) -> Vec<Gap> {
        let last = |group: &Group| group.nodes.last().copied();
        let mut made: FxHashMap<ValueId, Option<NodeId>> = FxHashMap::default();
        for group in &program.groups {
            made.extend(group.outputs.iter().map(|&output| (output, last(group))));
        }
        let name = |value: ValueId| {
            let node = made.get(&value).copied().flatten();
            node.map_or_else(String::new, |node| self.graph.node(node).name.to_string())
        };
        let gap = |(value, why): &(ValueId, Apart)| Gap {
            node: name(*value),
            bytes: program.value(*value).n_bytes() as u64,
            why: why.clone(),
        };
        program.apart.iter().map(gap).collect()
    }

    /// Notes the variables of a program with their devices. One that no program has read yet moves to
    /// where this one wants it; one that this one reads stays there from now on.
    pub(crate) fn settle(&self, program: &Program, gpus: &Gpus) -> Result<()> {
        let mut kept = self.state.lock();
        for &(variable, device) in &program.variables {
            let entry = kept.entry(self.graph.node(variable), device);
            if entry.device != device && entry.version > 0 {
                move_elements(variable, entry, device, gpus)?;
            }
            entry.device = device;
            let reads = |value: &convoke_compiler::Value| matches!(value.source, Source::Variable(other) if other == variable);
            // Without elements there is nothing to read yet: such a run fails and decides nothing.
            entry.settled |= entry.version > 0 && program.values.iter().any(reads);
        }
        Ok(())
    }

    fn problem(&self, unplaced: &Unplaced<'_>, variables: &[NodeId]) -> Result<Problem> {
        let mut problem = self.devices.problem(self.threads);
        problem.soft_placement = self.options.soft_placement;
        for &variable in variables {
            problem.items.push(self.variable_item(variable)?);
        }
        for group in 0..unplaced.program.groups.len() {
            problem.items.push(self.group_item(unplaced.program, group)?);
        }
        self.colocate(unplaced.program, variables, &mut problem.items);
        problem.tensors = self.tensors(unplaced, variables);
        Ok(problem)
    }

    fn requested(&self, device: Option<&str>, node: NodeId) -> Result<Option<DeviceSpec>> {
        let parse = |name: &str| {
            let spec: Result<DeviceSpec> = name.parse();
            let node = self.graph.node(node);
            spec.map_err(|e| e.with_node(&*node.name).with_location(node.location))
        };
        device.map(parse).transpose()
    }

    fn variable_item(&self, variable: NodeId) -> Result<Item> {
        let node = self.graph.node(variable);
        let requested = self.requested(node.device.as_deref(), variable)?;
        let settled = self.state.lock().settled(variable);
        let refusals = match settled {
            Some(home) => self.all_but(home.0 as usize, "the variable lives on"),
            None => {
                let n_bytes = variable_bytes(node);
                let too_large = |d: usize| self.variable_refusal(d, n_bytes);
                let mut refusals = self.preference(requested.is_some(), |d| too_large(d).is_none());
                for (device, refusal) in refusals.iter_mut().enumerate() {
                    *refusal = too_large(device).or(refusal.take());
                }
                refusals
            }
        };
        Ok(Item {
            name: node.name.to_string(),
            requested: requested.filter(|_| settled.is_none()),
            refusals,
            work: Work::NONE,
            colocation: None,
            is_resource: true,
            location: Some(location(node)),
        })
    }

    /// Why no kernel of a device can read a variable of so many bytes.
    fn variable_refusal(&self, device: usize, n_bytes: u64) -> Option<String> {
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

    fn group_item(&self, program: &Program, index: usize) -> Result<Item> {
        let group = &program.groups[index];
        let last = group.nodes.last().copied().unwrap_or(NodeId(0));
        let node = self.graph.node(last);
        let requested = self.requested(group.device.as_deref(), last)?;
        let refused: Vec<Option<String>> =
            (0..self.devices.list().len()).map(|d| self.refusal(d, program, index)).collect();
        let mut refusals = self.preference(requested.is_some(), |d| refused[d].is_none());
        for (all, own) in refusals.iter_mut().zip(refused) {
            *all = own.or(all.take());
        }
        let more = group.nodes.len() - 1;
        let name = if more == 0 {
            node.name.to_string()
        } else {
            format!("{} and {more} more", node.name)
        };
        Ok(Item {
            name,
            requested,
            refusals,
            work: group.work(&program.values),
            colocation: None,
            is_resource: false,
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

    /// Refusals of all devices but the preferred one, where there is one that can take it.
    fn preference(&self, asked: bool, can: impl Fn(usize) -> bool) -> Vec<Option<String>> {
        let DevicePolicy::Prefer(name) = &self.options.policy else { return self.none() };
        match self.devices.index_of(name) {
            Ok(device) if !asked && can(device) => self.all_but(device, "the session prefers"),
            _ => self.none(),
        }
    }

    fn none(&self) -> Vec<Option<String>> {
        vec![None; self.devices.list().len()]
    }

    fn all_but(&self, device: usize, why: &str) -> Vec<Option<String>> {
        let list = self.devices.list();
        let reason = list.get(device).map(|info| format!("{why} {}", info.name));
        (0..list.len()).map(|d| if d == device { None } else { reason.clone() }).collect()
    }

    /// Gives items that were asked to share a device one number.
    fn colocate(&self, program: &Program, variables: &[NodeId], items: &mut [Item]) {
        let mut item_of: FxHashMap<NodeId, usize> =
            variables.iter().enumerate().map(|(i, &v)| (v, i)).collect();
        for (i, group) in program.groups.iter().enumerate() {
            item_of.extend(group.nodes.iter().map(|&node| (node, variables.len() + i)));
        }
        let mut class: Vec<usize> = (0..items.len()).collect();
        let find = |class: &mut Vec<usize>, mut i: usize| {
            while class[i] != i {
                class[i] = class[class[i]];
                i = class[i];
            }
            i
        };
        for (&node, &item) in &item_of {
            for target in &self.graph.node(node).colocated {
                if let Some(&other) = item_of.get(target) {
                    let (a, b) = (find(&mut class, item), find(&mut class, other));
                    class[a.max(b)] = a.min(b);
                    items[item].colocation = Some(0);
                    items[other].colocation = Some(0);
                }
            }
        }
        for (i, item) in items.iter_mut().enumerate() {
            if item.colocation.is_some() {
                item.colocation = Some(find(&mut class, i) as u32);
            }
        }
    }

    fn tensors(&self, unplaced: &Unplaced<'_>, variables: &[NodeId]) -> Vec<TensorEdge> {
        let program = unplaced.program;
        let n = variables.len();
        let mut edges: Vec<TensorEdge> = Vec::with_capacity(program.values.len());
        let variable_item = |node: &NodeId| variables.binary_search(node).ok();
        for (i, value) in program.values.iter().enumerate() {
            let producer = match &value.source {
                Source::Variable(node) => {
                    variable_item(node).map_or(Producer::Host, Producer::Item)
                }
                _ => Producer::Host,
            };
            // Constants are sent once, when a program is made, and then stay.
            let bytes = match &value.source {
                Source::Constant(_) => 0,
                _ => value.n_bytes() as u64,
            };
            let (name, consumers) = (format!("v{i}"), Vec::new());
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
        for fetch in &program.fetches {
            edge(&mut edges, fetch.value, &|e| e.host_reads = true);
        }
        let moves = |e: &TensorEdge| e.bytes > 0 && (e.host_reads || !e.consumers.is_empty());
        edges.retain(moves);
        edges
    }
}

fn duration(time: Picoseconds) -> Duration {
    Duration::from_nanos(time / 1000)
}

/// Brings a variable's elements to another device.
fn move_elements(variable: NodeId, entry: &mut Entry, to: DeviceIndex, gpus: &Gpus) -> Result<()> {
    #[cfg(feature = "gpu")]
    {
        let n_bytes = entry.shape.len() * entry.dtype.n_bytes();
        let elements = match &entry.elements {
            Some(elements) if entry.device == HOST => elements.clone(),
            _ => {
                let (_, from) = gpus.get(entry.device.0 as usize)?;
                std::sync::Arc::new(from.load(variable, n_bytes as u64)?)
            }
        };
        if to == HOST {
            entry.elements = Some(elements);
        } else {
            gpus.get(to.0 as usize)?.1.store(variable, &elements[..n_bytes])?;
            entry.elements = None;
        }
        Ok(())
    }
    #[cfg(not(feature = "gpu"))]
    {
        let _ = (variable, entry, to, gpus);
        Err(convoke_graph_core::Error::internal("there is only one device to live on"))
    }
}

/// The bytes of a variable's elements; 0 if they are not known yet.
fn variable_bytes(node: &Node) -> u64 {
    let fact = node.facts.first();
    let bytes = fact.and_then(|fact| Some(fact.shape()?.len() * fact.dtype.n_bytes()));
    bytes.unwrap_or(0) as u64
}

fn location(node: &Node) -> String {
    let at = node.location;
    format!("{}:{}:{}", at.file(), at.line(), at.column())
}
