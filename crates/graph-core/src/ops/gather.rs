//! Slices at indices along an axis, and the gradient of that: slices that are added at indices.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{arity, one, output_shape, resolve_axis, value};
use crate::ops::control::Refused;
use crate::ops::pick::picked;
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, DType, Dim, Dims, Fact, HostTensor, IntoTensor, Move, Op, OpError,
    Tensor,
};

impl Tensor {
    /// The slices along `axis` at `indices`; a negative axis counts from the end.
    ///
    /// # Shapes
    /// `self [a.., n, b..]`, `indices [i..]` of integers in `0..n` → `[a.., i.., b..]`.
    ///
    /// # Errors
    /// Recorded: an axis out of range, or indices that are no integers. In a run: an index out of
    /// range.
    #[track_caller]
    pub fn gather(&self, indices: impl IntoTensor, axis: i64) -> Tensor {
        let indices = indices.into_tensor(self);
        match axis_of(&self.dims(), axis) {
            Ok(axis) => self.apply(Gather { axis }, &[self, &indices]),
            Err(reason) => self.apply(Refused(reason), &[self, &indices]),
        }
    }

    /// The rows of this table at `ids`: an embedding look-up.
    ///
    /// # Shapes
    /// `self [n, b..]`, `ids [i..]` of integers in `0..n` → `[i.., b..]`.
    ///
    /// # Errors
    /// As [`Self::gather`].
    #[track_caller]
    pub fn embedding(&self, ids: impl IntoTensor) -> Tensor {
        self.gather(ids, 0)
    }

    /// Zeros of the shape of `like`, to which the slices of this are added along `axis` at `indices`.
    #[track_caller]
    fn scatter_add(&self, indices: &Tensor, like: &Tensor, axis: usize) -> Tensor {
        self.apply(ScatterAdd { axis }, &[&like.shape(), indices, self])
    }
}

/// The axis that `axis` names; the rank may be unknown only where that does not matter.
pub(crate) fn axis_of(dims: &Dims, axis: i64) -> Result<usize, OpError> {
    match (dims.rank(), usize::try_from(axis)) {
        (Some(rank), _) => resolve_axis(axis, rank),
        (None, Ok(axis)) => Ok(axis),
        (None, Err(_)) => Err(OpError::Unsupported(format!(
            "axis {axis} counts from the end of a tensor of unknown rank"
        ))),
    }
}

/// The sizes of the slices of `dims` at indices along an axis.
pub(crate) fn gathered(dims: &Dims, indices: &Dims, axis: usize) -> Result<Dims, OpError> {
    let Some(dims) = dims.dims() else { return Ok(Dims::UnknownRank) };
    resolve_axis(axis as i64, dims.len())?;
    let Some(indices) = indices.dims() else { return Ok(Dims::UnknownRank) };
    let all: SmallVec<[Dim; 6]> =
        dims[..axis].iter().chain(indices).chain(&dims[axis + 1..]).copied().collect();
    Dims::Known(all).checked()
}

/// For each slice along `axis` at `indices`, in the order of the output: where it begins in the tensor
/// that is indexed, and the length of one slice.
fn slices(
    dims: &[usize],
    axis: usize,
    indices: &HostTensor,
) -> Result<(Vec<usize>, usize), OpError> {
    let size = dims[axis];
    let len: usize = dims[axis + 1..].iter().product();
    let n_outer: usize = dims[..axis].iter().product();
    let indices = indices.to_i128s().map_err(|e| OpError::Invalid(e.message().into()))?;
    let row = |(position, &index): (usize, &i128)| {
        let out_of_range = || {
            let index = i64::try_from(index).unwrap_or(i64::MAX);
            OpError::Index { index, position, size }
        };
        usize::try_from(index).ok().filter(|&i| i < size).ok_or_else(out_of_range)
    };
    let rows: Vec<usize> = indices.iter().enumerate().map(row).collect::<Result<_, _>>()?;
    let begin = |outer: usize| rows.iter().map(move |row| (outer * size + row) * len);
    Ok(((0..n_outer).flat_map(begin).collect(), len))
}

