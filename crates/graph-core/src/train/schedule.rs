//! Learning rates: a number, or a scalar tensor that is computed from the step.

use crate::{DType, Graph, Tensor};

/// A learning rate.
#[derive(Debug, Clone)]
pub enum Rate {
    /// The same in every step.
    Constant(f64),
    /// A float scalar of the graph.
    Tensor(Tensor),
}

impl From<f64> for Rate {
    fn from(rate: f64) -> Self {
        Self::Constant(rate)
    }
}

impl From<Tensor> for Rate {
    fn from(rate: Tensor) -> Self {
        Self::Tensor(rate)
    }
}

impl From<&Tensor> for Rate {
    fn from(rate: &Tensor) -> Self {
        Self::Tensor(rate.clone())
    }
}

impl Rate {
    /// As a scalar of `dtype`.
    #[track_caller]
    pub(crate) fn tensor(&self, g: &Graph, dtype: DType) -> Tensor {
        match self {
            Self::Constant(rate) => g.number(dtype, *rate),
            Self::Tensor(rate) => rate.cast(dtype),
        }
    }
}

/// `rate * factor^(step / every)`, with whole quotients only if `staircase`.
#[track_caller]
pub fn exponential_decay(
    rate: f64,
    step: &Tensor,
    every: f64,
    factor: f64,
    staircase: bool,
) -> Tensor {
    let quotient = step.cast(DType::F32) / every;
    let quotient = if staircase { quotient.floor() } else { quotient };
    (quotient * factor.ln()).exp() * rate
}

/// From `rate` down to `least` along half a cosine over `steps`: Loshchilov and Hutter, 2017.
#[track_caller]
pub fn cosine_decay(rate: f64, least: f64, step: &Tensor, steps: f64) -> Tensor {
    let done = (step.cast(DType::F32) / steps).minimum(1.0);
    ((done * std::f64::consts::PI).cos() + 1.0) * (0.5 * (rate - least)) + least
}

/// `rates[i]` up to and with step `boundaries[i]`, then the last one, which has no boundary.
#[track_caller]
pub fn piecewise(step: &Tensor, boundaries: &[f64], rates: &[f64]) -> Tensor {
    let step = step.cast(DType::F32);
    let last = step.like(rates.last().copied().unwrap_or(0.0));
    boundaries.iter().zip(rates).rev().fold(last, |later, (&boundary, &rate)| {
        step.less_equal(boundary).select(step.like(rate), later)
    })
}
