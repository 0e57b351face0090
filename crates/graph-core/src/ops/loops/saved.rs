//! What files keep of loops.

use std::sync::Arc;

use super::trips::Given;
use super::{LoopOp, build, trips};
use crate::ops::bodies::{Restoring, body_of, count_of, outputs_of, pairs, recaptured};
use crate::ops::body::Body;
use crate::ops::registry::Decode;
use crate::{Attributes, BodyId, Class, Dim, Dims, Fact, Flow, NodeId, Op, OpError, Output};

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[("while", |a| Ok(Arc::new(LoopOp::decode(a)?)))];

impl LoopOp {
    pub(super) fn encoded(&self) -> Option<Attributes> {
        let body = &self.body;
        if body.id == BodyId::GRAPH {
            return None;
        }
        let params: Vec<u32> = body.params.iter().map(|param| param.node.0).collect();
        Some(
            Attributes::of(self.name())
                .with("body", body.id.0)
                .with("params", params)
                .with("results", pairs(&body.results))
                .with("captures", pairs(&body.captures))
                .with("has_pred", self.has_pred)
                .with("has_count", self.has_count)
                .with("n_carried", self.n_carried)
                .with("n_scanned", self.n_scanned)
                .with("n_collected", self.n_collected)
                .with_some("max", self.max)
                .with("reverse", self.reverse)
                .with_some("trips", self.trips)
                .with("size", Dims::from_iter([self.size])),
        )
    }

    fn decode(a: &Attributes) -> Result<Self, OpError> {
        let params: Vec<u32> = a.ints("params")?;
        let param = |&node: &u32| Output { node: NodeId(node), index: 0 };
        let params = params.iter().map(param).collect();
        let (results, captures) = (outputs_of(a, "results")?, outputs_of(a, "captures")?);
        let optional = |name: &str| a.get(name).map(|_| a.int(name)).transpose();
        let size = match a.dims("size")?.dims() {
            Some(&[size]) => size,
            _ => return Err(OpError::Invalid("the size of stacks is one size".into())),
        };
        let op = Self {
            body: Body::sketch(body_of(a.int("body")?)?, params, results, captures),
            has_pred: a.bool("has_pred")?,
            has_count: a.bool("has_count")?,
            n_carried: a.int("n_carried")?,
            n_scanned: a.int("n_scanned")?,
            n_collected: a.int("n_collected")?,
            max: optional("max")?,
            reverse: a.bool("reverse")?,
            trips: optional("trips")?,
            size,
            ..Self::refused(OpError::apart())
        };
        op.check_counts()?;
        Ok(op)
    }

    /// Whether the parameters and results are as many as the loop needs. Gives how many results are not there for
    /// gradients only.
    fn check_counts(&self) -> Result<usize, OpError> {
        let n_params = self.n_carried.saturating_add(self.n_scanned);
        count_of("parameters", n_params, self.body.params.len())?;
        let n_results = self.next_at().saturating_add(self.n_carried);
        let n_results = n_results.saturating_add(self.n_collected);
        let n = self.body.results.len();
        if n < n_results {
            let message = format!("expected at least {n_results} results of a body, got {n}");
            return Err(OpError::Invalid(message));
        }
        Ok(n_results)
    }

    /// The same for nodes and bodies of other ids; it belongs to no graph until one is put together with it.
    pub(crate) fn renumbered<E>(
        &self,
        output: &mut dyn FnMut(Output) -> Result<Output, E>,
        body: &mut dyn FnMut(BodyId) -> Result<BodyId, E>,
    ) -> Result<Self, E> {
        let body = self.body.renumbered(output, body)?;
        Ok(Self { body, refused: Some(OpError::apart()), ..self.clone() })
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
        let n_results = self.check_counts()?;
        let body = at.body(&self.body, n_results)?;
        let head = self.inputs_at()[2];
        *inputs = recaptured(at.graph, inputs, head, &self.body.captures, &body.captures)?;
        let expected = body.params.iter().map(|&param| at.graph.fact(param).clone()).collect();
        let mut op = Self { body, expected, unrolled: false, ..self.clone() };
        op.check_body()?;
        let length = op.check_inputs(at, inputs)?;
        let (known, by) = match op.known_trips(at, inputs, length) {
            Some((trips, by)) => (Some(trips), by),
            None => (None, Vec::new()),
        };
        op.counted_by = by;
        op.counted_by.extend(build::inner_counted_by(&op.body));
        if let (Some(said), Some(known)) = (op.trips, known.filter(|_| op.trips != known)) {
            let message = format!("the loop makes {known} iterations, and the graph says {said}");
            return Err(OpError::Invalid(message));
        }
        let is_size = match (op.trips, op.size) {
            (Some(trips), Dim::Known(size)) => trips == size as u64,
            (Some(_), _) => false,
            (None, Dim::Known(_)) => op.size == length,
            (None, _) => true,
        };
        if !is_size {
            let (trips, size) = (op.trips, op.size);
            let message = format!("stacks of {size} slices from {trips:?} iterations");
            return Err(OpError::Invalid(message));
        }
        // A number that nothing shows is checked when the loop runs.
        op.unrolled = known.is_some() && trips::is_unrolled(&op);
        Ok(op.complete())
    }

    /// Checks what is carried and scanned. Gives the number of slices.
    fn check_inputs(&self, at: &Restoring<'_>, inputs: &[Output]) -> Result<Dim, OpError> {
        let (.., carried, scanned, _) = self.split(inputs);
        let mut length = Dim::Unknown;
        let fits = |fact: &Fact, expected: &Fact| {
            if fact.dtype != expected.dtype {
                return Err(OpError::DTypes { lhs: expected.dtype, rhs: fact.dtype });
            }
            expected.dims.unify(&fact.dims).map(|_| ())
        };
        let (of_carried, of_scanned) = self.expected.split_at(self.n_carried);
        for (&input, expected) in carried.iter().zip(of_carried) {
            fits(at.graph.fact(input), expected)?;
        }
        for (&input, expected) in scanned.iter().zip(of_scanned) {
            let slice = build::slice(at.graph.fact(input), &mut length).map_err(|wrong| {
                OpError::Invalid(format!("{} {wrong}", at.graph.node(input.node).name))
            })?;
            fits(&slice, expected)?;
        }
        Ok(length)
    }

    /// How many iterations there are, if the graph shows that, and what shows it.
    fn known_trips(
        &self,
        at: &mut Restoring<'_>,
        inputs: &[Output],
        length: Dim,
    ) -> Option<(u64, Vec<Output>)> {
        let mut counted_by = Vec::new();
        self.trips?;
        let (pred, count, carried, scanned, _) = self.split(inputs);
        let mut trips = self.max.unwrap_or(u64::MAX);
        if let Some(&pred) = pred {
            let graph = at.graph;
            let start = (pred, carried);
            let counted = trips::count(graph, start, self.max, &self.body, at.evaluations());
            (trips, counted_by) = counted?;
        }
        if let Some(count) = count {
            // The way back of a gradient goes as far as the loop went.
            let Class::Flow(Flow::Loop(op)) = at.graph.node(count.node).op.class() else {
                return None;
            };
            trips = trips.min(op.trips.filter(|_| count.index as usize == op.trips_at())?);
            counted_by.extend(&op.counted_by);
        }
        if self.n_scanned > 0 {
            trips = trips.min(length.known()? as u64);
            let scanned = scanned.iter().copied().map(Given::Shape);
            counted_by.extend(trips::folded_from(at.graph, scanned));
        }
        Some((trips, counted_by))
    }
}
