//! The same elements through another layout: reshape, transpose, broadcast, slice. A view costs
//! nothing where its consumer can read through it.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{arity, axis_mask, one, output_shape, resolve_axis};
use crate::ops::pick::picked;
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, DType, Dim, Dims, Fact, HostTensor, Layout, Op, OpError, Tensor,
    View,
};

impl Tensor {
    /// The same elements in row-major order with other sizes; one of them may be -1 and is then what
    /// the others leave.
    ///
    /// # Errors
    /// Recorded: the counts differ, or more than one size is -1.
    #[track_caller]
    pub fn reshape(&self, sizes: &[i64]) -> Tensor {
        let sizes = self.graph().constant(sizes.to_vec());
        self.reshape_to(&sizes)
    }

    /// As [`Self::reshape`], with the sizes from a one-dimensional tensor of integers.
    #[track_caller]
    pub fn reshape_to(&self, sizes: &Tensor) -> Tensor {
        self.apply(Reshape, &[self, sizes])
    }

    /// Axis `i` of the result is axis `axes[i]` of this.
    ///
    /// # Errors
    /// Recorded: `axes` is not a permutation of the axes.
    #[track_caller]
    pub fn permute(&self, axes: &[usize]) -> Tensor {
        self.apply(Permute { axes: axes.to_vec() }, &[self])
    }

    /// The last two axes swapped.
    ///
    /// # Errors
    /// Recorded: the rank is below 2 or unknown.
    #[track_caller]
    pub fn transpose(&self) -> Tensor {
        let rank = self.dims().rank().unwrap_or(0);
        let mut axes: Vec<usize> = (0..rank).collect();
        if rank >= 2 {
            axes.swap(rank - 1, rank - 2);
        } else {
            // Refused by the operation, which then names the shape.
            axes = vec![1, 0];
        }
        self.permute(&axes)
    }

    /// A new axis of size 1 before `axis`; -1 is after the last.
    ///
    /// # Errors
    /// Recorded: the axis is out of range, or the rank is unknown.
    #[track_caller]
    pub fn expand_dims(&self, axis: i64) -> Tensor {
        self.apply(ExpandDims { axis }, &[self])
    }

    /// Without these axes, which have size 1; `[]` for all axes of size 1.
    ///
    /// # Errors
    /// Recorded: an axis is out of range or has another size.
    #[track_caller]
    pub fn squeeze(&self, axes: &[i64]) -> Tensor {
        self.apply(Squeeze { axes: axes.to_vec() }, &[self])
    }

    /// Repeated to these sizes, by NumPy's rule.
    ///
    /// # Errors
    /// Recorded: the shape does not broadcast to these sizes.
    #[track_caller]
    pub fn broadcast_to(&self, sizes: &[i64]) -> Tensor {
        let sizes = self.graph().constant(sizes.to_vec());
        self.broadcast_to_sizes(&sizes)
    }

    /// As [`Self::broadcast_to`], with the sizes from a one-dimensional tensor of integers.
    #[track_caller]
    pub fn broadcast_to_sizes(&self, sizes: &Tensor) -> Tensor {
        self.apply(BroadcastTo, &[self, sizes])
    }

    /// Repeated to the shape of `like`.
    #[track_caller]
    pub fn broadcast_like(&self, like: &Tensor) -> Tensor {
        if self.dims() == like.dims() && self.dims().shape().is_some() {
            return self.clone();
        }
        self.apply(BroadcastTo, &[self, &like.shape()])
    }

    /// The part that begins at `begin` and has `size` elements along each axis; `None` is to the end.
    ///
    /// # Errors
    /// Recorded: another number of axes, or a part that is not inside.
    #[track_caller]
    pub fn slice(&self, begin: &[usize], size: &[Option<usize>]) -> Tensor {
        self.apply(Slice { begin: begin.to_vec(), size: size.to_vec() }, &[self])
    }

    /// The part that begins at `begin` and has the shape of `like`: the gradient of a pad.
    #[track_caller]
    pub(crate) fn slice_like(&self, begin: &[usize], like: &Tensor) -> Tensor {
        self.apply(SliceTo { begin: begin.to_vec() }, &[self, &like.shape()])
    }

