//! Branches: one of several bodies runs, as an index says.
//!
//! Source: TensorFlow's `cond`, `case` and `switch_case`; the gradient is a branch of the same index whose bodies compute
//! again what they need.

use std::panic::Location;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::ops::bodies::{Restoring, body_of, count_of, outputs_of, pairs, recaptured};
use crate::ops::body::{Body, Built, Map, mapped, rebuild};
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, BodyId, Class, DType, Dim, Dims, Fact, Flow, Graph, HostTensor, NodeId,
    Op, OpError, Output, Shape, Tensor,
};

/// One of several bodies runs.
///
/// Inputs: the index, a scalar of i32 or bool, then the captures. Outputs: the results, then each body's residuals, of
/// which those of other bodies than the one that ran are zeros.
#[derive(Debug, Clone)]
pub struct BranchOp {
    /// The bodies. They have no parameters. An index beyond them, or below 0, means the last.
    pub branches: Vec<Body>,
    /// How many results each body gives, residuals left out.
    pub n_results: usize,
    /// What any body captures; the inputs after the index.
    pub captures: Vec<Output>,
    /// What bodies run after.
    pub(crate) before: Vec<NodeId>,
    outputs: SmallVec<[Fact; 1]>,
    refused: Option<OpError>,
}

impl BranchOp {
    /// The body that an index chooses.
    pub fn chosen(&self, index: i64) -> usize {
        let last = self.branches.len().saturating_sub(1);
        usize::try_from(index).map_or(last, |index| index.min(last))
    }

    /// Where the residuals of a body lie among the outputs.
    pub fn residuals_of(&self, branch: usize) -> std::ops::Range<usize> {
        let n = |body: &Body| body.results.len() - self.n_results;
        let start = self.n_results + self.branches[..branch].iter().map(n).sum::<usize>();
        start..start + n(&self.branches[branch])
    }

    /// Among which results of a body an output lies; `None` if that body does not give it.
    pub fn result_of(&self, branch: usize, output: usize) -> Option<usize> {
        let own = self.residuals_of(branch);
        match output {
            output if output < self.n_results => Some(output),
            output if own.contains(&output) => Some(self.n_results + output - own.start),
            _ => None,
        }
    }

    /// The same for bodies of fewer nodes, with what those capture.
    pub(crate) fn narrowed(&self, branches: Vec<Body>, captures: Vec<Output>) -> Self {
        let (n_results, before) = (self.n_results, before(&branches));
        let (outputs, refused) = (self.outputs.clone(), self.refused.clone());
        Self { branches, n_results, captures, before, outputs, refused }
    }

    /// Zeros for an output that the body that ran does not give. A size that is not known is 0.
    ///
    /// # Errors
    /// No memory.
    pub fn absent(&self, output: usize) -> crate::Result<HostTensor> {
        absent(&self.outputs[output])
    }
}

/// Zeros of what is known of a tensor; a size that is not known is 0.
pub(crate) fn absent(fact: &Fact) -> crate::Result<HostTensor> {
    let dims = fact.dims.dims().unwrap_or(&[Dim::Unknown]);
    let sizes: SmallVec<[usize; 6]> = dims.iter().map(|dim| dim.known().unwrap_or(0)).collect();
    HostTensor::zeros(fact.dtype, Shape::new(&sizes)?)
}

/// What a branch gives, for bodies that were built.
pub(crate) fn branch(
    graph: &Graph,
    index: &Tensor,
    built: Vec<Built>,
    at: &'static Location<'static>,
) -> Vec<Tensor> {
    let bodies = built.into_iter().map(|built| built.finish(graph));
    let bodies: Result<Vec<(Body, usize)>, OpError> = bodies.collect();
    let op = match bodies {
        Ok(bodies) => BranchOp::of(bodies),
        Err(reason) => BranchOp::refused(reason),
    };
    let capture = |&output: &Output| Tensor::new(graph.clone(), output);
    let inputs: Vec<Tensor> =
        std::iter::once(index.clone()).chain(op.captures.iter().map(capture)).collect();
    outputs(graph, Arc::new(op), &inputs, "cond", at)
}

