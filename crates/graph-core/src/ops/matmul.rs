//! Batched matrix products.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{arity, one, output_shape, same_dtype, value};
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, Contract, Dims, Fact, HostTensor, IntoTensor, Layout, Op, OpError,
    Shape, Tensor,
};

#[derive(Debug, Clone, Copy)]
struct Matmul {
    transpose_a: bool,
    transpose_b: bool,
}

impl Tensor {
    /// The matrix product.
    ///
    /// # Shapes
    /// `self [.., m, k]`, `b [.., k, n]` → `[.., m, n]`; the leading axes broadcast.
    ///
    /// # Errors
    /// Recorded: ranks below 2, inner sizes that differ, dtypes that differ or are no numbers.
    #[track_caller]
    pub fn matmul(&self, b: impl IntoTensor) -> Tensor {
        self.matmul_with(b, false, false)
    }

    /// The matrix product, with either side transposed in its last two axes first, at no cost.
    ///
    /// # Shapes
    /// With `transpose_a`, `self [.., k, m]`; with `transpose_b`, `b [.., n, k]`.
    #[track_caller]
    pub fn matmul_with(&self, b: impl IntoTensor, transpose_a: bool, transpose_b: bool) -> Tensor {
        let b = b.into_tensor(self);
        self.apply(Matmul { transpose_a, transpose_b }, &[self, &b])
    }
}

impl Op for Matmul {
    fn name(&self) -> &str {
        "matmul"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [a, b] = arity(inputs)?;
        let dtype = same_dtype(inputs)?;
        a.expect("matmul", "numbers", |d| d.is_number())?;
        let (Some(da), Some(db)) = (a.dims.dims(), b.dims.dims()) else {
            return one(Fact::new(dtype, Dims::UnknownRank));
        };
        for side in [a, b] {
            if side.dims.rank().is_some_and(|rank| rank < 2) {
                return Err(OpError::Rank { expected: 2, found: side.dims.clone() });
            }
        }
        let (lead_a, tail_a) = da.split_at(da.len() - 2);
        let (lead_b, tail_b) = db.split_at(db.len() - 2);
        let (m, k) = pick(tail_a, self.transpose_a);
        let (k2, n) = pick(tail_b, self.transpose_b);
        if !k.fits(k2) {
            return Err(OpError::Inner { lhs: a.dims.clone(), rhs: b.dims.clone() });
        }
        let lead_a: Dims = lead_a.iter().copied().collect();
        let mut dims = match lead_a.broadcast(&lead_b.iter().copied().collect())? {
            Dims::Known(dims) => dims,
            Dims::UnknownRank => return one(Fact::new(dtype, Dims::UnknownRank)),
        };
        dims.extend([m, n]);
        one(Fact::new(dtype, Dims::Known(dims).checked()?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (dtype, shape) = output_shape(self, inputs)?;
        let (a, b) = (self.side(&inputs[0], &shape, 0)?, self.side(&inputs[1], &shape, 1)?);
        let rank = shape.rank();
        let k = a.shape().dims()[rank - 1];
        // The place of both factors of each term of output element `i`.
        let terms = |i: usize| {
            let (mut at_a, mut at_b) = (shape.coords(i), shape.coords(i));
            let (a, b) = (&a, &b);
            (0..k).map(move |t| {
                (at_a[rank - 1], at_b[rank - 2]) = (t, t);
                (a.at(&at_a), b.at(&at_b))
            })
        };
        let n = shape.len();
        value(if dtype.is_float() {
            let (xs, ys) = (floats(&inputs[0])?, floats(&inputs[1])?);
            let dot = |i| terms(i).map(|(p, q)| xs[p] * ys[q]).sum();
            HostTensor::from_f64s(dtype, shape.clone(), &(0..n).map(dot).collect::<Vec<f64>>())
        } else {
            let (xs, ys) = (ints(&inputs[0])?, ints(&inputs[1])?);
            let dot = |i| {
                let products = terms(i).map(|(p, q)| xs[p].wrapping_mul(ys[q]));
                products.fold(0i128, i128::wrapping_add)
            };
            HostTensor::from_i128s(dtype, shape.clone(), &(0..n).map(dot).collect::<Vec<i128>>())
        })
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let Some(dy) = backward.dy() else { return vec![None, None] };
        let (a, b) = (backward.input(0), backward.input(1));
        let da = match (self.transpose_a, self.transpose_b) {
            (false, tb) => dy.matmul_with(b, false, !tb),
            (true, tb) => b.matmul_with(&dy, tb, true),
        };
        let db = match (self.transpose_a, self.transpose_b) {
            (ta, false) => a.matmul_with(&dy, !ta, false),
            (ta, true) => dy.matmul_with(a, true, ta),
        };
        vec![Some(da.sum_to_like(a)), Some(db.sum_to_like(b))]
    }

    fn class(&self) -> Class<'_> {
        let Self { transpose_a, transpose_b } = *self;
        Class::Contract(Contract::Matmul { transpose_a, transpose_b })
    }

    fn encode(&self) -> Option<Attributes> {
        let encoded = Attributes::of(self.name()).with("transpose_a", self.transpose_a);
        Some(encoded.with("transpose_b", self.transpose_b))
    }
}

impl Matmul {
    /// Where the elements of one side lie, as `[.., m, k]` or `[.., k, n]` with the leading axes of
    /// the output.
    fn side(&self, x: &HostTensor, output: &Shape, which: usize) -> Result<Layout, OpError> {
        let own = Layout::packed(x.shape().clone());
        let rank = x.shape().rank();
        let transposed = [self.transpose_a, self.transpose_b][which];
        let mut axes: Vec<usize> = (0..rank).collect();
        if transposed {
            axes.swap(rank - 1, rank - 2);
        }
        let own = own.permute(&axes).ok_or_else(|| OpError::Invalid("no such axes".into()))?;
        let mut dims = output.dims()[..output.rank() - 2].to_vec();
        dims.extend_from_slice(&own.shape().dims()[rank - 2..]);
        let shape = Shape::new(&dims)?;
        own.broadcast(&shape).ok_or_else(|| OpError::Invalid("the batches do not fit".into()))
    }
}

fn pick<T: Copy>(tail: &[T], transposed: bool) -> (T, T) {
    if transposed { (tail[1], tail[0]) } else { (tail[0], tail[1]) }
}

fn floats(x: &HostTensor) -> Result<Vec<f64>, OpError> {
    x.to_f64s().map_err(|e| OpError::Invalid(e.message().into()))
}

fn ints(x: &HostTensor) -> Result<Vec<i128>, OpError> {
    x.to_i128s().map_err(|e| OpError::Invalid(e.message().into()))
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[("matmul", |a| {
    let (transpose_a, transpose_b) = (a.bool("transpose_a")?, a.bool("transpose_b")?);
    Ok(Arc::new(Matmul { transpose_a, transpose_b }))
})];
