//! Loops: a body runs again and again, on what it gave before and on one slice after the other.
//!
//! Source: TensorFlow's `while_loop` and `scan`. The gradient is a loop that goes back over what the loop had at the
//! start of each iteration, and computes again what it needs from that, so that it can be differentiated as well.

mod back;
mod block;
mod build;
mod counter;
mod narrowed;
mod saved;
mod trips;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use back::Way;
pub use block::{LoopBlock, operations};
pub(crate) use build::{Iteration, LoopSpec, repeat, replay_loop};
pub(crate) use saved::SAVED;

use crate::batches;
use crate::ops::body::Body;
use crate::ops::branch::absent;
use crate::{
    Attributes, Backward, Class, DType, Dim, Dims, Fact, Flow, HostTensor, Op, OpError, Output,
    Shape, Tensor,
};

/// A body that runs again and again.
///
/// Inputs: whether it runs at all, if it `has_pred`; how often at most, a scalar of i64, if it `has_count`; the carried
/// tensors; the scanned ones, of which each iteration gets a slice along axis 0; the captures. Outputs: the carried
/// tensors at the end; the collected ones, a slice from each iteration; the number of iterations, i64; what was carried
/// at the start of each iteration; the body's residuals, a slice from each iteration.
///
/// The body's parameters are what is carried and the slices. Its results: whether it runs again, if the loop
/// `has_pred`; what is carried next; what is collected; the residuals.
#[derive(Debug, Clone)]
pub struct LoopOp {
    /// What runs.
    pub body: Body,
    /// Whether a condition ends it.
    pub has_pred: bool,
    /// Whether an input ends it.
    pub has_count: bool,
    /// How many tensors go from iteration to iteration.
    pub n_carried: usize,
    /// How many tensors it takes slices of.
    pub n_scanned: usize,
    /// How many tensors it collects.
    pub n_collected: usize,
    /// At most so many iterations.
    pub max: Option<u64>,
    /// Whether slices are taken, and collected, from the last to the first.
    pub reverse: bool,
    /// How many iterations there are where that is known while building.
    pub trips: Option<u64>,
    /// What the number of iterations was counted by: it holds where a run is fed none of them.
    pub counted_by: Vec<Output>,
    /// Whether the iterations are written out one after the other, instead of running one by one.
    pub unrolled: bool,
    /// How many slices each stack has.
    size: Dim,
    outputs: SmallVec<[Fact; 1]>,
    /// Which outputs of the node its outputs are, if a run needs only some; none if they are all.
    places: Vec<usize>,
    /// What each carried tensor has to be like, and each scanned one.
    expected: Vec<Fact>,
    refused: Option<OpError>,
}

impl LoopOp {
    /// Where the inputs of a kind begin: carried, scanned, captures.
    pub fn inputs_at(&self) -> [usize; 3] {
        let carried = usize::from(self.has_pred) + usize::from(self.has_count);
        [carried, carried + self.n_carried, carried + self.n_carried + self.n_scanned]
    }

    /// The place of the number of iterations among the outputs.
    pub fn trips_at(&self) -> usize {
        self.n_carried + self.n_collected
    }

    /// Where the outputs begin that have what was carried at the start of each iteration.
    pub fn history_at(&self) -> usize {
        self.trips_at() + 1
    }

    /// Where the residuals begin among the outputs.
    pub fn residuals_at(&self) -> usize {
        self.history_at() + self.n_carried
    }

    /// Where what is carried next begins among the body's results.
    pub fn next_at(&self) -> usize {
        usize::from(self.has_pred)
    }

    /// The result of the body of which an output collects slices; `None` if it does not.
    pub fn collects(&self, output: usize) -> Option<usize> {
        let next = self.next_at();
        if (self.n_carried..self.trips_at()).contains(&output) {
            return Some(next + output);
        }
        let residual = output.checked_sub(self.residuals_at())?;
        Some(next + self.n_carried + self.n_collected + residual)
    }

