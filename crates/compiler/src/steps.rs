//! Runs in steps: each computes some of what the whole run is asked for, and keeps what later steps need of it.
//!
//! A step is an ordinary plan. What earlier steps have computed is fed to it, so that nothing is computed twice, and what
//! later ones need is fetched. Variables are held by the run: a read sees them as the whole run would.

use std::sync::Arc;

use convoke_graph_core::{
    Class, Error, ErrorKind, GraphSnapshot, Host, Node, NodeId, Output, Result, State,
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::flow::has_flow;
use crate::{Plan, Signature};

/// What is asked for in steps.
#[derive(Clone)]
pub struct Steps {
    graph: GraphSnapshot,
    whole: Plan,
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
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// Fed, or computed by a step.
    Known(Output),
    /// The elements of a variable when the run begins.
    Start(NodeId),
    /// The elements of a variable as the run has left them.
    Now(NodeId),
    /// A bool that is true.
    True,
}

/// Where a value goes that a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Among those that are known.
    Known(Output),
    /// Into a variable.
    Variable(NodeId),
}

/// One step.
#[derive(Debug, Clone)]
pub struct StepPlan {
    /// What it runs, if it is more than known already.
    pub plan: Option<Plan>,
    /// Where the plan's feeds come from.
    pub feeds: Vec<Given>,
    /// Where the plan's fetches go.
    pub fetches: Vec<Taken>,
    /// Where what is asked for is afterwards.
    pub results: Vec<Given>,
    /// The known values that later steps need.
    pub needed: FxHashSet<Output>,
    ran: Vec<NodeId>,
}

/// A variable that the whole run uses.
#[derive(Debug, Clone)]
pub struct UsedVariable {
    /// Its handle.
    pub node: Arc<Node>,
    /// Whether its elements at the start may be needed.
    pub is_read: bool,
}

/// What a run does to a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assigned {
    /// Nothing, or it gets elements that have nothing to do with those it had.
    Anew,
    /// It is added to and subtracted from.
    Moved,
    /// Its elements are changed in a way that can't be repeated on others.
    Changed,
}

/// What a step is made of, found from what is asked for.
#[derive(Default)]
struct Walk {
    nodes: FxHashSet<NodeId>,
    /// What nodes are given.
    given: FxHashMap<Output, Given>,
    /// Nodes that run though nobody needs what they give.
    targets: Vec<NodeId>,
    stack: Vec<NodeId>,
}

impl Progress {
    /// The beginning, where these variables have elements.
    pub fn starting(initialized: impl Iterator<Item = NodeId>) -> Self {
        Self { initialized: initialized.collect(), ..Self::default() }
    }
}

impl Steps {
    /// Plans the whole of a run that is made in steps.
    ///
    /// # Errors
    /// As [`Plan::new`]. Branches, loops, assertions, and numbers that are given once.
    pub fn new(graph: &GraphSnapshot, signature: Signature) -> Result<Self> {
        if has_flow(graph, &signature) {
            return Err(unsupported("branches, loops and assertions in a partial run"));
        }
        let whole = Plan::new(graph, signature)?;
        if whole.counts() {
            return Err(unsupported("counting up to a limit in a partial run"));
        }
        Ok(Self { graph: graph.clone(), whole })
    }

    /// What is asked for in all.
    pub fn signature(&self) -> &Signature {
        &self.whole.signature
    }

    /// Whether all that was asked for has been fetched and run.
    pub fn is_done(&self, progress: &Progress) -> bool {
        let Signature { fetches, targets, .. } = self.signature();
        fetches.iter().all(|fetch| progress.fetched.contains(fetch))
            && targets.iter().all(|&id| progress.ran.contains(&id) || is_free(self.graph.node(id)))
    }

    /// The variables that it uses, in order.
    pub fn variables(&self) -> Vec<UsedVariable> {
        let mut found: Vec<UsedVariable> = Vec::new();
        for node in &self.whole.nodes {
            let Some((state, variable)) = used(node) else { continue };
            let at_start = !self.whole.after.contains_key(&node.id);
            let is_read = at_start && !matches!(state, State::Assign | State::IsInitialized);
            match found.iter_mut().find(|used| used.node.id == variable) {
                Some(used) => used.is_read |= is_read,
                None => {
                    let node = self.graph.node(variable).clone();
                    found.push(UsedVariable { node, is_read });
                }
            }
        }
        found.sort_by_key(|used| used.node.id);
        found
    }

    /// What the steps so far have done to a variable.
    pub fn assigned(&self, progress: &Progress, variable: NodeId) -> Assigned {
        let all = self.whole.assigns.get(&variable).map_or(&[][..], |all| all);
        let ran = all.iter().filter(|assign| progress.ran.contains(assign));
        let states: Vec<State> = ran.filter_map(|&id| Some(used(self.graph.node(id))?.0)).collect();
        if states.contains(&State::Assign) || states.is_empty() {
            Assigned::Anew
        } else if states.iter().all(|s| matches!(s, State::AssignAdd | State::AssignSub)) {
            Assigned::Moved
        } else {
            Assigned::Changed
        }
    }