/// All outputs of a new node.
pub(crate) fn outputs(
    graph: &Graph,
    op: Arc<dyn Op>,
    inputs: &[Tensor],
    name: &str,
    at: &'static Location<'static>,
) -> Vec<Tensor> {
    let node = graph.append(op, inputs, name, at);
    let n = graph.node(node).facts.len() as u32;
    (0..n).map(|index| Tensor::new(graph.clone(), Output { node, index })).collect()
}

impl BranchOp {
    fn refused(reason: OpError) -> Self {
        Self {
            branches: Vec::new(),
            n_results: 0,
            captures: Vec::new(),
            before: Vec::new(),
            outputs: SmallVec::new(),
            refused: Some(reason),
        }
    }

    fn of(bodies: Vec<(Body, usize)>) -> Self {
        let Some(n_results) = bodies.first().map(|(_, n)| *n) else {
            return Self::refused(OpError::Invalid("a branch needs at least one body".into()));
        };
        let mut captures: Vec<Output> =
            bodies.iter().flat_map(|(body, _)| body.captures.iter().copied()).collect();
        captures.sort_unstable();
        captures.dedup();
        let mut results: Vec<Fact> = Vec::new();
        for (at, (body, n)) in bodies.iter().enumerate() {
            if *n != n_results {
                let message = format!("branch 0 gives {n_results} tensors and branch {at} {n}");
                return Self::refused(OpError::Invalid(message));
            }
            for (i, fact) in body.facts[..n_results].iter().enumerate() {
                match results.get_mut(i) {
                    None => results.push(Fact::new(fact.dtype, fact.dims.clone())),
                    Some(first) if first.dtype != fact.dtype => {
                        let message = format!(
                            "result {i} is {} in branch 0 and {} in branch {at}; cast one of them",
                            first.dtype, fact.dtype
                        );
                        return Self::refused(OpError::Invalid(message));
                    }
                    Some(first) => first.dims = common(&first.dims, &fact.dims),
                }
            }
        }
        let own = bodies.iter().flat_map(|(body, _)| &body.facts[n_results..]);
        let outputs = results.iter().chain(own);
        let outputs = outputs.map(|fact| Fact::new(fact.dtype, fact.dims.clone())).collect();
        let branches: Vec<Body> = bodies.into_iter().map(|(body, _)| body).collect();
        let before = before(&branches);
        Self { branches, n_results, captures, before, outputs, refused: None }
    }
}

/// What any of some bodies runs after.
fn before(bodies: &[Body]) -> Vec<NodeId> {
    let mut before: Vec<NodeId> =
        bodies.iter().flat_map(|body| body.before.iter().copied()).collect();
    before.sort_unstable();
    before.dedup();
    before
}

/// What two shapes have in common.
fn common(a: &Dims, b: &Dims) -> Dims {
    match (a.dims(), b.dims()) {
        (Some(a), Some(b)) if a.len() == b.len() => {
            let dim = |(a, b): (&Dim, &Dim)| if a == b { *a } else { Dim::Unknown };
            a.iter().zip(b).map(dim).collect()
        }
        _ => Dims::UnknownRank,
    }
}

