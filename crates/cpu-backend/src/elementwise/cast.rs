//! Conversions of wide blocks, by the rules of `Tensor::cast`.

use bytemuck::{cast_slice, cast_slice_mut};
use convoke_graph_core::{Compute, DType};
use half::{bf16, f16};

use super::code::BlockFn;
use crate::elements::Stored;
use crate::fast::wide;

/// A block function from a wide type to the wide type of the result.
macro_rules! block {
    ($from:ty, $to:ty, |$x:ident| $body:expr) => {{
        fn block(args: &[&[u8]], out: &mut [u8]) {
            let (xs, out): (&[$from], &mut [$to]) = (cast_slice(args[0]), cast_slice_mut(out));
            wide(
                #[inline(always)]
                || {
                    for (out, &$x) in out.iter_mut().zip(xs) {
                        *out = $body;
                    }
                },
            );
        }
        block as BlockFn
    }};
}

/// To wide integers and floats, where Rust's `as` wraps integers, saturates floats, and makes NaN 0.
macro_rules! to_wide {
    ($to:expr, $from:ty) => {
        match $to {
            Compute::Bool => block!($from, u8, |x| u8::from(x != 0 as $from)),
            Compute::I32 => block!($from, i32, |x| x as i32),
            Compute::U32 => block!($from, u32, |x| x as u32),
            Compute::I64 => block!($from, i64, |x| x as i64),
            Compute::U64 => block!($from, u64, |x| x as u64),
            Compute::F32 => block!($from, f32, |x| x as f32),
            Compute::F64 => block!($from, f64, |x| x as f64),
        }
    };
}

/// To narrow integers, at whose ends floats saturate.
macro_rules! to_narrow_int {
    ($to:expr, $from:ty, else $rest:expr) => {
        match $to {
            DType::I8 => block!($from, i32, |x| i32::from(x as i8)),
            DType::U8 => block!($from, u32, |x| u32::from(x as u8)),
            DType::I16 => block!($from, i32, |x| i32::from(x as i16)),
            DType::U16 => block!($from, u32, |x| u32::from(x as u16)),
            _ => $rest,
        }
    };
}

/// The conversion to `to`. From integers to narrow dtypes, the result is still to be rounded or wrapped.
pub(super) fn cast(from: Compute, to: DType) -> Option<BlockFn> {
    let wide = to.compute()?;
    Some(match from {
        Compute::Bool => to_wide!(wide, u8),
        Compute::I32 => to_wide!(wide, i32),
        Compute::U32 => to_wide!(wide, u32),
        Compute::I64 => to_wide!(wide, i64),
        Compute::U64 => to_wide!(wide, u64),
        Compute::F32 => to_narrow_int!(to, f32, else to_wide!(wide, f32)),
        Compute::F64 => to_narrow_int!(to, f64, else match to {
            DType::F16 => block!(f64, f32, |x| f16::from_f64(x).widen()),
            DType::BF16 => block!(f64, f32, |x| bf16::from_f64(x).widen()),
            _ => to_wide!(wide, f64),
        }),
    })
}
