//! Rows of `ops/unary.rs` and `ops/binary.rs` that have loops of this crate, compiled for wide vectors.
//!
//! Arithmetic and comparisons give the same bits as the row's own block functions; the functions of
//! `math.rs` stay within the errors that it states.

use bytemuck::{cast_slice, cast_slice_mut};
use convoke_graph_core::{Compute, Float};

use super::code::BlockFn;
use super::code::Code;
use super::math;
use crate::fast::wide;

macro_rules! block {
    ($t:ty, $out:ty, |$x:ident| $body:expr) => {{
        fn block(args: &[&[u8]], out: &mut [u8]) {
            let (xs, out): (&[$t], &mut [$out]) = (cast_slice(args[0]), cast_slice_mut(out));
            wide(
                #[inline(always)]
                || {
                    for (out, &$x) in out.iter_mut().zip(xs) {
                        *out = <$out>::from($body);
                    }
                },
            );
        }
        block as BlockFn
    }};
    ($t:ty, $out:ty, |$x:ident, $y:ident| $body:expr) => {{
        fn block(args: &[&[u8]], out: &mut [u8]) {
            let (xs, ys): (&[$t], &[$t]) = (cast_slice(args[0]), cast_slice(args[1]));
            let out: &mut [$out] = cast_slice_mut(out);
            wide(
                #[inline(always)]
                || match (xs, ys) {
                    // One of two may be a single element.
                    (_, &[$y]) => {
                        for (out, &$x) in out.iter_mut().zip(xs) {
                            *out = <$out>::from($body);
                        }
                    }
                    (&[$x], _) => {
                        for (out, &$y) in out.iter_mut().zip(ys) {
                            *out = <$out>::from($body);
                        }
                    }
                    _ => {
                        for ((out, &$x), &$y) in out.iter_mut().zip(xs).zip(ys) {
                            *out = <$out>::from($body);
                        }
                    }
                },
            );
        }
        block as BlockFn
    }};
}

/// The comparisons that depend on the sign.
macro_rules! ordered {
    ($t:ty, $name:expr, else $rest:expr) => {
        match $name {
            "less" => block!($t, u8, |x, y| x < y),
            "less_equal" => block!($t, u8, |x, y| x <= y),
            "greater" => block!($t, u8, |x, y| x > y),
            "greater_equal" => block!($t, u8, |x, y| x >= y),
            _ => $rest,
        }
    };
}

macro_rules! floats {
    ($t:ty, $name:expr, else $rest:expr) => {
        match $name {
            "add" => block!($t, $t, |x, y| x + y),
            "sub" => block!($t, $t, |x, y| x - y),
            "mul" => block!($t, $t, |x, y| x * y),
            "div" => block!($t, $t, |x, y| x / y),
            "maximum" => block!($t, $t, |x, y| if x > y || x.is_nan() { x } else { y }),
            "minimum" => block!($t, $t, |x, y| if x < y || x.is_nan() { x } else { y }),
            "relu" => block!($t, $t, |x| if x > 0.0 || x.is_nan() { x } else { 0.0 }),
            "neg" => block!($t, $t, |x| -x),
            "abs" => block!($t, $t, |x| x.abs()),
            "sign" => block!($t, $t, |x| if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                x
            }),
            "square" => block!($t, $t, |x| x * x),
            "sqrt" => block!($t, $t, |x| x.sqrt()),
            "rsqrt" => block!($t, $t, |x| 1.0 / x.sqrt()),
            "reciprocal" => block!($t, $t, |x| 1.0 / x),
            "floor" => block!($t, $t, |x| x.floor()),
            "ceil" => block!($t, $t, |x| x.ceil()),
            "trunc" => block!($t, $t, |x| x.trunc()),
            "round" => block!($t, $t, |x| Float::round_even(x)),
            "is_nan" => block!($t, u8, |x| x.is_nan()),
            "is_finite" => block!($t, u8, |x| x.is_finite()),
            "equal" => block!($t, u8, |x, y| x == y),
            "not_equal" => block!($t, u8, |x, y| x != y),
            _ => ordered!($t, $name, else $rest),
        }
    };
}

macro_rules! ints {
    ($t:ty, $name:expr) => {
        match $name {
            "maximum" => block!($t, $t, |x, y| x.max(y)),
            "minimum" => block!($t, $t, |x, y| x.min(y)),
            _ => ordered!($t, $name, else return wrapping($name)),
        }
    };
}