    /// How many iterations the inputs allow. `scanned` are the sizes of the scanned tensors' first axes.
    ///
    /// # Errors
    /// Scanned tensors of different lengths, a negative count, or nothing that ends the loop.
    pub fn limit(&self, count: Option<i64>, scanned: &[usize]) -> crate::Result<Option<u64>> {
        let mut limit = self.max;
        let mut below = |n: u64| limit = Some(limit.map_or(n, |limit| limit.min(n)));
        if let Some(count) = count {
            below(u64::try_from(count).map_err(|_| {
                crate::Error::invalid(format!("expected a number of iterations, got {count}"))
            })?);
        }
        if let Some((&first, rest)) = scanned.split_first() {
            if let Some(other) = rest.iter().find(|&&other| other != first) {
                let message =
                    format!("a loop goes over {first} slices of one tensor and {other} of another");
                return Err(crate::Error::invalid(message));
            }
            below(first as u64);
        }
        Ok(limit)
    }

    /// Which slice an iteration of a loop with this limit takes.
    pub fn slice_of(&self, iteration: usize, limit: Option<u64>) -> usize {
        let last = limit.and_then(|limit| usize::try_from(limit).ok()?.checked_sub(1));
        match last.filter(|_| self.reverse) {
            Some(last) => last.saturating_sub(iteration),
            None => iteration,
        }
    }

    /// What is collected of a result, without a single slice.
    ///
    /// # Errors
    /// No memory.
    pub fn none_collected(&self, output: usize) -> crate::Result<HostTensor> {
        let fact = &self.outputs[output];
        let mut dims: SmallVec<[Dim; 6]> = fact.dims.dims().unwrap_or(&[Dim::Unknown]).into();
        if let Some(first) = dims.first_mut() {
            *first = Dim::Known(0);
        }
        absent(&Fact::new(fact.dtype, Dims::Known(dims)))
    }

    /// Refuses a carried tensor that is not like the one that the loop was built for, or has another size than `first`
    /// where the loop knows only that it stays.
    ///
    /// # Errors
    /// Its shape is not as expected.
    pub fn check_carried(&self, at: usize, first: &Shape, shape: &Shape) -> crate::Result<()> {
        let expected = &self.expected[at].dims;
        let stays = |(axis, dim): (usize, &Dim)| {
            !matches!(dim, Dim::Symbol(_)) || first.dims().get(axis) == shape.dims().get(axis)
        };
        let dims = expected.dims().unwrap_or(&[]);
        if expected.admits(shape) && dims.iter().enumerate().all(stays) {
            return Ok(());
        }
        Err(crate::Error::invalid(format!(
            "loop variable {} becomes {shape}, and is {expected} in every iteration; give it another \
             shape in LoopOptions::invariants",
            self.node_output(at)
        )))
    }

    /// Refuses another number of iterations than what is built on it expects.
    ///
    /// # Errors
    /// A graph that was put together says another number.
    pub fn check_trips(&self, trips: usize) -> crate::Result<()> {
        match self.size {
            Dim::Known(size) if size != trips => Err(crate::Error::invalid(format!(
                "the loop makes {trips} iterations, and its graph says {size}"
            ))),
            _ => Ok(()),
        }
    }
}

impl LoopOp {
    /// The values of the inputs of each kind: the condition, the count, carried, scanned, captures.
    #[expect(clippy::type_complexity, reason = "five kinds of one thing")]
    pub fn split<'a, T>(
        &self,
        inputs: &'a [T],
    ) -> (Option<&'a T>, Option<&'a T>, &'a [T], &'a [T], &'a [T]) {
        let [carried, scanned, captures] = self.inputs_at();
        let pred = inputs.first().filter(|_| self.has_pred);
        let count = inputs.get(usize::from(self.has_pred)).filter(|_| self.has_count);
        let (carried, scanned) = (&inputs[carried..scanned], &inputs[scanned..captures]);
        (pred, count, carried, scanned, &inputs[captures..])
    }
}

