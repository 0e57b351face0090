//! Feeds: which tensor gets which value in a run.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use ndarray::{ArrayBase, Data, Dimension};

use crate::{DType, Element, Error, HostTensor, Number, Result, Shape, Tensor, Variable};

/// A tensor and the value that it has in one run.
#[derive(Debug, Clone)]
pub struct Feed<'a> {
    /// The tensor.
    pub tensor: Tensor,
    /// The value, or why it is none.
    pub value: Result<FeedValue<'a>>,
}

/// The value of a feed.
#[derive(Debug, Clone)]
pub enum FeedValue<'a> {
    /// A host tensor, shared.
    Tensor(HostTensor),
    /// Elements that the caller keeps: a dtype, a shape, and row-major bytes.
    Borrowed(DType, Shape, &'a [u8]),
    /// A Rust number, which takes a float placeholder's type by rounding.
    Number(Number),
    /// A tensor whose elements may lie elsewhere.
    Resident(Arc<dyn Resident>),
}

/// A tensor whose elements may lie elsewhere than in host memory. What runs graphs knows its own.
pub trait Resident: Any + fmt::Debug + Send + Sync {
    /// The element type.
    fn dtype(&self) -> DType;

    /// The tensor in host memory.
    ///
    /// # Errors
    /// No memory, or elements that are lost.
    fn to_host(&self) -> Result<HostTensor>;
}

/// What can be fed.
pub trait IntoFeed<'a> {
    /// As a feed's value.
    ///
    /// # Errors
    /// Sizes that overflow.
    fn into_feed(self) -> Result<FeedValue<'a>>;
}

impl Tensor {
    /// Gives this tensor a value in a run: a scalar, a slice, an array, a vector, a host tensor, or a
    /// reference to one.
    pub fn feed<'a>(&self, value: impl IntoFeed<'a>) -> Feed<'a> {
        Feed { tensor: self.clone(), value: value.into_feed() }
    }
}

impl Variable {
    /// Gives the variable's read value in a run; what is stored does not change.
    pub fn feed<'a>(&self, value: impl IntoFeed<'a>) -> Feed<'a> {
        self.value().feed(value)
    }
}

impl<'a> IntoFeed<'a> for HostTensor {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        Ok(FeedValue::Tensor(self))
    }
}

impl<'a> IntoFeed<'a> for &HostTensor {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        Ok(FeedValue::Tensor(self.clone()))
    }
}

impl<'a, T: Element> IntoFeed<'a> for &'a [T] {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        let shape = Shape::new(&[self.len()])?;
        Ok(FeedValue::Borrowed(T::DTYPE, shape, bytemuck::cast_slice(self)))
    }
}

impl<'a, T: Element> IntoFeed<'a> for &'a Vec<T> {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        self.as_slice().into_feed()
    }
}

impl<'a, T: Element> IntoFeed<'a> for Vec<T> {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        Ok(FeedValue::Tensor(self.into()))
    }
}

impl<'a, T: Element, const N: usize> IntoFeed<'a> for &'a [T; N] {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        self.as_slice().into_feed()
    }
}

impl<'a, T: Element, const N: usize> IntoFeed<'a> for [T; N] {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        Ok(FeedValue::Tensor(self.into()))
    }
}

impl<'a, T: Element, const N: usize, const M: usize> IntoFeed<'a> for [[T; N]; M] {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        Ok(FeedValue::Tensor(self.into()))
    }
}

impl<'a, S: Data<Elem = T>, T: Element, D: Dimension> IntoFeed<'a> for &'a ArrayBase<S, D> {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        match self.as_slice() {
            Some(elements) => {
                let shape = Shape::new(self.shape())?;
                Ok(FeedValue::Borrowed(T::DTYPE, shape, bytemuck::cast_slice(elements)))
            }
            None => Ok(FeedValue::Tensor(self.try_into()?)),
        }
    }
}

impl<'a> IntoFeed<'a> for &str {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        Ok(FeedValue::Tensor(self.into()))
    }
}

/// Row-major elements with a shape.
impl<'a, T: Element, const R: usize> IntoFeed<'a> for (&'a [T], [usize; R]) {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        let shape = Shape::new(&self.1)?;
        if shape.len() != self.0.len() {
            return Err(Error::invalid(format!(
                "expected {} elements for shape {shape}, got {}",
                shape.len(),
                self.0.len()
            )));
        }
        Ok(FeedValue::Borrowed(T::DTYPE, shape, bytemuck::cast_slice(self.0)))
    }
}

macro_rules! numbers {
    ($($t:ty),*) => {
        $(impl<'a> IntoFeed<'a> for $t {
            fn into_feed(self) -> Result<FeedValue<'a>> {
                Ok(FeedValue::Number(Number::new(self)))
            }
        })*
    };
}

numbers! { bool, i8, u8, i16, u16, i32, u32, i64, u64, f32, f64 }
