//! The two-input elementwise operations, one row each, and their methods and operators.

use crate::ops::Row;
use crate::ops::row::{bool_fns, find, floats, ints, unbroadcast};
use crate::{Backward, Float, IntoTensor, Tensor, Variable};

/// Division, remainder and power as WGSL defines them for integers: `x / 0 = x`, `x % 0 = 0`.
trait Int: Copy {
    fn quotient(self, y: Self) -> Self;
    fn remainder(self, y: Self) -> Self;
}

macro_rules! ints_divide {
    ($($t:ty),*) => {
        $(impl Int for $t {
            fn quotient(self, y: Self) -> Self {
                if y == 0 { self } else { self.wrapping_div(y) }
            }
            fn remainder(self, y: Self) -> Self {
                if y == 0 { 0 } else { self.wrapping_rem(y) }
            }
        })*
    };
}

ints_divide! { i32, u32, i64, u64, i128 }

fn none(_: &Backward<'_>) -> Vec<Option<Tensor>> {
    vec![None, None]
}

/// Gradients of both inputs from `dy`, x and y, before broadcast axes are summed away.
fn both(
    b: &Backward<'_>,
    f: impl FnOnce(&Tensor, &Tensor, &Tensor) -> [Tensor; 2],
) -> Vec<Option<Tensor>> {
    let grads = b.dy().map(|dy| f(&dy, b.input(0), b.input(1)));
    unbroadcast(b, grads.map_or([None, None], |grads| grads.map(Some)))
}

/// The gradient goes to the input that was chosen, and half to each where both are equal.
fn chosen(b: &Backward<'_>, x_wins: fn(&Tensor, &Tensor) -> Tensor) -> Vec<Option<Tensor>> {
    both(b, |dy, x, y| {
        let share = x_wins(x, y).cast(dy.dtype()) + x.equal(y).cast(dy.dtype()) * 0.5;
        [dy * &share, dy * (-&share + 1.0)]
    })
}

const ANY: &[f64] = &[-7.0, -2.0, -0.5, 0.0, 0.5, 2.0, 3.0, 11.0];
const NONZERO: &[f64] = &[-7.0, -2.0, 0.5, 1.0, 3.0, 11.0];
const POSITIVE: &[f64] = &[0.25, 1.0, 2.0, 3.0];
const BITS: &[f64] = &[0.0, 1.0];

