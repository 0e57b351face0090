//! What of a graph a model keeps: the nodes that it needs, with ids of their own.
//!
//! Source: TensorFlow's `graph_util.extract_sub_graph` and `convert_variables_to_constants`.

mod runners;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use convoke_graph_core::ops::decode;
use convoke_graph_core::{
    Attributes, BodyId, Class, Collection, Error, ErrorKind, GraphParts, GraphSnapshot, Host,
    HostTensor, Node, NodeId, NodeParts, Op, Output, Result, RunnerParts, State, TableSpec, Tensor,
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::tables::table_of;
use super::{ModelForm, ModelSpec, SignatureSpec, Stored, StoredSignature};

/// The nodes of a graph that a model needs.
pub(super) struct Selected<'a> {
    graph: &'a GraphSnapshot,
    frozen: bool,
    /// Inputs that become placeholders.
    cut: FxHashSet<Output>,
    kept: FxHashSet<NodeId>,
    /// Local variables.
    local: FxHashSet<NodeId>,
    /// Of the graph's queue runners, those that are kept.
    runners: Vec<RunnerParts>,
    users: FxHashMap<NodeId, Vec<NodeId>>,
}

/// What is needed of a graph, from some nodes on.
#[derive(Default)]
struct Needed {
    nodes: FxHashSet<NodeId>,
    outputs: FxHashSet<Output>,
    /// Whether it needs anything that becomes a placeholder.
    is_cut: bool,
}

impl<'a> Selected<'a> {
    /// `is_initialized` says which variables have elements.
    ///
    /// # Errors
    /// A needed operation that was refused, or that a frozen model cannot have.
    pub fn new(
        graph: &'a GraphSnapshot,
        whole: &GraphParts,
        spec: &ModelSpec,
        is_initialized: impl Fn(NodeId) -> bool,
    ) -> Result<Self> {
        let frozen = spec.form == ModelForm::Frozen;
        let local = whole.collections.iter().filter(|(name, _)| *name == Collection::Local);
        let local = local.flat_map(|(_, outputs)| outputs).map(|output| output.node).collect();
        let mut selected = Self {
            graph,
            frozen,
            cut: FxHashSet::default(),
            kept: FxHashSet::default(),
            local,
            runners: Vec::new(),
            users: first_users(graph),
        };
        let (mut all, mut cut) = (Needed::default(), FxHashSet::default());
        for (_, signature) in spec.all() {
            let (needed, own) = selected.needed_by(signature);
            all.nodes.extend(needed.nodes);
            all.outputs.extend(needed.outputs);
            cut.extend(own);
        }
        if !frozen {
            let collected = whole.collections.iter().flat_map(|(_, outputs)| outputs);
            let collected = collected.map(|output| output.node).collect();
            all.nodes.extend(selected.follow(collected, &FxHashSet::default()).nodes);
        }
        // What one signature is fed, another may compute.
        cut.retain(|output| !all.outputs.contains(output));
        (selected.cut, selected.kept) = (cut, all.nodes);
        selected.keep_runners(&whole.queue_runners, is_initialized);
        selected.check()?;
        Ok(selected)
    }

    /// What a signature needs, and which of its inputs would become placeholders.
    fn needed_by(&self, signature: &SignatureSpec) -> (Needed, FxHashSet<Output>) {
        let inputs = signature.inputs.iter().map(|(_, tensor)| tensor.output());
        let is_placeholder = |output: &Output| is_placeholder(self.graph.node(output.node));
        let (placeholders, cut): (Vec<Output>, Vec<Output>) =
            inputs.partition(|output| !self.frozen || is_placeholder(output));
        let cut: FxHashSet<Output> = cut.into_iter().collect();
        let outputs = signature.outputs.iter().map(|(_, tensor)| tensor.output());
        let outputs = outputs.chain(placeholders).filter(|output| !cut.contains(output));
        let outputs: FxHashSet<Output> = outputs.collect();
        let mut stack: Vec<NodeId> = outputs.iter().map(|output| output.node).collect();
        stack.extend(signature.operations.iter().map(|(_, operation)| operation.id()));
        let mut needed = self.follow(stack, &cut);
        needed.outputs.extend(outputs);
        (needed, cut)
    }

