//! Element types as they are stored, and the wide types that they compute in.

use bytemuck::{Pod, Zeroable};
use convoke_graph_core::DType;
use half::{bf16, f16};

/// A stored bool: the byte 0 or 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Bool(pub u8);

/// A type that values are stored in.
pub(crate) trait Stored: Pod + Send + Sync {
    /// The type that it is computed in.
    type Wide: Pod + Send + Sync;
    /// True if both are the same.
    const IS_WIDE: bool;
    /// The element, exactly.
    fn widen(self) -> Self::Wide;
    /// The element, rounded or wrapped.
    fn narrow(wide: Self::Wide) -> Self;
}

macro_rules! stored {
    ($($t:ty, $wide:ty, $same:literal, |$x:ident| $widen:expr, |$y:ident| $narrow:expr;)*) => { $(
        impl Stored for $t {
            type Wide = $wide;
            const IS_WIDE: bool = $same;
            #[inline(always)]
            fn widen(self) -> $wide { let $x = self; $widen }
            #[inline(always)]
            fn narrow($y: $wide) -> Self { $narrow }
        }
    )* };
}

stored! {
    Bool, u8, true, |x| x.0, |y| Self(y);
    i8, i32, false, |x| i32::from(x), |y| y as i8;
    u8, u32, false, |x| u32::from(x), |y| y as u8;
    i16, i32, false, |x| i32::from(x), |y| y as i16;
    u16, u32, false, |x| u32::from(x), |y| y as u16;
    i32, i32, true, |x| x, |y| y;
    u32, u32, true, |x| x, |y| y;
    i64, i64, true, |x| x, |y| y;
    u64, u64, true, |x| x, |y| y;
    f16, f32, false, |x| f16_to_f32(x), |y| f32_to_f16(y);
    bf16, f32, false, |x| f32::from_bits(u32::from(x.to_bits()) << 16), |y| f32_to_bf16(y);
    f32, f32, true, |x| x, |y| y;
    f64, f64, true, |x| x, |y| y;
}

/// Without branches, so that it vectorises.
#[inline(always)]
fn f16_to_f32(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    // 2^112 moves the exponent's bias from 15 to 127, also for subnormals.
    let scaled = f32::from_bits((bits & 0x7FFF) << 13) * f32::from_bits(0x7780_0000);
    let special = if bits & 0x7C00 == 0x7C00 { 0x7F80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (bits & 0x8000) << 16)
}

/// To nearest even, without branches.
#[inline(always)]
fn f32_to_f16(x: f32) -> f16 {
    let bits = x.to_bits();
    let (sign, size) = ((bits >> 16) & 0x8000, bits & 0x7FFF_FFFF);
    // 0.5 has its last bit where a subnormal f16 has it.
    let subnormal = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0x3F00_0000);
    let odd = (size >> 13) & 1;
    let normal = size.wrapping_sub(112 << 23).wrapping_add(0xFFF + odd) >> 13;
    let special = if size > 0x7F80_0000 { 0x7E00 } else { 0x7C00 };
    let finite = if size < 0x3880_0000 { subnormal } else { normal };
    f16::from_bits((sign | if size >= 0x4780_0000 { special } else { finite }) as u16)
}

/// To nearest even, without branches.
#[inline(always)]
fn f32_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    bf16::from_bits(if x.is_nan() { bits >> 16 | 0x40 } else { rounded } as u16)
}

/// A float dtype's rounding from f64.
pub(crate) trait FromF64: Stored {
    /// Rounded as the reference does.
    fn from_f64(x: f64) -> Self;
}

impl FromF64 for f16 {
    fn from_f64(x: f64) -> Self {
        Self::from_f64(x)
    }
}

impl FromF64 for bf16 {
    fn from_f64(x: f64) -> Self {
        Self::from_f64(x)
    }
}

impl FromF64 for f32 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as f32
    }
}

impl FromF64 for f64 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }
}

/// Evaluates an expression with `$T` the stored type of a dtype; `$none` for strings.
macro_rules! with_stored {
    ($dtype:expr, $T:ident => $body:expr, else $none:expr) => {{
        use convoke_graph_core::DType;
        macro_rules! arm {
            ($t:ty) => {{
                type $T = $t;
                $body
            }};
        }
        match $dtype {
            DType::Bool => arm!($crate::elements::Bool),
            DType::I8 => arm!(i8),
            DType::U8 => arm!(u8),
            DType::I16 => arm!(i16),
            DType::U16 => arm!(u16),
            DType::I32 => arm!(i32),
            DType::U32 => arm!(u32),
            DType::I64 => arm!(i64),
            DType::U64 => arm!(u64),
            DType::F16 => arm!(half::f16),
            DType::BF16 => arm!(half::bf16),
            DType::F32 => arm!(f32),
            DType::F64 => arm!(f64),
            _ => $none,
        }
    }};
}

pub(crate) use with_stored;

/// The size of the type that a dtype is computed in; 0 for strings.
pub(crate) fn wide_bytes(dtype: DType) -> usize {
    with_stored!(dtype, T => size_of::<<T as Stored>::Wide>(), else 0)
}

/// True if a dtype is computed in its own type.
pub(crate) fn is_wide(dtype: DType) -> bool {
    with_stored!(dtype, T => <T as Stored>::IS_WIDE, else false)
}
