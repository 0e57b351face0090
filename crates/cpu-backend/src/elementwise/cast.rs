//! Conversions of wide blocks, by the rules of `Tensor::cast`.

use bytemuck::{cast_slice, cast_slice_mut};
use convoke_graph_core::{Compute, DType};
use half::{bf16, f16};

use super::code::BlockFn;
use crate::elements::Stored;
use crate::fast::widest;

/// A block function from a wide type to the wide type of `$to`.
macro_rules! block {
    ($from:ty, $wide:ty, |$x:ident| $body:expr) => {{
        fn block(args: &[&[u8]], out: &mut [u8]) {
            let (xs, out): (&[$from], &mut [$wide]) = (cast_slice(args[0]), cast_slice_mut(out));
            widest(
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

/// The casts from one wide type. Rust's `as` saturates floats, makes NaN 0, and wraps integers.
macro_rules! casts {
    ($to:expr, $from:ty, |$x:ident| ($bool:expr, $f16:expr, $bf16:expr)) => {
        match $to {
            DType::Bool => block!($from, u8, |$x| u8::from($bool)),
            DType::I8 => block!($from, i32, |$x| $x as i8 as i32),
            DType::U8 => block!($from, u32, |$x| $x as u8 as u32),
            DType::I16 => block!($from, i32, |$x| $x as i16 as i32),
            DType::U16 => block!($from, u32, |$x| $x as u16 as u32),
            DType::I32 => block!($from, i32, |$x| $x as i32),
            DType::U32 => block!($from, u32, |$x| $x as u32),
            DType::I64 => block!($from, i64, |$x| $x as i64),
            DType::U64 => block!($from, u64, |$x| $x as u64),
            DType::F16 => block!($from, f32, |$x| $f16.widen()),
            DType::BF16 => block!($from, f32, |$x| $bf16.widen()),
            DType::F32 => block!($from, f32, |$x| $x as f32),
            DType::F64 => block!($from, f64, |$x| $x as f64),
            _ => return None,
        }
    };
    ($to:expr, $from:ty) => {
        casts!($to, $from, |x| (
            x != 0 as $from,
            <f16 as Stored>::narrow(x as f32),
            <bf16 as Stored>::narrow(x as f32)
        ))
    };
}

/// The conversion to `to`, rounded or wrapped.
pub(super) fn cast(from: Compute, to: DType) -> Option<BlockFn> {
    Some(match from {
        Compute::Bool => casts!(to, u8),
        Compute::I32 => casts!(to, i32),
        Compute::U32 => casts!(to, u32),
        Compute::I64 => casts!(to, i64),
        Compute::U64 => casts!(to, u64),
        Compute::F32 => casts!(to, f32),
        Compute::F64 => casts!(to, f64, |x| (x != 0.0, f16::from_f64(x), bf16::from_f64(x))),
    })
}