fn check_pred(pred: &Fact) -> Result<(), OpError> {
    pred.expect("the condition of a loop", "bool", |dtype| dtype == DType::Bool)?;
    pred.dims.unify(&Dims::from([0usize; 0])).map(|_| ())
}

impl Op for LoopOp {
    fn name(&self) -> &str {
        "while"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        if let Some(reason) = &self.refused {
            return Err(reason.clone());
        }
        let expected = self.inputs_at()[2] + self.body.captures.len();
        if inputs.len() != expected {
            return Err(OpError::Arity { expected, found: inputs.len() });
        }
        let (pred, count, ..) = self.split(inputs);
        pred.map_or(Ok(()), check_pred)?;
        if let Some(count) = count {
            count.expect("the number of iterations", "i64", |dtype| dtype == DType::I64)?;
            count.dims.unify(&Dims::from([0usize; 0]))?;
        }
        Ok(self.outputs.clone())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        if let Some(reason) = &self.refused {
            return Err(reason.clone());
        }
        let (pred, count, carried, scanned, captures) = self.split(inputs);
        let mut goes_on = pred.map_or(Ok(true), HostTensor::scalar::<bool>)?;
        let count = count.map(HostTensor::scalar::<i64>).transpose()?;
        let lengths: Vec<usize> =
            scanned.iter().map(|t| t.dims().first().copied().unwrap_or(0)).collect();
        let limit = self.limit(count, &lengths)?;
        let captures: FxHashMap<Output, HostTensor> =
            self.body.captures.iter().copied().zip(captures.iter().cloned()).collect();
        let first = carried;
        let mut carried = carried.to_vec();
        let mut kept: Vec<Vec<HostTensor>> = vec![Vec::new(); self.outputs.len()];
        let mut trips = 0usize;
        while goes_on && limit.is_none_or(|limit| (trips as u64) < limit) {
            let mut params = carried.clone();
            for tensor in scanned {
                params.push(batches::row(tensor, self.slice_of(trips, limit))?);
            }
            let results = self.body.eval(&params, &captures)?;
            for (output, kept) in kept.iter_mut().enumerate() {
                if let Some(result) = self.collects(output) {
                    kept.push(results[result].clone());
                } else if let Some(at) = output.checked_sub(self.history_at()) {
                    kept.push(carried[at].clone());
                }
            }
            if self.has_pred {
                goes_on = results[0].scalar::<bool>()?;
            }
            carried = results[self.next_at()..][..self.n_carried].to_vec();
            for (at, tensor) in carried.iter().enumerate() {
                self.check_carried(at, first[at].shape(), tensor.shape())?;
            }
            trips += 1;
        }
        self.check_trips(trips)?;
        let stack = |output: usize, mut rows: Vec<HostTensor>| {
            if self.reverse {
                rows.reverse();
            }
            // Of tensors that change their shape there is no stack to be had.
            let first = rows.first().filter(|first| rows.iter().all(|r| r.dims() == first.dims()));
            match first {
                None => self.none_collected(output),
                Some(first) => {
                    let (dtype, dims) = (first.dtype(), first.dims().to_vec());
                    batches::stacked(dtype, &dims, &rows.iter().collect::<Vec<_>>(), false)
                }
            }
        };
        let trips_at = self.trips_at();
        let value = |(output, rows): (usize, Vec<HostTensor>)| match output {
            output if output < self.n_carried => Ok(carried[output].clone()),
            output if output == trips_at => Ok(HostTensor::from(trips as i64)),
            _ => Ok(stack(output, rows)?),
        };
        kept.into_iter().enumerate().map(value).collect()
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let mut grads = vec![None; backward.n_inputs()];
        if let Some(way) = Way::new(self, backward) {
            way.build(&mut grads);
        }
        grads
    }

    fn class(&self) -> Class<'_> {
        Class::Flow(Flow::Loop(self))
    }

    fn encode(&self) -> Option<Attributes> {
        self.encoded()
    }
}
