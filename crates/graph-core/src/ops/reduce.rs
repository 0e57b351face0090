//! Reductions along axes: sum, mean, product, extrema and their places, any and all.
//!
//! Floats are added in `f64` by the reference; devices add pairwise or in blocks.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{SharedOp, arity, one, output_shape, resolve_axis, value};
use crate::ops::registry::Decode;
use crate::{
    Attribute, Attributes, Backward, Class, DType, Dim, Dims, Fact, HostTensor, Layout, Op,
    OpError, Reduce, ReduceAxes, ReduceKind, Shape, Tensor,
};

/// Along which axes to reduce: `()` for all, an axis, or a list; negative ones count from the end.
pub trait IntoAxes {
    /// The axes.
    fn into_axes(self) -> ReduceAxes;
}

impl IntoAxes for () {
    fn into_axes(self) -> ReduceAxes {
        ReduceAxes::All
    }
}

impl IntoAxes for i64 {
    fn into_axes(self) -> ReduceAxes {
        ReduceAxes::List(SmallVec::from_slice(&[self]))
    }
}

impl<const N: usize> IntoAxes for [i64; N] {
    fn into_axes(self) -> ReduceAxes {
        ReduceAxes::List(SmallVec::from_slice(&self))
    }
}

impl IntoAxes for &[i64] {
    fn into_axes(self) -> ReduceAxes {
        ReduceAxes::List(SmallVec::from_slice(self))
    }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident $keep:ident $kind:ident),* $(,)?) => {
        impl Tensor {
            $($(#[$doc])*
            ///
            /// # Shapes
            /// The reduced axes are left out. See `
            #[doc = stringify!($keep)]
            /// ` to keep them with size 1.
            #[track_caller]
            pub fn $name(&self, axes: impl IntoAxes) -> Tensor {
                self.reduce(ReduceKind::$kind, axes.into_axes(), false)
            }

            $(#[$doc])*
            ///
            /// # Shapes
            /// The reduced axes stay, with size 1.
            #[track_caller]
            pub fn $keep(&self, axes: impl IntoAxes) -> Tensor {
                self.reduce(ReduceKind::$kind, axes.into_axes(), true)
            })*
        }
    };
}

methods! {
    /// The sum along axes; of nothing, 0.
    sum sum_keep Sum,
    /// The mean along axes, of floats; of nothing, NaN.
    mean mean_keep Mean,
    /// The product along axes; of nothing, 1.
    prod prod_keep Prod,
    /// The greatest along axes, NaN if any is; of nothing, the dtype's least value (floats: -inf).
    max max_keep Max,
    /// The least along axes, NaN if any is; of nothing, the dtype's greatest value (floats: inf).
    min min_keep Min,
    /// Whether any is true along axes, of bools; of nothing, false.
    any any_keep Any,
    /// Whether all are true along axes, of bools; of nothing, true.
    all all_keep All,
}

impl Tensor {
    /// The index of the first greatest element along `axis`, as i32. The first NaN counts as
    /// greatest.
    ///
    /// # Errors
    /// Recorded: the axis is out of range or has size 0.
    #[track_caller]
    pub fn argmax(&self, axis: i64) -> Tensor {
        self.reduce(ReduceKind::ArgMax, axis.into_axes(), false)
    }

    /// The index of the first least element along `axis`, as i32. The first NaN counts as least.
    ///
    /// # Errors
    /// Recorded: the axis is out of range or has size 0.
    #[track_caller]
    pub fn argmin(&self, axis: i64) -> Tensor {
        self.reduce(ReduceKind::ArgMin, axis.into_axes(), false)
    }

    #[track_caller]
    fn reduce(&self, kind: ReduceKind, axes: ReduceAxes, keep_dims: bool) -> Tensor {
        self.apply(ReduceOp(Reduce { kind, axes, keep_dims }), &[self])
    }

    /// Summed along the axes that broadcasting repeated, so that the shape is that of `like`.
    #[track_caller]
    pub(crate) fn sum_to_like(&self, like: &Tensor) -> Tensor {
        let (own, target) = (self.dims(), like.dims());
        if own == target && own.shape().is_some() {
            return self.clone();
        }
        let (kind, axes) = (ReduceKind::Sum, ReduceAxes::ToShape);
        let sum = ReduceOp(Reduce { kind, axes, keep_dims: false });
        self.apply(sum, &[self, &like.shape()])
    }
}

#[derive(Clone)]
struct ReduceOp(Reduce);

impl std::fmt::Debug for ReduceOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())?;
        match &self.0.axes {
            ReduceAxes::All => f.write_str(" all")?,
            ReduceAxes::List(axes) => write!(f, " {axes:?}")?,
            ReduceAxes::ToShape => f.write_str(" to shape")?,
        }
        f.write_str(if self.0.keep_dims { " keep" } else { "" })
    }
}

