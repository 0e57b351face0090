//! One of two, by a condition.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{arity, one, output_shape, same_dtype};
use crate::ops::pick::picked;
use crate::ops::registry::Decode;
use crate::ops::row::broadcast;
use crate::{
    Attributes, Backward, Class, DType, Elementwise, Fact, HostTensor, IntoTensor, Layout, Op,
    OpError, Tensor,
};

#[derive(Debug, Clone, Copy)]
struct Select;

impl Tensor {
    /// Where this is true, the element of `x`, else that of `y`. Also for NaN and infinities, the
    /// one that is not chosen has no influence, on the gradient neither.
    ///
    /// # Shapes
    /// All three broadcast; `self` is bool, `x` and `y` have one dtype.
    #[track_caller]
    pub fn select(&self, x: impl IntoTensor, y: impl IntoTensor) -> Tensor {
        let x = x.into_tensor(self);
        let y = y.into_tensor(&x);
        self.apply(Select, &[self, &x, &y])
    }
}

impl Op for Select {
    fn name(&self) -> &str {
        "select"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [condition, x, y] = arity(inputs)?;
        condition.expect("the condition of select", "bool", |d| d == DType::Bool)?;
        let dtype = same_dtype(&inputs[1..])?;
        let dims = condition.dims.broadcast(&x.dims)?.broadcast(&y.dims)?;
        one(Fact::new(dtype, dims))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let (dtype, shape) = output_shape(self, inputs)?;
        let conditions = broadcast(&inputs[..1], &shape, HostTensor::to_vec::<bool>)?;
        let seen = |x: &HostTensor| {
            let layout = Layout::packed(x.shape().clone()).broadcast(&shape);
            layout.ok_or_else(|| OpError::Broadcast { lhs: x.shape().into(), rhs: (&shape).into() })
        };
        let sides = [seen(&inputs[1])?, seen(&inputs[2])?];
        let place = |i: usize| {
            let side = usize::from(!conditions[0][i]);
            Some((side, sides[side].at(&shape.coords(i))))
        };
        let places = (0..shape.len()).map(place);
        picked(dtype, shape.clone(), &inputs[1..], places)
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let Some(dy) = backward.dy() else { return vec![None; 3] };
        let condition = backward.input(0);
        let zero = dy.like(0.0);
        let dx = condition.select(&dy, &zero).sum_to_like(backward.input(1));
        let dz = condition.select(&zero, &dy).sum_to_like(backward.input(2));
        vec![None, Some(dx), Some(dz)]
    }

    fn class(&self) -> Class<'_> {
        Class::Elementwise(Elementwise::Select)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()))
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[("select", |_| Ok(Arc::new(Select)))];
