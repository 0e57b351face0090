//! The gradient of a loop: a loop that goes back over what the loop had at the start of each iteration.

use rustc_hash::FxHashSet;

use super::{Iteration, LoopOp, LoopSpec, repeat};
use crate::ops::body::{Map, mapped, rebuild};
use crate::{Backward, Graph, Output, Tensor};

/// What the gradient of a loop goes through.
pub(super) struct Way<'a> {
    op: &'a LoopOp,
    backward: &'a Backward<'a>,
    /// The carried tensors that have a gradient.
    carried: Vec<usize>,
    /// The scanned tensors and captures that get one.
    scanned: Vec<usize>,
    captures: Vec<usize>,
    /// The collected tensors that have one.
    collected: Vec<usize>,
    /// What an iteration needs of what the loop had: parameters of the body, and residuals.
    params: Vec<usize>,
    residuals: Vec<usize>,
}

impl<'a> Way<'a> {
    /// `None` if nothing gets a gradient.
    pub fn new(op: &'a LoopOp, backward: &'a Backward<'a>) -> Option<Self> {
        let body = &op.body;
        let next = &body.results[op.next_at()..];
        let is_float = |output: usize| op.outputs[output].dtype.is_float();
        let collected: Vec<usize> = (0..op.n_collected)
            .filter(|&i| is_float(op.n_carried + i) && backward.dy_of(op.n_carried + i).is_some())
            .collect();
        let mut carried: FxHashSet<usize> = (0..op.n_carried)
            .filter(|&i| {
                let history = backward.dy_of(op.history_at() + i);
                is_float(i) && (backward.dy_of(i).is_some() || history.is_some())
            })
            .collect();
        let reached = loop {
            let to: Vec<Output> = (carried.iter().map(|&i| next[i]))
                .chain(collected.iter().map(|&i| next[op.n_carried + i]))
                .collect();
            let from: Vec<Output> = body.params.iter().chain(&body.captures).copied().collect();
            let reached = body.reaching(&from, &to);
            let before = carried.len();
            let params = body.params.iter().take(op.n_carried).enumerate();
            let more = params.filter(|(i, param)| is_float(*i) && reached.contains(*param));
            carried.extend(more.map(|(i, _)| i));
            if carried.len() == before {
                break reached;
            }
        };
        let mut carried: Vec<usize> = carried.into_iter().collect();
        carried.sort_unstable();
        let [_, scanned_at, captures_at] = op.inputs_at();
        let gets = |input: usize, output: Output| {
            backward.input(input).dtype().is_float() && reached.contains(&output)
        };
        let slices = body.params[op.n_carried..].iter().enumerate();
        let scanned: Vec<usize> =
            slices.filter(|(i, p)| gets(scanned_at + i, **p)).map(|(i, _)| i).collect();
        let captures = body.captures.iter().enumerate();
        let captures: Vec<usize> =
            captures.filter(|(i, c)| gets(captures_at + i, **c)).map(|(i, _)| i).collect();
        let is_any = !carried.is_empty() || !scanned.is_empty() || !captures.is_empty();
        let way = Self {
            op,
            backward,
            carried,
            scanned,
            captures,
            collected,
            params: Vec::new(),
            residuals: Vec::new(),
        };
        is_any.then(|| way.with_needs())
    }

    /// Itself, with what an iteration needs of what the loop had.
    fn with_needs(mut self) -> Self {
        let (op, body) = (self.op, &self.op.body);
        let next = &body.results[op.next_at()..];
        let wanted: Vec<Output> = (self.carried.iter().map(|&i| next[i]))
            .chain(self.collected.iter().map(|&i| next[op.n_carried + i]))
            .collect();
        let needed = body.needed_by(&wanted);
        let gets = |i: usize| {
            let slice = i.checked_sub(op.n_carried);
            self.carried.contains(&i) || slice.is_some_and(|i| self.scanned.contains(&i))
        };
        let params = body.params.iter().enumerate();
        let params = params.filter(|(i, param)| gets(*i) || needed.contains(*param));
        let params = params.map(|(i, _)| i).collect();
        let n_residuals = op.outputs.len() - op.residuals_at();
        let residuals = body.results[body.results.len() - n_residuals..].iter().enumerate();
        let residuals = residuals.filter(|(_, output)| needed.contains(*output));
        self.residuals = residuals.map(|(i, _)| i).collect();
        self.params = params;
        self
    }

    /// What goes back from iteration to iteration: the gradients of what is carried, and the sums of those of captures.
    fn start(&self) -> Vec<Tensor> {
        let zeros = |x: &Tensor| x.like(0.0).broadcast_like(x);
        let of_carried = self
            .carried
            .iter()
            .map(|&i| self.backward.dy_of(i).unwrap_or_else(|| zeros(self.backward.output(i))));
        let captures_at = self.op.inputs_at()[2];
        let of_captures =
            self.captures.iter().map(|&i| zeros(self.backward.input(captures_at + i)));
        of_carried.chain(of_captures).collect()
    }

