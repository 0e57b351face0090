//! The one-input elementwise operations, one row each, and their methods.

use crate::ops::Row;
use crate::ops::row::{bool_fns, find, floats, ints};
use crate::{Backward, Float, Tensor};

/// Integers whose sign matters, as rows need them.
trait Int: Copy {
    fn magnitude(self) -> Self;
    fn sign_of(self) -> Self;
    fn positive_part(self) -> Self;
}

macro_rules! signed {
    ($($t:ty),*) => {
        $(impl Int for $t {
            fn magnitude(self) -> Self { self.wrapping_abs() }
            fn sign_of(self) -> Self { self.signum() }
            fn positive_part(self) -> Self { self.max(0) }
        })*
    };
}

macro_rules! unsigned {
    ($($t:ty),*) => {
        $(impl Int for $t {
            fn magnitude(self) -> Self { self }
            fn sign_of(self) -> Self { self.min(1) }
            fn positive_part(self) -> Self { self }
        })*
    };
}

signed! { i32, i64, i128 }
unsigned! { u32, u64 }

/// `dy * f`, where there is a gradient to pass on.
fn times(b: &Backward<'_>, f: impl FnOnce(&Tensor) -> Tensor) -> Vec<Option<Tensor>> {
    vec![b.dy().map(|dy| dy * f(b.input(0)))]
}

fn none(_: &Backward<'_>) -> Vec<Option<Tensor>> {
    vec![None]
}

const SMOOTH: &[f64] = &[-3.0, -0.7, 0.0, 0.3, 1.0, 4.0];
const POSITIVE: &[f64] = &[0.05, 0.5, 1.0, 2.0, 100.0];
const ANY: &[f64] = &[-100.0, -2.5, -1.5, -0.5, 0.0, 0.4, 0.5, 1.0, 1.5, 2.5, 77.0];

