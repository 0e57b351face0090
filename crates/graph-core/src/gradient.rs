//! Gradients, built as nodes of the graph, so that they can be differentiated again.

use std::panic::Location;

use rustc_hash::FxHashMap;

use crate::{DType, Graph, GraphSnapshot, Node, NodeId, Output, Tensor, Variable};

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

    /// The caller's line of the node.
    pub(crate) fn location(&self) -> &'static Location<'static> {
        self.node.location
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
        if self.dtype() == DType::String {
            return vec![None; xs.len()];
        }
        let ones = graph.scope("gradients", || self.like(1.0).broadcast_like(self));
        graph.gradients_from(vec![(self.clone(), ones)], xs, NodeId(0))
    }

    /// As [`Self::gradients`], of variables.
    #[track_caller]
    pub fn variable_gradients(&self, variables: &[Variable]) -> Vec<Option<Tensor>> {
        let xs: Vec<&Tensor> = variables.iter().map(Variable::value).collect();
        self.gradients(&xs)
    }
}

impl Graph {
    /// For each of `xs`, the gradient of the `ys`, which have gradients themselves, by way of the nodes from `from` on.
    pub(crate) fn gradients_from(
        &self,
        ys: Vec<(Tensor, Tensor)>,
        xs: &[&Tensor],
        from: NodeId,
    ) -> Vec<Option<Tensor>> {
        let snapshot = self.snapshot();
        let last: Vec<NodeId> = ys.iter().map(|(y, _)| y.output().node).collect();
        let between = nodes_between(&snapshot, xs, &last, from);
        let mut grads: FxHashMap<Output, Vec<Tensor>> = FxHashMap::default();
        for (y, dy) in ys {
            grads.entry(y.output()).or_default().push(dy);
        }
        let mut results: FxHashMap<Output, Tensor> = FxHashMap::default();
        self.scope("gradients", || {
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
                let tensor = |output: Output| Tensor::new(self.clone(), output);
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
            // What lies before `from` is only given its gradient.
            for x in xs.iter().filter(|x| x.output().node < from) {
                if let Some(grad) = total(grads.remove(&x.output())) {
                    results.insert(x.output(), grad);
                }
            }
        });
        let of = |x: &&Tensor| {
            let same_graph = x.graph().id() == self.id();
            results.get(&x.output()).filter(|_| same_graph).cloned()
        };
        xs.iter().map(of).collect()
    }
}

/// The sum of the gradients that an output received.
fn total(grads: Option<Vec<Tensor>>) -> Option<Tensor> {
    grads?.into_iter().reduce(|sum, grad| sum + grad)
}

/// The nodes from `from` on that lie on the ways from `xs` to `ys`, in order.
fn nodes_between(
    snapshot: &GraphSnapshot,
    xs: &[&Tensor],
    ys: &[NodeId],
    from: NodeId,
) -> Vec<NodeId> {
    let n = ys.iter().max().map_or(0, |y| y.0 as usize + 1);
    let first = (from.0 as usize).min(n);
    let mut reached = vec![false; n];
    for x in xs {
        if let Some(reached) = reached.get_mut(x.output().node.0 as usize) {
            *reached = true;
        }
    }
    for id in first..n {
        let inputs = &snapshot.nodes[id].inputs;
        reached[id] |= inputs.iter().any(|input| reached[input.node.0 as usize]);
    }
    let mut needed = vec![false; n];
    for y in ys {
        needed[y.0 as usize] = true;
    }
    for id in (first..n).rev().filter(|&id| reached[id]) {
        if needed[id] {
            for input in &snapshot.nodes[id].inputs {
                needed[input.node.0 as usize] = true;
            }
        }
    }
    (first..n).filter(|&id| reached[id] && needed[id]).map(|id| NodeId(id as u32)).collect()
}