#[derive(Debug, Clone, Copy)]
struct Gather {
    axis: usize,
}

impl Op for Gather {
    fn name(&self) -> &str {
        "gather"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x, indices] = arity(inputs)?;
        indices.expect("the indices of gather", "integers", DType::is_int)?;
        one(x.with_dims(gathered(&x.dims, &indices.dims, self.axis)?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (dtype, shape) = output_shape(self, inputs)?;
        let (begins, len) = slices(inputs[0].dims(), self.axis, &inputs[1])?;
        let places = begins.iter().flat_map(|&begin| begin..begin + len).map(|at| Some((0, at)));
        picked(dtype, shape, &inputs[..1], places)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let (x, indices) = (backward.input(0), backward.input(1));
        vec![backward.dy().map(|dy| dy.scatter_add(indices, x, self.axis)), None]
    }

    fn class(&self) -> Class<'_> {
        Class::Move(Move::Gather { axis: self.axis })
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("axis", self.axis))
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ScatterAdd {
    pub(crate) axis: usize,
}

impl Op for ScatterAdd {
    fn name(&self) -> &str {
        "scatter_add"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [sizes, indices, updates] = arity(inputs)?;
        sizes.expect("sizes", "integers", DType::is_int)?;
        indices.expect("the indices of scatter_add", "integers", DType::is_int)?;
        updates.expect("scatter_add", "numbers", DType::is_number)?;
        let dims = sizes_in(sizes)?;
        let expected = gathered(&dims, &indices.dims, self.axis)?;
        expected.unify(&updates.dims)?;
        one(updates.with_dims(dims.checked()?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (dtype, shape) = output_shape(self, inputs)?;
        let (begins, len) = slices(shape.dims(), self.axis, &inputs[1])?;
        let places = begins.iter().flat_map(|&begin| begin..begin + len);
        let invalid = |e: crate::Error| OpError::Invalid(e.message().into());
        value(if dtype.is_float() {
            let mut sums = vec![0.0; shape.len()];
            for (at, x) in places.zip(inputs[2].to_f64s().map_err(invalid)?) {
                sums[at] += x;
            }
            HostTensor::from_f64s(dtype, shape, &sums)
        } else {
            let mut sums = vec![0i128; shape.len()];
            for (at, x) in places.zip(inputs[2].to_i128s().map_err(invalid)?) {
                sums[at] = sums[at].wrapping_add(x);
            }
            HostTensor::from_i128s(dtype, shape, &sums)
        })
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let indices = backward.input(1);
        vec![None, None, backward.dy().map(|dy| dy.gather(indices, self.axis as i64))]
    }

    fn class(&self) -> Class<'_> {
        Class::Move(Move::ScatterAdd { axis: self.axis })
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("axis", self.axis))
    }
}

/// The dimensions that an input of sizes holds, as far as they are known.
pub(crate) fn sizes_in(sizes: &Fact) -> Result<Dims, OpError> {
    sizes.expect("sizes", "integers", DType::is_int)?;
    sizes.dims.expect_rank(1)?;
    let Some(known) = sizes.integers() else {
        return Ok(match sizes.shape() {
            Some(shape) => std::iter::repeat_n(Dim::Unknown, shape.len()).collect(),
            None => Dims::UnknownRank,
        });
    };
    let size = |&size: &i64| {
        usize::try_from(size).map(Dim::Known).map_err(|_| OpError::Range {
            what: "size",
            value: size,
            expected: "at least 0".into(),
        })
    };
    Ok(Dims::Known(known.iter().map(size).collect::<Result<_, _>>()?))
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("gather", |a| Ok(Arc::new(Gather { axis: a.axis("axis")? }))),
    ("scatter_add", |a| Ok(Arc::new(ScatterAdd { axis: a.axis("axis")? }))),
];