/// The rows.
#[rustfmt::skip]
pub(crate) static UNARY: &[Row] = &[
    Row { name: "neg", arity: 1, strings: None, bools: None, probe: ANY,
        float: floats!(Same, "-x", |x| -x),
        int: ints!(Same, "T(0) - x", |x| x.wrapping_neg()),
        gradient: |b| vec![b.dy().map(|dy| -dy)] },
    Row { name: "abs", arity: 1, strings: None, bools: None, probe: ANY,
        float: floats!(Same, "abs(x)", |x| x.abs()),
        int: ints!(Same, "abs(x)", |x| x.magnitude()),
        gradient: |b| times(b, Tensor::sign) },
    Row { name: "sign", arity: 1, strings: None, bools: None, probe: ANY,
        float: floats!(Same, "sign(x)", |x| x.sign()),
        int: ints!(Same, "select(T(0), T(1), x > T(0)) - select(T(0), T(1), x < T(0))", |x| x.sign_of()),
        gradient: none },
    Row { name: "square", arity: 1, strings: None, bools: None, probe: ANY,
        float: floats!(Same, "x * x", |x| x * x),
        int: ints!(Same, "x * x", |x| x.wrapping_mul(x)),
        gradient: |b| times(b, |x| x * 2.0) },
    Row { name: "sqrt", arity: 1, strings: None, int: None, bools: None, probe: POSITIVE,
        float: floats!(Same, "sqrt(x)", |x| x.sqrt()),
        gradient: |b| vec![b.dy().map(|dy| dy * 0.5 / b.output(0))] },
    Row { name: "rsqrt", arity: 1, strings: None, int: None, bools: None, probe: POSITIVE,
        float: floats!(Same, "inverseSqrt(x)", |x| x.sqrt().recip()),
        gradient: |b| times(b, |x| b.output(0) * -0.5 / x) },
    Row { name: "reciprocal", arity: 1, strings: None, int: None, bools: None, probe: POSITIVE,
        float: floats!(Same, "T(1) / x", |x| x.recip()),
        gradient: |b| times(b, |_| -b.output(0).square()) },
    Row { name: "exp", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        float: floats!(Same, "exp(x)", |x| x.exp()),
        gradient: |b| times(b, |_| b.output(0).clone()) },
    Row { name: "expm1", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        // The direct form loses all digits near zero; three terms of the series are exact there.
        float: floats!(Same,
            "select(exp(x) - T(1), x * (T(1) + x * (T(0.5) + x * T(0.16666667))), abs(x) < T(0.01))",
            |x| x.exp_m1()),
        gradient: |b| times(b, |_| b.output(0) + 1.0) },
    Row { name: "log", arity: 1, strings: None, int: None, bools: None, probe: POSITIVE,
        float: floats!(Same, 2 steps, "log(x)", |x| x.ln()),
        gradient: |b| times(b, Tensor::reciprocal) },
    Row { name: "log1p", arity: 1, strings: None, int: None, bools: None, probe: POSITIVE,
        float: floats!(Same, 3 steps,
            "select(log(T(1) + x), x * (T(1) - x * (T(0.5) - x * T(0.33333333))), abs(x) < T(0.01))",
            |x| x.ln_1p()),
        gradient: |b| times(b, |x| (x + 1.0).reciprocal()) },
    Row { name: "sin", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        float: floats!(Same, 8 steps, "sin_T(x)", |x| x.sin()),
        gradient: |b| times(b, Tensor::cos) },
    Row { name: "cos", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        float: floats!(Same, 8 steps, "cos_T(x)", |x| x.cos()),
        gradient: |b| times(b, |x| -x.sin()) },
    Row { name: "tan", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        float: floats!(Same, 32 steps, "tan_T(x)", |x| x.tan()),
        gradient: |b| times(b, |_| b.output(0).square() + 1.0) },
    Row { name: "sinh", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        float: floats!(Same, 32 steps, "sinh(x)", |x| x.sinh()),
        gradient: |b| times(b, Tensor::cosh) },
    Row { name: "cosh", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        float: floats!(Same, 32 steps, "cosh(x)", |x| x.cosh()),
        gradient: |b| times(b, Tensor::sinh) },
    Row { name: "tanh", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        // Some drivers return NaN for a large |x|.
        float: floats!(Same, 2 steps, "tanh(clamp(x, T(-15), T(15)))", |x| x.tanh()),
        gradient: |b| vec![b.dy().map(|dy| dy * (-(b.output(0).square()) + 1.0))] },
    Row { name: "asin", arity: 1, strings: None, int: None, bools: None, probe: &[-0.9, -0.2, 0.0, 0.6],
        float: floats!(Same, 16 steps, "asin_T(x)", |x| x.asin()),
        gradient: |b| times(b, |x| (-(x.square()) + 1.0).rsqrt()) },
    Row { name: "acos", arity: 1, strings: None, int: None, bools: None, probe: &[-0.9, -0.2, 0.0, 0.6],
        float: floats!(Same, 16 steps, "acos_T(x)", |x| x.acos()),
        gradient: |b| times(b, |x| -((-(x.square()) + 1.0).rsqrt())) },
    Row { name: "atan", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        float: floats!(Same, 16 steps, "atan_T(x)", |x| x.atan()),
        gradient: |b| times(b, |x| (x.square() + 1.0).reciprocal()) },
    Row { name: "erf", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        // Abramowitz and Stegun 7.1.26 away from zero, the series near it.
        float: floats!(Same, 2 steps, "erf_T(x)", |x| Float::erf(x)),
        gradient: |b| times(b, |x| (-(x.square())).exp() * std::f64::consts::FRAC_2_SQRT_PI) },
    Row { name: "sigmoid", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        float: floats!(Same, "T(1) / (T(1) + exp(-clamp(x, T(-80), T(80))))", |x| 1.0 / (1.0 + (-x).exp())),
        gradient: |b| vec![b.dy().map(|dy| dy * b.output(0) * (-b.output(0) + 1.0))] },
    Row { name: "softplus", arity: 1, strings: None, int: None, bools: None, probe: SMOOTH,
        float: floats!(Same, 5 steps, "max(x, T(0)) + log(T(1) + exp(-abs(x)))",
            |x| x.max_nan(0.0) + (-x.abs()).exp().ln_1p()),
        gradient: |b| times(b, Tensor::sigmoid) },
    Row { name: "relu", arity: 1, strings: None, bools: None, probe: ANY,
        float: floats!(Same, "max(x, T(0))", |x| x.max_nan(0.0)),
        int: ints!(Same, "max(x, T(0))", |x| x.positive_part()),
        gradient: |b| vec![b.dy().map(|dy| {
            let dy = dy.clone();
            b.input(0).greater(0.0).select(&dy, dy.like(0.0))
        })] },
    Row { name: "floor", arity: 1, strings: None, int: None, bools: None, probe: ANY,
        float: floats!(Same, "floor(x)", |x| x.floor()), gradient: none },
    Row { name: "ceil", arity: 1, strings: None, int: None, bools: None, probe: ANY,
        float: floats!(Same, "ceil(x)", |x| x.ceil()), gradient: none },
    Row { name: "round", arity: 1, strings: None, int: None, bools: None, probe: ANY,
        float: floats!(Same, "round(x)", |x| x.round_even()), gradient: none },
    Row { name: "trunc", arity: 1, strings: None, int: None, bools: None, probe: ANY,
        float: floats!(Same, "trunc(x)", |x| x.trunc()), gradient: none },
    Row { name: "is_nan", arity: 1, strings: None, int: None, bools: None, probe: ANY,
        // By bits: WGSL may assume that there are no NaNs.
        float: floats!(Test, "is_nan_T(x)", |x| x.is_nan()), gradient: none },
    Row { name: "is_finite", arity: 1, strings: None, int: None, bools: None, probe: ANY,
        float: floats!(Test, "is_finite_T(x)", |x| x.is_finite()), gradient: none },
    Row { name: "not", arity: 1, strings: None, float: None, probe: &[0.0, 1.0],
        int: ints!(Same, "~x", |x| !x),
        bools: bool_fns!("!x", |x| !x), gradient: none },
];

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        impl Tensor {
            $($(#[$doc])*
            ///
            /// Shape and dtype are kept.
            #[track_caller]
            pub fn $name(&self) -> Tensor {
                self.apply(find(UNARY, stringify!($name)), &[self])
            })*
        }
    };
}

