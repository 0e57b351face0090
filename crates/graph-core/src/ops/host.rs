//! What the host knows or is given: placeholders, constants, shapes and ranges.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{arity, one, output_shape, same_dtype, value};
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, DType, Dim, Dims, Fact, Graph, Host, HostTensor, Op, OpError,
    Shape, Tensor,
};

impl Graph {
    /// A value that every run is fed. Dimensions that are `None` may differ from run to run.
    #[track_caller]
    pub fn placeholder(&self, name: &str, dtype: DType, dims: impl Into<Dims>) -> Tensor {
        let dims = self.with_symbols(dims.into());
        self.apply_named(Placeholder { dtype, dims }, &[], name)
    }

    /// A value that a run may be fed; without a feed, it is `default`.
    ///
    /// # Errors
    /// Recorded: the default's shape does not fit `dims`.
    #[track_caller]
    pub fn placeholder_with_default(
        &self,
        name: &str,
        default: impl Into<HostTensor>,
        dims: impl Into<Dims>,
    ) -> Tensor {
        let default = self.constant(default);
        let dims = self.with_symbols(dims.into());
        self.apply_named(Placeholder { dtype: default.dtype(), dims }, &[&default], name)
    }

    /// A value that never changes.
    #[track_caller]
    pub fn constant(&self, tensor: impl Into<HostTensor>) -> Tensor {
        self.apply(Constant(tensor.into()), &[])
    }

    /// `value` repeated to `sizes`.
    #[track_caller]
    pub fn fill(&self, sizes: &[i64], value: impl Into<HostTensor>) -> Tensor {
        self.constant(value).broadcast_to(sizes)
    }

    /// The integers from `start` up to `limit`, which is left out, as i32.
    #[track_caller]
    pub fn range(&self, start: i32, limit: i32) -> Tensor {
        let (start, limit) = (self.constant(start), self.constant(limit));
        self.apply(Range, &[&start, &limit])
    }

    fn with_symbols(&self, dims: Dims) -> Dims {
        let Dims::Known(dims) = dims else { return dims };
        let symbol = |dim| if dim == Dim::Unknown { self.symbol() } else { dim };
        dims.into_iter().map(symbol).collect()
    }
}

impl Tensor {
    /// The sizes, as a one-dimensional i64 tensor. Computed on the host.
    #[track_caller]
    pub fn shape(&self) -> Tensor {
        self.apply(ShapeOf, &[self])
    }

    /// The number of elements, as an i64 scalar. Computed on the host.
    #[track_caller]
    pub fn size(&self) -> Tensor {
        self.apply(SizeOf, &[self])
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Placeholder {
    pub(crate) dtype: DType,
    pub(crate) dims: Dims,
}

impl Op for Placeholder {
    fn name(&self) -> &str {
        "placeholder"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        if let [default] = inputs {
            if default.dtype != self.dtype {
                return Err(OpError::DTypes { lhs: self.dtype, rhs: default.dtype });
            }
            self.dims.unify(&default.dims)?;
        }
        one(Fact::new(self.dtype, self.dims.clone().checked()?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        match inputs {
            [default] => Ok(SmallVec::from_iter([default.clone()])),
            _ => Err(OpError::Invalid("a placeholder has no value unless it is fed".into())),
        }
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None; backward.n_inputs()]
    }

    fn class(&self) -> Class<'_> {
        Class::Host(Host::Placeholder)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("dtype", self.dtype).with("dims", self.dims.clone()))
    }
}

#[derive(Debug, Clone)]
struct Constant(HostTensor);

impl Op for Constant {
    fn name(&self) -> &str {
        "constant"
    }

    fn infer(&self, _: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        one(Fact::of(&self.0))
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Ok(SmallVec::from_iter([self.0.clone()]))
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        Vec::new()
    }

    fn class(&self) -> Class<'_> {
        Class::Host(Host::Constant(&self.0))
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("value", self.0.clone()))
    }
}

#[derive(Debug, Clone, Copy)]
struct ShapeOf;

impl Op for ShapeOf {
    fn name(&self) -> &str {
        "shape"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x] = arity(inputs)?;
        one(match (x.dims.shape(), x.dims.rank()) {
            (Some(shape), _) => Fact::of(&sizes_of(&shape)),
            (None, Some(rank)) => Fact::new(DType::I64, [rank]),
            (None, None) => Fact::new(DType::I64, [Dim::Unknown]),
        })
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let [x] = arity(inputs)?;
        Ok(SmallVec::from_iter([sizes_of(x.shape())]))
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::Host(Host::Metadata)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

#[derive(Debug, Clone, Copy)]
struct SizeOf;

impl Op for SizeOf {
    fn name(&self) -> &str {
        "size"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x] = arity(inputs)?;
        one(match x.dims.shape() {
            Some(shape) => Fact::of(&HostTensor::from(shape.len() as i64)),
            None => Fact::new(DType::I64, Vec::new()),
        })
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let [x] = arity(inputs)?;
        Ok(SmallVec::from_iter([HostTensor::from(x.len() as i64)]))
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::Host(Host::Metadata)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Range;

impl Op for Range {
    fn name(&self) -> &str {
        "range"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [start, limit] = arity(inputs)?;
        let dtype = same_dtype(inputs)?;
        start.expect("range", "integers", DType::is_int)?;
        let dim = match (start.integers().as_deref(), limit.integers().as_deref()) {
            (Some(&[start]), Some(&[limit])) => {
                Dim::Known(usize::try_from(limit.saturating_sub(start)).unwrap_or(0))
            }
            (None, _) | (_, None) => Dim::Unknown,
            _ => return Err(OpError::Invalid("start and limit must be scalars".into())),
        };
        one(Fact::new(dtype, [dim].into_iter().collect::<Dims>().checked()?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (dtype, shape) = output_shape(self, inputs)?;
        let start = inputs[0].to_i128s().map_err(|e| OpError::Invalid(e.message().into()))?;
        let elements: Vec<i128> = (0..shape.len() as i128).map(|i| start[0] + i).collect();
        value(HostTensor::from_i128s(dtype, shape, &elements))
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None, None]
    }

    fn class(&self) -> Class<'_> {
        Class::Host(Host::Metadata)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

fn sizes_of(shape: &Shape) -> HostTensor {
    shape.dims().iter().map(|&d| d as i64).collect::<Vec<_>>().into()
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("placeholder", |a| {
        Ok(Arc::new(Placeholder { dtype: a.dtype("dtype")?, dims: a.dims("dims")? }))
    }),
    ("constant", |a| Ok(Arc::new(Constant(a.tensor("value")?)))),
    ("shape", |_| Ok(Arc::new(ShapeOf))),
    ("size", |_| Ok(Arc::new(SizeOf))),
    ("range", |_| Ok(Arc::new(Range))),
];
