//! Sparse conditional accumulators: as the dense ones, of gradients that are slices at indices.
//!
//! Source: TensorFlow's `python/ops/data_flow_ops.py`, `SparseConditionalAccumulator`. There, only the sum is kept, the
//! indices of a gradient ascend and none comes twice, and gradients may have more axes than the accumulator says.

use std::panic::Location;

use smallvec::SmallVec;

use crate::ops::accumulator;
use crate::ops::control::Refused;
use crate::ops::queue::QueueRole;
use crate::{
    AccumulatorOptions, Amount, Contents, DType, Dim, Dims, Error, Fact, Facts, Graph,
    IndexedSlices, OpError, Operation, Queue, QueueAction, QueueSpec, Shape, Tensor, dims,
};

/// A conditional accumulator of slices. Each session has gradients and a step of its own in it, on the host.
///
/// It takes, applies and keeps as a [`ConditionalAccumulator`](crate::ConditionalAccumulator) does.
#[derive(Debug, Clone)]
pub struct SparseConditionalAccumulator {
    queue: Queue,
}

impl Graph {
    /// An accumulator of slices of floats along axis 0 of a whole of these sizes, of which only the first may be unknown.
    ///
    /// # Errors
    /// Recorded: a dtype that is no float, a whole without an axis, or slices of sizes that are not specified.
    #[track_caller]
    pub fn sparse_conditional_accumulator(
        &self,
        name: &str,
        dtype: DType,
        dims: impl Into<Dims>,
        options: AccumulatorOptions,
    ) -> SparseConditionalAccumulator {
        let AccumulatorOptions { reduction, shared_name } = options;
        let role = QueueRole::SparseAccumulator(reduction);
        let queue = self.accumulator(name, (dtype, dims.into()), role, shared_name);
        SparseConditionalAccumulator { queue }
    }
}

impl SparseConditionalAccumulator {
    /// What it holds.
    pub fn spec(&self) -> &QueueSpec {
        self.queue.spec()
    }

    /// Applies a gradient when the run has succeeded, unless `local_step`, a scalar of i64, is below the accumulator's
    /// step by then: the gradient is dropped. The indices may come in any order; slices of one index are added.
    ///
    /// Indices and dense shapes that are not known when this is built, as small constants are, are looked at by
    /// assertions, so that a run with it is one of several programs, as one with branches is. They fail also the run of
    /// a gradient that would be dropped. What is fed in the place of a constant is not looked at.
    ///
    /// # Errors
    /// Recorded: values of another dtype or slices of other sizes than the accumulator's, indices that are no vector of
    /// i32 or i64 or are out of range, another number of them than of slices, a dense shape that is no vector of integers
    /// or not the accumulator's, a step that is no scalar of i64. In a run: `InvalidArgument` for an index out of range,
    /// and for what was not known before.
    #[track_caller]
    pub fn apply_gradient(&self, gradient: &IndexedSlices, local_step: &Tensor) -> Operation {
        let IndexedSlices { values, indices, dense_shape } = gradient;
        let graph = self.queue.graph();
        let inputs = [indices, values, local_step];
        let dims = self.spec().components.first().map_or(Dims::UnknownRank, |(_, d)| d.clone());
        let [first, ..] = dims.dims().unwrap_or_default() else {
            // The operation is refused for the accumulator's sake.
            return self.queue.apply(QueueAction::ApplyGradient, &inputs).operation();
        };
        // What no infer sees is looked at before the run stores anything.
        let mut checks: SmallVec<[Operation; 2]> = SmallVec::new();
        let (about_shape, about_indices) = (
            format!("expected a gradient of dense shape {dims}"),
            match first.known() {
                None => "expected indices of slices of at least 0".to_owned(),
                Some(n) => format!("expected indices of slices in [0, {n})"),
            },
        );
        let fits = match dense_shape {
            Some(shape) => fits(shape, &dims, &about_shape),
            None => Ok(None),
        };
        match fits.and_then(|fits| Ok((fits, are_inside(indices, *first, &about_indices)?))) {
            Ok((fits, inside)) => {
                if let (Some(fits), Some(shape)) = (fits, dense_shape) {
                    checks.push(graph.assert(&fits, &about_shape, &[shape]));
                }
                if let Some(inside) = inside {
                    checks.push(graph.assert(&inside, &about_indices, &[indices]));
                }
            }
            Err(reason) => return graph.apply(Refused(reason), &inputs).operation(),
        }
        let (checks, at): (SmallVec<[&Operation; 2]>, _) =
            (checks.iter().collect(), Location::caller());
        let apply = || self.queue.apply_at(QueueAction::ApplyGradient, &inputs, at);
        graph.after(&checks, apply).operation()
    }