methods! {
    /// `|x|`; of the least integer, itself.
    abs,
    /// -1, 0 or 1.
    sign,
    /// `x * x`.
    square,
    /// The square root.
    sqrt,
    /// `1 / sqrt(x)`.
    rsqrt,
    /// `1 / x`, of floats.
    reciprocal,
    /// `e^x`.
    exp,
    /// `e^x - 1`, exact near zero.
    expm1,
    /// The natural logarithm.
    log,
    /// `log(1 + x)`, exact near zero.
    log1p,
    /// The sine of radians.
    sin,
    /// The cosine of radians.
    cos,
    /// The tangent of radians.
    tan,
    /// The hyperbolic sine.
    sinh,
    /// The hyperbolic cosine.
    cosh,
    /// The hyperbolic tangent.
    tanh,
    /// The arc sine, in radians.
    asin,
    /// The arc cosine, in radians.
    acos,
    /// The arc tangent, in radians.
    atan,
    /// The error function.
    erf,
    /// `1 / (1 + e^-x)`.
    sigmoid,
    /// `log(1 + e^x)`.
    softplus,
    /// `max(x, 0)`.
    relu,
    /// Down to an integer.
    floor,
    /// Up to an integer.
    ceil,
    /// To the nearest integer, ties to even.
    round,
    /// Towards zero to an integer.
    trunc,
}

impl Tensor {
    /// Whether each element is NaN, by its bits; of floats.
    #[track_caller]
    pub fn is_nan(&self) -> Tensor {
        self.apply(find(UNARY, "is_nan"), &[self])
    }

    /// Whether each element is neither NaN nor infinite, by its bits; of floats.
    #[track_caller]
    pub fn is_finite(&self) -> Tensor {
        self.apply(find(UNARY, "is_finite"), &[self])
    }
}

impl std::ops::Neg for &Tensor {
    type Output = Tensor;

    #[track_caller]
    fn neg(self) -> Tensor {
        self.apply(find(UNARY, "neg"), &[self])
    }
}

impl std::ops::Neg for Tensor {
    type Output = Tensor;

    #[track_caller]
    fn neg(self) -> Tensor {
        -&self
    }
}

impl std::ops::Not for &Tensor {
    type Output = Tensor;

    /// Logical of bools, bitwise of integers.
    #[track_caller]
    fn not(self) -> Tensor {
        self.apply(find(UNARY, "not"), &[self])
    }
}

impl std::ops::Not for Tensor {
    type Output = Tensor;

    #[track_caller]
    fn not(self) -> Tensor {
        !&self
    }
}
