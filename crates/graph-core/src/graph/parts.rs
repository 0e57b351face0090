//! A graph taken apart into plain data, and put together again.

use std::panic::Location;
use std::sync::Arc;

use super::{
    BodyId, Collection, DEPTH_MAX, Graph, GraphState, Node, NodeId, Output, SharedVariable,
};
use crate::op::SharedOp;
use crate::ops::bodies::{Amounts, Restoring};
use crate::queue_runner::RunnerParts;
use crate::{Class, Dim, Error, GraphSnapshot, OpError, Result, State, Tensor};

/// How many scopes of a name are kept free of names to come.
const SCOPES_MAX: usize = 64;

/// All that a graph is, without what follows from it.
#[derive(Debug, Clone, Default)]
pub struct GraphParts {
    /// The graph's seed.
    pub seed: u64,
    /// How many symbols stand for sizes; each is below that.
    pub n_symbols: u32,
    /// For each body but the graph itself, which is body 0, the one around it, of a smaller id.
    pub bodies: Vec<BodyId>,
    /// The nodes, by id.
    pub nodes: Vec<NodeParts>,
    /// What is in each collection, in order.
    pub collections: Vec<(Collection, Vec<Output>)>,
    /// The variables of shared names.
    pub shared: Vec<SharedParts>,
    /// The queue runners, in order.
    pub queue_runners: Vec<RunnerParts>,
}

/// A node, without its id, which is its place, and what is inferred.
#[derive(Debug, Clone)]
pub struct NodeParts {
    /// Unique in the graph.
    pub name: Arc<str>,
    /// What it computes.
    pub op: SharedOp,
    /// Its operands, of smaller ids.
    pub inputs: Vec<Output>,
    /// Nodes that run before it, of smaller ids; without those that only something in its bodies runs after.
    pub controls: Vec<NodeId>,
    /// The device asked for.
    pub device: Option<Arc<str>>,
    /// Nodes that it must share a device with, of smaller ids.
    pub colocated: Vec<NodeId>,
    /// The branch or loop that it is built in.
    pub body: BodyId,
    /// The container of what sessions keep for it.
    pub container: Option<Arc<str>>,
}

/// A variable of a shared name. See [`Graph::shared_variable`].
#[derive(Debug, Clone)]
pub struct SharedParts {
    /// The container that the name is in.
    pub container: Option<Arc<str>>,
    /// The shared name.
    pub name: String,
    /// The variable.
    pub handle: NodeId,
    /// Its elements at the start of a run.
    pub read: NodeId,
    /// What gives it its first elements.
    pub initializer: NodeId,
}

impl From<&Node> for NodeParts {
    fn from(node: &Node) -> Self {
        Self {
            name: node.name.clone(),
            op: node.op.clone(),
            inputs: node.inputs.to_vec(),
            controls: node.own_controls().collect(),
            device: node.device.clone(),
            colocated: node.colocated.to_vec(),
            body: node.body,
            container: node.container.clone(),
        }
    }
}

impl Graph {
    /// What the graph is now. Of a refused node its operation may be another than was asked for.
    pub fn parts(&self) -> GraphParts {
        let shared = self.shared();
        let state = self.read();
        let collection = |(name, tensors): (&Collection, &Vec<Tensor>)| {
            (name.clone(), tensors.iter().map(Tensor::output).collect())
        };
        let mut collections: Vec<_> = state.collections.iter().map(collection).collect();
        collections.sort_by_cached_key(|(name, _)| format!("{name:?}"));
        let mut names: Vec<SharedParts> = shared
            .iter()
            .map(|((container, name), variable)| SharedParts {
                container: container.clone(),
                name: name.clone(),
                handle: variable.handle,
                read: variable.read,
                initializer: variable.initializer,
            })
            .collect();
        names.sort_by_key(|shared| shared.handle);
        GraphParts {
            seed: state.seed,
            n_symbols: state.next_symbol,
            bodies: state.bodies.iter().map(|(around, _)| *around).collect(),
            nodes: state.nodes.iter().map(|node| NodeParts::from(&**node)).collect(),
            collections,
            shared: names,
            queue_runners: state.queue_runners.iter().map(|runner| runner.parts.clone()).collect(),
        }
    }

