//! Losses, each per example: take the mean for a scalar.

use crate::ops::control::Refused;
use crate::{IntoTensor, OpError, Tensor};

impl Tensor {
    /// Cross entropy of the softmax of these logits with integer labels.
    ///
    /// # Shapes
    /// `self [.., classes]`, `labels [..]` of integers → `[..]`.
    ///
    /// # Errors
    /// Recorded: the number of classes is not known. A run with a label that is negative or not below
    /// the number of classes fails with [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument).
    #[track_caller]
    pub fn cross_entropy(&self, labels: impl IntoTensor) -> Tensor {
        let labels = labels.into_tensor(self);
        let dims = self.dims();
        let classes = dims.dims().and_then(|d| d.last()).and_then(|d| d.known());
        let Some(classes) = classes.and_then(|n| i32::try_from(n).ok()) else {
            let reason = format!("the number of classes, the last size of {dims}, is not known");
            return self.apply(Refused(OpError::Invalid(reason)), &[self]);
        };
        // What is gathered is the label itself; the gather refuses those out of range.
        let labels = self.graph().range(0, classes).gather(&labels, 0);
        let hot = labels.one_hot(classes as usize, self.dtype());
        self.cross_entropy_with(&hot)
    }

    /// Cross entropy of the softmax of these logits with a distribution over classes.
    ///
    /// # Shapes
    /// `self [.., classes]`, `targets [.., classes]` → `[..]`.
    #[track_caller]
    pub fn cross_entropy_with(&self, targets: impl IntoTensor) -> Tensor {
        -((self.log_softmax(-1) * targets).sum(-1))
    }

    /// Cross entropy of the sigmoid of these logits with targets in `[0, 1]`, in a form that stays
    /// finite: `max(x, 0) - x z + log(1 + exp(-|x|))`.
    #[track_caller]
    pub fn sigmoid_cross_entropy(&self, targets: impl IntoTensor) -> Tensor {
        let targets = targets.into_tensor(self);
        self.softplus() - self * targets
    }

    /// The squared difference.
    #[track_caller]
    pub fn squared_error(&self, target: impl IntoTensor) -> Tensor {
        (self - target).square()
    }

    /// The absolute difference.
    #[track_caller]
    pub fn absolute_error(&self, target: impl IntoTensor) -> Tensor {
        (self - target).abs()
    }

    /// Half the square up to `delta`, then linear: Huber, 1964.
    #[track_caller]
    pub fn huber(&self, target: impl IntoTensor, delta: f64) -> Tensor {
        let error = (self - target).abs();
        let near = error.square() * 0.5;
        let far = &error * delta - 0.5 * delta * delta;
        error.less_equal(delta).select(near, far)
    }
}
