//! How parts are made: stages, the program of each, and the steps between them.

use std::sync::Arc;

use convoke_graph_core::{
    BodyId, BranchOp, Class, Error, Flow, GraphSnapshot, Host, LoopOp, Node, NodeId, Output,
    Result, State,
};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::{
    BranchStep, CallStep, Held, LoopStep, Meanwhile, Part, Place, ProgramStep, Step, ancestors,
    assigned, check_order, is_flow, near, roots,
};
use crate::plan::{effect_follows, is_assign};
use crate::{Plan, Signature};

/// What makes parts.
pub(super) struct Planner<'a> {
    pub graph: &'a GraphSnapshot,
    /// What the run is fed.
    pub fed: FxHashSet<Output>,
    pub plans: Vec<Plan>,
    pub held: FxHashMap<NodeId, Held>,
}

/// A part while it is made.
struct Making<'a> {
    /// The nodes that it needs, in order.
    nodes: Vec<&'a Arc<Node>>,
    /// For each, the stage in which it runs: a program's, or after that of a branch, loop or assertion.
    stages: FxHashMap<NodeId, usize>,
    slots: FxHashMap<Output, usize>,
    /// Those that run for their effect.
    targets: Vec<NodeId>,
    part: Part,
}

impl Making<'_> {
    fn slot(&mut self, output: Output) -> usize {
        let n_slots = &mut self.part.n_slots;
        *self.slots.entry(output).or_insert_with(|| {
            *n_slots += 1;
            *n_slots - 1
        })
    }
}

impl<'a> Planner<'a> {
    /// Finds the variables that have to be held: those that a branch or loop assigns, or what one of them needs, or what
    /// a read needs that must not wait. If there are any, all that the run assigns are, so that all are stored at once.
    pub fn hold(&mut self, nodes: &[Arc<Node>]) {
        let mut all = Vec::new();
        for node in nodes {
            assigned(node, &mut all);
        }
        let mut early: FxHashSet<NodeId> = FxHashSet::default();
        let is_early = |node: &Arc<Node>, early: &FxHashSet<NodeId>| {
            is_flow(node, &self.fed) || early.contains(&node.id)
        };
        for node in nodes.iter().rev() {
            if is_early(node, &early) {
                early.extend(node.inputs.iter().map(|input| input.node));
                early.extend(node.controls.iter().copied());
            }
        }
        let stores_early = nodes.iter().filter(|node| is_early(node, &early)).any(|node| {
            let mut own = Vec::new();
            assigned(node, &mut own);
            !own.is_empty()
        });
        if !stores_early {
            return;
        }
        for (variable, how) in all {
            let node = self.graph.node(variable);
            let held = Held { variable: node.clone(), meanwhile: how };
            let held = self.held.entry(variable).or_insert(held);
            if held.meanwhile != how {
                let is_again = [held.meanwhile, how].contains(&Meanwhile::Again);
                held.meanwhile = if is_again { Meanwhile::Again } else { Meanwhile::Replaced };
            }
        }
    }

    /// Whether a node has the same value in every program that computes it, at no cost.
    fn is_free(&self, node: &Node) -> bool {
        let is_one = match node.op.class() {
            Class::Host(Host::Constant(_)) | Class::State(State::Variable) => true,
            Class::State(State::Read) => !self.held.contains_key(&node.inputs[0].node),
            _ => false,
        };
        let is_fed = self.fed.contains(&Output { node: node.id, index: 0 });
        is_one && node.controls.is_empty() && !is_fed
    }

    /// Whether an output never changes.
    fn is_constant(&self, output: Output) -> bool {
        let node = self.graph.node(output.node);
        matches!(node.op.class(), Class::Host(Host::Constant(_))) && self.is_free(node)
    }