impl Op for ReduceOp {
    fn name(&self) -> &str {
        match self.0.kind {
            ReduceKind::Sum => "sum",
            ReduceKind::Mean => "mean",
            ReduceKind::Prod => "prod",
            ReduceKind::Max => "max",
            ReduceKind::Min => "min",
            ReduceKind::Any => "any",
            ReduceKind::All => "all",
            ReduceKind::ArgMax => "argmax",
            ReduceKind::ArgMin => "argmin",
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let Reduce { kind, axes, keep_dims } = &self.0;
        let x = inputs.first().ok_or(OpError::Arity { expected: 1, found: 0 })?;
        let dtype = self.output_dtype(x)?;
        if *axes == ReduceAxes::ToShape {
            let [x, shape] = arity(inputs)?;
            return one(Fact::new(dtype, reduced_to(&x.dims, shape)?));
        }
        let [x] = arity(inputs)?;
        let Some(dims) = x.dims.dims() else {
            let rank_zero = *axes == ReduceAxes::All && !keep_dims;
            let dims = if rank_zero { Dims::from(Vec::new()) } else { Dims::UnknownRank };
            return one(Fact::new(dtype, dims));
        };
        let mask = self.0.mask(dims.len(), &x.dims, &Dims::UnknownRank)?;
        let is_arg = matches!(kind, ReduceKind::ArgMax | ReduceKind::ArgMin);
        let kept: Dims = dims
            .iter()
            .zip(&mask)
            .filter_map(|(&dim, &reduced)| match (reduced, keep_dims) {
                (false, _) => Some(dim),
                (true, true) => Some(Dim::Known(1)),
                (true, false) => None,
            })
            .collect();
        if is_arg && dims.iter().zip(&mask).any(|(&d, &reduced)| reduced && d == Dim::Known(0)) {
            return Err(OpError::Invalid(format!("{} of an axis of size 0", self.name())));
        }
        one(Fact::new(dtype, kept))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (dtype, shape) = output_shape(self, inputs)?;
        let lanes = self.lanes(&inputs[0], &shape)?;
        let kind = self.0.kind;
        value(if inputs[0].dtype().is_float() {
            let xs = inputs[0].to_f64s().map_err(|e| OpError::Invalid(e.message().into()))?;
            let of = |lane: &Vec<usize>| reduce_floats(kind, lane.iter().map(|&i| xs[i]));
            let ys: Vec<f64> = lanes.iter().map(of).collect();
            if dtype.is_float() {
                HostTensor::from_f64s(dtype, shape, &ys)
            } else {
                let ys: Vec<i128> = ys.iter().map(|&y| y as i128).collect();
                HostTensor::from_i128s(dtype, shape, &ys)
            }
        } else {
            let xs = inputs[0].to_i128s().map_err(|e| OpError::Invalid(e.message().into()))?;
            let range = inputs[0].dtype().int_range().unwrap_or((0, 1));
            let of = |lane: &Vec<usize>| reduce_ints(kind, range, lane.iter().map(|&i| xs[i]));
            HostTensor::from_i128s(dtype, shape, &lanes.iter().map(of).collect::<Vec<_>>())
        })
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let mut grads = vec![None; backward.n_inputs()];
        if let Some(dy) = backward.dy() {
            grads[0] = self.input_gradient(backward, &dy);
        }
        grads
    }

    fn class(&self) -> Class<'_> {
        Class::Reduce(self.0.clone())
    }

