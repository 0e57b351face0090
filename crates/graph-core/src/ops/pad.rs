//! Zeros around a tensor; of strings, empty ones.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{arity, one, output_shape};
use crate::ops::pick::picked;
use crate::ops::registry::Decode;
use crate::{
    Attribute, Attributes, Backward, Class, Dim, Dims, Fact, HostTensor, Layout, Move, Op, OpError,
    Shape, Tensor,
};

impl Tensor {
    /// With zeros around, or empty strings: `padding[axis]` is how many before and after.
    ///
    /// # Errors
    /// Recorded: another number of axes, or sizes that overflow.
    #[track_caller]
    pub fn pad(&self, padding: &[[usize; 2]]) -> Tensor {
        self.apply(Pad { padding: padding.to_vec() }, &[self])
    }

    /// At `begin` in zeros of the shape of `like`: the gradient of a slice.
    #[track_caller]
    pub(crate) fn pad_like(&self, begin: &[usize], like: &Tensor) -> Tensor {
        self.apply(PadTo { begin: begin.to_vec() }, &[self, &like.shape()])
    }
}

fn eval(
    op: &dyn Op,
    before: &[usize],
    inputs: &[HostTensor],
) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
    let (dtype, shape) = output_shape(op, inputs)?;
    let x = &inputs[0];
    let steps = vec![1; shape.rank()];
    let inside = Layout::packed(shape.clone())
        .slice(before, x.dims(), &steps)
        .ok_or_else(|| OpError::Invalid(format!("{} does not fit into {shape}", x.shape())))?;
    let mut places = vec![None; shape.len()];
    for i in 0..x.len() {
        places[inside.at(&x.shape().coords(i))] = Some((0, i));
    }
    picked(dtype, shape, inputs, places)
}

#[derive(Debug, Clone)]
struct Pad {
    padding: Vec<[usize; 2]>,
}

impl Pad {
    fn before(&self) -> Vec<usize> {
        self.padding.iter().map(|p| p[0]).collect()
    }
}

impl Op for Pad {
    fn name(&self) -> &str {
        "pad"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x] = arity(inputs)?;
        let dims = x.dims.expect_rank(self.padding.len())?;
        let padded = dims.iter().zip(&self.padding).map(|(dim, &[before, after])| {
            let Some(dim) = dim.known() else { return Ok(Dim::Unknown) };
            let sum = before.checked_add(after).and_then(|p| p.checked_add(dim));
            let overflow = || OpError::Overflow { dims: vec![before, dim, after], max: usize::MAX };
            sum.map(Dim::Known).ok_or_else(overflow)
        });
        let dims: SmallVec<[Dim; 6]> = padded.collect::<Result<_, OpError>>()?;
        one(x.with_dims(Dims::Known(dims).checked()?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        eval(self, &self.before(), inputs)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let x = backward.input(0).dims();
        let sizes: Option<Vec<Option<usize>>> =
            x.dims().map(|dims| dims.iter().map(|d| d.known()).collect());
        let Some(sizes) = sizes.filter(|s| s.iter().all(Option::is_some)) else {
            // The sizes are those of the input when it runs.
            let begin = self.before();
            return vec![backward.dy().map(|dy| dy.slice_like(&begin, backward.input(0)))];
        };
        vec![backward.dy().map(|dy| dy.slice(&self.before(), &sizes))]
    }

    fn class(&self) -> Class<'_> {
        Class::Move(Move::Pad { before: self.before() })
    }

    fn encode(&self) -> Option<Attributes> {
        let padding: Attribute = self.padding.iter().flatten().copied().collect();
        Some(Attributes::of(self.name()).with("padding", padding))
    }
}

#[derive(Debug, Clone)]
struct PadTo {
    begin: Vec<usize>,
}

impl Op for PadTo {
    fn name(&self) -> &str {
        "pad_to"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x, sizes] = arity(inputs)?;
        let dims = x.dims.expect_rank(self.begin.len())?;
        let Some(sizes) = sizes.integers() else {
            let unknown = std::iter::repeat_n(Dim::Unknown, dims.len());
            return one(x.with_dims(unknown.collect::<Dims>()));
        };
        let to: Vec<usize> = sizes.iter().filter_map(|&s| usize::try_from(s).ok()).collect();
        let inside = |(axis, dim): (usize, &Dim)| {
            dim.known().is_none_or(|dim| {
                self.begin[axis].checked_add(dim).is_some_and(|end| Some(&end) <= to.get(axis))
            })
        };
        if to.len() != dims.len() || !dims.iter().enumerate().all(inside) {
            let expected = Dims::from(to);
            return Err(OpError::Shape { expected, found: x.dims.clone() });
        }
        one(x.with_dims(&Shape::new(&to)?))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        eval(self, &self.begin, inputs)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let dx = backward.dy().map(|dy| dy.slice_like(&self.begin, backward.input(0)));
        vec![dx, None]
    }

    fn class(&self) -> Class<'_> {
        Class::Move(Move::Pad { before: self.begin.clone() })
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("begin", self.begin.clone()))
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("pad", |a| {
        let sides: Vec<usize> = a.ints("padding")?;
        let padding = sides.chunks(2).map(|pair| <[usize; 2]>::try_from(pair).ok());
        let padding = padding.collect::<Option<_>>().ok_or_else(|| {
            OpError::Invalid(format!("padding has two sides for each axis, not {}", sides.len()))
        })?;
        Ok(Arc::new(Pad { padding }))
    }),
    ("pad_to", |a| Ok(Arc::new(PadTo { begin: a.ints("begin")? }))),
];
