//! Composites for networks: softmax, normalisation, activations, dropout. Each is made of smaller
//! operations, which grouping joins again.

use crate::{IntoTensor, OpError, Tensor};

impl Tensor {
    /// `exp(x) / sum exp(x)` along `axis`, with the maximum taken off first.
    ///
    /// Source: Goodfellow et al., Deep Learning (2016), section 4.1.
    #[track_caller]
    pub fn softmax(&self, axis: i64) -> Tensor {
        let e = self.shifted(axis).exp();
        let scale = e.sum_keep(axis).reciprocal();
        e * scale
    }

    /// `x - log sum exp(x)` along `axis`, with the maximum taken off first.
    #[track_caller]
    pub fn log_softmax(&self, axis: i64) -> Tensor {
        let shifted = self.shifted(axis);
        let log_sum = shifted.exp().sum_keep(axis).log();
        shifted - log_sum
    }

    /// `log sum exp(x)` along `axis`, which is left out.
    #[track_caller]
    pub fn log_sum_exp(&self, axis: i64) -> Tensor {
        let max = self.max_keep(axis).stop_gradient();
        let sum = (self - &max).exp().sum_keep(axis).log();
        (sum + max).squeeze(&[axis])
    }

    /// The shift changes neither softmax nor its gradient.
    #[track_caller]
    fn shifted(&self, axis: i64) -> Tensor {
        self - self.max_keep(axis).stop_gradient()
    }

    /// `x / 2 (1 + erf(x / sqrt 2))`: Hendrycks and Gimpel, 2016.
    #[track_caller]
    pub fn gelu(&self) -> Tensor {
        let cdf = ((self * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
        self * cdf
    }

    /// `x sigmoid(x)`.
    #[track_caller]
    pub fn silu(&self) -> Tensor {
        self * self.sigmoid()
    }

    /// `x` where positive, else `slope * x`.
    #[track_caller]
    pub fn leaky_relu(&self, slope: f64) -> Tensor {
        self.greater(0.0).select(self, self * slope)
    }

    /// `x` where positive, else `exp(x) - 1`.
    #[track_caller]
    pub fn elu(&self) -> Tensor {
        self.greater(0.0).select(self, self.minimum(0.0).expm1())
    }

    /// From `low` to `high`.
    #[track_caller]
    pub fn clamp(&self, low: impl IntoTensor, high: impl IntoTensor) -> Tensor {
        self.maximum(low).minimum(high)
    }

    /// Mean 0 and variance 1 along the last axis, then times `scale` plus `shift`.
    ///
    /// # Shapes
    /// `self [.., n]`, `scale [n]`, `shift [n]` → `[.., n]`.
    ///
    /// # Source
    /// Ba, Kiros and Hinton, 2016; `epsilon` is added to the variance.
    #[track_caller]
    pub fn layer_norm(
        &self,
        scale: impl IntoTensor,
        shift: impl IntoTensor,
        epsilon: f64,
    ) -> Tensor {
        let centred = self - self.mean_keep(-1);
        let variance = centred.square().mean_keep(-1);
        centred * (variance + epsilon).rsqrt() * scale + shift
    }

    /// Each element is 0 with probability `rate`, else divided by `1 - rate`. Drawn anew in each run.
    ///
    /// # Errors
    /// Recorded: a rate that is not in `[0, 1)`.
    #[track_caller]
    pub fn dropout(&self, rate: f64, seed: u64) -> Tensor {
        if !(0.0..1.0).contains(&rate) {
            let reason = OpError::Invalid(format!("a dropout rate is in [0, 1), got {rate}"));
            return self.apply(crate::ops::control::Refused(reason), &[self]);
        }
        let keep = self.random_uniform_like(seed).greater_equal(rate);
        keep.select(self * (1.0 / (1.0 - rate)), 0.0)
    }

    /// One at the place that each element names along a new last axis of `depth`, else zero, as
    /// `dtype`. An element out of range gives zeros only.
    ///
    /// # Shapes
    /// `self [..]` of integers → `[.., depth]`.
    #[track_caller]
    pub fn one_hot(&self, depth: usize, dtype: crate::DType) -> Tensor {
        let places = self.graph().range(0, depth.try_into().unwrap_or(i32::MAX));
        self.expand_dims(-1).equal(places.cast(self.dtype())).cast(dtype)
    }
}
