//! Snapshots in which branches and loops are given, and do, what a run needs of them and nothing else.
//!
//! Source: TensorFlow's `graph/subgraph.cc`, which prunes inside of branches and loops as everywhere, since they lie open
//! in its graphs.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{BodyId, GraphSnapshot, Node, NodeId, Output};
use crate::op::SharedOp;
use crate::ops::body::Body;
use crate::{Class, Flow, Host, LoopOp};

impl GraphSnapshot {
    /// This graph where the branches and loops that a run needs have no more nodes, captures, carried tensors and controls
    /// than it takes to give what the run fetches and to run its targets. Outputs keep their places.
    ///
    /// Of a branch or loop that is a target or a control, all results are needed. All that a loop carries is needed where
    /// leaving some of it out would leave out an effect.
    pub fn narrowed(
        &self,
        fetches: &[Output],
        targets: &[NodeId],
        fed: &FxHashSet<Output>,
    ) -> Self {
        let mut needs = Needs {
            graph: self,
            fed,
            seen: FxHashSet::default(),
            flows: BTreeMap::new(),
            bodies: FxHashMap::default(),
            stack: Vec::new(),
        };
        let fetched = fetches.iter().map(|&fetch| Need::Value(self.node(fetch.node).body, fetch));
        let run = targets.iter().map(|&target| Need::Run(self.node(target).body, target));
        needs.stack.extend(fetched.chain(run));
        needs.follow();
        while needs.keep_effects() {
            needs.follow();
        }
        needs.narrowed()
    }
}

/// What is needed by something of a body, which may lie around that body.
#[derive(Clone, Copy)]
enum Need {
    Value(BodyId, Output),
    /// Whatever the node does.
    Run(BodyId, NodeId),
}

/// What a run needs. A body that several nodes run is needed as far as any of them needs it.
struct Needs<'a> {
    graph: &'a GraphSnapshot,
    fed: &'a FxHashSet<Output>,
    seen: FxHashSet<NodeId>,
    /// Of branches and loops, by id: those in bodies come before those that run them.
    flows: BTreeMap<NodeId, OfFlow>,
    bodies: FxHashMap<BodyId, OfBody>,
    stack: Vec<Need>,
}

/// What is needed of a branch or loop.
#[derive(Default)]
struct OfFlow {
    inputs: FxHashSet<usize>,
    outputs: FxHashSet<usize>,
    /// Carried tensors.
    carried: FxHashSet<usize>,
    body_controls: FxHashSet<NodeId>,
}

/// What is needed in a body from around it.
#[derive(Default)]
struct OfBody {
    /// The nodes that run it.
    users: Vec<NodeId>,
    captures: FxHashSet<Output>,
    before: FxHashSet<NodeId>,
}

impl<'a> Needs<'a> {
    fn follow(&mut self) {
        while let Some(need) = self.stack.pop() {
            match need {
                Need::Value(body, output) => self.value(body, output),
                Need::Run(body, id) => self.run(body, id),
            }
        }
    }

    fn value(&mut self, body: BodyId, output: Output) {
        if self.graph.node(output.node).body != body {
            let of = self.bodies.entry(body).or_default();
            if !self.graph.fact(output).is_variable() && of.captures.insert(output) {
                let users = of.users.clone();
                users.into_iter().for_each(|user| self.capture(user, output));
            }
        } else if !self.fed.contains(&output) {
            self.see(output.node);
            self.output(output.node, output.index as usize);
        }
    }

    fn run(&mut self, body: BodyId, id: NodeId) {
        let node = self.graph.node(id);
        if node.body != body {
            let of = self.bodies.entry(body).or_default();
            if of.before.insert(id) {
                let users = of.users.clone();
                users.into_iter().for_each(|user| self.body_control(user, id));
            }
            return;
        }
        self.see(id);
        let results = match flow(node) {
            Some(Flow::Branch(op)) => 0..op.n_results,
            Some(Flow::Loop(op)) => 0..op.trips_at(),
            _ => 0..0,
        };
        results.for_each(|output| self.output(id, output));
    }

    /// What a node needs whatever is needed of it.
    fn see(&mut self, id: NodeId) {
        if !self.seen.insert(id) {
            return;
        }
        let node = self.graph.node(id);
        self.stack.extend(node.own_controls().map(|control| Need::Run(node.body, control)));
        match flow(node) {
            Some(Flow::Branch(op)) => {
                self.flows.insert(id, OfFlow::default());
                self.input(id, 0);
                op.branches.iter().for_each(|body| self.enter(id, body));
            }
            Some(Flow::Loop(op)) => {
                self.flows.insert(id, OfFlow::default());
                let [carried, scanned, captures] = op.inputs_at();
                (0..carried).chain(scanned..captures).for_each(|at| self.input(id, at));
                self.enter(id, &op.body);
                for (at, param) in op.body.params.iter().enumerate() {
                    if self.seen.contains(&param.node) {
                        self.param(id, op, at);
                    }
                }
                (0..op.next_at()).for_each(|result| self.result(&op.body, result));
            }
            _ => {
                self.stack.extend(node.inputs.iter().map(|&input| Need::Value(node.body, input)));
                if matches!(node.op.class(), Class::Host(Host::Placeholder)) {
                    self.param_of(node);
                }
            }
        }
    }