    /// What each iteration gets a slice of: what was carried, what the loop scanned, the residuals; then gradients of
    /// what was collected and of the history.
    fn scanned(&self) -> Vec<Tensor> {
        let (op, backward) = (self.op, self.backward);
        let scanned_at = op.inputs_at()[1];
        let param = |&i: &usize| match i.checked_sub(op.n_carried) {
            Some(i) => backward.input(scanned_at + i).clone(),
            None => backward.output(op.history_at() + i).clone(),
        };
        let residual = |&i: &usize| backward.output(op.residuals_at() + i).clone();
        (self.params.iter().map(param))
            .chain(self.residuals.iter().map(residual))
            .chain(self.collected.iter().filter_map(|&i| backward.dy_of(op.n_carried + i)))
            .chain(self.carried.iter().filter_map(|&i| backward.dy_of(op.history_at() + i)))
            .collect()
    }

    pub fn build(&self, grads: &mut [Option<Tensor>]) {
        let (op, backward) = (self.op, self.backward);
        let trips = backward.output(op.trips_at());
        let graph = trips.graph();
        let carried = self.start();
        let spec = LoopSpec {
            pred: None,
            count: Some(trips.clone()),
            invariants: vec![None; carried.len()],
            carried,
            scanned: self.scanned(),
            max: None,
            reverse: !op.reverse,
            trips: op.trips,
            counted_by: op.counted_by.clone(),
        };
        let [carried_at, scanned_at, captures_at] = op.inputs_at();
        let (given, ()) = repeat(graph, spec, backward.location(), |back, slices| {
            (self.iteration(graph, back, slices), ())
        });
        let mut given = given.into_iter();
        for &i in &self.carried {
            grads[carried_at + i] = given.next();
        }
        for &i in &self.captures {
            grads[captures_at + i] = given.next();
        }
        for &i in &self.scanned {
            grads[scanned_at + i] = given.next();
        }
    }

    /// One iteration of the way back.
    fn iteration(&self, graph: &Graph, back: &[Tensor], slices: &[Tensor]) -> Iteration {
        let (op, backward, body) = (self.op, self.backward, &self.op.body);
        let captures_at = op.inputs_at()[2];
        let mut map: Map = body
            .captures
            .iter()
            .copied()
            .zip((0..body.captures.len()).map(|i| backward.input(captures_at + i).clone()))
            .collect();
        let (n_params, n_residuals) = (self.params.len(), self.residuals.len());
        let params = self.params.iter().map(|&i| body.params[i]);
        map.extend(params.zip(slices.iter().cloned()));
        let residuals =
            &body.results[body.results.len() - (op.outputs.len() - op.residuals_at())..];
        let residuals = self.residuals.iter().map(|&i| residuals[i]);
        map.extend(residuals.zip(slices[n_params..].iter().cloned()));
        let mut rest = slices[n_params + n_residuals..].iter();
        let next = &body.results[op.next_at()..];
        let of_carried = self.carried.iter().map(|&i| next[i]);
        let of_collected = self.collected.iter().map(|&i| next[op.n_carried + i]);
        let results: Vec<Output> = of_carried.chain(of_collected).collect();
        let from = graph.next_id();
        rebuild(graph, body, &results, &mut map);
        let n = self.carried.len();
        let dys = back[..n].iter().chain(rest.by_ref().take(self.collected.len()));
        let seeds = results.iter().map(|&result| mapped(graph, &map, result));
        let seeds: Vec<(Tensor, Tensor)> = seeds.zip(dys.cloned()).collect();
        let param = |i: usize| mapped(graph, &map, body.params[i]);
        let xs: Vec<Tensor> = (self.carried.iter().map(|&i| param(i)))
            .chain(self.captures.iter().map(|&i| backward.input(captures_at + i).clone()))
            .chain(self.scanned.iter().map(|&i| param(op.n_carried + i)))
            .collect();
        let own = graph.gradients_from(seeds, &xs.iter().collect::<Vec<_>>(), from);
        let or_zeros = |grad: Option<Tensor>, x: &Tensor| {
            grad.unwrap_or_else(|| x.like(0.0).broadcast_like(x))
        };
        let mut own = own.into_iter().zip(&xs);
        let mut carried: Vec<Tensor> = Vec::new();
        for (&i, (grad, x)) in self.carried.iter().zip(own.by_ref()) {
            let of_history = backward.dy_of(op.history_at() + i).and_then(|_| rest.next());
            let grad = or_zeros(grad, x);
            carried.push(of_history.map_or_else(|| grad.clone(), |more| &grad + more));
        }
        for (sum, (grad, _)) in back[n..].iter().zip(own.by_ref()) {
            carried.push(grad.map_or_else(|| sum.clone(), |grad| sum + grad));
        }
        let collected = own.map(|(grad, x)| or_zeros(grad, x)).collect();
        Iteration { pred: None, carried, collected }
    }
}