impl Op for BranchOp {
    fn name(&self) -> &str {
        "cond"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        if let Some(reason) = &self.refused {
            return Err(reason.clone());
        }
        if inputs.len() != 1 + self.captures.len() {
            let expected = 1 + self.captures.len();
            return Err(OpError::Arity { expected, found: inputs.len() });
        }
        inputs[0].expect("the condition of a branch", "bool or i32", |dtype| {
            matches!(dtype, DType::Bool | DType::I32)
        })?;
        inputs[0].dims.unify(&Dims::from([0usize; 0]))?;
        Ok(self.outputs.clone())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        if let Some(reason) = &self.refused {
            return Err(reason.clone());
        }
        let (index, captures) =
            inputs.split_first().ok_or(OpError::Arity { expected: 1, found: 0 })?;
        let index = index_of(index)?;
        let chosen = self.chosen(index);
        let captures: FxHashMap<Output, HostTensor> =
            self.captures.iter().copied().zip(captures.iter().cloned()).collect();
        let results = self.branches[chosen].eval(&[], &captures)?;
        let result = |output: usize| match self.result_of(chosen, output) {
            Some(at) => Ok(results[at].clone()),
            None => Ok(self.absent(output)?),
        };
        (0..self.outputs.len()).map(result).collect()
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let mut grads = vec![None; backward.n_inputs()];
        let graph = backward.input(0).graph();
        let wanted: Vec<usize> = (0..self.n_results)
            .filter(|&i| backward.dy_of(i).is_some() && self.outputs[i].dtype.is_float())
            .collect();
        let reached = |body: &Body| {
            let to: Vec<Output> = wanted.iter().map(|&i| body.results[i]).collect();
            body.reaching(&self.captures, &to)
        };
        let reached: Vec<_> = self.branches.iter().map(reached).collect();
        let active: Vec<usize> = (0..self.captures.len())
            .filter(|&i| {
                let is_reached = reached.iter().any(|reached| reached.contains(&self.captures[i]));
                is_reached && backward.input(1 + i).dtype().is_float()
            })
            .collect();
        if active.is_empty() {
            return grads;
        }
        let at = backward.location();
        let built = self.branches.iter().enumerate().map(|(chosen, body)| {
            Built::new(graph, Vec::new(), at, |_| {
                let mut map: Map = (self.captures.iter().copied())
                    .zip((0..self.captures.len()).map(|i| backward.input(1 + i).clone()))
                    .collect();
                let own = self.residuals_of(chosen);
                let residuals = own.map(|output| backward.output(output).clone());
                map.extend(body.results[self.n_results..].iter().copied().zip(residuals));
                let results: Vec<Output> = wanted.iter().map(|&i| body.results[i]).collect();
                let from = graph.next_id();
                rebuild(graph, body, &results, &mut map);
                let seeds = wanted.iter().zip(&results).filter_map(|(&i, &result)| {
                    Some((mapped(graph, &map, result), backward.dy_of(i)?))
                });
                let xs: Vec<&Tensor> = active.iter().map(|&i| backward.input(1 + i)).collect();
                let own = graph.gradients_from(seeds.collect(), &xs, from);
                let or_zeros = |(grad, x): (Option<Tensor>, &Tensor)| {
                    grad.unwrap_or_else(|| x.like(0.0).broadcast_like(x))
                };
                (own.into_iter().zip(xs).map(or_zeros).collect(), ())
            })
            .0
        });
        let given = branch(graph, backward.input(0), built.collect(), at);
        for (&i, grad) in active.iter().zip(given) {
            grads[1 + i] = Some(grad);
        }
        grads
    }

