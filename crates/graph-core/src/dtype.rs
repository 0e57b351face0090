//! Element types, and the few wide types that narrow ones compute in.

use std::fmt;

use bytemuck::{CheckedBitPattern, NoUninit};
use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
#[non_exhaustive]
pub enum DType {
    Bool,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F16,
    BF16,
    F32,
    F64,
    /// Byte strings of any length, on the host only.
    String,
}

/// The type that an element of some dtype is computed in on the CPU; narrow results are wrapped or
/// rounded to their dtype after each operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Compute {
    Bool,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

impl DType {
    /// All numeric and boolean dtypes, narrow first.
    pub const NUMERIC: [DType; 13] = [
        Self::Bool,
        Self::I8,
        Self::U8,
        Self::I16,
        Self::U16,
        Self::I32,
        Self::U32,
        Self::I64,
        Self::U64,
        Self::F16,
        Self::BF16,
        Self::F32,
        Self::F64,
    ];

    /// Bytes of one element; 0 for strings, whose size varies.
    pub const fn n_bytes(self) -> usize {
        match self {
            Self::String => 0,
            Self::Bool | Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// True for f16, bf16, f32 and f64.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    /// True for the signed and unsigned integers, not for bool.
    pub const fn is_int(self) -> bool {
        self.is_signed_int() || self.is_unsigned_int()
    }

    /// True for i8, i16, i32 and i64.
    pub const fn is_signed_int(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }

    /// True for u8, u16, u32 and u64.
    pub const fn is_unsigned_int(self) -> bool {
        matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::U64)
    }

    /// True for integers and floats.
    pub const fn is_number(self) -> bool {
        self.is_int() || self.is_float()
    }

    /// The type that the CPU computes in; `None` for strings.
    pub const fn compute(self) -> Option<Compute> {
        Some(match self {
            Self::Bool => Compute::Bool,
            Self::I8 | Self::I16 | Self::I32 => Compute::I32,
            Self::U8 | Self::U16 | Self::U32 => Compute::U32,
            Self::I64 => Compute::I64,
            Self::U64 => Compute::U64,
            Self::F16 | Self::BF16 | Self::F32 => Compute::F32,
            Self::F64 => Compute::F64,
            Self::String => return None,
        })
    }

    /// The least and greatest value of an integer dtype; 0 and 1 for bool.
    pub const fn int_range(self) -> Option<(i128, i128)> {
        Some(match self {
            Self::Bool => (0, 1),
            Self::I8 => (i8::MIN as i128, i8::MAX as i128),
            Self::U8 => (0, u8::MAX as i128),
            Self::I16 => (i16::MIN as i128, i16::MAX as i128),
            Self::U16 => (0, u16::MAX as i128),
            Self::I32 => (i32::MIN as i128, i32::MAX as i128),
            Self::U32 => (0, u32::MAX as i128),
            Self::I64 => (i64::MIN as i128, i64::MAX as i128),
            Self::U64 => (0, u64::MAX as i128),
            _ => return None,
        })
    }

    /// The name in dumps and messages: `f32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I16 => "i16",
            Self::U16 => "u16",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::String => "string",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A Rust type that is the element of some dtype.
pub trait Element:
    NoUninit + CheckedBitPattern + Default + PartialEq + fmt::Debug + Send + Sync + 'static
{
    /// The dtype whose elements are of this type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),* $(,)?) => {
        $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })*
    };
}

elements! {
    bool => Bool, i8 => I8, u8 => U8, i16 => I16, u16 => U16, i32 => I32, u32 => U32, i64 => I64,
    u64 => U64, f16 => F16, bf16 => BF16, f32 => F32, f64 => F64,
}

/// What rows of elementwise operations need of `f32` and `f64` beyond the standard library.
pub trait Float: Copy {
    /// The error function.
    fn erf(self) -> Self;
    /// To the nearest integer, ties to even.
    fn round_even(self) -> Self;
    /// The greater; NaN if either is.
    fn max_nan(self, other: Self) -> Self;
    /// The lesser; NaN if either is.
    fn min_nan(self, other: Self) -> Self;
    /// -1, 0 or 1; NaN for NaN.
    fn sign(self) -> Self;
}

macro_rules! floats {
    ($($rust:ty, $erf:path);*) => {
        $(impl Float for $rust {
            fn erf(self) -> Self { $erf(self) }
            fn round_even(self) -> Self { self.round_ties_even() }
            fn max_nan(self, other: Self) -> Self {
                if self > other || self.is_nan() { self } else { other }
            }
            fn min_nan(self, other: Self) -> Self {
                if self < other || self.is_nan() { self } else { other }
            }
            fn sign(self) -> Self {
                if self > 0.0 { 1.0 } else if self < 0.0 { -1.0 } else { self }
            }
        })*
    };
}

floats! { f32, libm::erff; f64, libm::erf }
