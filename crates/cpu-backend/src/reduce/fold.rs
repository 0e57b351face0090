//! What a reduction does with one element, with two partial results, and at the end.

use crate::elements::{Bool, FromF64, Stored};

/// How elements of type `S` become one.
pub(super) trait Fold<S: Stored>: 'static {
    /// A partial result.
    type Acc: Copy + Send + Sync;
    /// What is stored at the end.
    type Out: bytemuck::Pod + Send;
    /// Of no elements.
    const START: Self::Acc;
    /// With one more element, the one at `index` in its lane.
    fn step(acc: Self::Acc, x: S, index: i32) -> Self::Acc;
    /// Of two parts, `a` in front.
    fn merge(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// The result of `n` elements.
    fn finish(acc: Self::Acc, n: usize) -> Self::Out;
}

pub(super) struct Sum;
pub(super) struct Prod;
pub(super) struct Mean;
pub(super) struct Max;
pub(super) struct Min;
pub(super) struct Any;
pub(super) struct All;
pub(super) struct ArgMax;
pub(super) struct ArgMin;

macro_rules! in_f64 {
    ($fold:ident, $start:expr, |$a:ident, $x:ident| $step:expr, |$acc:ident, $n:ident| $finish:expr;
        $($t:ty),*) => { $(
        impl Fold<$t> for $fold {
            type Acc = f64;
            type Out = $t;
            const START: f64 = $start;
            #[inline(always)]
            fn step($a: f64, x: $t, _: i32) -> f64 {
                let $x = f64::from(x.widen());
                $step
            }
            #[inline(always)]
            fn merge($a: f64, $x: f64) -> f64 { $step }
            fn finish($acc: f64, $n: usize) -> $t { <$t as FromF64>::from_f64($finish) }
        }
    )* };
}

// Rust's own sum of nothing is -0, which is the one zero that adding keeps.
in_f64! { Sum, -0.0, |a, x| a + x, |acc, n| if n == 0 { 0.0 } else { acc }; half::f16, half::bf16, f32, f64 }
in_f64! { Prod, 1.0, |a, x| a * x, |acc, _n| acc; half::f16, half::bf16, f32, f64 }
in_f64! { Mean, 0.0, |a, x| a + x, |acc, n| acc / n as f64; half::f16, half::bf16, f32, f64 }

macro_rules! wrapping {
    ($fold:ident, $start:literal, $op:ident; $($t:ty),*) => { $(
        impl Fold<$t> for $fold {
            type Acc = <$t as Stored>::Wide;
            type Out = $t;
            const START: Self::Acc = $start;
            #[inline(always)]
            fn step(a: Self::Acc, x: $t, _: i32) -> Self::Acc { a.$op(x.widen()) }
            #[inline(always)]
            fn merge(a: Self::Acc, b: Self::Acc) -> Self::Acc { a.$op(b) }
            fn finish(acc: Self::Acc, _: usize) -> $t { <$t as Stored>::narrow(acc) }
        }
    )* };
}

wrapping! { Sum, 0, wrapping_add; i8, u8, i16, u16, i32, u32, i64, u64 }
wrapping! { Prod, 1, wrapping_mul; i8, u8, i16, u16, i32, u32, i64, u64 }

/// A stored type whose elements are compared.
pub(super) trait Ordered: Stored {
    /// The least value, widened.
    const LEAST: Self::Wide;
    /// The greatest value, widened.
    const GREATEST: Self::Wide;
    fn greater(a: Self::Wide, b: Self::Wide) -> bool;
    fn is_nan(a: Self::Wide) -> bool;
}

macro_rules! ordered {
    ($is_nan:expr; $($t:ty, $least:expr, $greatest:expr);*) => { $(
        impl Ordered for $t {
            const LEAST: Self::Wide = $least as Self::Wide;
            const GREATEST: Self::Wide = $greatest as Self::Wide;
            #[inline(always)]
            fn greater(a: Self::Wide, b: Self::Wide) -> bool { a > b }
            #[inline(always)]
            fn is_nan(a: Self::Wide) -> bool { ($is_nan)(a) }
        }
    )* };
}

ordered! { |_| false;
    i8, i8::MIN, i8::MAX; u8, u8::MIN, u8::MAX; i16, i16::MIN, i16::MAX; u16, u16::MIN, u16::MAX;
    i32, i32::MIN, i32::MAX; u32, u32::MIN, u32::MAX; i64, i64::MIN, i64::MAX; u64, u64::MIN, u64::MAX
}
ordered! { |a: Self::Wide| a.is_nan();
    half::f16, f32::NEG_INFINITY, f32::INFINITY; half::bf16, f32::NEG_INFINITY, f32::INFINITY;
    f32, f32::NEG_INFINITY, f32::INFINITY; f64, f64::NEG_INFINITY, f64::INFINITY
}

macro_rules! extremum {
    ($fold:ident, $arg:ident, $start:ident, |$x:ident, $best:ident| $better:expr) => {
        impl<S: Ordered> Fold<S> for $fold {
            type Acc = S::Wide;
            type Out = S;
            const START: S::Wide = S::$start;
            #[inline(always)]
            fn step($best: S::Wide, x: S, _: i32) -> S::Wide {
                let $x = x.widen();
                if $better | S::is_nan($x) { $x } else { $best }
            }
            #[inline(always)]
            fn merge($best: S::Wide, $x: S::Wide) -> S::Wide {
                if $better | S::is_nan($x) { $x } else { $best }
            }
            fn finish(acc: S::Wide, _: usize) -> S {
                S::narrow(acc)
            }
        }

        impl<S: Ordered> Fold<S> for $arg {
            /// The best element and its index; -1 while there is none.
            type Acc = (S::Wide, i32);
            type Out = i32;
            const START: Self::Acc = (S::$start, -1);
            #[inline(always)]
            fn step(acc: Self::Acc, x: S, index: i32) -> Self::Acc {
                <Self as Fold<S>>::merge(acc, (x.widen(), index))
            }
            /// Parts may come in any order, so that the lower index is chosen among equals.
            #[inline(always)]
            fn merge(a: Self::Acc, b: Self::Acc) -> Self::Acc {
                let (($best, i), ($x, j)) = (a, b);
                let nans = (S::is_nan($best), S::is_nan($x));
                let is_better = $better | (nans.1 & !nans.0);
                let is_worse = {
                    let ($x, $best) = ($best, $x);
                    $better | (nans.0 & !nans.1)
                };
                let is_first = !is_worse & (j < i) & (j >= 0);
                if (is_better | is_first | (i < 0)) & (j >= 0) { b } else { a }
            }
            fn finish(acc: Self::Acc, _: usize) -> i32 {
                acc.1.max(0)
            }
        }
    };
}

extremum! { Max, ArgMax, LEAST, |x, best| S::greater(x, best) }
extremum! { Min, ArgMin, GREATEST, |x, best| S::greater(best, x) }

macro_rules! bits {
    ($fold:ident, $start:literal, |$a:ident, $b:ident| $merge:expr) => {
        impl Fold<Bool> for $fold {
            type Acc = u8;
            type Out = Bool;
            const START: u8 = $start;
            #[inline(always)]
            fn step($a: u8, x: Bool, _: i32) -> u8 {
                let $b = x.0;
                $merge
            }
            #[inline(always)]
            fn merge($a: u8, $b: u8) -> u8 {
                $merge
            }
            fn finish(acc: u8, _: usize) -> Bool {
                Bool(acc)
            }
        }
    };
}

bits! { Any, 0, |a, b| a | b }
bits! { All, 1, |a, b| a & b }