    fn class(&self) -> Class<'_> {
        Class::Flow(Flow::Branch(self))
    }

    fn encode(&self) -> Option<Attributes> {
        if self.branches.is_empty() {
            return None;
        }
        let ids = self.branches.iter().map(|body| body.id.0);
        let counts = self.branches.iter().map(|body| body.results.len());
        let results = self.branches.iter().flat_map(|body| &body.results);
        Some(
            Attributes::of(self.name())
                .with("bodies", ids.collect::<Vec<_>>())
                .with("n_results", self.n_results)
                .with("counts", counts.collect::<Vec<_>>())
                .with("results", pairs(results))
                .with("captures", pairs(&self.captures)),
        )
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[("cond", |a| Ok(Arc::new(BranchOp::decode(a)?)))];

impl BranchOp {
    fn decode(a: &Attributes) -> Result<Self, OpError> {
        let (ids, counts): (Vec<u32>, Vec<usize>) = (a.ints("bodies")?, a.ints("counts")?);
        let (n_results, results) = (a.int("n_results")?, outputs_of(a, "results")?);
        let n = counts.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        if ids.len() != counts.len() || n != Some(results.len()) || ids.is_empty() {
            let (ids, counts, n) = (ids.len(), counts.len(), results.len());
            return Err(OpError::Invalid(format!(
                "{ids} bodies, {counts} numbers of results, and {n} results do not belong together"
            )));
        }
        if counts.iter().any(|&n| n < n_results) {
            let message = format!("expected {n_results} results of each body, got {counts:?}");
            return Err(OpError::Invalid(message));
        }
        let mut rest = &results[..];
        let body = |(&id, &n): (&u32, &usize)| {
            let (own, more) = rest.split_at(n);
            rest = more;
            Ok(Body::sketch(body_of(id)?, Vec::new(), own.to_vec(), Vec::new()))
        };
        let branches = ids.iter().zip(&counts).map(body).collect::<Result<_, OpError>>()?;
        let captures = outputs_of(a, "captures")?;
        Ok(Self { branches, n_results, captures, ..Self::refused(OpError::apart()) })
    }

    /// The same for nodes and bodies of other ids; it belongs to no graph until one is put together with it.
    pub(crate) fn renumbered<E>(
        &self,
        output: &mut dyn FnMut(Output) -> Result<Output, E>,
        body: &mut dyn FnMut(BodyId) -> Result<BodyId, E>,
    ) -> Result<Self, E> {
        let branches = self.branches.iter().map(|own| own.renumbered(output, body));
        let branches = branches.collect::<Result<_, E>>()?;
        let captures = self.captures.iter().map(|&key| output(key)).collect::<Result<_, E>>()?;
        let n_results = self.n_results;
        Ok(Self { branches, n_results, captures, ..Self::refused(OpError::apart()) })
    }

    /// Itself, of the nodes that a graph has so far. What it captures becomes its last inputs.
    ///
    /// # Errors
    /// What no program could have built.
    pub(crate) fn restored(
        &self,
        at: &mut Restoring<'_>,
        inputs: &mut Vec<Output>,
    ) -> Result<Self, OpError> {
        let bodies = self.branches.iter().map(|body| {
            count_of("parameters", 0, body.params.len())?;
            Ok((at.body(body, self.n_results)?, self.n_results))
        });
        let op = Self::of(bodies.collect::<Result<_, OpError>>()?);
        if let Some(reason) = op.refused {
            return Err(reason);
        }
        *inputs = recaptured(at.graph, inputs, 1, &self.captures, &op.captures)?;
        Ok(op)
    }
}

/// The index that the first input of a branch gives.
///
/// # Errors
/// It is no integer and no bool, or not one.
pub fn index_of(index: &HostTensor) -> crate::Result<i64> {
    match index.dtype() {
        DType::Bool => Ok(i64::from(index.scalar::<bool>()?)),
        _ => Ok(i64::from(index.scalar::<i32>()?)),
    }
}

/// The outputs of a branch whose bodies take what they gave before instead of what gives something else each time.
/// `given` are its residuals.
pub(crate) fn replay_branch(
    graph: &Graph,
    op: &BranchOp,
    inputs: &[Tensor],
    given: &[Tensor],
    at: &'static Location<'static>,
) -> Vec<Tensor> {
    let built = op.branches.iter().enumerate().map(|(chosen, body)| {
        Built::new(graph, Vec::new(), at, |_| {
            let mut map: Map =
                op.captures.iter().copied().zip(inputs[1..].iter().cloned()).collect();
            let own = op.residuals_of(chosen).map(|output| given[output - op.n_results].clone());
            map.extend(body.results[op.n_results..].iter().copied().zip(own));
            let results = &body.results[..op.n_results];
            rebuild(graph, body, results, &mut map);
            (results.iter().map(|&result| mapped(graph, &map, result)).collect(), ())
        })
        .0
    });
    branch(graph, &inputs[0], built.collect(), at)
}
