//! What there is to say about one node.

use std::borrow::Cow;
use std::fmt;

use convoke_graph_core::{Error, ErrorKind, Operation, Result, Tensor, Variable};
use convoke_placement::{Bytes, Reason, Time};

use super::build::{FED, GIVEN};
use super::{AbsentNode, Crossing, ExplainedStep, Explanation, PlacedItem};

/// How many near names an error lists.
const NEAR_MAX: usize = 5;
/// Names longer than this are compared by their beginning only.
const COMPARED_MAX: usize = 200;

/// What names a node: its name as text, with or without `:0`, or a handle.
pub trait NodeName {
    /// The node's name.
    fn node_name(&self) -> Cow<'_, str>;
}

impl NodeName for str {
    fn node_name(&self) -> Cow<'_, str> {
        Cow::Borrowed(self)
    }
}

impl NodeName for String {
    fn node_name(&self) -> Cow<'_, str> {
        Cow::Borrowed(self)
    }
}

impl NodeName for Tensor {
    fn node_name(&self) -> Cow<'_, str> {
        Cow::Owned(self.operation().name())
    }
}

impl NodeName for Operation {
    fn node_name(&self) -> Cow<'_, str> {
        Cow::Owned(self.name())
    }
}

impl NodeName for Variable {
    fn node_name(&self) -> Cow<'_, str> {
        Cow::Owned(self.name())
    }
}

/// What there is to say about one node: the items that do its work, the step of a run with parts that it is, or why there
/// is neither. Prints as text.
#[derive(Debug, Clone)]
pub struct NodeReport<'a> {
    pub(super) explanation: &'a Explanation,
    pub(super) items: Vec<usize>,
    step: Option<&'a ExplainedStep>,
    absent: Option<&'a AbsentNode>,
}

impl Explanation {
    /// Why a node runs where it does: its candidates with their costs, what decided, the next best device and its
    /// price, and what crosses to and from it. A kernel may do the work of several nodes, and several kernels that
    /// of one node. Of a run with parts, the report of the first program that runs something for it; else of the step
    /// that it is, such as a loop; else why nothing runs for it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with near names, if the run needs no such node.
    pub fn node(&self, name: &(impl NodeName + ?Sized)) -> Result<NodeReport<'_>> {
        let name = name.node_name();
        let all: Vec<&Self> = match &self.parts {
            Some(parts) => parts.known().map(|(_, program)| program).collect(),
            None => vec![self],
        };
        let find = |name: &str| {
            let mut found: Vec<NodeReport<'_>> =
                all.iter().filter_map(|own| own.find(name)).chain(self.find_step(name)).collect();
            // Whoever is given it knows less than who makes it.
            let rank = |report: &NodeReport<'_>| match report.absent.map(|node| node.why) {
                None => usize::from(report.step.is_some()),
                Some(FED | GIVEN) => 3,
                Some(_) => 2,
            };
            found.sort_by_key(rank);
            found.into_iter().next()
        };
        let found = find(&name).or_else(|| {
            let (node, output) = name.rsplit_once(':')?;
            output.bytes().all(|c| c.is_ascii_digit()).then(|| find(node))?
        });
        found.ok_or_else(|| {
            let steps = self.parts.iter().flat_map(|parts| parts.steps());
            let steps = steps.filter_map(|step| Some(&*step.node()?.name));
            let near = near(&all, steps, &name);
            let hint = if near.is_empty() {
                "the run needs no nodes".to_owned()
            } else {
                format!("near names are {}", near.join(", "))
            };
            let message = format!("the run needs no node named {name:?}; {hint}");
            Error::new(ErrorKind::NotFound, message)
        })
    }

    fn find(&self, name: &str) -> Option<NodeReport<'_>> {
        let does = |item: &PlacedItem| item.nodes.iter().any(|node| &**node == name);
        let items = self.items.iter().enumerate().filter(|(_, item)| does(item));
        let items: Vec<usize> = items.map(|(i, _)| i).collect();
        let absent = self.absent.iter().find(|node| &*node.name == name);
        let known = !items.is_empty() || absent.is_some();
        known.then_some(NodeReport { explanation: self, items, step: None, absent })
    }

    /// The step of a run with parts that a node is.
    fn find_step(&self, name: &str) -> Option<NodeReport<'_>> {
        let is_it = |step: &&ExplainedStep| step.node().is_some_and(|node| &*node.name == name);
        let step = self.parts.as_ref()?.steps().find(is_it)?;
        let items = Vec::new();
        Some(NodeReport { explanation: self, items, step: Some(step), absent: None })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let items = self.items.iter().flat_map(|item| item.nodes.iter().map(|node| &**node));
        items.chain(self.absent.iter().map(|node| &*node.name))
    }
}

