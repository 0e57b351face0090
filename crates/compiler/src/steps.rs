//! Runs in steps: each computes some of what the whole run is asked for, and keeps what later steps need of it.
//!
//! A step is an ordinary plan. What earlier steps have computed is fed to it, so that nothing is computed twice, and what
//! later ones need is fetched. Variables are held by the run: a read sees them as the whole run would.

use std::sync::Arc;

use convoke_graph_core::{
    BodyId, Class, Error, ErrorKind, Flow, GraphSnapshot, Host, Node, NodeId, Output, Result, State,
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::Signature;
use crate::flow::{FlowPlan, Held, ancestors, is_flow, roots, variables};
use crate::order::{Order, each_within};
use crate::plan::{check_feeds, check_nodes};

/// What is asked for in steps.
#[derive(Clone)]
pub struct Steps {
    graph: GraphSnapshot,
    signature: Signature,
    /// What is fed or taken.
    fed: FxHashSet<Output>,
    /// What queues, readers and tables give, which is known once the run has taken it.
    taken: FxHashSet<Output>,
    /// What must be fed before the run takes anything.
    early: Vec<Output>,
    nodes: Vec<Arc<Node>>,
    order: Order,
    /// The nodes that others run after, or that run for their effect.
    run: FxHashSet<NodeId>,
}

/// How far a run is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The values that there are: fed, or computed and needed again.
    pub known: FxHashSet<Output>,
    /// What has been fetched.
    pub fetched: FxHashSet<Output>,
    initialized: FxHashSet<NodeId>,
    ran: FxHashSet<NodeId>,
    has_taken: bool,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// Fed, or computed by a step.
    Known(Output),
    /// The elements of a variable when the run begins.
    Start(NodeId),
    /// A bool.
    Bool(bool),
}

/// One step.
#[derive(Debug, Clone)]
pub struct StepPlan {
    /// What it runs, if it is more than known already, with its signature. What that fetches is known then.
    pub plan: Option<(FlowPlan, Signature)>,
    /// Where the plan's feeds come from.
    pub feeds: Vec<Given>,
    /// Where what is asked for is afterwards.
    pub results: Vec<Given>,
    /// The known values that later steps need.
    pub needed: FxHashSet<Output>,
    /// Whether it does something with queues, readers or tables that change, so that what the run takes has to be taken
    /// before.
    pub takes: bool,
    /// The operations that it runs of those that change queues and tables at the end of the run, in order, and where
    /// what each puts is afterwards.
    pub puts: Vec<(NodeId, Vec<Given>)>,
    ran: Vec<NodeId>,
    made: Vec<Output>,
}

/// What a step is made of, found from what is asked for.
#[derive(Default)]
struct Walk {
    nodes: FxHashSet<NodeId>,
    /// Nodes that have nothing left to do, as what they give was taken.
    sources: FxHashSet<NodeId>,
    /// What nodes are given.
    given: FxHashMap<Output, Given>,
    /// Nodes that run though nobody needs what they give.
    targets: Vec<NodeId>,
    /// Values that only later steps need, and that are other ones then.
    early: Vec<Output>,
    takes: bool,
    stack: Vec<NodeId>,
}

impl Walk {
    fn has(&self, node: NodeId) -> bool {
        self.nodes.contains(&node) || self.sources.contains(&node)
    }

    /// Has what a node comes after run, though the node itself does not.
    fn run_before(&mut self, progress: &Progress, node: &Node) {
        let before = node.controls.iter().filter(|id| !progress.ran.contains(id));
        self.targets.extend(before.clone());
        self.stack.extend(before);
    }
}

impl Progress {
    /// The beginning, where these variables have elements.
    pub fn starting(initialized: impl Iterator<Item = NodeId>) -> Self {
        Self { initialized: initialized.collect(), ..Self::default() }
    }
}

impl Steps {
    /// Plans the whole of a run that is made in steps. `wider` is the signature with what it takes from queues, readers and
    /// tables as more feeds, and what it puts as more fetches; `early` is what must be fed before it takes anything.
    ///
    /// # Errors
    /// As [`FlowPlan::new`]. Initial values between a branch or loop that assigns the variable and another assignment.
    pub fn new(
        graph: &GraphSnapshot,
        signature: Signature,
        wider: &Signature,
        early: Vec<Output>,
    ) -> Result<Self> {
        check_feeds(graph, wider)?;
        let fed: FxHashSet<Output> = wider.feeds.iter().copied().collect();
        let taken = wider.feeds.iter().filter(|feed| !signature.feeds.contains(feed));
        let taken = taken.copied().collect();
        let own = |control: NodeId| graph.node(control).body == BodyId::GRAPH;
        let nodes = ancestors(graph, &roots(wider), &fed, &own);
        check_nodes(&nodes, &fed)?;
        let order = Order::new(graph, &nodes, &fed)?;
        let mut run: FxHashSet<NodeId> = wider.targets.iter().copied().collect();
        for node in &nodes {
            run.extend(&node.controls);
            if is_between(graph, &order, &fed, node) {
                let what = "a variable or its initial value, between a branch or loop that assigns the variable and \
                            another assignment, in a partial run; read the variable";
                let error = Error::new(ErrorKind::Unimplemented, format!("unsupported: {what}"));
                return Err(error.with_node(&*node.name));
            }
        }
        let graph = graph.clone();
        Ok(Self { graph, signature, fed, taken, early, nodes, order, run })
    }