    /// The same value; a name for it, and a node of its own to place.
    #[track_caller]
    pub fn identity(&self) -> Tensor {
        self.apply(Identity { stops: false }, &[self])
    }

    /// The same value, called `name`.
    #[track_caller]
    pub fn named(&self, name: &str) -> Tensor {
        self.graph().apply_named(Identity { stops: false }, &[self], name)
    }

    /// The same value, through which no gradient flows.
    #[track_caller]
    pub fn stop_gradient(&self) -> Tensor {
        self.apply(Identity { stops: true }, &[self])
    }
}

/// The reference of every view: the elements, one by one, where the layout says.
fn gather(
    op: &dyn Op,
    view: &View,
    inputs: &[HostTensor],
) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
    let (dtype, shape) = output_shape(op, inputs)?;
    let x = &inputs[0];
    let layout = view
        .layout(&Layout::packed(x.shape().clone()), &shape)
        .ok_or_else(|| OpError::Invalid(format!("{} is not inside of {}", shape, x.shape())))?;
    let places = (0..shape.len()).map(|i| Some((0, layout.at(&shape.coords(i)))));
    picked(dtype, shape.clone(), &inputs[..1], places)
}

/// From `begin`, every element.
fn slice_view(begin: &[usize]) -> View {
    View::Slice { starts: begin.to_vec(), steps: vec![1; begin.len()] }
}

/// Sizes that an input holds: known ones, as many unknown ones as it has elements, or nothing.
fn sizes(fact: &Fact) -> Result<Option<Vec<i64>>, OpError> {
    fact.expect("sizes", "integers", DType::is_int)?;
    fact.dims.expect_rank(1)?;
    Ok(fact.integers())
}

fn unknown_sizes(fact: &Fact) -> Dims {
    match fact.shape() {
        Some(shape) => std::iter::repeat_n(Dim::Unknown, shape.len()).collect(),
        None => Dims::UnknownRank,
    }
}

#[derive(Debug, Clone, Copy)]
struct Reshape;

impl Op for Reshape {
    fn name(&self) -> &str {
        "reshape"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x, to] = arity(inputs)?;
        let Some(sizes) = sizes(to)? else {
            return one(x.with_dims(unknown_sizes(to)));
        };
        let mut dims: SmallVec<[Dim; 6]> = SmallVec::new();
        for &size in &sizes {
            dims.push(match usize::try_from(size) {
                Ok(size) => Dim::Known(size),
                Err(_) if size == -1 => Dim::Unknown,
                Err(_) => {
                    let expected = "at least -1".into();
                    return Err(OpError::Range { what: "size", value: size, expected });
                }
            });
        }
        let open = sizes.iter().filter(|&&size| size == -1).count();
        if open > 1 {
            return Err(OpError::Invalid(format!(
                "{open} sizes of {sizes:?} are -1, at most one may be"
            )));
        }
        let dims = Dims::Known(dims).checked()?;
        let Some(from) = x.shape() else {
            return one(x.with_dims(dims));
        };
        let rest: usize = sizes.iter().filter(|&&s| s >= 0).map(|&s| s as usize).product();
        let fits = if open == 1 { rest > 0 && from.len() % rest == 0 } else { rest == from.len() };
        if !fits {
            let (from_len, to) = (from.len(), format!("{sizes:?}"));
            return Err(OpError::Reshape { from: x.dims.clone(), from_len, to });
        }
        let size = |&s: &i64| if s == -1 { from.len() / rest } else { s as usize };
        one(x.with_dims(sizes.iter().map(size).collect::<Dims>()))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        gather(self, &View::Reshape, inputs)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![backward.dy().map(|dy| dy.reshape_to(&backward.input(0).shape())), None]
    }

    fn class(&self) -> Class<'_> {
        Class::View(View::Reshape)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

#[derive(Debug, Clone)]
struct Permute {
    axes: Vec<usize>,
}

