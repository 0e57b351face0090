//! How parts are made: stages, the program of each, and the steps between them.

use std::borrow::Cow;
use std::sync::Arc;

use convoke_graph_core::{
    BodyId, BranchOp, Class, Error, Flow, GraphSnapshot, Host, LoopOp, Node, NodeId, Output,
    Result, State,
};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::{
    BranchStep, CallStep, LoopStep, Part, Place, ProgramStep, ReadOrStep, Start, Step, ancestors,
    is_flow, near, roots,
};
use crate::order::{Order, assigned, each_within, is_assign, is_read, unfed_inputs};
use crate::{Plan, Signature};

/// What makes parts.
pub(super) struct Planner<'a> {
    pub graph: &'a GraphSnapshot,
    /// What the run is fed.
    pub fed: FxHashSet<Output>,
    pub plans: Vec<Plan>,
    pub held: FxHashSet<NodeId>,
    /// Reads or initial values that give the initial value.
    pub initial: FxHashSet<NodeId>,
    /// Reads or initial values that are steps of their own.
    late: FxHashSet<NodeId>,
}

/// What a part is made of.
pub(super) struct Whole<'a> {
    /// Its nodes, in order.
    pub nodes: Vec<Arc<Node>>,
    pub order: Cow<'a, Order>,
    pub given: &'a [Output],
    pub results: &'a [Output],
    pub targets: &'a [NodeId],
}

/// A part while it is made.
struct Making<'a> {
    /// The nodes that it needs, in order.
    nodes: &'a [Arc<Node>],
    order: &'a Order,
    /// For each, the stage in which it runs: a program's, or after that of a branch, loop or assertion.
    stages: FxHashMap<NodeId, usize>,
    slots: FxHashMap<Output, usize>,
    part: Part,
}

/// What there is to do in a stage.
#[derive(Default)]
struct Stage {
    /// What its program computes for others.
    wanted: Vec<Output>,
    /// What its program runs for the effect.
    targets: Vec<NodeId>,
    /// Its branches, loops and other steps, in order, with the outputs that are needed of each.
    flows: Vec<(Arc<Node>, Vec<u32>)>,
}

impl Making<'_> {
    fn slot(&mut self, output: Output) -> usize {
        if let Some(&slot) = self.slots.get(&output) {
            return slot;
        }
        let slot = self.own_slot();
        self.slots.insert(output, slot);
        slot
    }

    /// A slot for what is no output of a node.
    fn own_slot(&mut self) -> usize {
        self.part.n_slots += 1;
        self.part.n_slots - 1
    }
}

impl<'a> Planner<'a> {
    /// Without plans yet.
    pub fn new(
        graph: &'a GraphSnapshot,
        fed: FxHashSet<Output>,
        held: FxHashSet<NodeId>,
        initial: FxHashSet<NodeId>,
    ) -> Self {
        Self { graph, fed, plans: Vec::new(), held, initial, late: FxHashSet::default() }
    }

    /// Finds the variables that have to be held: those that a branch or loop assigns, or what one of them needs, or what
    /// a read needs that must not wait. If there are any, all that the run assigns are, so that all are stored at once.
    /// So they are if the run counts and may wait for queues under way, when others may count.
    pub fn hold(&mut self, nodes: &[Arc<Node>]) {
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
        let mut all = nodes.iter().filter(|node| is_early(node, &early));
        let counts =
            |node: &Arc<Node>| matches!(node.op.class(), Class::State(State::Count { .. }));
        let waits_and_counts =
            nodes.iter().any(counts) && nodes.iter().any(|node| has_queues(node));
        if waits_and_counts || all.any(|node| !assigned(node).is_empty()) {
            self.held = nodes.iter().flat_map(|node| assigned(node)).collect();
        }
    }