    /// What is asked for in all.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Whether all that was asked for has been fetched and run.
    pub fn is_done(&self, progress: &Progress) -> bool {
        let Signature { fetches, targets, .. } = self.signature();
        fetches.iter().all(|fetch| progress.fetched.contains(fetch))
            && targets.iter().all(|&id| progress.ran.contains(&id) || is_free(self.graph.node(id)))
    }

    /// The variables that it uses, in order.
    pub fn variables(&self) -> Vec<Held> {
        variables(&self.graph, &self.nodes)
    }

    /// The step that gives `fetches` and runs `targets`, after what has been fed.
    ///
    /// # Errors
    /// A tensor that is needed and was not fed yet; what [`FlowPlan::new`] refuses.
    pub fn step(
        &self,
        progress: &Progress,
        fetches: &[Output],
        targets: &[NodeId],
    ) -> Result<StepPlan> {
        let mut walk = Walk::default();
        let mut results = Vec::with_capacity(fetches.len());
        let mut wanted: Vec<Output> = Vec::new();
        for &fetch in fetches {
            let given = self.value(progress, fetch, &mut walk)?;
            results.push(given.unwrap_or(Given::Known(fetch)));
            wanted.extend(given.is_none().then_some(fetch));
        }
        let targets = targets.iter().filter(|target| !progress.ran.contains(target));
        for &target in targets {
            walk.targets.push(target);
            walk.stack.push(target);
        }
        while let Some(id) = walk.stack.pop() {
            self.visit(progress, id, &mut walk)?;
        }
        self.take_early(progress, &mut walk);
        let needed = self.needed(progress, fetches, &walk);
        let kept = |o: &&Output| self.is_made(&walk, o.node) && !self.fed.contains(o);
        wanted.extend(needed.iter().filter(kept));
        wanted.extend(&walk.early);
        let puts = self.puts(&walk, &mut wanted);
        wanted.sort_unstable();
        wanted.dedup();
        let mut ran: Vec<NodeId> = walk.nodes.union(&walk.sources).copied().collect();
        ran.retain(|&id| !is_free(self.graph.node(id)));
        ran.sort_unstable();
        let (plan, feeds, made, takes) = (None, Vec::new(), Vec::new(), walk.takes);
        let mut step = StepPlan { plan, feeds, results, needed, takes, puts, ran, made };
        if !walk.nodes.is_empty() {
            self.plan(walk, wanted, &mut step)?;
        }
        Ok(step)
    }

    /// Where a value comes from, if no node of the step makes it: it waits to be visited then.
    fn value(&self, progress: &Progress, output: Output, walk: &mut Walk) -> Result<Option<Given>> {
        let is_taken = self.taken.contains(&output);
        let is_known = is_taken || progress.known.contains(&output);
        walk.takes |= is_taken;
        if self.fed.contains(&output) && !is_taken {
            let given = is_known.then_some(Given::Known(output));
            return given.map(Some).ok_or_else(|| self.missing(output));
        }
        let node = self.graph.node(output.node);
        let known = is_known.then_some(Given::Known(output));
        if let Some(given) = known.or_else(|| self.read(progress, node)) {
            if !progress.ran.contains(&node.id) {
                walk.run_before(progress, node);
            }
            return Ok(Some(given));
        }
        if progress.ran.contains(&node.id) {
            return Err(
                Error::internal("a value of an earlier step is gone").with_node(&*node.name)
            );
        }
        walk.stack.push(node.id);
        Ok(None)
    }

