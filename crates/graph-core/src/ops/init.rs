//! First elements of variables.

use crate::{DType, Graph, HostTensor, Tensor};

/// How a variable gets its first elements.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Init {
    /// All zero; of strings, empty.
    Zeros,
    /// All the same.
    Constant(f64),
    /// These.
    Value(HostTensor),
    /// A tensor of the graph, computed when the initializer runs. If it is of other variables, take their
    /// [`Variable::initialized_value`](crate::Variable::initialized_value): they may have no elements yet.
    Tensor(Tensor),
    /// Uniform in `+-sqrt(6 / (fan in + fan out))`: Glorot and Bengio, 2010. Fans are the last two axes
    /// times the product of the others.
    Glorot {
        /// The seed.
        seed: u64,
    },
    /// Truncated normal with deviation `sqrt(2 / fan in)`: He et al., 2015.
    He {
        /// The seed.
        seed: u64,
    },
    /// Normal with this deviation.
    Normal {
        /// The deviation.
        deviation: f64,
        /// The seed.
        seed: u64,
    },
    /// Uniform from `low` to `high`.
    Uniform {
        /// The least.
        low: f64,
        /// The upper end, left out.
        high: f64,
        /// The seed.
        seed: u64,
    },
}

impl Init {
    /// [`Init::Glorot`].
    pub fn glorot(seed: u64) -> Self {
        Self::Glorot { seed }
    }

    /// [`Init::He`].
    pub fn he(seed: u64) -> Self {
        Self::He { seed }
    }

    /// [`Init::Zeros`].
    pub fn zeros() -> Self {
        Self::Zeros
    }

    #[track_caller]
    pub(crate) fn build(self, g: &Graph, name: &str, dtype: DType, sizes: &[usize]) -> Tensor {
        let filled = |x: f64| {
            let sizes: Vec<i64> =
                sizes.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
            let sizes = g.constant(sizes);
            g.number(dtype, x).broadcast_to_sizes(&sizes)
        };
        let (fan_in, fan_out) = fans(sizes);
        match self {
            Self::Zeros => filled(0.0),
            Self::Constant(x) => filled(x),
            Self::Value(value) => g.constant(value),
            Self::Tensor(tensor) => tensor,
            Self::Glorot { seed } => {
                let limit = (6.0 / (fan_in + fan_out)).sqrt();
                let unit = g.random_uniform(sizes, dtype, keyed(seed, name));
                unit * (2.0 * limit) - limit
            }
            Self::He { seed } => {
                let unit = g.truncated_normal(sizes, dtype, keyed(seed, name));
                unit * (2.0 / fan_in).sqrt()
            }
            Self::Normal { deviation, seed } => {
                g.random_normal(sizes, dtype, keyed(seed, name)) * deviation
            }
            Self::Uniform { low, high, seed } => {
                g.random_uniform(sizes, dtype, keyed(seed, name)) * (high - low) + low
            }
        }
    }
}

/// Variables with one seed differ by their names, by FNV-1a.
fn keyed(seed: u64, name: &str) -> u64 {
    name.bytes().fold(seed ^ 0xCBF2_9CE4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3)
    })
}

fn fans(sizes: &[usize]) -> (f64, f64) {
    match sizes {
        [] => (1.0, 1.0),
        [n] => (*n as f64, *n as f64),
        [field @ .., i, o] => {
            let field: f64 = field.iter().map(|&f| f as f64).product();
            (field * *i as f64, field * *o as f64)
        }
    }
}
