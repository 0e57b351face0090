//! Conversion of elements to another dtype.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::{arity, one, value};
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, DType, Elementwise, Fact, HostTensor, Op, OpError, Tensor,
};

#[derive(Debug, Clone, Copy)]
struct Cast {
    to: DType,
}

impl Tensor {
    /// Converts the elements to `dtype`; itself if they are of it.
    ///
    /// - float to float rounds once, to nearest even; out of range becomes an infinity.
    /// - float to integer cuts the fraction off, saturates at the ends of the range, and makes NaN 0.
    /// - integer to integer wraps; integer to float rounds to nearest even.
    /// - to bool is whether it is not 0 (NaN is true); bool becomes 0 or 1.
    ///
    /// # Errors
    /// Recorded: strings do not convert; see [`Tensor::as_string`] and [`Tensor::string_to_number`].
    #[track_caller]
    pub fn cast(&self, dtype: DType) -> Tensor {
        if self.dtype() == dtype {
            return self.clone();
        }
        self.apply(Cast { to: dtype }, &[self])
    }
}

impl Op for Cast {
    fn name(&self) -> &str {
        "cast"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [x] = arity(inputs)?;
        x.expect("cast", "numbers or bool", |d| d != DType::String)?;
        if self.to == DType::String {
            return Err(OpError::Unsupported("cast to string".into()));
        }
        one(Fact::new(self.to, x.dims.clone()))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        let [x] = arity(inputs)?;
        let shape = x.shape().clone();
        value(match (x.dtype().is_float(), self.to) {
            (true, to) if to.is_float() => {
                x.to_f64s().and_then(|xs| HostTensor::from_f64s(to, shape, &xs))
            }
            (true, to) => {
                let ints = x.to_f64s().map(|xs| xs.iter().map(|&x| to_int(x, to)).collect());
                ints.and_then(|xs: Vec<i128>| HostTensor::from_i128s(to, shape, &xs))
            }
            (false, to) if to.is_float() => x.to_i128s().and_then(|xs| {
                // An integer beyond 2^53 rounds once: straight to the float's own type.
                let once =
                    |&x: &i128| if to == DType::F64 { x as f64 } else { f64::from(x as f32) };
                HostTensor::from_f64s(to, shape, &xs.iter().map(once).collect::<Vec<_>>())
            }),
            (false, to) => x.to_i128s().and_then(|xs| HostTensor::from_i128s(to, shape, &xs)),
        })
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        let from = backward.input(0).dtype();
        vec![
            backward.dy().filter(|_| from.is_float() && self.to.is_float()).map(|dy| dy.cast(from)),
        ]
    }

    fn class(&self) -> Class<'_> {
        Class::Elementwise(Elementwise::Cast)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(Attributes::of(self.name()).with("to", self.to))
    }
}

fn to_int(x: f64, to: DType) -> i128 {
    match to.int_range() {
        Some(_) if to == DType::Bool => i128::from(x != 0.0),
        Some((min, max)) => (x as i128).clamp(min, max),
        None => 0,
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] =
    &[("cast", |a| Ok(Arc::new(Cast { to: a.dtype("to")? })))];
