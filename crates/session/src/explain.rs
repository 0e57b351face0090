//! Why a run goes where it goes: items of work with their devices and reasons, the tensors between them, what
//! crosses, and the memory that it takes. `build.rs` reads it off a program; the forms that it takes are a file each.

mod blocks;
mod build;
mod dot;
mod html;
mod json;
mod layout;
mod measured;
mod node;
mod parts;
mod parts_forms;
mod walk;
mod ways;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use convoke_compiler::Apart;
use convoke_placement::{Picoseconds, Prediction, Reason, Solution, Work};

pub use measured::{Measured, MeasuredCrossing};
pub use node::{NodeName, NodeReport};
pub use parts::{
    ExplainedPart, ExplainedParts, ExplainedProgram, ExplainedStep, PartValue, Staying, StepNode,
    StepWork, Trips,
};
pub(crate) use walk::explain as explain_parts;

/// Where a run's kernels and variables go, with reasons; what crosses between devices; why kernels are not fewer; and
/// the memory that the run takes. Prints as tables.
///
/// [`Self::node`] asks about one node, [`Self::measured`] puts a run's times beside the predicted ones, and
/// [`Self::to_json`], [`Self::to_dot`] and [`Self::to_html`] are for programs, Graphviz and browsers. A run with
/// branches, loops or assertions has several programs, each with an explanation: see [`Self::parts`].
#[derive(Debug, Clone, Default)]
pub struct Explanation {
    solution: Solution,
    devices: Vec<String>,
    items: Vec<PlacedItem>,
    tensors: Vec<PlacedTensor>,
    crossings: Vec<Crossing>,
    segments: Vec<PlacedSegment>,
    absent: Vec<AbsentNode>,
    gaps: Vec<Gap>,
    memory: Vec<MemoryUse>,
    measured: Option<Measured>,
    parts: Option<ExplainedParts>,
}

/// What an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ItemKind {
    /// Work that is one kernel.
    Kernel,
    /// A kernel that computes again what another has computed, so that less memory lives at once.
    Again,
    /// A variable.
    Variable,
}

/// A kernel or a variable, with its device.
#[derive(Debug, Clone)]
pub struct PlacedItem {
    /// What it is.
    pub kind: ItemKind,
    /// Its name: that of its last node.
    pub name: Arc<str>,
    /// The nodes that it does the work of, by name.
    pub nodes: Vec<Arc<str>>,
    /// The line that declared the last of them.
    pub location: String,
    /// The index of its device.
    pub device: usize,
    /// The index of its segment; `None` for a variable.
    pub segment: Option<usize>,
    /// What is done: the kernel's text.
    pub kernel: String,
    /// What it does: the family decides its speed in the cost model.
    pub work: Work,
    /// What it takes on its device by the cost model, in picoseconds.
    pub cost: Picoseconds,
    /// The group of the program; `None` for a variable.
    group: Option<usize>,
    /// Its place in the solution.
    at: usize,
}

/// Who makes a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// An item: a kernel computes it, or it is a variable's elements at the start of the run.
    Item(usize),
    /// The caller feeds it; it lies in host memory.
    Feed,
    /// It never changes. It is sent to a device once, when the program is made, and does not cross in a run.
    Constant,
    /// The session itself: how often random numbers were drawn, whether a variable has elements.
    Session,
}

/// A tensor between items.
#[derive(Debug, Clone)]
pub struct PlacedTensor {
    /// The name of the node that it comes from, or `v7`, as the program prints it.
    pub name: Arc<str>,
    /// Dtype and shape: `f32[32, 64]`.
    pub shape: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Who makes it.
    pub from: Origin,
    /// The items that read it; a variable that it is stored into is one.
    pub to: Vec<usize>,
    /// Whether it is fetched.
    pub is_fetched: bool,
    value: usize,
}

/// A tensor that goes from one device to another in each run. From one GPU to another it goes through the host, in two
/// crossings, but where both are [parts of one](crate::DeviceOptions::virtual_devices): see [`Self::is_copy`].
#[derive(Debug, Clone)]
pub struct Crossing {
    /// The index of the tensor.
    pub tensor: usize,
    /// The index of the device that has it.
    pub from: usize,
    /// The index of the device that needs it.
    pub to: usize,
    /// Its size in bytes.
    pub bytes: u64,
    /// What its bytes take by the cost model, in picoseconds. The first tensor that crosses with others also pays
    /// the latency.
    pub time: Picoseconds,
    /// The index of the segment that it is sent for or by.
    pub segment: usize,
}

impl Crossing {
    /// Whether one GPU copies it from another, both being parts of one: the host takes no part.
    pub fn is_copy(&self) -> bool {
        self.from != 0 && self.to != 0
    }
}

/// Kernels that run on one device one after the other, between crossings.
#[derive(Debug, Clone)]
pub struct PlacedSegment {
    /// The index of the device.
    pub device: usize,
    /// The items, in order.
    pub items: Vec<usize>,
}

/// A needed node that is part of no kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbsentNode {
    /// Its name.
    pub name: Arc<str>,
    /// Why nothing runs for it.
    pub why: &'static str,
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