/// Signed and unsigned integers wrap to the same bits.
fn wrapping(name: &str) -> Option<BlockFn> {
    Some(match name {
        "add" => block!(u32, u32, |x, y| x.wrapping_add(y)),
        "sub" => block!(u32, u32, |x, y| x.wrapping_sub(y)),
        "mul" => block!(u32, u32, |x, y| x.wrapping_mul(y)),
        "neg" => block!(u32, u32, |x| x.wrapping_neg()),
        "square" => block!(u32, u32, |x| x.wrapping_mul(x)),
        "and" => block!(u32, u32, |x, y| x & y),
        "or" => block!(u32, u32, |x, y| x | y),
        "xor" => block!(u32, u32, |x, y| x ^ y),
        "not" => block!(u32, u32, |x| !x),
        "equal" => block!(u32, u8, |x, y| x == y),
        "not_equal" => block!(u32, u8, |x, y| x != y),
        _ => return None,
    })
}

/// The loop of a row, if there is one of this crate.
pub(super) fn fast(name: &str, compute: Compute) -> Option<BlockFn> {
    Some(match compute {
        Compute::Bool | Compute::I64 | Compute::U64 => return None,
        Compute::I32 => ints!(i32, name),
        Compute::U32 => ints!(u32, name),
        Compute::F32 => floats!(f32, name, else return transcendental(name)),
        Compute::F64 => floats!(f64, name, else return None),
    })
}

fn transcendental(name: &str) -> Option<BlockFn> {
    Some(match name {
        "exp" => exp,
        "expm1" => block!(f32, f32, |x| math::expm1(x)),
        "log" => block!(f32, f32, |x| math::log(x)),
        "log1p" => block!(f32, f32, |x| math::log1p(x)),
        "tanh" => block!(f32, f32, |x| math::tanh(x)),
        "sigmoid" => block!(f32, f32, |x| math::sigmoid(x)),
        "softplus" => block!(f32, f32, |x| math::softplus(x)),
        "erf" => block!(f32, f32, |x| math::erf(x)),
        _ => return None,
    })
}

/// Elements of which is known whether all are near zero.
const RUN: usize = 1024;

/// `exp` of f32.
fn exp(args: &[&[u8]], out: &mut [u8]) {
    let (xs, out): (&[f32], &mut [f32]) = (cast_slice(args[0]), cast_slice_mut(out));
    wide(
        #[inline(always)]
        || exp_of(xs, out, |x| x),
    );
}

/// `exp(x - y)` of f32.
fn exp_sub(args: &[&[u8]], out: &mut [u8]) {
    let (xs, ys): (&[f32], &[f32]) = (cast_slice(args[0]), cast_slice(args[1]));
    let out: &mut [f32] = cast_slice_mut(out);
    wide(
        #[inline(always)]
        || match (xs, ys) {
            (_, &[y]) => exp_of(xs, out, |x| x - y),
            (&[x], _) => exp_of(ys, out, |y| x - y),
            _ => {
                for ((out, &x), &y) in out.iter_mut().zip(xs).zip(ys) {
                    *out = math::exp(x - y);
                }
            }
        },
    );
}

/// `exp(f(x))`: where all of a run is near zero, without what large and small arguments need. A run is taken to be
/// as the last one was, and computed again if it was near and this one is not.
#[inline(always)]
fn exp_of(xs: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    let mut is_near = true;
    for (out, xs) in out.chunks_mut(RUN).zip(xs.chunks(RUN)) {
        let was_near = is_near;
        if was_near {
            is_near = exp_run(xs, out, &f, math::exp_near);
        }
        if !is_near {
            is_near = exp_run(xs, out, &f, math::exp) && !was_near;
        }
    }
}

/// `exp(f(x))` by the given function, and whether all of `f(x)` is near zero.
#[inline(always)]
fn exp_run(xs: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32, exp: impl Fn(f32) -> f32) -> bool {
    let mut far = 0u32;
    for (out, &x) in out.iter_mut().zip(xs) {
        let x = f(x);
        // The bits of sizes are in the order of sizes, those of NaN above all.
        far = far.max(x.abs().to_bits());
        *out = exp(x);
    }
    far <= math::NEAR.to_bits()
}

/// The step of `exp(x - y)` for f32, where one of the two may be a single element.
pub(crate) fn exp_of_difference() -> Code {
    Code::Binary(exp_sub)
}