    fn encode(&self) -> Option<Attributes> {
        let axes: Option<Attribute> = match &self.0.axes {
            ReduceAxes::All => None,
            ReduceAxes::List(axes) => Some(axes.iter().copied().collect()),
            ReduceAxes::ToShape => Some("shape".into()),
        };
        let keep_dims = self.0.keep_dims;
        Some(Attributes::of(self.name()).with_some("axes", axes).with("keep_dims", keep_dims))
    }
}

impl ReduceOp {
    fn output_dtype(&self, x: &Fact) -> Result<DType, OpError> {
        match self.0.kind {
            ReduceKind::Any | ReduceKind::All => {
                x.expect("any and all", "bool", |d| d == DType::Bool)?;
                Ok(DType::Bool)
            }
            ReduceKind::Mean => {
                x.expect("mean", "floats", DType::is_float)?;
                Ok(x.dtype)
            }
            ReduceKind::ArgMax | ReduceKind::ArgMin => {
                x.expect("argmax and argmin", "numbers", DType::is_number)?;
                Ok(DType::I32)
            }
            _ => {
                x.expect("a reduction", "numbers", DType::is_number)?;
                Ok(x.dtype)
            }
        }
    }

    /// For each output element, the indices of the input elements that it comes from, in order.
    fn lanes(&self, x: &HostTensor, output: &Shape) -> Result<Vec<Vec<usize>>, OpError> {
        let rank = x.shape().rank();
        let mask = self.0.mask(rank, &x.shape().into(), &output.into())?;
        // The output as it is with the reduced axes kept, whatever its own rank.
        let kept: Vec<usize> =
            x.dims().iter().zip(&mask).map(|(&d, &reduced)| if reduced { 1 } else { d }).collect();
        let layout = Layout::packed(Shape::new(&kept)?)
            .broadcast(x.shape())
            .ok_or_else(|| OpError::Broadcast { lhs: output.into(), rhs: x.shape().into() })?;
        let mut lanes = vec![Vec::new(); output.len()];
        for i in 0..x.len() {
            lanes[layout.at(&x.shape().coords(i))].push(i);
        }
        Ok(lanes)
    }

    fn input_gradient(&self, b: &Backward<'_>, dy: &Tensor) -> Option<Tensor> {
        let (x, y) = (b.input(0), b.output(0));
        let spread = |t: &Tensor| self.kept(x, t).broadcast_like(x);
        match self.0.kind {
            ReduceKind::Sum => Some(spread(dy)),
            ReduceKind::Mean => {
                let count = x.size().cast(dy.dtype()) / y.size().cast(dy.dtype());
                Some(spread(&(dy / count)))
            }
            ReduceKind::Prod => Some(spread(&(dy * y)) / x),
            ReduceKind::Max | ReduceKind::Min => {
                // Equal extrema share the gradient.
                let hit = x.equal(spread(y)).cast(dy.dtype());
                let axes = match &self.0.axes {
                    ReduceAxes::List(axes) => ReduceAxes::List(axes.clone()),
                    _ => ReduceAxes::All,
                };
                let count = hit.reduce(ReduceKind::Sum, axes, true);
                Some(spread(dy) * &hit / count)
            }
            _ => None,
        }
    }

    /// `t`, shaped like the output, with the reduced axes of `x` as size 1.
    fn kept(&self, x: &Tensor, t: &Tensor) -> Tensor {
        match &self.0.axes {
            _ if self.0.keep_dims => t.clone(),
            ReduceAxes::All | ReduceAxes::ToShape => t.clone(),
            ReduceAxes::List(axes) => {
                let rank = x.dims().rank().unwrap_or(0);
                let mut at: Vec<usize> =
                    axes.iter().filter_map(|&a| resolve_axis(a, rank).ok()).collect();
                at.sort_unstable();
                at.iter().fold(t.clone(), |t, &axis| t.expand_dims(axis as i64))
            }
        }
    }
}