impl Op for Permute {
    fn name(&self) -> &str {
        "transpose"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x] = arity(inputs)?;
        let dims = x.dims.expect_rank(self.axes.len())?;
        let rank = dims.len();
        let axes: Vec<i64> =
            self.axes.iter().map(|&axis| i64::try_from(axis).unwrap_or(i64::MAX)).collect();
        axis_mask(&axes, rank)?;
        one(x.with_dims(self.axes.iter().map(|&a| dims[a]).collect::<Dims>()))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        gather(self, &View::Permute(self.axes.clone()), inputs)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let mut inverse = vec![0; self.axes.len()];
        for (i, &axis) in self.axes.iter().enumerate() {
            inverse[axis] = i;
        }
        vec![backward.dy().map(|dy| dy.permute(&inverse))]
    }

    fn class(&self) -> Class<'_> {
        Class::View(View::Permute(self.axes.clone()))
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("axes", self.axes.clone()))
    }
}

#[derive(Debug, Clone, Copy)]
struct ExpandDims {
    axis: i64,
}

impl Op for ExpandDims {
    fn name(&self) -> &str {
        "expand_dims"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x] = arity(inputs)?;
        let Dims::Known(mut dims) = x.dims.clone() else {
            return one(x.with_dims(Dims::UnknownRank));
        };
        let at = resolve_axis(self.axis, dims.len() + 1)?;
        dims.insert(at, Dim::Known(1));
        one(x.with_dims(Dims::Known(dims).checked()?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        gather(self, &View::Reshape, inputs)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![backward.dy().map(|dy| dy.reshape_to(&backward.input(0).shape()))]
    }

    fn class(&self) -> Class<'_> {
        Class::View(View::Reshape)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("axis", self.axis))
    }
}

#[derive(Debug, Clone)]
struct Squeeze {
    axes: Vec<i64>,
}

impl Op for Squeeze {
    fn name(&self) -> &str {
        "squeeze"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x] = arity(inputs)?;
        let Some(dims) = x.dims.dims() else {
            return one(x.with_dims(Dims::UnknownRank));
        };
        if self.axes.is_empty() {
            if dims.iter().any(|d| d.known().is_none()) {
                return one(x.with_dims(Dims::UnknownRank));
            }
            let kept = dims.iter().copied().filter(|&d| d != Dim::Known(1));
            return one(x.with_dims(kept.collect::<Dims>()));
        }
        let mask = axis_mask(&self.axes, dims.len())?;
        for (axis, (dim, &out)) in dims.iter().zip(&mask).enumerate() {
            if let (true, Some(size)) = (out, dim.known().filter(|&size| size != 1)) {
                return Err(OpError::Invalid(format!("axis {axis} has size {size}, expected 1")));
            }
        }
        let kept = dims.iter().zip(&mask).filter(|(_, out)| !**out).map(|(&d, _)| d);
        one(x.with_dims(kept.collect::<Dims>()))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        gather(self, &View::Reshape, inputs)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![backward.dy().map(|dy| dy.reshape_to(&backward.input(0).shape()))]
    }

    fn class(&self) -> Class<'_> {
        Class::View(View::Reshape)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("axes", self.axes.clone()))
    }
}

#[derive(Debug, Clone, Copy)]
struct BroadcastTo;