    /// A new graph of these parts. Nothing in them is trusted: what operations give is inferred again. All nodes have
    /// the caller's line.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), or what an operation refuses, with the name
    /// of the node: a name that is not unique, an input, control or colocation that does not come before or has no
    /// value there, a symbol above their number, a branch or loop whose bodies are none, a shared variable or a queue
    /// runner that is none.
    #[track_caller]
    pub fn from_parts(parts: GraphParts) -> Result<Self> {
        let at = Location::caller();
        let GraphParts { seed, n_symbols, bodies, nodes, collections, shared, queue_runners } =
            parts;
        if n_symbols > u32::MAX / 2 {
            return Err(Error::invalid(format!("{n_symbols} symbols are too many for a graph")));
        }
        let graph = Self::with_seed(seed);
        {
            let mut state = graph.write();
            state.next_symbol = n_symbols;
            state.restore_bodies(bodies)?;
            let mut amounts = Amounts::default();
            for node in nodes {
                let name = node.name.clone();
                let add = state.restore(&graph, node, &mut amounts, at);
                add.map_err(|reason| Error::from(reason).with_node(&*name))?;
            }
            for (collection, outputs) in collections {
                let tensors = outputs.into_iter().map(|output| {
                    state.expect_output(output)?;
                    Ok(Tensor::new(graph.clone(), output))
                });
                let tensors = tensors.collect::<Result<_, OpError>>()?;
                state.collections.insert(collection, tensors);
            }
            state.restore_runners(queue_runners)?;
        }
        for SharedParts { container, name, handle, read, initializer } in shared {
            let variable = SharedVariable { handle, read, initializer };
            graph.read().expect_variable(&variable).map_err(|reason| {
                Error::from(reason).with_node(format!("the shared variable {name:?}"))
            })?;
            graph.shared().insert((container, name), variable);
        }
        Ok(graph)
    }
}

impl GraphState {
    fn restore_bodies(&mut self, bodies: Vec<BodyId>) -> Result<(), OpError> {
        for around in bodies {
            let id = self.bodies.len() + 1;
            if around.0 as usize >= id {
                let message = format!("body {} does not come before body {id} in it", around.0);
                return Err(OpError::Invalid(message));
            }
            let depth = self.depth(around).saturating_add(1);
            if depth > DEPTH_MAX {
                let message = format!("body {id} lies {depth} deep; the limit is {DEPTH_MAX}");
                return Err(OpError::Invalid(message));
            }
            self.bodies.push((around, depth));
        }
        Ok(())
    }

    /// A branch or loop of the nodes that there are, with the inputs that it needs; any other operation as it is.
    fn restore_flow(
        &mut self,
        graph_id: u64,
        body: BodyId,
        op: SharedOp,
        inputs: &mut Vec<Output>,
        amounts: &mut Amounts,
    ) -> Result<SharedOp, OpError> {
        let Class::Flow(flow) = op.class() else { return Ok(op) };
        let nodes = std::mem::take(&mut self.nodes);
        let graph = GraphSnapshot { graph_id, nodes, is_connected: false };
        let encloses = |outer, inner| self.encloses(outer, inner);
        let at = Restoring::new(&graph, body, self.bodies.len(), &encloses, amounts);
        let restored = flow.restored(at, inputs);
        self.nodes = graph.nodes;
        Ok(restored?.unwrap_or(op))
    }

