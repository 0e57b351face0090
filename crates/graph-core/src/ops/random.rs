//! Random elements from Philox, keyed by the graph's seed and the operation's seed or name.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{Distribution, SharedOp, arity, one, output_shape, value};
use crate::ops::gather::sizes_in;
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, DType, Fact, Graph, HostTensor, Op, OpError, Random, Tensor,
    philox,
};

impl Graph {
    /// Uniform in `[0, 1)`, drawn anew in each run. Bits are equal on every device.
    ///
    /// # Errors
    /// Recorded: the dtype is no float, or the sizes overflow.
    #[track_caller]
    pub fn random_uniform(&self, sizes: &[usize], dtype: DType, seed: u64) -> Tensor {
        self.random(Distribution::Uniform, sizes, dtype, seed)
    }

    /// Normal with mean 0 and deviation 1, drawn anew in each run.
    ///
    /// # Errors
    /// As [`Self::random_uniform`].
    #[track_caller]
    pub fn random_normal(&self, sizes: &[usize], dtype: DType, seed: u64) -> Tensor {
        self.random(Distribution::Normal, sizes, dtype, seed)
    }

    /// As [`Self::random_normal`], drawn again while above 2 in magnitude.
    ///
    /// # Errors
    /// As [`Self::random_uniform`].
    #[track_caller]
    pub fn truncated_normal(&self, sizes: &[usize], dtype: DType, seed: u64) -> Tensor {
        self.random(Distribution::TruncatedNormal, sizes, dtype, seed)
    }

    #[track_caller]
    fn random(
        &self,
        distribution: Distribution,
        sizes: &[usize],
        dtype: DType,
        seed: u64,
    ) -> Tensor {
        let sizes: Vec<i64> =
            sizes.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
        self.random_of(distribution, &self.constant(sizes), dtype, seed)
    }

    #[track_caller]
    pub(crate) fn random_of(
        &self,
        distribution: Distribution,
        sizes: &Tensor,
        dtype: DType,
        seed: u64,
    ) -> Tensor {
        let key = mix(mix(self.seed()) ^ seed);
        self.apply(RandomOp { random: Random { distribution, key }, dtype }, &[sizes])
    }
}

/// The finaliser of SplitMix64: every bit of the input moves half of the output's.
fn mix(seed: u64) -> u64 {
    let x = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Tensor {
    /// Uniform in `[0, 1)` in this tensor's shape and dtype, drawn anew in each run.
    #[track_caller]
    pub fn random_uniform_like(&self, seed: u64) -> Tensor {
        self.graph().random_of(Distribution::Uniform, &self.shape(), self.dtype(), seed)
    }
}

#[derive(Debug, Clone, Copy)]
struct RandomOp {
    random: Random,
    dtype: DType,
}

impl Op for RandomOp {
    fn name(&self) -> &str {
        match self.random.distribution {
            Distribution::Uniform => "random_uniform",
            Distribution::Normal => "random_normal",
            Distribution::TruncatedNormal => "truncated_normal",
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [sizes] = arity(inputs)?;
        if !self.dtype.is_float() {
            return Err(OpError::DType { what: "random", expected: "floats", found: self.dtype });
        }
        one(Fact::new(self.dtype, sizes_in(sizes)?.checked()?))
    }

    /// The first draw.
    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (dtype, shape) = output_shape(self, inputs)?;
        let Random { distribution, key } = self.random;
        let draw = |i| philox::sample(distribution, key, i, 0);
        let elements: Vec<f64> = (0..shape.len() as u64).map(draw).collect();
        value(HostTensor::from_f64s(dtype, shape, &elements))
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::Random(self.random)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("dtype", self.dtype).with("key", self.random.key))
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("random_uniform", |a| decode(Distribution::Uniform, a)),
    ("random_normal", |a| decode(Distribution::Normal, a)),
    ("truncated_normal", |a| decode(Distribution::TruncatedNormal, a)),
];

fn decode(distribution: Distribution, a: &Attributes) -> Result<SharedOp, OpError> {
    let random = Random { distribution, key: a.int("key")? };
    Ok(Arc::new(RandomOp { random, dtype: a.dtype("dtype")? }))
}