    /// The mean or sum of all gradients that were applied since the last take, once there are at least `n`: the run
    /// waits for them. The indices ascend, each once; a mean is that of the gradients that have its index. It has a
    /// dense shape if all sizes of the accumulator are specified. It leaves no gradients, and when the run has
    /// succeeded, the step is one more. `n` is a number or a tensor whose value is known before the run: see [`Amount`].
    ///
    /// # Errors
    /// Recorded: an `n` of 0, or one that is no scalar of i32 or i64. In a run: `InvalidArgument` for an `n` below 1
    /// and for two takes from one accumulator; `Unimplemented` for an `n` that is not known before the run.
    #[track_caller]
    pub fn take_gradient(&self, n: impl Into<Amount>) -> IndexedSlices {
        let outputs = self.queue.apply_to(n.into(), QueueAction::TakeGradient);
        // One that was refused has one output.
        let (indices, values) = (outputs[0].clone(), outputs.get(1).unwrap_or(&outputs[0]).clone());
        let shape = self.spec().components.first().and_then(|(_, dims)| dims.shape());
        let dense_shape = shape.map(|shape| {
            let sizes = shape.dims().iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX));
            self.queue.graph().constant(sizes.collect::<Vec<i64>>())
        });
        IndexedSlices { values, indices, dense_shape }
    }

    /// How many gradients there are when the run begins: a scalar of i32.
    #[track_caller]
    pub fn num_accumulated(&self) -> Tensor {
        self.queue.size()
    }

    /// Sets the step when the run has succeeded: a scalar of i64. It is 0 at first.
    ///
    /// # Errors
    /// Recorded: a step that is no scalar of i64.
    #[track_caller]
    pub fn set_global_step(&self, step: &Tensor) -> Operation {
        self.queue.apply(QueueAction::SetStep, &[step]).operation()
    }
}

/// Whether a dense shape is that of the accumulator, as a tensor unless that is known: a size that the accumulator does
/// not say may be any.
///
/// # Errors
/// It is not, or no vector.
#[track_caller]
fn fits(shape: &Tensor, dims: &Dims, expected: &str) -> Result<Option<Tensor>, OpError> {
    let fact = shape.fact();
    let all = dims.dims().unwrap_or_default();
    let refuse = |found: String| Err(OpError::Invalid(format!("{expected}, got {found}")));
    if let Contents::Invalid(_) = fact.contents {
        // The assertion is invalid for its sake.
        return Ok(Some(shape.clone()));
    }
    let is_vector = fact.dims.rank() == Some(1) && dims![all.len()].unify(&fact.dims).is_ok();
    if !fact.dtype.is_int() || !is_vector {
        return refuse(format!("{}{}", fact.dtype, fact.dims));
    }
    if let Contents::Known(value) = &fact.contents {
        let sizes = value.to_i128s().unwrap_or_default();
        let is_size = |(dim, n): (&Dim, &i128)| dim.known().is_none_or(|own| own as i128 == *n);
        return match sizes.len() == all.len() && all.iter().zip(&sizes).all(is_size) {
            true => Ok(None),
            false => refuse(format!("{sizes:?}")),
        };
    }
    let size = |dim: &Dim| dim.known().map_or(0, |n| i64::try_from(n).unwrap_or(i64::MAX));
    let graph = shape.graph();
    let sizes = graph.constant(all.iter().map(size).collect::<Vec<i64>>());
    let any = graph.constant(all.iter().map(|dim| dim.known().is_none()).collect::<Vec<bool>>());
    let n = i64::try_from(all.len()).unwrap_or(i64::MAX);
    let wide = shape.cast(DType::I64);
    if fact.dims.shape().is_some() {
        return Ok(Some((wide.equal(sizes) | any).all(())));
    }
    // Of another length it would be compared as if it were repeated, or not at all.
    let more = graph.constant(vec![-1i64; all.len()]);
    let first = graph.concat(&[&wide, &more], 0).slice(&[0], &[Some(all.len())]);
    let is_long = shape.shape().equal(graph.constant([n]));
    Ok(Some((first.equal(sizes) | any).all(()) & is_long.all(())))
}

