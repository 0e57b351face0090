//! How a loop is built: from a body that a closure builds, and again from a body that there is.

use std::panic::Location;
use std::sync::Arc;

use smallvec::SmallVec;

use super::trips::Given;
use super::{LoopOp, check_pred, trips};
use crate::ops::body::{Body, Built, Map, mapped, rebuild};
use crate::ops::branch::outputs;
use crate::{BodyId, Class, DType, Dim, Dims, Fact, Flow, Graph, OpError, Output, Tensor};

/// What a loop is to be built of.
pub(crate) struct LoopSpec {
    pub pred: Option<Tensor>,
    pub count: Option<Tensor>,
    pub carried: Vec<Tensor>,
    /// What is known of the shape of each carried tensor in every iteration; nothing for those that keep the shape that
    /// they have first.
    pub invariants: Vec<Option<Dims>>,
    pub scanned: Vec<Tensor>,
    pub max: Option<u64>,
    pub reverse: bool,
    pub trips: Option<u64>,
    /// See [`LoopOp::counted_by`].
    pub counted_by: Vec<Output>,
}

/// What one iteration gives.
pub(crate) struct Iteration {
    pub pred: Option<Tensor>,
    pub carried: Vec<Tensor>,
    pub collected: Vec<Tensor>,
}

/// A loop's outputs, and what `build` gives beside an iteration.
pub(crate) fn repeat<R>(
    graph: &Graph,
    spec: LoopSpec,
    at: &'static Location<'static>,
    build: impl FnOnce(&[Tensor], &[Tensor]) -> (Iteration, R),
) -> (Vec<Tensor>, R) {
    let mut inputs: Vec<Tensor> = spec.pred.iter().chain(&spec.count).cloned().collect();
    inputs.extend(spec.carried.iter().chain(&spec.scanned).cloned());
    let n = spec.carried.len();
    let (expected, length, problem) = spec.expected(graph);
    let mut counts = (false, 0);
    let (built, more) = Built::new(graph, expected.clone(), at, |params| {
        let (carried, slices) = params.split_at(n);
        let (iteration, more) = build(carried, slices);
        counts = (iteration.pred.is_some(), iteration.carried.len());
        let Iteration { pred, carried, collected } = iteration;
        (pred.into_iter().chain(carried).chain(collected).collect(), more)
    });
    let op = match problem {
        Some(problem) => Err(problem),
        None => LoopOp::build(graph, &spec, expected, length, built, counts),
    };
    let op = op.unwrap_or_else(LoopOp::refused);
    inputs.extend(op.body.captures.iter().map(|&output| Tensor::new(graph.clone(), output)));
    (outputs(graph, Arc::new(op), &inputs, "while", at), more)
}

impl LoopSpec {
    /// What the body's parameters are like, the number of slices, and what is wrong with the inputs.
    fn expected(&self, graph: &Graph) -> (Vec<Fact>, Dim, Option<OpError>) {
        let given = self.pred.iter().chain(&self.count).chain(&self.carried).chain(&self.scanned);
        let foreign = given.clone().find(|tensor| tensor.graph().id() != graph.id());
        let mut problem = foreign
            .map(|tensor| OpError::Invalid(format!("{} belongs to another graph", tensor.name())));
        let mut expected: Vec<Fact> = Vec::new();
        for (at, tensor) in self.carried.iter().enumerate() {
            let own = tensor.dims();
            let dims = match self.invariants.get(at).cloned().flatten() {
                Some(dims) if !is_within(&own, &dims) => {
                    problem = Some(OpError::Invalid(format!(
                        "loop variable {at} begins as {own}, which its invariant {dims} does not admit"
                    )));
                    own
                }
                Some(dims) => dims,
                None => own,
            };
            expected.push(Fact::new(tensor.dtype(), dims));
        }
        let (n, given) = (self.carried.len(), self.invariants.len());
        if given > n {
            problem = Some(OpError::Invalid(format!("{n} loop variables and {given} invariants")));
        }
        let mut length = Dim::Unknown;
        for tensor in &self.scanned {
            let fact = tensor.fact();
            let slice = slice(&fact, &mut length).unwrap_or_else(|wrong| {
                problem = Some(OpError::Invalid(format!("{} {wrong}", tensor.name())));
                Fact::new(fact.dtype, fact.dims)
            });
            expected.push(slice);
        }
        (expected, length, problem)
    }
}

