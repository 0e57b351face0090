//! A Rust number that is fed: kept where it is, without memory of its own.

use bytemuck::{bytes_of, bytes_of_mut, pod_read_unaligned};
use half::{bf16, f16};

use crate::{DType, Element, HostTensor, Result, Shape};

/// A number or a truth value of a dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number {
    dtype: DType,
    /// The bytes of the element, and zeros behind it.
    memory: u64,
}

enum Value {
    Int(i128),
    Float(f64),
}

impl Number {
    /// A number in its own dtype.
    pub fn new<T: Element>(x: T) -> Self {
        let mut memory = 0u64;
        let bytes = bytes_of(&x);
        bytes_of_mut(&mut memory)[..bytes.len()].copy_from_slice(bytes);
        Self { dtype: T::DTYPE, memory }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The bytes of the element, in this machine's order.
    pub fn bytes(&self) -> &[u8] {
        &bytes_of(&self.memory)[..self.dtype.n_bytes()]
    }

    /// The same number in another dtype: any number rounded to a float, an integer as another if that has it.
    /// `None` for all else.
    pub fn as_dtype(&self, to: DType) -> Option<Self> {
        if self.dtype == to {
            return Some(*self);
        }
        match self.value()? {
            Value::Int(x) if to.is_int() => Self::of_int(x, to),
            Value::Int(x) => Self::of_float(x as f64, to),
            Value::Float(x) => Self::of_float(x, to),
        }
    }

    /// As a tensor of its own.
    ///
    /// # Errors
    /// There is no memory.
    pub fn to_tensor(&self) -> Result<HostTensor> {
        HostTensor::copy_of(self.dtype, Shape::scalar(), self.bytes())
    }

    fn value(&self) -> Option<Value> {
        macro_rules! read {
            ($($dtype:ident: $t:ty => $kind:ident, $f:expr;)*) => {
                match self.dtype {
                    $(DType::$dtype => Some(Value::$kind($f(pod_read_unaligned::<$t>(self.bytes())))),)*
                    DType::Bool | DType::String => None,
                }
            };
        }
        read! {
            I8: i8 => Int, i128::from; U8: u8 => Int, i128::from; I16: i16 => Int, i128::from;
            U16: u16 => Int, i128::from; I32: i32 => Int, i128::from; U32: u32 => Int, i128::from;
            I64: i64 => Int, i128::from; U64: u64 => Int, i128::from; F16: f16 => Float, f64::from;
            BF16: bf16 => Float, f64::from; F32: f32 => Float, f64::from; F64: f64 => Float, f64::from;
        }
    }

    fn of_int(x: i128, to: DType) -> Option<Self> {
        macro_rules! write {
            ($($dtype:ident: $t:ty;)*) => {
                match to {
                    $(DType::$dtype => <$t>::try_from(x).ok().map(Self::new),)*
                    _ => None,
                }
            };
        }
        write! { I8: i8; U8: u8; I16: i16; U16: u16; I32: i32; U32: u32; I64: i64; U64: u64; }
    }

    fn of_float(x: f64, to: DType) -> Option<Self> {
        match to {
            DType::F16 => Some(Self::new(f16::from_f64(x))),
            DType::BF16 => Some(Self::new(bf16::from_f64(x))),
            DType::F32 => Some(Self::new(x as f32)),
            DType::F64 => Some(Self::new(x)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_other_dtypes_where_they_fit() {
        let of = |number: Number, to| number.as_dtype(to).map(|n| n.to_tensor().unwrap());
        assert_eq!(of(Number::new(1.5f64), DType::F32), Some(HostTensor::from(1.5f32)));
        assert_eq!(of(Number::new(3i32), DType::F64), Some(HostTensor::from(3.0f64)));
        assert_eq!(of(Number::new(1u8), DType::F16), Some(HostTensor::from(f16::ONE)));
        assert_eq!(of(Number::new(-7i64), DType::I8), Some(HostTensor::from(-7i8)));
        assert_eq!(of(Number::new(true), DType::Bool), Some(HostTensor::from(true)));
        assert_eq!(of(Number::new(128i32), DType::I8), None);
        assert_eq!(of(Number::new(-1i32), DType::U64), None);
        assert_eq!(of(Number::new(1.0f32), DType::I32), None);
        assert_eq!(of(Number::new(true), DType::F32), None);
        assert_eq!(of(Number::new(1i32), DType::Bool), None);
        assert_eq!(of(Number::new(1i32), DType::String), None);
    }
}