/// Whether indices are those of slices of a whole of `n`, as a tensor unless that is known. Of another dtype, an infer
/// refuses them.
///
/// # Errors
/// They are not.
#[track_caller]
fn are_inside(indices: &Tensor, n: Dim, expected: &str) -> Result<Option<Tensor>, OpError> {
    let fact = indices.fact();
    if !matches!(fact.dtype, DType::I32 | DType::I64) {
        return Ok(None);
    }
    let n = n.known().map(|n| i64::try_from(n).unwrap_or(i64::MAX));
    if let Contents::Known(value) = &fact.contents {
        let all = value.to_i128s().unwrap_or_default();
        let is_outside = |i: &&i128| **i < 0 || n.is_some_and(|n| **i >= i128::from(n));
        return match all.iter().find(is_outside) {
            None => Ok(None),
            Some(outside) => Err(OpError::Invalid(format!("{expected}, got {outside}"))),
        };
    }
    let (graph, wide) = (indices.graph(), indices.cast(DType::I64));
    let positive = wide.greater_equal(graph.constant(0i64));
    let inside = match n {
        None => positive,
        Some(n) => positive & wide.less(graph.constant(n)),
    };
    Ok(Some(inside.all(())))
}

/// The sizes of one slice.
///
/// # Errors
/// What is no sparse accumulator's.
fn slice(spec: &QueueSpec) -> Result<&[Dim], OpError> {
    let (dtype, dims) = accumulator::only(spec)?;
    match dims.dims() {
        Some([_, slice @ ..]) if slice.iter().all(|dim| dim.known().is_some()) => Ok(slice),
        _ => Err(OpError::Invalid(format!(
            "expected slices of specified sizes along a first axis, got {dtype}{dims}"
        ))),
    }
}

/// # Errors
/// What is no sparse accumulator's.
pub(super) fn check(spec: &QueueSpec) -> Result<(), OpError> {
    slice(spec).map(|_| ())
}

/// Of `n` slices of the accumulator: indices, and values.
fn facts(spec: &QueueSpec, n: Dim) -> Result<[Fact; 2], OpError> {
    let (dtype, _) = accumulator::only(spec)?;
    let sizes = std::iter::once(n).chain(slice(spec)?.iter().copied()).collect();
    let values = Fact::new(dtype, Dims::Known(sizes).checked()?);
    Ok([Fact::new(DType::I64, Dims::Known(std::iter::once(n).collect())), values])
}

/// Of what is taken.
pub(super) fn taken(spec: &QueueSpec) -> Result<Facts, OpError> {
    Ok(facts(spec, Dim::Unknown)?.into_iter().collect())
}

/// # Errors
/// Indices and values that are no slices of the accumulator.
pub(super) fn expect_slices(
    spec: &QueueSpec,
    indices: &Fact,
    values: &Fact,
) -> Result<(), OpError> {
    if !matches!(indices.dtype, DType::I32 | DType::I64) {
        let Fact { dtype, dims, .. } = indices;
        let message =
            format!("expected indices that are a vector of i32 or i64, got {dtype}{dims}");
        return Err(OpError::Invalid(message));
    }
    let n = match indices.dims.dims() {
        None => Dim::Unknown,
        Some([n]) => *n,
        Some(_) => return Err(OpError::Rank { expected: 1, found: indices.dims.clone() }),
    };
    let [_, expected] = facts(spec, n)?;
    if values.dtype != expected.dtype {
        return Err(OpError::DTypes { lhs: expected.dtype, rhs: values.dtype });
    }
    expected.dims.unify(&values.dims).map(|_| ()).map_err(|_| {
        let (expected, found) = (expected.dims, &values.dims);
        OpError::Invalid(format!("expected slices {expected}, one for each index, got {found}"))
    })
}

/// # Errors
/// Shapes of indices and values that are no slices of the accumulator.
pub(super) fn check_shapes(spec: &QueueSpec, indices: &Shape, values: &Shape) -> crate::Result<()> {
    let known = |shape: &Shape| Dims::Known(shape.dims().iter().map(|&n| Dim::Known(n)).collect());
    let refused = |e: OpError| Error::invalid(e.to_string());
    let (dtype, _) = accumulator::only(spec).map_err(refused)?;
    let (indices, values) =
        (Fact::new(DType::I64, known(indices)), Fact::new(dtype, known(values)));
    expect_slices(spec, &indices, &values).map_err(refused)
}