    /// What a node reads of a variable that is not as the run has left it.
    fn read(&self, progress: &Progress, node: &Node) -> Option<Given> {
        let (state, variable) = used(node)?;
        let has = progress.initialized.contains(&variable);
        match (state, self.order.after.get(&node.id)) {
            (State::Read, None) => Some(Given::Start(variable)),
            (State::ReadOr, None) => {
                let is_initial = self.order.gives_initial(&self.graph, node, variable);
                (has && !is_initial).then_some(Given::Start(variable))
            }
            (State::IsInitialized, None) => Some(Given::Bool(has)),
            // What is read after a branch or loop is taken when that has run.
            (_, Some(&assign)) if !progress.ran.contains(&assign) || self.is_flow(assign) => None,
            (State::Read | State::ReadOr, Some(&assign)) => {
                Some(Given::Known(Output { node: assign, index: 0 }))
            }
            (State::IsInitialized, Some(_)) => Some(Given::Bool(true)),
            _ => None,
        }
    }

    fn is_flow(&self, node: NodeId) -> bool {
        is_flow(self.graph.node(node), &self.fed)
    }

    /// Adds a node to a step, and what it needs.
    fn visit(&self, progress: &Progress, id: NodeId, walk: &mut Walk) -> Result<()> {
        if progress.ran.contains(&id) || walk.has(id) {
            return Ok(());
        }
        let node = self.graph.node(id);
        walk.takes |= is_of_session(node);
        if is_source(node) {
            walk.sources.insert(id);
            walk.run_before(progress, node);
            return Ok(());
        }
        walk.nodes.insert(id);
        if is_placeholder(node) {
            let output = Output { node: id, index: 0 };
            if !progress.known.contains(&output) {
                return Err(self.missing(output));
            }
            walk.given.insert(output, Given::Known(output));
        }
        for &input in &node.inputs {
            if let Some(given) = self.value(progress, input, walk)? {
                walk.given.insert(input, given);
            }
        }
        walk.stack.extend(&node.controls);
        // All that the whole run needs of a branch or loop is computed at one time.
        if self.is_flow(id) && self.run.contains(&id) {
            walk.targets.push(id);
        }
        Ok(())
    }

    /// What a step puts into queues and tables. What it makes of that is added to `wanted`.
    fn puts(&self, walk: &Walk, wanted: &mut Vec<Output>) -> Vec<(NodeId, Vec<Given>)> {
        let mut puts: Vec<(NodeId, Vec<Given>)> = Vec::new();
        for &id in &walk.nodes {
            let Some(inputs) = put_inputs(self.graph.node(id)) else { continue };
            let given = |input: &Output| walk.given.get(input).copied();
            wanted.extend(inputs.iter().filter(|input| given(input).is_none()));
            let given = inputs.iter().map(|input| given(input).unwrap_or(Given::Known(*input)));
            puts.push((id, given.collect()));
        }
        puts.sort_unstable_by_key(|(id, _)| *id);
        puts
    }

    /// Has a step read what later ones will read of variables as its branches and loops leave them.
    fn take_early(&self, progress: &Progress, walk: &mut Walk) {
        let is_later = |id: &NodeId| !progress.ran.contains(id) && !walk.has(*id);
        let early = self.nodes.iter().filter(|node| is_later(&node.id)).filter(|node| {
            let after = self.order.after.get(&node.id);
            let after =
                after.filter(|assign| walk.nodes.contains(assign) && self.is_flow(**assign));
            after.is_some() && is_read(node)
        });
        let early: Vec<NodeId> = early.map(|node| node.id).collect();
        walk.early.extend(early.iter().map(|&node| Output { node, index: 0 }));
    }

    fn is_made(&self, walk: &Walk, id: NodeId) -> bool {
        walk.nodes.contains(&id) && !is_free(self.graph.node(id))
    }

    /// The values that later steps need: fed, known, or made by this one.
    fn needed(&self, progress: &Progress, fetches: &[Output], walk: &Walk) -> FxHashSet<Output> {
        let mut needed = FxHashSet::default();
        let is_later = |id: &NodeId| !progress.ran.contains(id) && !walk.has(*id);
        if !progress.has_taken && !walk.takes {
            needed.extend(&self.early);
        }
        for node in self.nodes.iter().filter(|node| is_later(&node.id)) {
            let inputs = node.inputs.iter().filter(|input| !self.graph.fact(**input).is_variable());
            needed.extend(inputs);
            match self.order.after.get(&node.id) {
                Some(&assign) if !self.is_flow(assign) => {
                    needed.insert(Output { node: assign, index: 0 });
                }
                Some(_) if is_read(node) => {
                    needed.insert(Output { node: node.id, index: 0 });
                }
                _ => {}
            }
        }
        let is_fetched = |o: &&Output| progress.fetched.contains(o) || fetches.contains(o);
        needed.extend(self.signature().fetches.iter().filter(|fetch| !is_fetched(fetch)));
        needed
    }

