//! Conditional accumulators: gradients of several runs, to be taken together once there are enough. Gradients that are
//! too old are dropped.
//!
//! Source: TensorFlow's `python/ops/data_flow_ops.py`, `ConditionalAccumulator`. There, only the sum is kept, and a
//! step that fails later has lost what it took.

use crate::ops::queue::{QueueRole, Reduction};
use crate::{
    Amount, DType, Dims, Fact, Graph, OpError, Operation, Queue, QueueAction, QueueKind, QueueSpec,
    Shape, Tensor,
};

/// What an accumulator gives, and who shares it.
#[derive(Debug, Clone, Default)]
pub struct AccumulatorOptions {
    /// The mean of the gradients, or their sum.
    pub reduction: Reduction,
    /// Accumulators of the same shared name and container are one in a session. They must be alike.
    pub shared_name: Option<String>,
}

/// A conditional accumulator of a graph. Each session has gradients and a step of its own in it, on the host.
///
/// As with a [`Queue`], a run takes all that it needs before it begins, or waits for it, and puts all that it puts
/// when it has succeeded. So a run that fails has neither applied a gradient nor taken any, and the step is as it was.
/// All gradients are kept until they are taken. What a run gives back that fails is dropped where it has become too old
/// meanwhile, as if it had been applied only then.
#[derive(Debug, Clone)]
pub struct ConditionalAccumulator {
    queue: Queue,
}

impl Graph {
    /// An accumulator of gradients of floats of these sizes.
    ///
    /// # Errors
    /// Recorded: a dtype that is no float, or sizes that are not specified.
    #[track_caller]
    pub fn conditional_accumulator(
        &self,
        name: &str,
        dtype: DType,
        dims: impl Into<Dims>,
        options: AccumulatorOptions,
    ) -> ConditionalAccumulator {
        let AccumulatorOptions { reduction, shared_name } = options;
        let role = QueueRole::Accumulator(reduction);
        let queue = self.accumulator(name, (dtype, dims.into()), role, shared_name);
        ConditionalAccumulator { queue }
    }

    /// What accumulators of either kind keep gradients in.
    #[track_caller]
    pub(super) fn accumulator(
        &self,
        name: &str,
        component: (DType, Dims),
        role: QueueRole,
        shared_name: Option<String>,
    ) -> Queue {
        let (name, container) = (name.to_owned(), self.container_now());
        let (kind, components) = (QueueKind::Fifo, vec![component]);
        let spec = QueueSpec { name, container, kind, capacity: None, components, role };
        self.kept(spec, shared_name)
    }
}

impl ConditionalAccumulator {
    /// What it holds.
    pub fn spec(&self) -> &QueueSpec {
        self.queue.spec()
    }

    /// Applies a gradient when the run has succeeded, unless `local_step`, a scalar of i64, is below the accumulator's
    /// step by then: the gradient is dropped.
    ///
    /// # Errors
    /// Recorded: another dtype or other sizes than the accumulator's, a step that is no scalar of i64.
    #[track_caller]
    pub fn apply_gradient(&self, gradient: &Tensor, local_step: &Tensor) -> Operation {
        self.queue.apply(QueueAction::ApplyGradient, &[gradient, local_step]).operation()
    }

    /// The mean or sum of all gradients that were applied since the last take, once there are at least `n`: the run
    /// waits for them. It leaves none, and when the run has succeeded, the step is one more. `n` is a number or a
    /// tensor whose value is known before the run: see [`Amount`].
    ///
    /// # Errors
    /// Recorded: an `n` of 0, or one that is no scalar of i32 or i64. In a run: `InvalidArgument` for an `n` below 1
    /// and for two takes from one accumulator; `Unimplemented` for an `n` that is not known before the run.
    #[track_caller]
    pub fn take_gradient(&self, n: impl Into<Amount>) -> Tensor {
        self.queue.apply_to(n.into(), QueueAction::TakeGradient).swap_remove(0)
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

/// What its gradients are.
///
/// # Errors
/// What is no accumulator's.
pub(super) fn only(spec: &QueueSpec) -> Result<(DType, &Dims), OpError> {
    let [(dtype, dims)] = &spec.components[..] else {
        return Err(OpError::Invalid("an accumulator has gradients of one kind".into()));
    };
    if !dtype.is_float() {
        let message = format!("expected gradients of a float dtype, got {dtype}");
        return Err(OpError::Invalid(message));
    }
    Ok((*dtype, dims))
}

/// # Errors
/// What is no dense accumulator's.
pub(super) fn check(spec: &QueueSpec) -> Result<(), OpError> {
    let (dtype, dims) = only(spec)?;
    if dims.shape().is_none() {
        let message = format!("expected gradients of specified sizes, got {dtype}{dims}");
        return Err(OpError::Invalid(message));
    }
    Ok(())
}

/// # Errors
/// No scalar of i64.
pub(super) fn expect_step(fact: &Fact) -> Result<(), OpError> {
    if fact.dtype == DType::I64 && fact.dims.admits(&Shape::scalar()) {
        return Ok(());
    }
    let Fact { dtype, dims, .. } = fact;
    Err(OpError::Invalid(format!("expected a step that is a scalar of i64, got {dtype}{dims}")))
}