    /// Whether a node has the same value in every program that computes it, at no cost.
    fn is_free(&self, node: &Node) -> bool {
        let is_one = match node.op.class() {
            Class::Host(Host::Constant(_)) | Class::State(State::Variable) => true,
            Class::State(State::Read) => !self.held.contains(&node.inputs[0].node),
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
        let order = making.order;
        let mut depths: FxHashMap<NodeId, usize> = FxHashMap::default();
        let mut last = 0;
        for node in making.nodes {
            let inputs = node.inputs.iter().map(|input| &input.node);
            let depth = |id: &NodeId| {
                Some(depths.get(id)? + usize::from(self.is_step(self.graph.node(*id))))
            };
            let before = inputs.chain(&node.controls).chain(order.before(node.id));
            let before = before.chain(order.after.get(&node.id));
            let depth = before.filter_map(depth).max().unwrap_or(0);
            last = last.max(depth + usize::from(self.is_step(node)));
            depths.insert(node.id, depth);
        }
        for node in making.nodes.iter().rev() {
            let is_prompt = self.is_prompt(node);
            let after = order.after.get(&node.id).filter(|_| is_prompt);
            let controls = if is_prompt { &[][..] } else { &node.controls[..] };
            let inputs = node.inputs.iter().map(|input| &input.node);
            let before = inputs.chain(controls).chain(after).chain(order.before(node.id));
            // What is not of the part runs elsewhere.
            let before: SmallVec<[NodeId; 4]> =
                before.copied().filter(|id| depths.contains_key(id)).collect();
            let ends = |id: &NodeId| depths[id] + usize::from(self.is_step(self.graph.node(*id)));
            let stage = if self.is_step(node) {
                depths[&node.id]
            } else if is_prompt {
                before.iter().map(ends).max().unwrap_or(0)
            } else {
                making.stages.get(&node.id).copied().unwrap_or(last)
            };
            making.stages.insert(node.id, stage);
            for id in before {
                let known = making.stages.entry(id).or_insert(stage);
                *known = (*known).min(stage);
            }
        }
        last
    }

    /// Whether a node sees a held variable as it is when the node runs: at once after what it follows, whatever else it
    /// comes after.
    fn is_prompt(&self, node: &Node) -> bool {
        is_read(node) && self.held.contains(&node.inputs[0].node)
    }

    /// Whether a node is a step of its own, and no part of a program.
    fn is_step(&self, node: &Node) -> bool {
        is_flow(node, &self.fed) || self.late.contains(&node.id)
    }

    /// Whether a node is a placeholder that has its value: who only comes after it waits for nothing.
    fn is_given(&self, making: &Making<'_>, id: NodeId) -> bool {
        matches!(self.graph.node(id).op.class(), Class::Host(Host::Placeholder))
            && making.slots.contains_key(&Output { node: id, index: 0 })
    }

    /// Finds the reads that take a held variable as it is when the part begins, or else an initial value that is known
    /// only after a branch or loop: by then the part may have assigned the variable.
    fn find_late(&mut self, nodes: &[Arc<Node>], order: &Order) {
        let mut behind: FxHashSet<NodeId> = FxHashSet::default();
        for node in nodes {
            let id = node.id;
            let controls = if self.is_prompt(node) { &[][..] } else { &node.controls[..] };
            let mut before = unfed_inputs(node, &self.fed).chain(controls.iter().copied());
            let is_behind = before.any(|input| behind.contains(&input));
            if is_behind || is_flow(node, &self.fed) {
                behind.insert(id);
            }
            let Class::State(State::ReadOr) = node.op.class() else { continue };
            let variable = node.inputs[0].node;
            if is_behind
                && self.held.contains(&variable)
                && order.assigns.contains_key(&variable)
                && !order.after.contains_key(&id)
                && !self.initial.contains(&id)
                && !self.fed.contains(&Output { node: id, index: 0 })
            {
                self.late.insert(id);
            }
        }
    }

    /// For each input of a step, where it comes from. What bodies capture and compute by
    /// themselves is left out.
    fn data_inputs(&self, node: &Node) -> SmallVec<[Option<Output>; 4]> {
        let captures: (usize, &[Output]) = match node.op.class() {
            Class::Flow(Flow::Branch(op)) => (1, &op.captures),
            Class::Flow(Flow::Loop(op)) => (op.inputs_at()[2], &op.body.captures),
            _ => (node.inputs.len(), &[]),
        };
        let is_handle = |at: usize| at == 0 && self.late.contains(&node.id);
        let is_free = |at: usize| {
            let own = at.checked_sub(captures.0).and_then(|at| captures.1.get(at));
            own.is_some_and(|own| self.is_free(self.graph.node(own.node)))
        };
        let inputs = node.inputs.iter().enumerate();
        inputs.map(|(at, &input)| (!is_free(at) && !is_handle(at)).then_some(input)).collect()
    }

    /// The part of a body that is `given` some outputs, as far as its `results` need it.
    fn body(&mut self, body: BodyId, given: &[Output], results: &[Output]) -> Result<Part> {
        let graph = self.graph;
        let fed = self.fed_of(given);
        let roots = results.iter().filter(|result| !fed.contains(result)).map(|result| result.node);
        let own = |control: NodeId| graph.node(control).body == body;
        let nodes = ancestors(graph, &roots.collect::<Vec<_>>(), &fed, &own);
        let order = Cow::Owned(Order::new(graph, &nodes, &fed)?);
        self.part(&Whole { nodes, order, given, results, targets: &[] })
    }

    /// What a part is given and does not find by itself.
    fn fed_of(&self, given: &[Output]) -> FxHashSet<Output> {
        given.iter().copied().filter(|output| !self.is_free(self.graph.node(output.node))).collect()
    }

    pub fn part(&mut self, whole: &Whole<'_>) -> Result<Part> {
        let fed = self.fed_of(whole.given);
        let mut making = Making {
            nodes: &whole.nodes,
            order: &whole.order,
            stages: FxHashMap::default(),
            slots: FxHashMap::default(),
            part: Part::default(),
        };
        for output in whole.given {
            let is_given = fed.contains(output);
            let slot = is_given.then(|| making.slot(*output));
            making.part.given.push(slot);
        }
        self.find_late(&whole.nodes, &whole.order);
        let last = self.stages(&mut making);
        self.take_starts(&mut making);
        for (at, stage) in self.listed(&making, last, whole).into_iter().enumerate() {
            self.program(&mut making, at, stage.wanted, stage.targets)?;
            for (node, used) in stage.flows {
                let step = self.flow_step(&mut making, &node, used)?;
                making.part.steps.push(step);
            }
        }
        for &result in whole.results {
            let slot = self.read(&mut making, result);
            making.part.results.push(slot);
        }
        Ok(making.part)
    }

    /// What is to be done in each stage.
    fn listed(&self, making: &Making<'_>, last: usize, whole: &Whole<'_>) -> Vec<Stage> {
        let graph = self.graph;
        let mut stages: Vec<Stage> = Vec::new();
        stages.resize_with(last + 1, Stage::default);
        let mut used: FxHashMap<NodeId, Vec<u32>> = FxHashMap::default();
        // What is neither fed nor elsewhere, and for whom it is: a later stage, or what comes after the program.
        let for_others = |id: NodeId, user: Option<&Node>| {
            let own = *making.stages.get(&id)?;
            let Some(user) = user else { return Some(own) };
            let is_later = self.is_step(user) || making.stages.get(&user.id) > Some(&own);
            is_later.then_some(own)
        };
        let mut want = |output: Output, user: Option<&Node>| {
            if self.is_step(graph.node(output.node)) {
                used.entry(output.node).or_default().push(output.index);
            } else if let Some(stage) = for_others(output.node, user)
                && let Some(stage) = stages.get_mut(stage)
                && !self.is_constant(output)
                && !graph.fact(output).is_variable()
            {
                stage.wanted.push(output);
            }
        };
        for node in making.nodes {
            let inputs: SmallVec<[Output; 4]> = match self.is_step(node) {
                true => self.data_inputs(node).into_iter().flatten().collect(),
                false => node.inputs.iter().copied().collect(),
            };
            inputs.into_iter().for_each(|input| want(input, Some(node)));
        }
        whole.results.iter().for_each(|&result| want(result, None));
        let mut run: FxHashSet<NodeId> = whole.targets.iter().copied().collect();
        let run_in = |stages: &mut [Stage], id: NodeId, user: Option<&Node>| {
            let stage = for_others(id, user).and_then(|stage| stages.get_mut(stage));
            let runs = !self.is_step(graph.node(id)) && !self.is_given(making, id);
            if let Some(stage) = stage.filter(|_| runs) {
                stage.targets.push(id);
            }
        };
        for node in making.nodes {
            // A read does not wait for all that it comes after.
            let user = Some(&**node).filter(|_| !self.is_prompt(node));
            node.controls.iter().for_each(|&control| run_in(&mut stages, control, user));
            if is_assign(node) {
                run_in(&mut stages, node.id, None);
            }
        }
        whole.targets.iter().for_each(|&target| run_in(&mut stages, target, None));
        run.extend(making.nodes.iter().flat_map(|node| &node.controls));
        for node in making.nodes.iter().filter(|node| self.is_step(node)) {
            let mut outputs = used.remove(&node.id).unwrap_or_default();
            if run.contains(&node.id) {
                outputs.extend(own_results(node));
            }
            if let Some(stage) = stages.get_mut(making.stages[&node.id]) {
                stage.flows.push((node.clone(), outputs));
            }
        }
        stages
    }

    /// Gives slots to reads of held variables that see them as they are when the part begins.
    fn take_starts(&self, making: &mut Making<'_>) {
        for node in making.nodes {
            let Class::State(State::Read) = node.op.class() else { continue };
            let output = Output { node: node.id, index: 0 };
            let variable = node.inputs[0].node;
            let is_start = self.held.contains(&variable)
                && !making.slots.contains_key(&output)
                && !making.order.after.contains_key(&node.id);
            if is_start {
                let slot = making.slot(output);
                making.part.starts.push(Start { variable, slot, must: true });
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
    fn program(
        &mut self,
        making: &mut Making<'_>,
        stage: usize,
        mut wanted: Vec<Output>,
        mut targets: Vec<NodeId>,
    ) -> Result<()> {
        let graph = self.graph;
        let is_here = |making: &Making<'_>, id: NodeId| {
            making.stages.get(&id) == Some(&stage)
                && !self.is_step(graph.node(id))
                && !self.is_given(making, id)
        };
        wanted.retain(|output| !making.slots.contains_key(output));
        wanted.sort_unstable();
        wanted.dedup();
        targets.sort_unstable();
        targets.dedup();
        if wanted.is_empty() && targets.is_empty() {
            return Ok(());
        }
        let mut signature = Signature { fetches: wanted.clone(), targets, ..Signature::default() };
        let mut feeds: Vec<Place> = Vec::new();
        let roots = roots(&signature);
        let known = |o: &Output| making.slots.contains_key(o) && !self.is_constant(*o);
        let within = |control: NodeId| is_here(making, control);
        let mut used: Vec<Output> = Vec::new();
        for id in near(graph, &roots, &known, &within) {
            used.extend(graph.node(id).inputs.iter().filter(|input| known(input)));
        }
        used.sort_unstable();
        used.dedup();
        for output in used {
            signature.feeds.push(output);
            feeds.push(Place::Slot(making.slots[&output]));
        }
        let mut plan = Plan::part(graph, signature, making.order, &within)?;
        plan.initial.clone_from(&self.initial);
        let fetches: Vec<Place> =
            wanted.iter().map(|&output| Place::Slot(making.slot(output))).collect();
        let mut step = ProgramStep { plan: self.plans.len(), feeds, fetches, optional: Vec::new() };
        self.take_held(&mut plan, &mut step);
        self.plans.push(plan);
        making.part.steps.push(Step::Program(step));
        Ok(())
    }

    /// Has a program take held variables from the run and give them to it.
    fn take_held(&self, plan: &mut Plan, step: &mut ProgramStep) {
        let graph = self.graph;
        for variable in plan.hold(|variable| self.held.contains(&variable)) {
            let handle = Output { node: variable.node, index: 0 };
            if variable.is_read {
                plan.feed_handle(handle, graph.fact(handle).dtype);
                step.feeds.push(Place::Variable(variable.node));
                step.optional.extend((!variable.must).then_some(variable.node));
            }
            if let Some(last) = variable.assigned {
                let change = plan.change(variable.node);
                plan.signature.fetches.push(Output { node: last, index: 0 });
                step.fetches.push(Place::Changed(variable.node, change));
            }
        }
    }

    /// The step that a node is, of which some outputs are needed.
    fn flow_step(
        &mut self,
        making: &mut Making<'_>,
        node: &Arc<Node>,
        mut used: Vec<u32>,
    ) -> Result<Step> {
        let inputs: Vec<Option<usize>> = (self.data_inputs(node).into_iter())
            .map(|input| input.map(|input| self.read(making, input)))
            .collect();
        // What is fed is not given.
        used.retain(|&index| !making.slots.contains_key(&Output { node: node.id, index }));
        used.sort_unstable();
        used.dedup();
        if let (Class::State(_), [_, Some(initial)]) = (node.op.class(), &inputs[..]) {
            let (variable, start) = (node.inputs[0].node, making.own_slot());
            making.part.starts.push(Start { variable, slot: start, must: false });
            let output = making.slot(Output { node: node.id, index: 0 });
            let initial = *initial;
            return Ok(Step::ReadOr(ReadOrStep { node: node.clone(), start, initial, output }));
        }
        let slot = |making: &mut Making<'_>, index: u32| {
            let own = match node.op.class() {
                Class::Flow(Flow::Loop(op)) => op.output_of(index as usize),
                _ => Some(index as usize),
            };
            let own = own.ok_or_else(|| Error::internal("a loop does not give what is needed"))?;
            Ok((own, making.slot(Output { node: node.id, index })))
        };
        let outputs: Vec<(usize, usize)> =
            used.into_iter().map(|index| slot(making, index)).collect::<Result<_>>()?;
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
            Class::Flow(Flow::Call(_) | Flow::Find(_)) | Class::Queue(_) => {
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
            let part = self.body(body.id, &op.captures, &results)?;
            let mut next = 0;
            let place = |own: Option<usize>| {
                own.map(|_| {
                    next += 1;
                    next - 1
                })
            };
            branches.push((Arc::new(part), own.into_iter().map(place).collect()));
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
        let mut results = body.results[..op.next_at() + op.n_carried].to_vec();
        let mut stacked = Vec::new();
        for &(output, _) in &outputs {
            if let Some(result) = op.collects(output) {
                stacked.push((output, results.len()));
                results.push(body.results[result]);
            }
        }
        let given: Vec<Output> = body.params.iter().chain(&body.captures).copied().collect();
        let step = LoopStep {
            node: node.clone(),
            pred: pred.copied().flatten(),
            count: count.copied().flatten(),
            carried: carried.iter().copied().flatten().collect(),
            variables: Vec::new(),
            scanned: scanned.iter().copied().flatten().collect(),
            captures: captures.to_vec(),
            body: Arc::new(self.body(body.id, &given, &results)?),
            results,
            stacked,
            outputs,
        };
        Ok(step.lifted(self.graph, op, &self.plans))
    }
}

/// Whether a node does something with queues in a body.
fn has_queues(node: &Node) -> bool {
    let mut has = false;
    each_within(node, &mut |node| {
        has |= node.body != BodyId::GRAPH && matches!(node.op.class(), Class::Queue(_));
    });
    has
}

/// The results of a branch or loop that is needed for its effects: all of them.
fn own_results(node: &Node) -> Vec<u32> {
    match node.op.class() {
        Class::Flow(Flow::Branch(op)) => (0..op.n_results as u32).collect(),
        Class::Flow(Flow::Loop(op)) => {
            (0..op.trips_at()).map(|output| op.node_output(output) as u32).collect()
        }
        _ => Vec::new(),
    }
}
