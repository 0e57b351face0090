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
    /// As [`step`](Self::step), among elements of which none is odd.
    fn quick(acc: Self::Acc, x: W) -> Self::Acc;
    /// What is seen of elements by the way.
    type Seen: Copy;
    /// Of no elements.
    const NOTHING: Self::Seen;
    /// With one more element.
    fn look(seen: Self::Seen, x: W) -> Self::Seen;
    /// Whether any element is odd: needs care that costs.
    fn has_odd(seen: Self::Seen) -> bool;
    /// Of two parts.
    fn merge(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// As [`merge`](Self::merge), of parts without odd elements.
    fn quick_merge(a: Self::Acc, b: Self::Acc) -> Self::Acc;
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
            fn quick(acc: $acc, x: $t) -> $acc {
                <Self as Fold<$t>>::step(acc, x)
            }
            type Seen = ();
            const NOTHING: () = ();
            #[inline(always)]
            fn look(_seen: (), _x: $t) {}
            #[inline(always)]
            fn has_odd(_seen: ()) -> bool {
                false
            }
            #[inline(always)]
            fn merge($a: $acc, $b: $acc) -> $acc {
                $merge
            }
            #[inline(always)]
            fn quick_merge(a: $acc, b: $acc) -> $acc {
                <Self as Fold<$t>>::merge(a, b)
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
    /// The greatest bits of sizes that were seen, if there are such as are no numbers.
    type Seen: Copy;
    const NOTHING: Self::Seen;
    fn look(seen: Self::Seen, x: Self) -> Self::Seen;
    fn is_nan(self) -> bool;
    fn has_nan(seen: Self::Seen) -> bool;
}

macro_rules! ordered_ints {
    ($($t:ty),*) => { $(
        impl Ordered for $t {
            const LEAST: Self = Self::MIN;
            const GREATEST: Self = Self::MAX;
            #[inline(always)]
            fn is_nan(self) -> bool {
                false
            }
            type Seen = ();
            const NOTHING: () = ();
            #[inline(always)]
            fn look(_seen: (), _x: Self) {}
            #[inline(always)]
            fn has_nan(_seen: ()) -> bool {
                false
            }
        }
    )* };
}

macro_rules! ordered_floats {
    ($($t:ty: $bits:ty),*) => { $(
        impl Ordered for $t {
            const LEAST: Self = Self::NEG_INFINITY;
            const GREATEST: Self = Self::INFINITY;
            #[inline(always)]
            fn is_nan(self) -> bool {
                self.is_nan()
            }
            type Seen = $bits;
            const NOTHING: $bits = 0;
            #[inline(always)]
            fn look(seen: $bits, x: Self) -> $bits {
                x.abs().to_bits().max(seen)
            }
            #[inline(always)]
            fn has_nan(seen: $bits) -> bool {
                // The bits of NaN are above those of any size.
                seen > Self::INFINITY.to_bits()
            }
        }
    )* };
}

ordered_ints! { i32, u32, i64, u64 }
ordered_floats! { f32: u32, f64: u64 }

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
            fn quick($best: W, $x: W) -> W {
                if $better { $x } else { $best }
            }
            type Seen = W::Seen;
            const NOTHING: W::Seen = W::NOTHING;
            #[inline(always)]
            fn look(seen: W::Seen, x: W) -> W::Seen {
                W::look(seen, x)
            }
            #[inline(always)]
            fn has_odd(seen: W::Seen) -> bool {
                W::has_nan(seen)
            }
            #[inline(always)]
            fn merge(a: W, b: W) -> W {
                <Self as Fold<W>>::step(a, b)
            }
            #[inline(always)]
            fn quick_merge(a: W, b: W) -> W {
                <Self as Fold<W>>::quick(a, b)
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

extremum! { Max, LEAST, |x, best| x > best }
extremum! { Min, GREATEST, |x, best| x < best }
