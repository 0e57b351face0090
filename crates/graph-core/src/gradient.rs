//! Gradients, built as nodes of the graph, so that they can be differentiated again.

use rustc_hash::FxHashMap;

use crate::{Graph, GraphSnapshot, Node, NodeId, Output, Tensor, Variable};

/// What an operation sees when it is asked for the gradient of its inputs.
pub struct Backward<'a> {
    node: &'a Node,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    grads: &'a [Option<Tensor>],
}

impl Backward<'_> {
    /// The number of inputs.
    pub fn n_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Input `i`.
    pub fn input(&self, i: usize) -> &Tensor {
        &self.inputs[i]
    }

    /// Output `i`.
    pub fn output(&self, i: usize) -> &Tensor {
        &self.outputs[i]
    }

    /// The gradient of output 0; `None` if nothing depends on it.
    pub fn dy(&self) -> Option<Tensor> {
        self.dy_of(0)
    }

    /// The gradient of output `i`; `None` if nothing depends on it.
    pub fn dy_of(&self, i: usize) -> Option<Tensor> {
        self.grads.get(i).cloned().flatten()
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.node.name
    }
}

impl Tensor {
    /// The gradient of the sum of this tensor's elements, for each of `xs`. `None` where this does not
    /// depend on it by differentiable operations.
    ///
    /// A [`Variable`] stands for its elements at the start of the run.
    ///
    /// # Errors
    /// Recorded: if this is refused, or built upon what is, so are all its gradients.
    #[track_caller]
    pub fn gradients(&self, xs: &[&Tensor]) -> Vec<Option<Tensor>> {
        let graph = self.graph();
        if self.node().invalid.is_some() {
            let refused = graph.scope("gradients", || self.identity());
            return vec![Some(refused); xs.len()];
        }
        let ones = graph.scope("gradients", || self.like(1.0).broadcast_like(self));
        gradients(graph, self, ones, xs)
    }

    /// As [`Self::gradients`], of variables.
    #[track_caller]
    pub fn variable_gradients(&self, variables: &[Variable]) -> Vec<Option<Tensor>> {
        let xs: Vec<&Tensor> = variables.iter().map(Variable::value).collect();
        self.gradients(&xs)
    }
}

#[track_caller]
fn gradients(graph: &Graph, y: &Tensor, dy: Tensor, xs: &[&Tensor]) -> Vec<Option<Tensor>> {
    let snapshot = graph.snapshot();
    let between = nodes_between(&snapshot, xs, y.output().node);
    let mut grads: FxHashMap<Output, Vec<Tensor>> = FxHashMap::default();
    grads.insert(y.output(), vec![dy]);
    let mut results: FxHashMap<Output, Tensor> = FxHashMap::default();
    graph.scope("gradients", || {
        for id in between.into_iter().rev() {
            let node = snapshot.node(id);
            let outputs: Vec<Option<Tensor>> = (0..node.facts.len() as u32)
                .map(|index| total(grads.remove(&Output { node: id, index })))
                .collect();
            for (index, grad) in outputs.iter().enumerate() {
                if let Some(grad) = grad {
                    results.insert(Output { node: id, index: index as u32 }, grad.clone());
                }
            }
            if outputs.iter().all(Option::is_none) || node.invalid.is_some() {
                continue;
            }
            let tensor = |output: Output| Tensor::new(graph.clone(), output);
            let own = (0..node.facts.len() as u32).map(|index| Output { node: id, index });
            let backward = Backward {
                node,
                inputs: node.inputs.iter().copied().map(tensor).collect(),
                outputs: own.map(tensor).collect(),
                grads: &outputs,
            };
            for (&input, grad) in node.inputs.iter().zip(node.op.gradient(&backward)) {
                if let Some(grad) = grad {
                    grads.entry(input).or_default().push(grad);
                }
            }
        }
    });
    let of = |x: &&Tensor| {
        let same_graph = x.graph().id() == graph.id();
        results.get(&x.output()).filter(|_| same_graph).cloned()
    };
    xs.iter().map(of).collect()
}

/// The sum of the gradients that an output received.
fn total(grads: Option<Vec<Tensor>>) -> Option<Tensor> {
    grads?.into_iter().reduce(|sum, grad| sum + grad)
}

/// The nodes on the ways from `xs` to `y`, in order.
fn nodes_between(snapshot: &GraphSnapshot, xs: &[&Tensor], y: NodeId) -> Vec<NodeId> {
    let n = y.0 as usize + 1;
    let mut reached = vec![false; n];
    for x in xs {
        if let Some(reached) = reached.get_mut(x.output().node.0 as usize) {
            *reached = true;
        }
    }
    for node in snapshot.nodes.iter().take(n) {
        let from_x = node.inputs.iter().any(|input| reached[input.node.0 as usize]);
        reached[node.id.0 as usize] |= from_x;
    }
    let mut needed = vec![false; n];
    needed[n - 1] = true;
    for id in (0..n).rev().filter(|&id| reached[id]) {
        if needed[id] {
            for input in &snapshot.nodes[id].inputs {
                needed[input.node.0 as usize] = true;
            }
        }
    }
    (0..n).filter(|&id| reached[id] && needed[id]).map(|id| NodeId(id as u32)).collect()
}