    fn plan(&self, mut walk: Walk, wanted: Vec<Output>, step: &mut StepPlan) -> Result<()> {
        walk.targets.retain(|target| !walk.sources.contains(target));
        walk.targets.sort_unstable();
        walk.targets.dedup();
        let mut signature =
            Signature { fetches: wanted, targets: walk.targets, ..Signature::default() };
        let mut given: Vec<(Output, Given)> = walk.given.into_iter().collect();
        given.sort_unstable_by_key(|(output, _)| *output);
        for (output, from) in given {
            signature.feeds.push(output);
            step.feeds.push(from);
        }
        let is_initial = |node: &&Arc<Node>| {
            let state = matches!(node.op.class(), Class::State(State::ReadOr));
            // Elsewhere, the elements at the start are given.
            state && !self.order.after.contains_key(&node.id)
        };
        let own = self.nodes.iter().filter(|node| walk.nodes.contains(&node.id));
        let initial = own.filter(is_initial).map(|node| node.id).collect();
        let plan = FlowPlan::part(&self.graph, &signature, &self.order, &walk.nodes, initial)?;
        step.made.clone_from(&signature.fetches);
        step.plan = Some((plan, signature));
        Ok(())
    }

    fn missing(&self, output: Output) -> Error {
        self.lacking("what is fetched can't be computed", output)
    }

    /// What is said where something that must be fed before the run takes anything was not.
    pub fn missing_early(&self, output: Output) -> Error {
        self.lacking("what the run takes, all at one time, can't be told", output)
    }

    fn lacking(&self, what: &str, output: Output) -> Error {
        let message = format!(
            "{what} from what has been fed so far: it needs this {}; feed it in this step or in one before",
            self.graph.fact(output)
        );
        Error::invalid(message).with_node(&*self.graph.node(output.node).name)
    }
}

impl StepPlan {
    /// Notes that the step has run: `progress` has what it made, and no more of what was known than is needed.
    pub fn done(&self, progress: &mut Progress, fetches: &[Output]) {
        progress.ran.extend(&self.ran);
        progress.fetched.extend(fetches);
        progress.has_taken |= self.takes;
        progress.known.extend(&self.made);
        progress.known.retain(|output| self.needed.contains(output));
    }
}

/// What a node does with which variable.
fn used(node: &Node) -> Option<(State, NodeId)> {
    let Class::State(state) = node.op.class() else { return None };
    Some((state, node.inputs.first()?.node))
}

fn is_placeholder(node: &Node) -> bool {
    matches!(node.op.class(), Class::Host(Host::Placeholder)) && node.inputs.is_empty()
}

/// Whether a node does something with what a session keeps beside its variables, itself or in a body.
fn is_of_session(node: &Node) -> bool {
    let mut is_one = false;
    each_within(node, &mut |node| {
        is_one |= matches!(
            node.op.class(),
            Class::Queue(_) | Class::Reader(_) | Class::Table(_) | Class::Flow(Flow::Find(_))
        );
    });
    is_one
}

/// Whether all that a node does is done where the run takes what it takes.
fn is_source(node: &Node) -> bool {
    match node.op.class() {
        Class::Queue(op) => op.is_source(),
        Class::Reader(_) => true,
        Class::Table(op) => op.is_source(),
        _ => false,
    }
}

/// Whether a node gives a variable or its initial value after a branch or loop that assigns the variable, and before
/// something else that does.
fn is_between(graph: &GraphSnapshot, order: &Order, fed: &FxHashSet<Output>, node: &Node) -> bool {
    let (Class::State(State::ReadOr), Some(handle)) = (node.op.class(), node.inputs.first()) else {
        return false;
    };
    let after = order.after.get(&node.id);
    let Some(after) = after.filter(|&&assign| is_flow(graph.node(assign), fed)) else {
        return false;
    };
    order.assigns.get(&handle.node).is_some_and(|all| all.last() != Some(after))
}

/// What a node puts, if it changes a queue or table at the end of the run.
fn put_inputs(node: &Node) -> Option<&[Output]> {
    let n = match node.op.class() {
        Class::Queue(op) if !op.is_source() => node.inputs.len().saturating_sub(op.n_early()),
        Class::Table(op) if !op.is_source() => node.inputs.len(),
        _ => return None,
    };
    node.inputs.get(..n)
}

/// Whether a node is the same in every step, at no cost.
fn is_free(node: &Node) -> bool {
    match node.op.class() {
        Class::Host(Host::Constant(_)) => node.controls.is_empty(),
        Class::Host(Host::Placeholder) => node.inputs.is_empty(),
        Class::State(State::Variable) => true,
        _ => false,
    }
}

/// Whether a node gives elements of a variable, or whether there are any, as they are when it runs.
fn is_read(node: &Node) -> bool {
    matches!(node.op.class(), Class::State(State::Read | State::IsInitialized))
}