    /// What some nodes need, with what is `cut` as placeholders.
    fn follow(&self, mut stack: Vec<NodeId>, cut: &FxHashSet<Output>) -> Needed {
        let mut needed = Needed::default();
        while let Some(id) = stack.pop() {
            if !needed.nodes.insert(id) {
                continue;
            }
            let node = self.graph.node(id);
            for output in self.operands(node) {
                if cut.contains(&output) {
                    needed.is_cut = true;
                } else {
                    needed.outputs.insert(output);
                    stack.push(output.node);
                }
            }
            stack.extend(&node.controls);
            if !self.frozen {
                stack.extend(&node.colocated);
                if is_variable(node) {
                    stack.extend(self.users.get(&node.id).into_iter().flatten());
                }
            }
        }
        needed
    }

    /// The outputs that a node needs.
    fn operands(&self, node: &Node) -> Vec<Output> {
        // What a variable would have been given first does not matter.
        let n = if self.frozen && is_read(node) { 1 } else { usize::MAX };
        let mut operands: Vec<Output> = node.inputs.iter().take(n).copied().collect();
        if let Class::Flow(flow) = node.op.class() {
            // What is captured keeps its place in the bodies, also where something else is given for it.
            let own = flow.bodies().iter().flat_map(|body| body.params.iter().chain(&body.results));
            operands.extend(own.chain(flow.captures()).copied());
        }
        operands
    }

    /// Whether a node is kept.
    pub fn has(&self, id: NodeId) -> bool {
        self.kept.contains(&id)
    }

    /// The tables that runs of the model use.
    pub fn tables(&self) -> Vec<Arc<TableSpec>> {
        let mut kept: Vec<NodeId> = self.kept.iter().copied().collect();
        kept.sort_unstable();
        let mut all: Vec<Arc<TableSpec>> = Vec::new();
        for table in kept.into_iter().filter_map(|id| table_of(self.graph.node(id))) {
            if !all.contains(table) {
                all.push(table.clone());
            }
        }
        all
    }

    /// Whether a variable may have no elements.
    pub fn may_lack(&self, id: NodeId) -> bool {
        !self.frozen && self.local.contains(&id)
    }

    fn check(&self) -> Result<()> {
        let mut kept: Vec<NodeId> = self.kept.iter().copied().collect();
        kept.sort_unstable();
        let refused = kept.into_iter().find_map(|id| self.refused(self.graph.node(id)));
        refused.map_or(Ok(()), Err)
    }

    /// Why a model cannot have a node, if that is so.
    fn refused(&self, node: &Node) -> Option<Error> {
        if let Some(error) = node.error() {
            return Some(error);
        }
        if !self.frozen {
            return None;
        }
        if matches!(node.op.class(), Class::State(state) if state.is_assign()) {
            let message = "the outputs of a frozen model need this, which changes a variable; \
                           save the model as trainable, or fetch what runs before it";
            return Some(Error::invalid(message).with_node(&*node.name));
        }
        let source = node.inputs.first().map(|input| self.graph.node(input.node));
        if is_read(node) && !source.is_some_and(|source| is_variable(source)) {
            let message = "unsupported: a frozen model reads a variable by its own handle only";
            let error = Error::new(ErrorKind::Unimplemented, message);
            return Some(error.with_node(&*node.name));
        }
        None
    }

    /// The model, with `values` of its variables.
    ///
    /// # Errors
    /// A variable without a value.
    pub fn stored(
        &self,
        whole: GraphParts,
        spec: &ModelSpec,
        values: &BTreeMap<NodeId, HostTensor>,
        draws: &[(NodeId, u32)],
    ) -> Result<Stored> {
        let mut new = Renumbered { bodies: self.bodies(&whole), ..Renumbered::default() };
        let mut cut: Vec<Output> = self.cut.iter().copied().collect();
        cut.sort_unstable();
        for node in self.graph.nodes.iter() {
            for &output in cut.iter().filter(|output| output.node == node.id) {
                new.placeholders.insert(output, new.next());
                new.nodes.push(self.placeholder(node, output)?);
            }
            if self.has(node.id) {
                let parts = self.parts(node, &mut new, values)?;
                new.ids.insert(node.id, new.next());
                new.nodes.push(parts);
            }
        }
        let signature = new.signature(&spec.signature)?;
        let signatures = spec.signatures.iter();
        let signatures = signatures.map(|(name, own)| Ok((name.clone(), new.signature(own)?)));
        let signatures = signatures.collect::<Result<_>>()?;
        let variables = values.iter().filter(|_| !self.frozen);
        let variables = variables.map(|(&id, value)| Ok((new.id(id)?, value.clone())));
        let variables = variables.collect::<Result<_>>()?;
        let draws = draws.iter().filter_map(|&(id, count)| Some((new.id(id).ok()?, count)));
        let mut draws: Vec<(NodeId, u32)> = draws.collect();
        draws.sort_unstable();
        let parts = self.whole(whole, new)?;
        let (form, tables) = (spec.form, Vec::new());
        Ok(Stored { form, parts, signature, signatures, variables, tables, draws })
    }