/// What a slice of a scanned tensor is like. `length` is the number of slices as the others have it.
///
/// # Errors
/// What is wrong with the tensor.
pub(super) fn slice(scanned: &Fact, length: &mut Dim) -> Result<Fact, String> {
    let dims = match scanned.dims.dims() {
        None => Dims::UnknownRank,
        Some([]) => return Err("is a scalar; a loop goes over axis 0".to_owned()),
        Some([size, rest @ ..]) => {
            let both = length.unify(*size);
            *length = both.ok_or_else(|| format!("has {size} slices, and another has {length}"))?;
            Dims::Known(rest.into())
        }
    };
    Ok(Fact::new(scanned.dtype, dims))
}

impl LoopOp {
    pub(super) fn refused(reason: OpError) -> Self {
        let (params, results) = (Vec::new(), Vec::new());
        let body = Body::sketch(BodyId::GRAPH, params, results, Vec::new());
        Self {
            body,
            has_pred: false,
            has_count: false,
            n_carried: 0,
            n_scanned: 0,
            n_collected: 0,
            max: None,
            reverse: false,
            trips: None,
            counted_by: Vec::new(),
            unrolled: false,
            size: Dim::Unknown,
            outputs: SmallVec::new(),
            places: Vec::new(),
            expected: Vec::new(),
            refused: Some(reason),
        }
    }

    fn build(
        graph: &Graph,
        spec: &LoopSpec,
        expected: Vec<Fact>,
        length: Dim,
        built: Built,
        (has_pred, n_next): (bool, usize),
    ) -> Result<Self, OpError> {
        let n = spec.carried.len();
        let (body, n_results) = built.finish(graph)?;
        if n_next != n {
            let message = format!("a loop of {n} variables gives {n_next} for the next iteration");
            return Err(OpError::Invalid(message));
        }
        let counted = match (has_pred, &spec.count, spec.max, length) {
            _ if spec.trips.is_some() => None,
            (true, None, ..) if spec.scanned.is_empty() => spec.pred.as_ref().and_then(|pred| {
                let carried: Vec<Output> = spec.carried.iter().map(Tensor::output).collect();
                let (start, mut all) = ((pred.output(), &carried[..]), u64::MAX);
                trips::count(&graph.snapshot(), start, spec.max, &body, &mut all)
            }),
            (false, None, max, Dim::Known(n)) => {
                let scanned = spec.scanned.iter().map(|tensor| Given::Shape(tensor.output()));
                let by = trips::folded_from(&graph.snapshot(), scanned);
                Some((max.unwrap_or(u64::MAX).min(n as u64), by))
            }
            _ => None,
        };
        let (trips, mut counted_by) = match counted {
            Some((trips, by)) => (Some(trips), by),
            None => (spec.trips, spec.counted_by.clone()),
        };
        counted_by.extend(inner_counted_by(&body));
        let mut op = Self {
            body,
            has_pred,
            has_count: spec.count.is_some(),
            n_carried: n,
            n_scanned: spec.scanned.len(),
            n_collected: n_results - usize::from(has_pred) - n,
            max: spec.max,
            reverse: spec.reverse,
            trips,
            counted_by,
            expected,
            ..Self::refused(OpError::apart())
        };
        op.check_body()?;
        let size = trips.and_then(|n| usize::try_from(n).ok()).map(Dim::Known);
        let goes_over_all = !has_pred && spec.max.is_none() && length != Dim::Unknown;
        let of_length = || if goes_over_all { length } else { graph.symbol() };
        op.size = size.unwrap_or_else(of_length);
        op.unrolled = trips::is_unrolled(&op);
        Ok(op.complete())
    }

    /// Checks that the body gives what the loop carries, and that something ends it.
    pub(super) fn check_body(&self) -> Result<(), OpError> {
        let facts = &self.body.facts;
        check_next(&self.expected[..self.n_carried], &facts[self.next_at()..])?;
        if let Some(pred) = facts.first().filter(|_| self.has_pred) {
            check_pred(pred)?;
        }
        let is_bounded = self.has_pred || self.has_count || self.max.is_some();
        if !is_bounded && self.n_scanned == 0 {
            return Err(OpError::Invalid("nothing ends the loop".into()));
        }
        Ok(())
    }