impl PlacedItem {
    /// The kernel's family in words, or `variable`.
    pub fn family(&self) -> &'static str {
        if self.kind == ItemKind::Variable { "variable" } else { self.work.family.name() }
    }
}

impl Explanation {
    /// How long a run is predicted to take, devices working at the same time where they can. Of a run with parts, the
    /// sum of what is known: programs that only a run knows take no time in it. See [`ExplainedParts::predicted`].
    pub fn predicted(&self) -> Duration {
        let parts = self.parts.as_ref().map(|parts| parts.predicted_of_known(&parts.whole));
        Duration::from_nanos(parts.unwrap_or(self.solution.prediction().makespan) / 1000)
    }

    /// What the run is predicted to take, and what crosses.
    pub fn prediction(&self) -> &Prediction {
        self.solution.prediction()
    }

    /// The devices' names; all indices of devices are places in this list.
    pub fn devices(&self) -> &[String] {
        &self.devices
    }

    /// The variables, then the kernels.
    pub fn items(&self) -> &[PlacedItem] {
        &self.items
    }

    /// The tensors that items make, read or hand out.
    pub fn tensors(&self) -> &[PlacedTensor] {
        &self.tensors
    }

    /// What crosses in each run, segment by segment: the plan, which a run keeps to.
    pub fn crossings(&self) -> &[Crossing] {
        &self.crossings
    }

    /// The segments, in order.
    pub fn segments(&self) -> &[PlacedSegment] {
        &self.segments
    }

    /// The needed nodes for which nothing runs, and why: constants, shape arithmetic, views, and the like.
    pub fn absent(&self) -> &[AbsentNode] {
        &self.absent
    }

    /// Why an item is where it is: its candidates, what decided, and the next best device. `None` if there is no
    /// such item. An item that computes again has the reasons of the one that it repeats.
    pub fn reason(&self, item: usize) -> Option<&Reason> {
        self.solution.reasons().get(self.items.get(item)?.at)
    }

    /// What decided where an item is, in words; empty if there is no such item.
    pub fn why(&self, item: usize) -> String {
        match self.items.get(item) {
            Some(PlacedItem { kind: ItemKind::Again, at, .. }) => {
                format!("computed again rather than kept; {}", self.solution.why(*at))
            }
            Some(item) => self.solution.why(item.at),
            None => String::new(),
        }
    }

    /// For each device, how much runs there, then what crosses in a run.
    pub fn summary(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        if let Some(parts) = &self.parts {
            for (at, program) in parts.known() {
                // Writing into a string does not fail.
                let _ = writeln!(text, "program {at}\n{}", program.summary());
            }
            text.truncate(text.trim_end().len());
            return text;
        }
        for (name, total) in self.devices.iter().zip(&self.solution.prediction().devices) {
            // Writing into a string does not fail.
            let _ = writeln!(
                text,
                "  {name}: {} groups of operations, {} bytes read and written",
                total.items, total.bytes
            );
        }
        let bytes: u64 = self.crossings.iter().map(|crossing| crossing.bytes).sum();
        let count = self.crossings.len();
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

    /// The name of a device; `?` for one that is not there.
    fn device_name(&self, device: usize) -> &str {
        self.devices.get(device).map_or("?", String::as_str)
    }

    /// From where to where a tensor crosses, and whether that is a copy.
    fn way(&self, crossing: &Crossing) -> String {
        let (from, to) = (self.device_name(crossing.from), self.device_name(crossing.to));
        format!("{from} to {to}{}", if crossing.is_copy() { ", a copy" } else { "" })
    }

    /// How many of the absent nodes there are for each reason, in the order of the first.
    fn absent_counts(&self) -> Vec<(&'static str, usize)> {
        let mut counts: Vec<(&'static str, usize)> = Vec::new();
        for node in &self.absent {
            match counts.iter_mut().find(|(why, _)| *why == node.why) {
                Some((_, count)) => *count += 1,
                None => counts.push((node.why, 1)),
            }
        }
        counts
    }
}

impl ItemKind {
    /// The name in JSON.
    pub fn text(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Again => "again",
            Self::Variable => "variable",
        }
    }
}

impl Origin {
    /// The name in JSON.
    pub fn text(self) -> &'static str {
        match self {
            Self::Item(_) => "item",
            Self::Feed => "feed",
            Self::Constant => "constant",
            Self::Session => "session",
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parts) = &self.parts {
            return self.write_parts(f, parts);
        }
        self.solution.fmt(f)?;
        if !self.gaps.is_empty() {
            writeln!(f, "through memory from kernel to kernel:")?;
        }
        for gap in &self.gaps {
            writeln!(f, "  {} ({} bytes): {}", gap.node, gap.bytes, gap.why)?;
        }
        let counts = self.absent_counts();
        if !counts.is_empty() {
            writeln!(f, "needed nodes for which nothing runs:")?;
        }
        for (why, count) in counts {
            writeln!(f, "  {count}: {why}")?;
        }
        for MemoryUse { device, planned_bytes, live_bytes } in &self.memory {
            writeln!(
                f,
                "memory of a run on {device}: {planned_bytes} bytes; {live_bytes} live at once"
            )?;
        }
        match &self.measured {
            Some(measured) => self.write_measured(f, measured),
            None => Ok(()),
        }
    }
}
