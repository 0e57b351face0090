//! What a reduction does with one wide element, and with two partial results.

use bytemuck::Pod;

/// How elements of type `W` become one.
pub(super) trait Fold<W>: 'static {
    /// A partial result.
    type Acc: Pod + Send + Sync;
    /// Of no elements.
    const START: Self::Acc;
    /// With one more element.
    fn step(acc: Self::Acc, x: W) -> Self::Acc;
    /// Of two parts.
    fn merge(a: Self::Acc, b: Self::Acc) -> Self::Acc;
}

pub(super) struct Sum;
pub(super) struct Prod;
pub(super) struct Max;
pub(super) struct Min;
pub(super) struct Any;
pub(super) struct All;

macro_rules! folds {
    ($($fold:ident of $t:ty: $acc:ty, $start:expr, |$a:ident, $b:ident| $merge:expr;)*) => { $(
        impl Fold<$t> for $fold {
            type Acc = $acc;
            const START: $acc = $start;
            #[inline(always)]
            fn step(acc: $acc, x: $t) -> $acc {
                <Self as Fold<$t>>::merge(acc, <$acc>::from(x))
            }
            #[inline(always)]
            fn merge($a: $acc, $b: $acc) -> $acc {
                $merge
            }
        }
    )* };
}

folds! {
    Sum of f32: f64, 0.0, |a, b| a + b;
    Sum of f64: f64, 0.0, |a, b| a + b;
    Sum of u32: u32, 0, |a, b| a.wrapping_add(b);
    Sum of u64: u64, 0, |a, b| a.wrapping_add(b);
    Prod of f32: f64, 1.0, |a, b| a * b;
    Prod of f64: f64, 1.0, |a, b| a * b;
    Prod of u32: u32, 1, |a, b| a.wrapping_mul(b);
    Prod of u64: u64, 1, |a, b| a.wrapping_mul(b);
    Any of u8: u8, 0, |a, b| a | b;
    All of u8: u8, 1, |a, b| a & b;
}

/// A wide type whose elements are compared.
pub(super) trait Ordered: Pod + Send + Sync + PartialOrd {
    /// Not above any element.
    const LEAST: Self;
    /// Not below any element.
    const GREATEST: Self;
    fn is_nan(self) -> bool;
}

macro_rules! ordered {
    ($($t:ty, $least:expr, $greatest:expr, |$x:ident| $is_nan:expr;)*) => { $(
        impl Ordered for $t {
            const LEAST: Self = $least;
            const GREATEST: Self = $greatest;
            #[inline(always)]
            fn is_nan(self) -> bool {
                let $x = self;
                $is_nan
            }
        }
    )* };
}

ordered! {
    i32, i32::MIN, i32::MAX, |_x| false;
    u32, u32::MIN, u32::MAX, |_x| false;
    i64, i64::MIN, i64::MAX, |_x| false;
    u64, u64::MIN, u64::MAX, |_x| false;
    f32, f32::NEG_INFINITY, f32::INFINITY, |x| x.is_nan();
    f64, f64::NEG_INFINITY, f64::INFINITY, |x| x.is_nan();
}

/// The greatest or the least: NaN comes before all.
pub(super) trait Extremum<W: Ordered>: Fold<W, Acc = W> {
    /// Whether `x` takes the place of `best`.
    fn is_better(x: W, best: W) -> bool;
}

macro_rules! extremum {
    ($fold:ident, $start:ident, |$x:ident, $best:ident| $better:expr) => {
        impl<W: Ordered> Fold<W> for $fold {
            type Acc = W;
            const START: W = W::$start;
            #[inline(always)]
            fn step($best: W, $x: W) -> W {
                // A NaN is never worse, so that the last one stays.
                if $better | $x.is_nan() { $x } else { $best }
            }
            #[inline(always)]
            fn merge(a: W, b: W) -> W {
                <Self as Fold<W>>::step(a, b)
            }
        }

        impl<W: Ordered> Extremum<W> for $fold {
            #[inline(always)]
            fn is_better($x: W, $best: W) -> bool {
                $better | ($x.is_nan() & !$best.is_nan())
            }
        }
    };
}

extremum! { Max, LEAST, |x, best| (x > best) }
extremum! { Min, GREATEST, |x, best| (x < best) }