    /// Itself, with what its outputs are like: it is a loop of a graph now.
    pub(super) fn complete(mut self) -> Self {
        let stacked = |fact: &Fact| {
            let dims = fact.dims.dims().map_or(Dims::UnknownRank, |dims| {
                std::iter::once(self.size).chain(dims.iter().copied()).collect()
            });
            Fact::new(fact.dtype, dims)
        };
        let carried = &self.expected[..self.n_carried];
        let collected = &self.body.facts[self.next_at() + self.n_carried..];
        let (collected, residuals) = collected.split_at(self.n_collected);
        let count = [Fact::new(DType::I64, Vec::new())];
        self.outputs = (carried.iter().cloned())
            .chain(collected.iter().map(stacked))
            .chain(count)
            .chain(carried.iter().map(stacked))
            .chain(residuals.iter().map(stacked))
            .collect();
        self.refused = None;
        self
    }
}

/// What the lengths of loops in a body were counted by.
pub(super) fn inner_counted_by(body: &Body) -> Vec<Output> {
    let inner = body.nodes.iter().filter_map(|node| match node.op.class() {
        Class::Flow(Flow::Loop(inner)) => Some(&inner.counted_by),
        _ => None,
    });
    inner.flatten().copied().collect()
}

/// # Errors
/// What is carried next is not like what is carried.
fn check_next(carried: &[Fact], next: &[Fact]) -> Result<(), OpError> {
    for (at, (next, fact)) in next.iter().zip(carried).enumerate() {
        if next.dtype != fact.dtype {
            let message =
                format!("loop variable {at} is {} and becomes {}", fact.dtype, next.dtype);
            return Err(OpError::Invalid(message));
        }
        if fact.dims.unify(&next.dims).is_err() {
            let message = format!(
                "loop variable {at} is {} and becomes {}; give it a shape that is both in \
                 LoopOptions::invariants",
                fact.dims, next.dims
            );
            return Err(OpError::Invalid(message));
        }
    }
    Ok(())
}

/// Whether every shape of `inner` is one of `outer`.
fn is_within(inner: &Dims, outer: &Dims) -> bool {
    match (inner.dims(), outer.dims()) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(inner), Some(outer)) => {
            let fits = |(a, b): (&Dim, &Dim)| *b == Dim::Unknown || a == b;
            inner.len() == outer.len() && inner.iter().zip(outer).all(fits)
        }
    }
}

/// The outputs of a loop whose body takes what it gave before instead of what gives something else each time. `given`
/// are its residuals.
pub(crate) fn replay_loop(
    graph: &Graph,
    op: &LoopOp,
    inputs: &[Tensor],
    given: &[Tensor],
    at: &'static Location<'static>,
) -> Vec<Tensor> {
    let (pred, count, carried, scanned, captures) = op.split(inputs);
    let expected = op.expected.iter().take(op.n_carried);
    let spec = LoopSpec {
        pred: pred.cloned(),
        count: count.cloned(),
        carried: carried.to_vec(),
        invariants: expected.map(|fact| Some(fact.dims.clone())).collect(),
        scanned: scanned.iter().chain(given).cloned().collect(),
        max: op.max,
        reverse: op.reverse,
        trips: op.trips,
        counted_by: op.counted_by.clone(),
    };
    let body = &op.body;
    let n_own = body.results.len() - given.len();
    let (outputs, ()) = repeat(graph, spec, at, |carried, slices| {
        let (slices, residuals) = slices.split_at(op.n_scanned);
        let mut map: Map = body.captures.iter().copied().zip(captures.iter().cloned()).collect();
        map.extend(body.params.iter().copied().zip(carried.iter().chain(slices).cloned()));
        map.extend(body.results[n_own..].iter().copied().zip(residuals.iter().cloned()));
        rebuild(graph, body, &body.results[..n_own], &mut map);
        let mut results = body.results[..n_own].iter().map(|&result| mapped(graph, &map, result));
        let pred = if op.has_pred { results.next() } else { None };
        let carried = results.by_ref().take(op.n_carried).collect();
        (Iteration { pred, carried, collected: results.collect() }, ())
    });
    outputs
}