impl Op for BroadcastTo {
    fn name(&self) -> &str {
        "broadcast_to"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x, to] = arity(inputs)?;
        let Some(sizes) = sizes(to)? else {
            return one(x.with_dims(unknown_sizes(to)));
        };
        let dims: Option<Dims> = sizes
            .iter()
            .map(|&s| usize::try_from(s).ok().map(Dim::Known))
            .collect::<Option<Vec<_>>>()
            .map(|d| d.into_iter().collect());
        let dims =
            dims.ok_or_else(|| OpError::Invalid(format!("sizes {sizes:?} must be at least 0")))?;
        let wide = x.dims.broadcast(&dims)?;
        wide.unify(&dims)?;
        one(x.with_dims(dims.checked()?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        gather(self, &View::Broadcast, inputs)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![backward.dy().map(|dy| dy.sum_to_like(backward.input(0))), None]
    }

    fn class(&self) -> Class<'_> {
        Class::View(View::Broadcast)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

#[derive(Debug, Clone)]
struct Slice {
    begin: Vec<usize>,
    size: Vec<Option<usize>>,
}

impl Op for Slice {
    fn name(&self) -> &str {
        "slice"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x] = arity(inputs)?;
        let dims = x.dims.expect_rank(self.begin.len())?;
        x.dims.expect_rank(self.size.len())?;
        if self.begin.len() != self.size.len() {
            let (expected, found) = (self.begin.len(), self.size.as_slice());
            return Err(OpError::Invalid(format!("expected {expected} sizes, got {found:?}")));
        }
        let part = |(axis, dim): (usize, &Dim)| {
            let (begin, size) = (self.begin[axis], self.size[axis]);
            let Some(dim) = dim.known() else {
                return Ok(size.map_or(Dim::Unknown, Dim::Known));
            };
            let size = size.or(dim.checked_sub(begin));
            match size.filter(|&s| begin.checked_add(s).is_some_and(|end| end <= dim)) {
                Some(size) => Ok(Dim::Known(size)),
                None => Err(OpError::Invalid(format!(
                    "the slice from {begin} of size {} is not inside of axis {axis}, which has size {dim}",
                    self.size[axis].map_or("to the end".into(), |s| s.to_string()),
                ))),
            }
        };
        let dims: Result<Dims, OpError> = dims
            .iter()
            .enumerate()
            .map(part)
            .collect::<Result<Vec<_>, _>>()
            .map(|d| d.into_iter().collect());
        one(x.with_dims(dims?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        gather(self, &slice_view(&self.begin), inputs)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let x = backward.input(0);
        vec![backward.dy().map(|dy| dy.pad_like(&self.begin, x))]
    }

    fn class(&self) -> Class<'_> {
        Class::View(slice_view(&self.begin))
    }

    fn encode(&self) -> Option<Attributes> {
        let size: Dims = self.size.iter().copied().collect();
        Some(Attributes::of(self.name()).with("begin", self.begin.clone()).with("size", size))
    }
}

#[derive(Debug, Clone)]
struct SliceTo {
    begin: Vec<usize>,
}

impl Op for SliceTo {
    fn name(&self) -> &str {
        "slice_to"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x, to] = arity(inputs)?;
        x.dims.expect_rank(self.begin.len())?;
        let Some(sizes) = sizes(to)? else {
            return one(x.with_dims(unknown_sizes(to)));
        };
        let dims: Dims = sizes.iter().map(|&s| usize::try_from(s).ok()).collect();
        let whole = x.shape().zip(dims.shape());
        if let Some((x, part)) = whole {
            let steps = vec![1; self.begin.len()];
            let inside = Layout::packed(x.clone()).slice(&self.begin, part.dims(), &steps);
            if inside.is_none() {
                return Err(OpError::Shape { expected: (&x).into(), found: (&part).into() });
            }
        }
        one(x.with_dims(dims.checked()?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        gather(self, &slice_view(&self.begin), inputs)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let dx = backward.dy().map(|dy| dy.pad_like(&self.begin, backward.input(0)));
        vec![dx, None]
    }

    fn class(&self) -> Class<'_> {
        Class::View(slice_view(&self.begin))
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("begin", self.begin.clone()))
    }
}

#[derive(Debug, Clone, Copy)]
struct Identity {
    stops: bool,
}

impl Op for Identity {
    fn name(&self) -> &str {
        if self.stops { "stop_gradient" } else { "identity" }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x] = arity(inputs)?;
        one(x.clone())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let [x] = arity(inputs)?;
        Ok(SmallVec::from_iter([x.clone()]))
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![backward.dy().filter(|_| !self.stops)]
    }

    fn class(&self) -> Class<'_> {
        Class::View(View::Identity)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("reshape", |_| Ok(Arc::new(Reshape))),
    ("transpose", |a| Ok(Arc::new(Permute { axes: a.ints("axes")? }))),
    ("expand_dims", |a| Ok(Arc::new(ExpandDims { axis: a.int("axis")? }))),
    ("squeeze", |a| Ok(Arc::new(Squeeze { axes: a.ints("axes")? }))),
    ("broadcast_to", |_| Ok(Arc::new(BroadcastTo))),
    ("slice", |a| {
        let (begin, size) = (a.ints("begin")?, a.dims("size")?);
        let size: Vec<_> = size.expect_rank(begin.len())?.iter().map(|dim| dim.known()).collect();
        Ok(Arc::new(Slice { begin, size }))
    }),
    ("slice_to", |a| Ok(Arc::new(SliceTo { begin: a.ints("begin")? }))),
    ("identity", |_| Ok(Arc::new(Identity { stops: false }))),
    ("stop_gradient", |_| Ok(Arc::new(Identity { stops: true }))),
];