/// The names of some explanations and steps that look most like `name`.
fn near<'a>(
    all: &[&'a Explanation],
    steps: impl Iterator<Item = &'a str>,
    name: &str,
) -> Vec<&'a str> {
    let all = all.iter().flat_map(|own| own.names()).chain(steps);
    let mut all: Vec<(usize, &str)> = all.map(|other| (distance(name, other), other)).collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter().take(NEAR_MAX).map(|(_, name)| name).collect()
}

/// The number of characters to insert, remove or replace (Levenshtein); a quarter of it where one name contains the
/// other.
fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|s| s.to_lowercase().chars().take(COMPARED_MAX).collect::<Vec<_>>());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    let changes = row.last().copied().unwrap_or(0);
    let [a, b] = [a, b].map(String::from_iter);
    let contains = a.len() > 1 && b.contains(&a) || b.len() > 1 && a.contains(&b);
    if contains { changes / 4 } else { changes }
}

impl<'a> NodeReport<'a> {
    /// The items that do its work: places in [`Explanation::items`]. Empty if nothing runs for it.
    pub fn items(&self) -> &[usize] {
        &self.items
    }

    /// The reasons of the first of its items.
    pub fn reason(&self) -> Option<&'a Reason> {
        self.explanation.reason(*self.items.first()?)
    }

    /// The step of a run with parts that it is, if no program does its work: a branch, loop, assertion, call or initial value.
    pub fn step(&self) -> Option<&'a ExplainedStep> {
        self.step
    }

    /// Why nothing runs for it, if that is so.
    pub fn absent(&self) -> Option<&'a AbsentNode> {
        self.absent
    }

    /// What crosses for its items: tensors that they read, and that they make.
    pub fn crossings(&self) -> impl Iterator<Item = &'a Crossing> {
        let explanation = self.explanation;
        explanation.crossings.iter().filter(|crossing| {
            self.items.iter().any(|&item| explanation.crosses_for(crossing, item).is_some())
        })
    }
}

/// Which way a tensor crosses, seen from an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

impl Explanation {
    /// Whether a tensor crosses to or from an item.
    pub(super) fn crosses_for(&self, crossing: &Crossing, item: usize) -> Option<Way> {
        let tensor = self.tensors.get(crossing.tensor)?;
        let device = self.items.get(item)?.device;
        let makes = tensor.from == super::Origin::Item(item);
        match (makes && crossing.from == device, tensor.to.contains(&item)) {
            (true, _) => Some(Way::Out),
            (false, true) if crossing.to == device => Some(Way::In),
            _ => None,
        }
    }

    fn write_item(&self, f: &mut fmt::Formatter<'_>, index: usize) -> fmt::Result {
        let Some(item) = self.items.get(index) else { return Ok(()) };
        if let Some(report) = self.solution.explain_item(item.at) {
            write!(f, "{report}")?;
        }
        writeln!(f, "  {}: {}", item.family(), item.kernel)?;
        writeln!(
            f,
            "  {} flops, {} read and written",
            item.work.operations(),
            Bytes(item.work.bytes)
        )?;
        if item.nodes.len() > 1 {
            writeln!(f, "  does the work of {}", item.nodes.join(", "))?;
        }
        for crossing in &self.crossings {
            let Some(way) = self.crosses_for(crossing, index) else { continue };
            let (way, side, other) = match way {
                Way::In => ("in: ", "from", crossing.from),
                Way::Out => ("out:", "to", crossing.to),
            };
            let name = self.tensors.get(crossing.tensor).map_or("?", |tensor| &tensor.name);
            let (bytes, time) = (Bytes(crossing.bytes), Time(crossing.time));
            let (other, how) =
                (self.device_name(other), if crossing.is_copy() { " by a copy" } else { "" });
            writeln!(f, "  {way} {name}, {bytes} {side} {other}{how}, {time}")?;
        }
        if let Some(time) = self.measured.as_ref().and_then(|m| *m.items.get(index)?) {
            writeln!(f, "  measured {time:.1?}")?;
        }
        Ok(())
    }
}

impl fmt::Display for NodeReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = self.absent {
            writeln!(f, "{}: nothing runs for it; {}", node.name, node.why)?;
        }
        if let Some((step, node)) = self.step.and_then(|step| Some((step, step.node()?))) {
            writeln!(f, "{} at {}: {}, a step of the run", node.name, node.location, step.kind())?;
            for (verb, values) in [("takes", &step.takes), ("gives", &step.gives)] {
                values.iter().try_for_each(|value| writeln!(f, "  {verb} {value}"))?;
            }
        }
        self.items.iter().try_for_each(|&item| self.explanation.write_item(f, item))
    }
}