    /// Has a node run a body.
    fn enter(&mut self, user: NodeId, body: &Body) {
        let of = self.bodies.entry(body.id).or_default();
        if of.users.contains(&user) {
            return;
        }
        of.users.push(user);
        let captures: Vec<Output> = of.captures.iter().copied().collect();
        let before: Vec<NodeId> = of.before.iter().copied().collect();
        captures.into_iter().for_each(|capture| self.capture(user, capture));
        before.into_iter().for_each(|control| self.body_control(user, control));
    }

    fn input(&mut self, id: NodeId, at: usize) {
        let node = self.graph.node(id);
        let Some(of) = self.flows.get_mut(&id) else { return };
        if let Some(&input) = node.inputs.get(at)
            && of.inputs.insert(at)
        {
            self.stack.push(Need::Value(node.body, input));
        }
    }

    fn capture(&mut self, id: NodeId, capture: Output) {
        let (first, captures) = captures_of(self.graph.node(id));
        if let Some(at) = captures.iter().position(|own| *own == capture) {
            self.input(id, first + at);
        }
    }

    fn body_control(&mut self, id: NodeId, control: NodeId) {
        let node = self.graph.node(id);
        let Some(of) = self.flows.get_mut(&id) else { return };
        if node.body_controls.contains(&control) && of.body_controls.insert(control) {
            self.stack.push(Need::Run(node.body, control));
        }
    }

    /// What an output of a branch or loop needs.
    fn output(&mut self, id: NodeId, output: usize) {
        let Some(of) = self.flows.get_mut(&id) else { return };
        if !of.outputs.insert(output) {
            return;
        }
        match flow(self.graph.node(id)) {
            Some(Flow::Branch(op)) => {
                for (at, body) in op.branches.iter().enumerate() {
                    op.result_of(at, output).into_iter().for_each(|at| self.result(body, at));
                }
            }
            Some(Flow::Loop(op)) => {
                match (op.collects(output), output.checked_sub(op.history_at())) {
                    (Some(result), _) => self.result(&op.body, result),
                    (None, Some(at)) => self.param(id, op, at),
                    (None, None) => self.param(id, op, output),
                }
            }
            _ => {}
        }
    }

    fn result(&mut self, body: &Body, at: usize) {
        self.stack.extend(body.results.get(at).map(|&result| Need::Value(body.id, result)));
    }

    /// What a loop needs to have a parameter of its body, if that is a carried tensor.
    fn param(&mut self, id: NodeId, op: &LoopOp, at: usize) {
        let Some(of) = self.flows.get_mut(&id) else { return };
        if at < op.n_carried && of.carried.insert(at) {
            self.input(id, op.inputs_at()[0] + at);
            self.result(&op.body, op.next_at() + at);
        }
    }

    fn param_of(&mut self, node: &Node) {
        let users = self.bodies.get(&node.body).map(|of| of.users.clone());
        for id in users.into_iter().flatten() {
            let Some(Flow::Loop(op)) = flow(self.graph.node(id)) else { continue };
            if let Some(at) = op.body.params.iter().position(|param| param.node == node.id) {
                self.param(id, op, at);
            }
        }
    }

    /// Has those loops carry all that would else leave out an effect. Whether there are any.
    fn keep_effects(&mut self) -> bool {
        let lose = |(&id, of): (&NodeId, &OfFlow)| match flow(self.graph.node(id)) {
            Some(Flow::Loop(op)) => self.loses(op, of).then_some((id, op)),
            _ => None,
        };
        let lose: Vec<(NodeId, &LoopOp)> = self.flows.iter().filter_map(lose).collect();
        for &(id, op) in &lose {
            (0..op.n_carried).for_each(|at| self.param(id, op, at));
        }
        !lose.is_empty()
    }

    /// Whether what a loop need not carry has an effect.
    fn loses(&self, op: &LoopOp, of: &OfFlow) -> bool {
        let left = (0..op.n_carried).filter(|at| !of.carried.contains(at));
        let left = left.filter_map(|at| op.body.results.get(op.next_at() + at));
        let mut stack: Vec<NodeId> = left.map(|result| result.node).collect();
        let mut passed: FxHashSet<NodeId> = FxHashSet::default();
        while let Some(id) = stack.pop() {
            let node = self.graph.node(id);
            if node.body != op.body.id || self.seen.contains(&id) || !passed.insert(id) {
                continue;
            }
            if has_effect(node) {
                return true;
            }
            stack.extend(node.inputs.iter().map(|input| input.node));
            stack.extend(&node.controls);
        }
        false
    }

