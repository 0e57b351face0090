//! Batch normalisation, made of smaller operations.
//!
//! Source: Ioffe and Szegedy, 2015.

use crate::ops::control::Refused;
use crate::ops::gather::axis_of;
use crate::{Collection, IntoTensor, OpError, Operation, Tensor, Variable};

/// Attributes of batch normalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNorm {
    /// The axis of the channels; negative ones count from the end.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: f64,
}

impl Default for BatchNorm {
    /// Axis 1, as in `Nchw`, and 1e-3.
    fn default() -> Self {
        Self { axis: 1, epsilon: 1e-3 }
    }
}

/// What batch normalisation gives in training.
#[derive(Debug, Clone)]
pub struct Normalized {
    /// The normalised tensor.
    pub output: Tensor,
    /// The mean of each channel over the batch: `[c]`.
    pub mean: Tensor,
    /// The variance of each channel over the batch, divided by the count: `[c]`.
    pub variance: Tensor,
}

impl Tensor {
    /// `(x - mean) / sqrt(variance + epsilon) * scale + shift` for each channel, with statistics that are
    /// given: the mode for inference.
    ///
    /// # Shapes
    /// `self [.., c, ..]`, the others `[c]` → as `self`.
    ///
    /// # Errors
    /// Recorded: an axis out of range, an unknown rank, sizes that do not fit.
    #[track_caller]
    pub fn batch_norm(
        &self,
        [scale, shift]: [&Tensor; 2],
        [mean, variance]: [&Tensor; 2],
        norm: BatchNorm,
    ) -> Tensor {
        match channels(self, norm.axis) {
            Ok(n_after) => {
                let [scale, shift, mean, variance] =
                    [scale, shift, mean, variance].map(|t| along_channels(t, n_after));
                let factor = (variance + norm.epsilon).rsqrt() * scale;
                (self - mean) * factor + shift
            }
            Err(reason) => self.apply(Refused(reason), &[self, scale, shift, mean, variance]),
        }
    }

    /// As [`Self::batch_norm`], with the mean and variance of this batch: the mode for training. The
    /// gradient flows through both. See [`Normalized::track`] for moving averages.
    ///
    /// # Shapes
    /// `self [.., c, ..]`, `scale [c]`, `shift [c]` → output as `self`, mean and variance `[c]`.
    ///
    /// # Errors
    /// Recorded: an axis out of range, an unknown rank, sizes that do not fit.
    #[track_caller]
    pub fn batch_norm_training(
        &self,
        scale: impl IntoTensor,
        shift: impl IntoTensor,
        norm: BatchNorm,
    ) -> Normalized {
        let (scale, shift) = (scale.into_tensor(self), shift.into_tensor(self));
        let n_after = match channels(self, norm.axis) {
            Ok(n_after) => n_after,
            Err(reason) => {
                let refused = self.apply(Refused(reason), &[self, &scale, &shift]);
                let (mean, variance) = (refused.clone(), refused.clone());
                return Normalized { output: refused, mean, variance };
            }
        };
        let rank = self.dims().rank().unwrap_or(n_after + 1);
        let channel = rank - 1 - n_after;
        let others: Vec<i64> = (0..rank).filter(|&a| a != channel).map(|a| a as i64).collect();
        let mean = self.mean(&others[..]);
        let centred = self - along_channels(&mean, n_after);
        let variance = centred.square().mean(&others[..]);
        let factor = along_channels(&((&variance + norm.epsilon).rsqrt() * &scale), n_after);
        let output = centred * factor + along_channels(&shift, n_after);
        Normalized { output, mean, variance }
    }
}

impl Normalized {
    /// Moves the averages towards this batch's statistics, in each run of what this returns: `average -=
    /// (average - statistic) * (1 - momentum)`. Both assignments are put into [`Collection::Updates`].
    ///
    /// # Errors
    /// Recorded: averages of another shape or dtype.
    #[track_caller]
    pub fn track(&self, mean: &Variable, variance: &Variable, momentum: f64) -> Operation {
        let step = |average: &Variable, statistic: &Tensor| {
            let delta = (average.value() - statistic) * (1.0 - momentum);
            let assign = average.assign_sub(delta);
            assign.graph().collect(Collection::Updates, &assign);
            assign.operation()
        };
        let steps = [step(mean, &self.mean), step(variance, &self.variance)];
        self.output.graph().group(&steps)
    }
}

/// How many axes follow the one of the channels.
fn channels(x: &Tensor, axis: i64) -> Result<usize, OpError> {
    let dims = x.dims();
    let rank = dims.rank().ok_or_else(|| {
        OpError::Unsupported("batch normalisation of a tensor of unknown rank".into())
    })?;
    Ok(rank - 1 - axis_of(&dims, axis)?)
}

/// A tensor `[c]` with so many axes of size 1 behind.
#[track_caller]
fn along_channels(t: &Tensor, n_after: usize) -> Tensor {
    (0..n_after).fold(t.clone(), |t, _| t.expand_dims(-1))
}