    /// The bodies of the model, and those around them, with their new ids.
    fn bodies(&self, whole: &GraphParts) -> BTreeMap<BodyId, BodyId> {
        let mut used: BTreeSet<BodyId> = BTreeSet::new();
        for node in self.kept.iter().map(|&id| self.graph.node(id)) {
            used.insert(node.body);
            if let Class::Flow(flow) = node.op.class() {
                used.extend(flow.bodies().iter().map(|body| body.id));
            }
        }
        for (at, around) in whole.bodies.iter().enumerate().rev() {
            if used.contains(&body_id(at + 1)) {
                used.insert(*around);
            }
        }
        used.insert(BodyId::GRAPH);
        used.into_iter().enumerate().map(|(new, old)| (old, body_id(new))).collect()
    }

    /// A node of the model, whose inputs and controls have their new ids.
    fn parts(
        &self,
        node: &Node,
        new: &mut Renumbered,
        values: &BTreeMap<NodeId, HostTensor>,
    ) -> Result<NodeParts> {
        let mut parts = NodeParts::from(node);
        let state = match node.op.class() {
            Class::State(state) if self.frozen => Some(state),
            _ => None,
        };
        match state {
            Some(State::Variable) => {
                let value = values.get(&node.id).cloned().ok_or_else(|| {
                    Error::internal("the variable is in no collection").with_node(&*node.name)
                })?;
                parts.op = make(Attributes::of("constant").with("value", value))?;
            }
            Some(State::Read | State::ReadOr) => {
                parts.op = make(Attributes::of("identity"))?;
                parts.inputs.truncate(1);
            }
            Some(State::IsInitialized) => {
                parts.op = make(Attributes::of("constant").with("value", HostTensor::from(true)))?;
                parts.inputs.clear();
            }
            _ => {}
        }
        if let Class::Flow(flow) = node.op.class() {
            let body = &mut |body| new.body(body);
            if let Some(op) = flow.renumbered(&mut |output| new.output(output), body)? {
                parts.op = op;
            }
        }
        parts.body = new.body(node.body)?;
        for input in &mut parts.inputs {
            *input = new.output(*input)?;
        }
        for control in &mut parts.controls {
            *control = new.id(*control)?;
        }
        parts.colocated.retain_mut(|other| match new.home(*other, node.id) {
            Some(home) => {
                *other = home;
                true
            }
            None => false,
        });
        Ok(parts)
    }

    /// A placeholder in the place of an output.
    fn placeholder(&self, node: &Node, output: Output) -> Result<NodeParts> {
        let fact = self.graph.fact(output);
        let attributes = Attributes::of("placeholder").with("dtype", fact.dtype);
        let is_alone =
            !self.has(node.id) && self.cut.iter().filter(|o| o.node == node.id).count() == 1;
        let mut name = node.name.to_string();
        if !is_alone {
            let is_taken = |name: &str| self.graph.nodes.iter().any(|node| *node.name == *name);
            name = format!("{name}_{}", output.index);
            while is_taken(&name) {
                name.push('_');
            }
        }
        Ok(NodeParts {
            name: name.into(),
            op: make(attributes.with("dims", fact.dims.clone()))?,
            inputs: Vec::new(),
            controls: Vec::new(),
            device: node.device.clone(),
            colocated: Vec::new(),
            body: BodyId::GRAPH,
            container: None,
        })
    }

    /// The graph's parts with the nodes of the model only.
    fn whole(&self, whole: GraphParts, new: Renumbered) -> Result<GraphParts> {
        let is_kept = |output: &Output| {
            let node = self.graph.node(output.node);
            let is_state = matches!(node.op.class(), Class::State(_));
            self.has(node.id)
                && (output.index as usize) < node.facts.len()
                && !(self.frozen && is_state)
        };
        let kept = |outputs: Vec<Output>| -> Vec<Output> {
            let kept = outputs.into_iter().filter(is_kept);
            kept.filter_map(|output| new.output(output).ok()).collect()
        };
        let collections = whole.collections.into_iter();
        let collections = collections.map(|(name, outputs)| (name, kept(outputs)));
        let collections = collections.filter(|(_, outputs)| !outputs.is_empty()).collect();
        let shared = whole.shared.into_iter().filter(|_| !self.frozen);
        let shared = shared.filter_map(|mut shared| {
            for id in [&mut shared.handle, &mut shared.read, &mut shared.initializer] {
                *id = new.id(*id).ok()?;
            }
            Some(shared)
        });
        let shared = shared.collect();
        let around = whole.bodies.iter().enumerate();
        let around = around.filter(|(at, _)| new.body(body_id(at + 1)).is_ok());
        let bodies = around.filter_map(|(_, around)| new.body(*around).ok()).collect();
        let queue_runners = self.runners.iter().map(|runner| {
            let enqueues = runner.enqueues.iter().map(|&id| new.id(id)).collect::<Result<_>>()?;
            Ok(RunnerParts {
                enqueues,
                close: new.id(runner.close)?,
                cancel: new.id(runner.cancel)?,
                ends: runner.ends.clone(),
            })
        });
        let queue_runners = queue_runners.collect::<Result<_>>()?;
        Ok(GraphParts { bodies, nodes: new.nodes, collections, shared, queue_runners, ..whole })
    }
}