    /// Gives each node its stage, as late as its users allow. Gives the last one.
    fn stages(&self, making: &mut Making<'_>) -> usize {
        let mut depths: FxHashMap<NodeId, usize> = FxHashMap::default();
        let mut last = 0;
        for node in &making.nodes {
            let before = node.inputs.iter().map(|input| &input.node).chain(&node.controls);
            let depth = |id: &NodeId| {
                let after = usize::from(is_flow(self.graph.node(*id), &self.fed));
                Some(depths.get(id)? + after)
            };
            let depth = before.filter_map(depth).max().unwrap_or(0);
            last = last.max(depth + usize::from(is_flow(node, &self.fed)));
            depths.insert(node.id, depth);
        }
        for node in making.nodes.iter().rev() {
            let known = making.stages.get(&node.id).copied().unwrap_or(last);
            let stage = if is_flow(node, &self.fed) || self.is_prompt(node) {
                depths[&node.id]
            } else {
                known
            };
            making.stages.insert(node.id, stage);
            let inputs = node.inputs.iter().map(|input| input.node);
            for before in inputs.chain(node.controls.iter().copied()) {
                // What is not of the part runs elsewhere.
                if !depths.contains_key(&before) {
                    continue;
                }
                let known = making.stages.entry(before).or_insert(stage);
                *known = (*known).min(stage);
            }
        }
        last
    }

    /// Whether a node sees a held variable as it is when the node runs, so that it must not wait for later stores.
    fn is_prompt(&self, node: &Node) -> bool {
        matches!(node.op.class(), Class::State(State::Read | State::ReadOr | State::IsInitialized))
            && self.held.contains_key(&node.inputs[0].node)
    }

    /// For each input of a branch, loop or assertion, where it comes from. What bodies capture and compute by
    /// themselves is left out.
    fn data_inputs(&self, node: &Node) -> SmallVec<[Option<Output>; 4]> {
        let captures: (usize, &[Output]) = match node.op.class() {
            Class::Flow(Flow::Branch(op)) => (1, &op.captures),
            Class::Flow(Flow::Loop(op)) => (op.inputs_at()[2], &op.body.captures),
            _ => (node.inputs.len(), &[]),
        };
        let is_free = |at: usize| {
            let own = at.checked_sub(captures.0).and_then(|at| captures.1.get(at));
            own.is_some_and(|own| self.is_free(self.graph.node(own.node)))
        };
        let inputs = node.inputs.iter().enumerate();
        inputs.map(|(at, &input)| (!is_free(at)).then_some(input)).collect()
    }

    pub fn part(
        &mut self,
        body: BodyId,
        given: &[Output],
        results: &[Output],
        targets: &[NodeId],
    ) -> Result<Part> {
        let graph = self.graph;
        let is_fed = |output: &Output| !self.is_free(graph.node(output.node));
        let fed: FxHashSet<Output> = given.iter().copied().filter(is_fed).collect();
        let roots = results.iter().filter(|result| !fed.contains(result)).map(|result| result.node);
        let roots: Vec<NodeId> = roots.chain(targets.iter().copied()).collect();
        let nodes: Vec<&Arc<Node>> =
            ancestors(graph, &roots, &fed, body).into_iter().map(|id| graph.node(id)).collect();
        check_order(graph, &nodes, &fed)?;
        let part = Part::default();
        let (stages, slots) = (FxHashMap::default(), FxHashMap::default());
        let targets = targets.to_vec();
        let mut making = Making { nodes, stages, slots, targets, part };
        for &output in given {
            let is_given = fed.contains(&output);
            let slot = is_given.then(|| making.slot(output));
            making.part.given.push(slot);
        }
        let last = self.stages(&mut making);
        self.take_starts(&mut making, &fed);
        for stage in 0..=last {
            self.program(&mut making, stage, results)?;
            let flows: Vec<&Arc<Node>> = (making.nodes.iter().copied())
                .filter(|node| is_flow(node, &self.fed) && making.stages[&node.id] == stage)
                .collect();
            for node in flows {
                let step = self.flow_step(&mut making, node, results)?;
                making.part.steps.push(step);
            }
        }
        for &result in results {
            let slot = self.read(&mut making, result);
            making.part.results.push(slot);
        }
        Ok(making.part)
    }