/// The rows.
#[rustfmt::skip]
pub(crate) static BINARY: &[Row] = &[
    Row { name: "add", arity: 2, strings: None, bools: None, probe: ANY,
        float: floats!(Same, "x + y", |x, y| x + y),
        int: ints!(Same, "x + y", |x, y| x.wrapping_add(y)),
        gradient: |b| unbroadcast(b, [b.dy(), b.dy()]) },
    Row { name: "sub", arity: 2, strings: None, bools: None, probe: ANY,
        float: floats!(Same, "x - y", |x, y| x - y),
        int: ints!(Same, "x - y", |x, y| x.wrapping_sub(y)),
        gradient: |b| unbroadcast(b, [b.dy(), b.dy().map(|dy| -dy)]) },
    Row { name: "mul", arity: 2, strings: None, bools: None, probe: ANY,
        float: floats!(Same, "x * y", |x, y| x * y),
        int: ints!(Same, "x * y", |x, y| x.wrapping_mul(y)),
        gradient: |b| both(b, |dy, x, y| [dy * y, dy * x]) },
    Row { name: "div", arity: 2, strings: None, bools: None, probe: NONZERO,
        float: floats!(Same, "x / y", |x, y| x / y),
        int: ints!(Same, "x / y", |x, y| x.quotient(y)),
        gradient: |b| both(b, |dy, _, y| [dy / y, -(dy * b.output(0) / y)]) },
    Row { name: "rem", arity: 2, strings: None, bools: None, probe: NONZERO,
        float: floats!(Same, "x % y", |x, y| x % y),
        int: ints!(Same, "x % y", |x, y| x.remainder(y)),
        gradient: |b| both(b, |dy, x, y| [dy.clone(), -(dy * (x / y).trunc())]) },
    Row { name: "pow", arity: 2, strings: None, int: None, bools: None, probe: POSITIVE,
        float: floats!(Same, 14 steps, "pow(x, y)", |x, y| x.powf(y)),
        gradient: |b| both(b, |dy, x, y| [dy * y * x.pow(y - 1.0), dy * b.output(0) * x.log()]) },
    Row { name: "maximum", arity: 2, strings: None, bools: None, probe: ANY,
        float: floats!(Same, "max(x, y)", |x, y| x.max_nan(y)),
        int: ints!(Same, "max(x, y)", |x, y| x.max(y)),
        gradient: |b| chosen(b, |x, y| x.greater(y)) },
    Row { name: "minimum", arity: 2, strings: None, bools: None, probe: ANY,
        float: floats!(Same, "min(x, y)", |x, y| x.min_nan(y)),
        int: ints!(Same, "min(x, y)", |x, y| x.min(y)),
        gradient: |b| chosen(b, |x, y| x.less(y)) },
    Row { name: "atan2", arity: 2, strings: None, int: None, bools: None, probe: NONZERO,
        float: floats!(Same, "atan2(x, y)", |x, y| x.atan2(y)),
        gradient: |b| both(b, |dy, x, y| {
            let r = dy / (x.square() + y.square());
            [&r * y, -(&r * x)]
        }) },
    Row { name: "equal", arity: 2, probe: ANY, gradient: none,
        float: floats!(Test, "x == y", |x, y| x == y),
        int: ints!(Test, "x == y", |x, y| x == y),
        bools: bool_fns!("x == y", |x, y| x == y),
        strings: Some(|x, y| x == y) },
    Row { name: "not_equal", arity: 2, probe: ANY, gradient: none,
        float: floats!(Test, "x != y", |x, y| x != y),
        int: ints!(Test, "x != y", |x, y| x != y),
        bools: bool_fns!("x != y", |x, y| x != y),
        strings: Some(|x, y| x != y) },
    Row { name: "less", arity: 2, strings: None, bools: None, probe: ANY, gradient: none,
        float: floats!(Test, "x < y", |x, y| x < y),
        int: ints!(Test, "x < y", |x, y| x < y) },
    Row { name: "less_equal", arity: 2, strings: None, bools: None, probe: ANY, gradient: none,
        float: floats!(Test, "x <= y", |x, y| x <= y),
        int: ints!(Test, "x <= y", |x, y| x <= y) },
    Row { name: "greater", arity: 2, strings: None, bools: None, probe: ANY, gradient: none,
        float: floats!(Test, "x > y", |x, y| x > y),
        int: ints!(Test, "x > y", |x, y| x > y) },
    Row { name: "greater_equal", arity: 2, strings: None, bools: None, probe: ANY, gradient: none,
        float: floats!(Test, "x >= y", |x, y| x >= y),
        int: ints!(Test, "x >= y", |x, y| x >= y) },
    Row { name: "and", arity: 2, strings: None, float: None, probe: BITS, gradient: none,
        int: ints!(Same, "x & y", |x, y| x & y),
        bools: bool_fns!("x && y", |x, y| x && y) },
    Row { name: "or", arity: 2, strings: None, float: None, probe: BITS, gradient: none,
        int: ints!(Same, "x | y", |x, y| x | y),
        bools: bool_fns!("x || y", |x, y| x || y) },
    Row { name: "xor", arity: 2, strings: None, float: None, probe: BITS, gradient: none,
        int: ints!(Same, "x ^ y", |x, y| x ^ y),
        bools: bool_fns!("x != y", |x, y| x != y) },
];

/// Applies the row `name`; `y` may be a tensor, a variable or a number of the tensor's dtype.
#[track_caller]
fn apply(x: &Tensor, name: &str, y: impl IntoTensor) -> Tensor {
    let y = y.into_tensor(x);
    x.apply(find(BINARY, name), &[x, &y])
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        impl Tensor {
            $($(#[$doc])*
            ///
            /// Shapes broadcast; dtypes must be equal.
            #[track_caller]
            pub fn $name(&self, y: impl IntoTensor) -> Tensor {
                apply(self, stringify!($name), y)
            })*
        }
    };
}

methods! {
    /// `x` to the power `y`, of floats.
    pow,
    /// The greater; NaN if either is.
    maximum,
    /// The lesser; NaN if either is.
    minimum,
    /// The angle of the point `(y, x)`, where `self` is its second coordinate, in radians.
    atan2,
    /// Whether equal; of strings, byte by byte.
    equal,
    /// Whether not equal; of strings, byte by byte.
    not_equal,
    /// Whether less.
    less,
    /// Whether less or equal.
    less_equal,
    /// Whether greater.
    greater,
    /// Whether greater or equal.
    greater_equal,
}

macro_rules! operators {
    ($($trait:ident $method:ident $row:literal),* $(,)?) => { $(
        impl<R: IntoTensor> std::ops::$trait<R> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, y: R) -> Tensor {
                apply(self, $row, y)
            }
        }
        impl<R: IntoTensor> std::ops::$trait<R> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, y: R) -> Tensor {
                apply(&self, $row, y)
            }
        }
        impl<R: IntoTensor> std::ops::$trait<R> for &Variable {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, y: R) -> Tensor {
                apply(&self.read, $row, y)
            }
        }
        impl std::ops::$trait<&Tensor> for f64 {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, y: &Tensor) -> Tensor {
                apply(&self.into_tensor(y), $row, y)
            }
        }
        impl std::ops::$trait<Tensor> for f64 {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, y: Tensor) -> Tensor {
                apply(&self.into_tensor(&y), $row, &y)
            }
        }
    )* };
}

operators! {
    Add add "add", Sub sub "sub", Mul mul "mul", Div div "div", Rem rem "rem",
    BitAnd bitand "and", BitOr bitor "or", BitXor bitxor "xor",
}
