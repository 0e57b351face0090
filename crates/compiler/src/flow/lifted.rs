//! Loops that use variables which the run holds: their elements go from iteration to iteration like what is carried, so
//! that they stay where the body is.

use std::sync::Arc;

use convoke_graph_core::{Class, Fact, GraphSnapshot, LoopOp, Node, NodeId, Output, State};

use super::{Change, LoopStep, Part, Place, Start, Step};
use crate::Plan;
use crate::order::is_read;

/// A held variable that a loop carries, behind what its node carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopVariable {
    /// Its handle.
    pub variable: NodeId,
    /// Whether an iteration needs its elements.
    pub is_read: bool,
    /// What an iteration does to it, if it does anything.
    pub change: Option<Change>,
}

impl LoopVariable {
    /// Whether a node is a read of it.
    pub(super) fn is_read_by(self, node: &Node) -> bool {
        is_read(node) && node.inputs.first() == Some(&handle(self.variable))
    }
}

/// A variable of the body while the loop is changed.
struct Lift {
    own: LoopVariable,
    /// Where its elements are when an iteration begins.
    slot: usize,
    /// Where they are when it ends, and the output of the body that they are.
    next: (usize, Output),
}

impl LoopStep {
    /// The loop with the held variables of its body carried, if the body is one program and it is known that each has
    /// elements, and of which shape.
    pub(super) fn lifted(self, graph: &GraphSnapshot, op: &LoopOp, plans: &[Plan]) -> Self {
        let [Step::Program(program)] = &self.body.steps[..] else { return self };
        let Some(plan) = plans.get(program.plan) else { return self };
        let mut body = (*self.body).clone();
        let Some(lifts) = lifts(graph, plan, &mut body) else { return self };
        let k = lifts.len();
        let handles = lifts.iter().map(|lift| handle(lift.own.variable));
        let facts = lifts.iter().map(|lift| {
            let fact = graph.fact(handle(lift.own.variable));
            Fact::new(fact.dtype, fact.dims.clone())
        });
        let next: Vec<Output> = lifts.iter().map(|lift| lift.next.1).collect();
        let lifted = op.with_carried(
            &handles.clone().collect::<Vec<_>>(),
            &next,
            &facts.collect::<Vec<_>>(),
        );
        let at = op.inputs_at()[1];
        let mut inputs = self.node.inputs.clone();
        inputs.insert_many(at, handles);
        let end = op.next_at() + op.n_carried;
        let behind = |at: usize, place: usize, by: usize| if at < place { at } else { at + by };
        let output = |at: usize| {
            let moved = behind(at, op.n_carried, k);
            // What each carried tensor was at the start of an iteration comes before these.
            if at < op.residuals_at() { moved } else { moved + k }
        };
        let outputs = self.outputs.iter().map(|&(at, slot)| (output(at), slot)).collect();
        let stacked = self.stacked.iter();
        let stacked = stacked.map(|&(at, result)| (output(at), behind(result, end, k))).collect();
        let mut results = self.results.clone();
        results.splice(end..end, next);
        body.given.splice(op.n_carried..op.n_carried, lifts.iter().map(|lift| Some(lift.slot)));
        body.results.splice(end..end, lifts.iter().map(|lift| lift.next.0));
        let facts = lifted.outputs().into();
        let node = Node { op: Arc::new(lifted), inputs, facts, ..(*self.node).clone() };
        let variables = lifts.into_iter().map(|lift| lift.own).collect();
        let body = Arc::new(body);
        Self { node: Arc::new(node), body, results, stacked, outputs, variables, ..self }
    }
}

impl LoopStep {
    /// Which output of the loop's node an output of the step is.
    pub fn own_output(&self, op: &LoopOp, output: usize) -> usize {
        let k = self.variables.len();
        let is_residual = output >= op.residuals_at();
        let own = output.saturating_sub(if is_residual { 2 * k } else { k });
        op.node_output(if output < op.n_carried { output } else { own })
    }

    /// The carried tensors that somebody needs when the loop has ended.
    pub fn asked<'a>(&'a self, op: &'a LoopOp) -> impl Iterator<Item = usize> + 'a {
        let first = op.n_carried.saturating_sub(self.variables.len());
        (0..op.n_carried).filter(move |&at| {
            let own = at.checked_sub(first).and_then(|at| self.variables.get(at));
            match own {
                Some(own) => own.change.is_some(),
                None => self.outputs.iter().any(|&(output, _)| output == at),
            }
        })
    }
}

/// The held variables that a body of one program uses, with slots of their own. Nothing if there are none, or it is not
/// known that each has elements.
fn lifts(graph: &GraphSnapshot, plan: &Plan, body: &mut Part) -> Option<Vec<Lift>> {
    let [Step::Program(program)] = &body.steps[..] else { return None };
    let places = program.feeds.iter().chain(&program.fetches).filter_map(variable_at);
    let mut used: Vec<NodeId> =
        places.chain(body.starts.iter().map(|start| start.variable)).collect();
    used.sort_unstable();
    used.dedup();
    let depends = |node: &Arc<Node>| {
        let Class::State(state) = node.op.class() else { return false };
        // Whether there are elements decides, or how often the variable was counted.
        let is_bound = matches!(state, State::ReadOr | State::IsInitialized | State::Count { .. });
        is_bound && node.inputs.first().is_some_and(|handle| used.contains(&handle.node))
    };
    let is_fixed = |&id: &NodeId| graph.fact(handle(id)).shape().is_some();
    let is_sure = program.optional.is_empty() && body.starts.iter().all(|start| start.must);
    if used.is_empty() || !is_sure || !used.iter().all(is_fixed) || plan.nodes.iter().any(depends) {
        return None;
    }
    used.into_iter().map(|variable| lift(variable, plan, body)).collect()
}

/// Gives a variable of a body of one program its slots.
fn lift(variable: NodeId, plan: &Plan, body: &mut Part) -> Option<Lift> {
    let [Step::Program(program)] = &mut body.steps[..] else { return None };
    let slot = body.n_slots;
    body.n_slots += 1;
    let starts = body.starts.extract_if(.., |start| start.variable == variable);
    let starts: Vec<usize> = starts.map(|Start { slot, .. }| slot).collect();
    for result in body.results.iter_mut().filter(|result| starts.contains(result)) {
        *result = slot;
    }
    let mut own = LoopVariable { variable, is_read: !starts.is_empty(), change: None };
    for feed in &mut program.feeds {
        let is_start = matches!(feed, Place::Slot(slot) if starts.contains(slot));
        if is_start || variable_at(feed) == Some(variable) {
            *feed = Place::Slot(slot);
            own.is_read = true;
        }
    }
    let mut next = (slot, handle(variable));
    for (place, &fetch) in program.fetches.iter_mut().zip(&plan.signature.fetches) {
        if let Place::Changed(changed, change) = *place
            && changed == variable
        {
            own.change = Some(change);
            next = (body.n_slots, fetch);
            *place = Place::Slot(body.n_slots);
            body.n_slots += 1;
        }
    }
    Some(Lift { own, slot, next })
}

/// The held variable that a feed comes from or a fetch goes to.
fn variable_at(place: &Place) -> Option<NodeId> {
    match *place {
        Place::Variable(variable) | Place::Changed(variable, _) => Some(variable),
        Place::Slot(_) => None,
    }
}

/// The output that a variable is known by.
pub(super) fn handle(variable: NodeId) -> Output {
    Output { node: variable, index: 0 }
}