    /// Checks a node's name, and where it and what it names lie.
    fn expect_parts(&self, node: &NodeParts) -> Result<(), OpError> {
        if self.names.contains_key(&node.name) {
            return Err(OpError::Invalid("two nodes have this name".into()));
        }
        if node.body.0 as usize > self.bodies.len() {
            let n = self.bodies.len();
            return Err(OpError::Invalid(format!(
                "there are {n} bodies, and none {}",
                node.body.0
            )));
        }
        for &before in node.controls.iter().chain(&node.colocated) {
            self.expect_node(before)?;
        }
        for &before in &node.controls {
            let before = self.expect_node(before)?;
            if !self.encloses(before.body, node.body) {
                let message = format!("{} does not run where it is a control", before.name);
                return Err(OpError::Invalid(message));
            }
        }
        for &input in &node.inputs {
            self.expect_output(input)?;
        }
        Ok(())
    }

    /// Adds a node of another graph, or of a file.
    fn restore(
        &mut self,
        graph: &Graph,
        node: NodeParts,
        amounts: &mut Amounts,
        location: &'static Location<'static>,
    ) -> Result<(), OpError> {
        self.expect_parts(&node)?;
        let NodeParts { name, op, mut inputs, mut controls, device, colocated, body, container } =
            node;
        let op = self.restore_flow(graph.id(), body, op, &mut inputs, amounts)?;
        let body_controls = self.body_controls(body, &*op, &controls);
        controls.extend(body_controls.iter().copied());
        controls.sort_unstable();
        controls.dedup();
        let tensors = inputs.iter().map(|&output| Tensor::new(graph.clone(), output));
        let tensors: Vec<Tensor> = tensors.collect();
        let (facts, invalid) = self.infer(graph.id(), body, &*op, &tensors, None);
        if let Some(reason) = invalid {
            return Err(reason);
        }
        let symbols = facts.iter().filter_map(|fact| fact.dims.dims()).flatten();
        let last = symbols.filter_map(|&dim| match dim {
            Dim::Symbol(symbol) => Some(symbol),
            _ => None,
        });
        if let Some(symbol) = last.max().filter(|&symbol| symbol >= self.next_symbol) {
            let n = self.next_symbol;
            return Err(OpError::Invalid(format!("symbol s{symbol} of a graph of {n} symbols")));
        }
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        for (end, _) in name.match_indices('/').take(SCOPES_MAX) {
            self.counts.entry(name[..end].to_owned()).or_insert(1);
        }
        self.names.insert(name.clone(), id);
        let (inputs, colocated) = (inputs.into(), colocated.into());
        self.n_edges = self.n_edges.saturating_add(tensors.len()).saturating_add(controls.len());
        let controls = controls.into();
        self.nodes.push(Arc::new(Node {
            id,
            name,
            op,
            inputs,
            controls,
            body_controls,
            facts,
            device,
            colocated,
            container,
            body,
            location,
            invalid: None,
        }));
        Ok(())
    }

    fn expect_node(&self, id: NodeId) -> Result<&Node, OpError> {
        let n = self.nodes.len();
        if id.0 as usize >= n {
            let message = format!("node {} does not come before it; {n} nodes do", id.0);
            return Err(OpError::Invalid(message));
        }
        Ok(&self.nodes[id.0 as usize])
    }

    fn expect_output(&self, Output { node, index }: Output) -> Result<(), OpError> {
        let node = self.expect_node(node)?;
        if index as usize >= node.facts.len() {
            let (name, n) = (&node.name, node.facts.len());
            return Err(OpError::Invalid(format!("{name} has {n} outputs, and none {index}")));
        }
        Ok(())
    }

    fn expect_variable(&self, variable: &SharedVariable) -> Result<(), OpError> {
        let &SharedVariable { handle, read, initializer } = variable;
        let expect = |id, expected: State, n_inputs: usize| {
            let node = self.expect_node(id)?;
            let is_state = matches!(node.op.class(), Class::State(state) if state == expected);
            let of = node.inputs.first().is_none_or(|input| input.node == handle);
            if is_state && of && node.inputs.len() == n_inputs {
                return Ok(());
            }
            let name = &node.name;
            Err(OpError::Invalid(format!("{name} is no {expected:?} of the variable")))
        };
        expect(handle, State::Variable, 0)?;
        expect(read, State::Read, 1)?;
        expect(initializer, State::Assign, 2)
    }
}