/// Nodes with new ids.
#[derive(Default)]
struct Renumbered {
    nodes: Vec<NodeParts>,
    ids: FxHashMap<NodeId, NodeId>,
    bodies: BTreeMap<BodyId, BodyId>,
    placeholders: FxHashMap<Output, NodeId>,
    /// For nodes that are left out, the first that was to be on the same device.
    homes: FxHashMap<NodeId, NodeId>,
}

impl Renumbered {
    fn next(&self) -> NodeId {
        NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX))
    }

    fn id(&self, old: NodeId) -> Result<NodeId> {
        let id = self.ids.get(&old).copied();
        id.ok_or_else(|| Error::internal(format!("the model needs node {} and lacks it", old.0)))
    }

    fn body(&self, old: BodyId) -> Result<BodyId> {
        let id = self.bodies.get(&old).copied();
        id.ok_or_else(|| Error::internal(format!("the model needs body {} and lacks it", old.0)))
    }

    fn output(&self, old: Output) -> Result<Output> {
        match self.placeholders.get(&old) {
            Some(&node) => Ok(Output { node, index: 0 }),
            None => Ok(Output { node: self.id(old.node)?, ..old }),
        }
    }

    fn signature(&self, signature: &SignatureSpec) -> Result<StoredSignature> {
        let named = |list: &[(String, Tensor)]| {
            let output = |(name, tensor): &(String, Tensor)| {
                Ok((name.clone(), self.output(tensor.output())?))
            };
            list.iter().map(output).collect::<Result<Vec<_>>>()
        };
        let operations = signature.operations.iter();
        let operations = operations.map(|(name, op)| Ok((name.clone(), self.id(op.id())?)));
        Ok(StoredSignature {
            inputs: named(&signature.inputs)?,
            outputs: named(&signature.outputs)?,
            operations: operations.collect::<Result<_>>()?,
        })
    }

    /// The node to share a device with instead of `other`; none for the first that asks for one that is left out.
    fn home(&mut self, other: NodeId, asking: NodeId) -> Option<NodeId> {
        if let Some(&id) = self.ids.get(&other) {
            return Some(id);
        }
        let first = *self.homes.entry(other).or_insert(asking);
        self.ids.get(&first).copied()
    }
}

fn body_id(at: usize) -> BodyId {
    BodyId(u32::try_from(at).unwrap_or(u32::MAX))
}

fn make(attributes: Attributes) -> Result<Arc<dyn Op>> {
    let name = attributes.operation().to_owned();
    decode(&attributes)?.ok_or_else(|| Error::internal(format!("there is no {name}")))
}

fn is_placeholder(node: &Node) -> bool {
    matches!(node.op.class(), Class::Host(Host::Placeholder))
}

fn is_variable(node: &Node) -> bool {
    matches!(node.op.class(), Class::State(State::Variable))
}

fn is_read(node: &Node) -> bool {
    let class = node.op.class();
    matches!(class, Class::State(State::Read | State::ReadOr | State::IsInitialized))
}

/// The first read and the first assignment of each variable: what makes its handle a [`Variable`].
///
/// [`Variable`]: convoke_graph_core::Variable
fn first_users(graph: &GraphSnapshot) -> FxHashMap<NodeId, Vec<NodeId>> {
    let mut seen: FxHashSet<(NodeId, bool)> = FxHashSet::default();
    let mut users: FxHashMap<NodeId, Vec<NodeId>> = FxHashMap::default();
    for node in graph.nodes.iter() {
        let is_read = match node.op.class() {
            Class::State(State::Read) => true,
            Class::State(State::Assign) => false,
            _ => continue,
        };
        if let Some(input) = node.inputs.first().filter(|input| seen.insert((input.node, is_read)))
        {
            users.entry(input.node).or_default().push(node.id);
        }
    }
    users
}