/// The target of a reduction to a shape, checked against the dimensions where they are known.
fn reduced_to(dims: &Dims, shape: &Fact) -> Result<Dims, OpError> {
    let Some(target) = shape.integers() else {
        return Ok(match shape.dims.shape() {
            Some(s) if s.rank() == 1 => std::iter::repeat_n(Dim::Unknown, s.len()).collect(),
            _ => Dims::UnknownRank,
        });
    };
    let target: Dims = target.iter().map(|&d| usize::try_from(d).ok()).collect();
    let wide = target.broadcast(dims)?;
    wide.unify(dims).map(|_| target)
}

fn reduce_floats(kind: ReduceKind, xs: impl Iterator<Item = f64>) -> f64 {
    let xs: Vec<f64> = xs.collect();
    let place = |better: fn(f64, f64) -> bool| {
        let mut best = 0;
        for (i, &x) in xs.iter().enumerate() {
            if better(x, xs[best]) || (x.is_nan() && !xs[best].is_nan()) {
                best = i;
            }
        }
        best as f64
    };
    let nan = xs.iter().any(|x| x.is_nan());
    match kind {
        ReduceKind::Sum => xs.iter().sum(),
        ReduceKind::Mean => xs.iter().sum::<f64>() / xs.len() as f64,
        ReduceKind::Prod => xs.iter().product(),
        ReduceKind::Max | ReduceKind::Min if nan => f64::NAN,
        ReduceKind::Max => xs.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ReduceKind::Min => xs.iter().copied().fold(f64::INFINITY, f64::min),
        ReduceKind::ArgMax => place(|x, best| x > best),
        ReduceKind::ArgMin => place(|x, best| x < best),
        ReduceKind::Any | ReduceKind::All => 0.0,
    }
}

fn reduce_ints(kind: ReduceKind, range: (i128, i128), xs: impl Iterator<Item = i128>) -> i128 {
    let xs: Vec<i128> = xs.collect();
    let first = |of: Option<&i128>| xs.iter().position(|x| Some(x) == of).unwrap_or(0) as i128;
    match kind {
        ReduceKind::Sum | ReduceKind::Mean => xs.iter().fold(0, |a, &x| a.wrapping_add(x)),
        ReduceKind::Prod => xs.iter().fold(1, |a, &x| a.wrapping_mul(x)),
        ReduceKind::Max => xs.iter().copied().max().unwrap_or(range.0),
        ReduceKind::Min => xs.iter().copied().min().unwrap_or(range.1),
        ReduceKind::Any => i128::from(xs.iter().any(|&x| x != 0)),
        ReduceKind::All => i128::from(xs.iter().all(|&x| x != 0)),
        ReduceKind::ArgMax => first(xs.iter().max()),
        ReduceKind::ArgMin => first(xs.iter().min()),
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("sum", |a| decode(ReduceKind::Sum, a)),
    ("mean", |a| decode(ReduceKind::Mean, a)),
    ("prod", |a| decode(ReduceKind::Prod, a)),
    ("max", |a| decode(ReduceKind::Max, a)),
    ("min", |a| decode(ReduceKind::Min, a)),
    ("any", |a| decode(ReduceKind::Any, a)),
    ("all", |a| decode(ReduceKind::All, a)),
    ("argmax", |a| decode(ReduceKind::ArgMax, a)),
    ("argmin", |a| decode(ReduceKind::ArgMin, a)),
];

fn decode(kind: ReduceKind, a: &Attributes) -> Result<SharedOp, OpError> {
    let axes = match a.get("axes") {
        None => ReduceAxes::All,
        Some(Attribute::Text(shape)) if shape == "shape" => ReduceAxes::ToShape,
        Some(_) => ReduceAxes::List(a.ints("axes")?.into()),
    };
    Ok(Arc::new(ReduceOp(Reduce { kind, axes, keep_dims: a.bool("keep_dims")? })))
}