    /// Gives slots to reads of held variables that see them as they are when the part begins.
    fn take_starts(&self, making: &mut Making<'_>, fed: &FxHashSet<Output>) {
        for node in making.nodes.clone() {
            let Class::State(State::Read) = node.op.class() else { continue };
            let output = Output { node: node.id, index: 0 };
            let variable = node.inputs[0].node;
            if !self.held.contains_key(&variable) || making.slots.contains_key(&output) {
                continue;
            }
            let follows = !node.controls.is_empty()
                && making.nodes.iter().any(|other| {
                    let mut found = Vec::new();
                    assigned(other, &mut found);
                    let assigns = found.iter().any(|(v, _)| *v == variable);
                    assigns && effect_follows(self.graph, fed, node, other.id)
                });
            if !follows {
                let slot = making.slot(output);
                making.part.starts.push((variable, slot));
            }
        }
    }

    /// Where a step finds a value. One that never changes is kept by the part.
    fn read(&self, making: &mut Making<'_>, output: Output) -> usize {
        let node = self.graph.node(output.node);
        let is_new = !making.slots.contains_key(&output);
        let slot = making.slot(output);
        if let (Class::Host(Host::Constant(tensor)), true) = (node.op.class(), is_new) {
            making.part.constants.push((slot, tensor.clone()));
        }
        slot
    }