    /// The step that gives `fetches` and runs `targets`, after what has been fed.
    ///
    /// # Errors
    /// A tensor that is needed and was not fed yet; what [`Plan::new`] refuses.
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
        let needed = self.needed(progress, fetches, &walk);
        let kept = |output: &&Output| self.is_made(&walk, output.node);
        wanted.extend(needed.iter().filter(kept));
        wanted.sort_unstable();
        wanted.dedup();
        let mut ran: Vec<NodeId> = walk.nodes.iter().copied().collect();
        ran.retain(|&id| !is_free(self.graph.node(id)));
        ran.sort_unstable();
        let mut step =
            StepPlan { plan: None, feeds: Vec::new(), fetches: Vec::new(), results, needed, ran };
        if !walk.nodes.is_empty() {
            self.plan(progress, walk, &wanted, &mut step)?;
        }
        Ok(step)
    }

    /// Where a value comes from, if no node of the step makes it: it waits to be visited then.
    fn value(&self, progress: &Progress, output: Output, walk: &mut Walk) -> Result<Option<Given>> {
        if progress.known.contains(&output) {
            return Ok(Some(Given::Known(output)));
        }
        if self.signature().feeds.contains(&output) {
            return Err(self.missing(output));
        }
        let node = self.graph.node(output.node);
        if let Some(given) = self.read(progress, node) {
            // What it comes after runs all the same.
            let controls = node.controls.iter().filter(|id| !progress.ran.contains(id));
            walk.targets.extend(controls.clone());
            walk.stack.extend(controls);
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
        let ran = |assign: &NodeId| progress.ran.contains(assign);
        match (state, self.whole.after.get(&node.id)) {
            (State::Read, None) => Some(Given::Start(variable)),
            (State::ReadOr, None) => {
                let assigns = self.whole.assigns.get(&variable)?;
                let is_start =
                    progress.initialized.contains(&variable) && !self.is_initial(node, assigns);
                (is_start && assigns.iter().any(ran)).then_some(Given::Start(variable))
            }
            (State::Read | State::ReadOr, Some(&assign)) if ran(&assign) => {
                Some(Given::Known(Output { node: assign, index: 0 }))
            }
            (State::IsInitialized, Some(assign)) if ran(assign) => Some(Given::True),
            _ => None,
        }
    }

    /// Whether the run gives a variable the initial value that `node` reads where there is none.
    fn is_initial(&self, node: &Node, assigns: &[NodeId]) -> bool {
        let gives = |id: &NodeId| self.graph.node(*id).inputs.get(1) == node.inputs.get(1);
        assigns.iter().any(gives)
    }

    /// Adds a node to a step, and what it needs.
    fn visit(&self, progress: &Progress, id: NodeId, walk: &mut Walk) -> Result<()> {
        if progress.ran.contains(&id) || !walk.nodes.insert(id) {
            return Ok(());
        }
        let node = self.graph.node(id);
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
        Ok(())
    }

    fn is_made(&self, walk: &Walk, id: NodeId) -> bool {
        walk.nodes.contains(&id) && !is_free(self.graph.node(id))
    }

    /// The values that later steps need: fed, known, or made by this one.
    fn needed(&self, progress: &Progress, fetches: &[Output], walk: &Walk) -> FxHashSet<Output> {
        let mut needed = FxHashSet::default();
        let is_later = |id: &NodeId| !progress.ran.contains(id) && !walk.nodes.contains(id);
        for node in self.whole.nodes.iter().filter(|node| is_later(&node.id)) {
            let inputs = node.inputs.iter().filter(|input| !self.graph.fact(**input).is_variable());
            needed.extend(inputs);
            if let Some(&assign) = self.whole.after.get(&node.id) {
                needed.insert(Output { node: assign, index: 0 });
            }
        }
        let is_fetched = |o: &&Output| progress.fetched.contains(o) || fetches.contains(o);
        needed.extend(self.signature().fetches.iter().filter(|fetch| !is_fetched(fetch)));
        needed
    }

    fn plan(
        &self,
        progress: &Progress,
        mut walk: Walk,
        wanted: &[Output],
        step: &mut StepPlan,
    ) -> Result<()> {
        walk.targets.sort_unstable();
        walk.targets.dedup();
        let mut signature =
            Signature { fetches: wanted.to_vec(), targets: walk.targets, ..Signature::default() };
        let mut given: Vec<(Output, Given)> = walk.given.into_iter().collect();
        given.sort_unstable_by_key(|(output, _)| *output);
        for (output, from) in given {
            signature.feeds.push(output);
            step.feeds.push(from);
        }
        step.fetches.extend(wanted.iter().map(|&output| Taken::Known(output)));
        let mut plan =
            self.whole.part(&self.graph, signature, &|id| !progress.ran.contains(&id))?;
        for node in &self.whole.nodes {
            if let (Some((State::ReadOr, variable)), true) =
                (used(node), walk.nodes.contains(&node.id))
            {
                let assigns = self.whole.assigns.get(&variable);
                if assigns.is_some_and(|assigns| self.is_initial(node, assigns)) {
                    plan.initial.insert(node.id);
                }
            }
        }
        for held in plan.hold(|_| true) {
            let handle = Output { node: held.node, index: 0 };
            if held.is_read {
                plan.feed_handle(handle, self.graph.fact(handle).dtype);
                step.feeds.push(Given::Now(held.node));
            }
            if let Some(last) = held.assigned {
                plan.signature.fetches.push(Output { node: last, index: 0 });
                step.fetches.push(Taken::Variable(held.node));
            }
        }
        step.plan = Some(plan);
        Ok(())
    }

    fn missing(&self, output: Output) -> Error {
        let message = format!(
            "what is fetched can't be computed from what has been fed so far: it needs this {}; feed \
             it in this step or in one before",
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
        let made = self.fetches.iter().filter_map(|taken| match taken {
            Taken::Known(output) => Some(*output),
            Taken::Variable(_) => None,
        });
        progress.known.extend(made);
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

/// Whether a node is the same in every step, at no cost.
fn is_free(node: &Node) -> bool {
    match node.op.class() {
        Class::Host(Host::Constant(_)) => node.controls.is_empty(),
        Class::Host(Host::Placeholder) => node.inputs.is_empty(),
        Class::State(State::Variable) => true,
        _ => false,
    }
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unimplemented, format!("unsupported: {what}"))
}