    fn narrowed(self) -> GraphSnapshot {
        let mut graph = self.graph.clone();
        for (&id, of) in &self.flows {
            if let Some(node) = self.node(&graph, self.graph.node(id), of) {
                graph.nodes.replace(id.0 as usize, Arc::new(node));
            }
        }
        graph
    }

    /// A branch or loop that does less. `None` if it does all that it can.
    fn node(&self, narrowed: &GraphSnapshot, node: &Node, of: &OfFlow) -> Option<Node> {
        let is_same = |body: &Body| {
            let same = |node: &Arc<Node>| {
                self.seen.contains(&node.id) && Arc::ptr_eq(node, narrowed.node(node.id))
            };
            body.nodes.iter().all(same)
        };
        let n_controls = node.body_controls.len();
        let all = of.inputs.len() == node.inputs.len() && of.body_controls.len() == n_controls;
        let flow = flow(node)?;
        if all && flow.bodies().iter().all(is_same) {
            return None;
        }
        let (first, captures) = captures_of(node);
        let captures = captures.iter().enumerate();
        let captures = captures.filter(|(at, _)| of.inputs.contains(&(first + at)));
        let captures: Vec<Output> = captures.map(|(_, &capture)| capture).collect();
        let op: SharedOp = match flow {
            Flow::Branch(op) => {
                let bodies = op.branches.iter().map(|body| self.body(narrowed, body));
                Arc::new(op.narrowed(bodies.collect(), captures))
            }
            Flow::Loop(op) => {
                let body = Body { captures, ..self.body(narrowed, &op.body) };
                let mut carried: Vec<usize> = of.carried.iter().copied().collect();
                carried.sort_unstable();
                Arc::new(op.narrowed(&carried, &|output| of.outputs.contains(&output), body))
            }
            _ => return None,
        };
        let inputs = node.inputs.iter().enumerate();
        let inputs = inputs.filter(|(at, _)| of.inputs.contains(at)).map(|(_, &input)| input);
        let is_left =
            |id: &NodeId| node.body_controls.contains(id) && !of.body_controls.contains(id);
        let controls = node.controls.iter().filter(|id| !is_left(id)).copied();
        let body_controls = node.body_controls.iter().filter(|id| !is_left(id)).copied();
        Some(Node {
            op,
            inputs: inputs.collect(),
            controls: controls.collect(),
            body_controls: body_controls.collect(),
            ..node.clone()
        })
    }

    /// What of a body is needed.
    fn body(&self, narrowed: &GraphSnapshot, body: &Body) -> Body {
        let own = body.nodes.iter().filter(|node| self.seen.contains(&node.id));
        let of = self.bodies.get(&body.id);
        let is_capture = |own: &&Output| of.is_some_and(|of| of.captures.contains(*own));
        let is_before = |own: &&NodeId| of.is_some_and(|of| of.before.contains(*own));
        Body {
            id: body.id,
            params: body.params.clone(),
            results: body.results.clone(),
            facts: body.facts.clone(),
            nodes: own.map(|node| narrowed.node(node.id).clone()).collect(),
            captures: body.captures.iter().filter(is_capture).copied().collect(),
            before: body.before.iter().filter(is_before).copied().collect(),
        }
    }
}

/// The branch or loop that a node is.
fn flow(node: &Node) -> Option<Flow<'_>> {
    match node.op.class() {
        Class::Flow(flow @ (Flow::Branch(_) | Flow::Loop(_))) if node.invalid.is_none() => {
            Some(flow)
        }
        _ => None,
    }
}

/// What the bodies of a branch or loop capture, and from which of its inputs on.
fn captures_of(node: &Node) -> (usize, &[Output]) {
    match flow(node) {
        Some(Flow::Branch(op)) => (1, &op.captures),
        Some(Flow::Loop(op)) => (op.inputs_at()[2], &op.body.captures),
        _ => (0, &[]),
    }
}

/// Whether a node may do more than give values, itself or in a body.
fn has_effect(node: &Node) -> bool {
    let mut stack: Vec<&Node> = vec![node];
    while let Some(node) = stack.pop() {
        let has_one = match node.op.class() {
            Class::State(state) => state.is_assign(),
            Class::Queue(_) | Class::Reader(_) | Class::Table(_) => true,
            Class::Flow(flow @ (Flow::Branch(_) | Flow::Loop(_))) => {
                let inner = flow.bodies().iter().flat_map(|body| &body.nodes);
                stack.extend(inner.map(|node| &**node));
                false
            }
            Class::Flow(_) => true,
            _ => false,
        };
        if has_one {
            return true;
        }
    }
    false
}