    /// The program of a stage, if it has one.
    fn program(&mut self, making: &mut Making<'_>, stage: usize, results: &[Output]) -> Result<()> {
        let graph = self.graph;
        let is_here = |making: &Making<'_>, id: NodeId| {
            making.stages.get(&id) == Some(&stage) && !is_flow(graph.node(id), &self.fed)
        };
        let mut signature = Signature::default();
        let mut wanted: FxHashSet<Output> = FxHashSet::default();
        for node in &making.nodes {
            let is_user = is_flow(node, &self.fed) || making.stages[&node.id] > stage;
            match is_flow(node, &self.fed) {
                true => wanted.extend(self.data_inputs(node).into_iter().flatten()),
                false => wanted.extend(node.inputs.iter().filter(|_| is_user)),
            }
            let pred = |control: &&NodeId| is_user && is_here(making, **control);
            signature.targets.extend(node.controls.iter().filter(pred));
        }
        wanted.extend(results);
        let mut wanted: Vec<Output> = (wanted.into_iter())
            .filter(|output| is_here(making, output.node) && !making.slots.contains_key(output))
            .filter(|output| !self.is_constant(*output) && !graph.fact(*output).is_variable())
            .collect();
        wanted.sort_unstable();
        let own = making.nodes.iter().filter(|node| is_assign(node) && is_here(making, node.id));
        signature.targets.extend(own.map(|node| node.id));
        signature.targets.extend(making.targets.iter().filter(|id| is_here(making, **id)));
        signature.targets.sort_unstable();
        signature.targets.dedup();
        signature.fetches.clone_from(&wanted);
        if signature.fetches.is_empty() && signature.targets.is_empty() {
            return Ok(());
        }
        let mut feeds: Vec<Place> = Vec::new();
        let roots = roots(&signature);
        let known = making.slots.keys().copied();
        let known = known.filter(|known| !self.is_constant(*known)).collect();
        let mut used: Vec<Output> = Vec::new();
        let within = |control: NodeId| is_here(making, control);
        for id in near(graph, &roots, &known, &within) {
            used.extend(graph.node(id).inputs.iter().filter(|input| known.contains(*input)));
        }
        used.sort_unstable();
        used.dedup();
        for output in used {
            signature.feeds.push(output);
            feeds.push(Place::Slot(making.slots[&output]));
        }
        let mut plan = Plan::within(graph, signature, &within)?;
        let mut fetches: Vec<Place> =
            wanted.iter().map(|&output| Place::Slot(making.slot(output))).collect();
        let optional = self.take_held(&mut plan, &mut feeds, &mut fetches);
        self.plans.push(plan);
        let plan = self.plans.len() - 1;
        making.part.steps.push(Step::Program(ProgramStep { plan, feeds, fetches, optional }));
        Ok(())
    }

    /// Has a program take held variables from the run and give them to it. Gives those that need no elements.
    fn take_held(
        &self,
        plan: &mut Plan,
        feeds: &mut Vec<Place>,
        fetches: &mut Vec<Place>,
    ) -> Vec<NodeId> {
        let mut optional = Vec::new();
        let graph = self.graph;
        for variable in plan.hold(|variable| self.held.contains_key(&variable)) {
            let handle = Output { node: variable.node, index: 0 };
            if variable.is_read {
                plan.feed_handle(handle, graph.fact(handle).dtype);
                feeds.push(Place::Variable(variable.node));
                optional.extend((!variable.must).then_some(variable.node));
            }
            if let Some(last) = variable.assigned {
                plan.signature.fetches.push(Output { node: last, index: 0 });
                fetches.push(Place::Variable(variable.node));
            }
        }
        optional
    }

    fn flow_step(
        &mut self,
        making: &mut Making<'_>,
        node: &Arc<Node>,
        results: &[Output],
    ) -> Result<Step> {
        let inputs: Vec<Option<usize>> = (self.data_inputs(node).into_iter())
            .map(|input| input.map(|input| self.read(making, input)))
            .collect();
        let users = making.nodes.iter().flat_map(|user| match is_flow(user, &self.fed) {
            true => self.data_inputs(user).into_iter().flatten().collect(),
            false => user.inputs.clone(),
        });
        let used: FxHashSet<u32> = users
            .chain(results.iter().copied())
            .filter(|output| output.node == node.id)
            .map(|output| output.index)
            .collect();
        let mut used: Vec<u32> = used.into_iter().chain(own_results(making, node)).collect();
        // What is fed is not given.
        used.retain(|&index| !making.slots.contains_key(&Output { node: node.id, index }));
        used.sort_unstable();
        used.dedup();
        let slot = |making: &mut Making<'_>, index: u32| {
            (index as usize, making.slot(Output { node: node.id, index }))
        };
        let outputs: Vec<(usize, usize)> =
            used.into_iter().map(|index| slot(making, index)).collect();
        match node.op.class() {
            Class::Flow(Flow::Branch(op)) => {
                Ok(Step::Branch(self.branch(node, op, &inputs, outputs)?))
            }
            Class::Flow(Flow::Loop(op)) => {
                Ok(Step::Loop(Box::new(self.repeated(node, op, &inputs, outputs)?)))
            }
            Class::Flow(Flow::Assert(_)) => {
                Ok(Step::Assert(node.clone(), inputs.into_iter().flatten().collect()))
            }
            Class::Flow(Flow::Call(_) | Flow::Find(_)) => {
                let inputs = inputs.into_iter().flatten().collect();
                Ok(Step::Call(CallStep { node: node.clone(), inputs, outputs }))
            }
            class => Err(Error::internal(format!("{class:?} is no step"))),
        }
    }

    fn branch(
        &mut self,
        node: &Arc<Node>,
        op: &BranchOp,
        inputs: &[Option<usize>],
        outputs: Vec<(usize, usize)>,
    ) -> Result<BranchStep> {
        let mut branches = Vec::new();
        for (at, body) in op.branches.iter().enumerate() {
            let own: Vec<Option<usize>> =
                outputs.iter().map(|&(output, _)| op.result_of(at, output)).collect();
            let results: Vec<Output> =
                own.iter().flatten().map(|&result| body.results[result]).collect();
            let part = self.part(body.id, &op.captures, &results, &[])?;
            let mut next = 0;
            let place = |own: Option<usize>| {
                own.map(|_| {
                    next += 1;
                    next - 1
                })
            };
            branches.push((part, own.into_iter().map(place).collect()));
        }
        let missing = || Error::internal("a branch has no index");
        let (index, captures) = inputs.split_first().ok_or_else(missing)?;
        let (index, captures) = (index.ok_or_else(missing)?, captures.to_vec());
        Ok(BranchStep { node: node.clone(), index, captures, branches, outputs })
    }

    fn repeated(
        &mut self,
        node: &Arc<Node>,
        op: &LoopOp,
        inputs: &[Option<usize>],
        outputs: Vec<(usize, usize)>,
    ) -> Result<LoopStep> {
        let (pred, count, carried, scanned, captures) = op.split(inputs);
        let body = &op.body;
        let mut results = self.needed_results(op, &outputs);
        let mut stacked = Vec::new();
        for &(output, _) in &outputs {
            if let Some(result) = op.collects(output) {
                stacked.push((output, results.len()));
                results.push(body.results[result]);
            }
        }
        let given: Vec<Output> = body.params.iter().chain(&body.captures).copied().collect();
        Ok(LoopStep {
            node: node.clone(),
            pred: pred.copied().flatten(),
            count: count.copied().flatten(),
            carried: carried.iter().copied().flatten().collect(),
            scanned: scanned.iter().copied().flatten().collect(),
            captures: captures.to_vec(),
            body: self.part(body.id, &given, &results, &[])?,
            stacked,
            outputs,
        })
    }

    /// Whether a loop runs again and what it carries next, as its body gives them. A carried tensor that decides nothing
    /// and that no output needs is passed on as it is, unless that would leave out an effect.
    fn needed_results(&self, op: &LoopOp, outputs: &[(usize, usize)]) -> Vec<Output> {
        let (body, next) = (&op.body, op.next_at());
        let mut results = body.results[..next + op.n_carried].to_vec();
        let asked = |at: &usize| {
            let is_it = |output: usize| output == *at || output == op.history_at() + at;
            outputs.iter().any(|&(output, _)| is_it(output))
        };
        let mut needed: FxHashSet<usize> = (0..op.n_carried).filter(asked).collect();
        let collected = outputs.iter().filter_map(|&(output, _)| op.collects(output));
        let collected: Vec<Output> = collected.map(|result| body.results[result]).collect();
        let captured: FxHashSet<Output> = body.captures.iter().copied().collect();
        let behind = |needed: &FxHashSet<usize>| -> FxHashSet<NodeId> {
            let carried = needed.iter().map(|&at| results[next + at]);
            let roots = results[..next].iter().copied().chain(collected.iter().copied());
            let roots: Vec<NodeId> = roots.chain(carried).map(|root| root.node).collect();
            ancestors(self.graph, &roots, &captured, body.id).into_iter().collect()
        };
        let kept = loop {
            let kept = behind(&needed);
            let n_needed = needed.len();
            let is_used = |at: &usize| kept.contains(&body.params[*at].node);
            needed.extend((0..op.n_carried).filter(is_used));
            if needed.len() == n_needed {
                break kept;
            }
        };
        let all = behind(&(0..op.n_carried).collect());
        if all.difference(&kept).any(|&id| self.has_effect(self.graph.node(id))) {
            return results;
        }
        for at in (0..op.n_carried).filter(|at| !needed.contains(at)) {
            results[next + at] = body.params[at];
        }
        results
    }

    /// Whether a node may do more than give values.
    fn has_effect(&self, node: &Node) -> bool {
        match node.op.class() {
            Class::State(state) => state.is_assign(),
            Class::Queue(_) | Class::Reader(_) => true,
            _ => is_flow(node, &self.fed),
        }
    }
}

/// The results of a branch or loop that is needed for its effects: all of them.
fn own_results(making: &Making<'_>, node: &Node) -> std::ops::Range<u32> {
    let is_before = making.nodes.iter().any(|other| other.controls.contains(&node.id));
    if !making.targets.contains(&node.id) && !is_before {
        return 0..0;
    }
    match node.op.class() {
        Class::Flow(Flow::Branch(op)) => 0..op.n_results as u32,
        Class::Flow(Flow::Loop(op)) => 0..op.trips_at() as u32,
        _ => 0..0,
    }
}
