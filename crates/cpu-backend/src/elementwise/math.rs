//! Functions of `f32` without branches or calls, so that loops of them vectorise.
//!
//! Errors over all finite inputs: at most 2 units in the last place. Infinities,
//! NaN, overflow and subnormal results are those of the standard library. Where a product and a sum are fused,
//! they are on every machine, so that the bits are the same on all of them.
//!
//! Sources: Moshier, Cephes 2.8 (`expf`, `logf`, `tanhf`); Juffa, "erff" (public domain).

const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `c[0] x^n + .. + c[n]`.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut y = c[0];
    let mut i = 1;
    while i < N {
        y = y.mul_add(x, c[i]);
        i += 1;
    }
    y
}

/// `2^n` for `n` in `-126..=127`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `(n, e^r - 1)` with `x = n ln 2 + r` and `|r| <= ln 2 / 2`, for `|x| <= 104`.
#[inline(always)]
fn reduced_expm1(x: f32) -> (i32, f32) {
    // Adding 1.5 * 2^23 rounds to an integer, which then lies in the low bits.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let n = (shifted.to_bits() as i32).wrapping_sub(0x4B40_0000);
    let whole = shifted - 12_582_912.0;
    let r = whole.mul_add(-LN_2_LOW, whole.mul_add(-LN_2_HIGH, x));
    let c = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    (n, polynomial(r, c).mul_add(r * r, r))
}

/// `e^x`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let clamped = if x > 90.0 { 90.0 } else { x };
    let clamped = if clamped < -104.0 { -104.0 } else { clamped };
    let (n, p) = reduced_expm1(clamped);
    scale(p + 1.0, n)
}

/// The greatest size of what [`exp_near`] takes.
pub(crate) const NEAR: f32 = 86.0;

/// As [`exp`], with the same bits, for arguments of at most [`NEAR`]: neither they nor the result need care.
#[inline(always)]
pub(crate) fn exp_near(x: f32) -> f32 {
    let (n, p) = reduced_expm1(x);
    f32::from_bits((p + 1.0).to_bits().wrapping_add((n as u32) << 23))
}

/// `x 2^n`, in two steps, since `2^n` may be subnormal or too great.
#[inline(always)]
fn scale(x: f32, n: i32) -> f32 {
    let half = n >> 1;
    x * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `e^x - 1`.
#[inline(always)]
pub(crate) fn expm1(x: f32) -> f32 {
    let clamped = if x > 90.0 { 90.0 } else { x };
    let clamped = if clamped < -30.0 { -30.0 } else { clamped };
    let (n, p) = reduced_expm1(clamped);
    let whole = power_of_two(n);
    let y = p * whole + (whole - 1.0);
    let y = if n > 40 { scale(p + 1.0, n) } else { y };
    // Keeps the sign of zero, and what is too small for the products.
    if n == 0 { p } else { y }
}

/// `(e, m - 1)` with `x = m 2^e` and `m` in `[sqrt(1/2), sqrt(2))`, for normal `x > 0`.
#[inline(always)]
fn split(x: f32) -> (f32, f32) {
    let bits = x.to_bits().wrapping_sub(0x3F35_04F3);
    let e = (bits as i32) >> 23;
    let m = f32::from_bits((bits & 0x007F_FFFF).wrapping_add(0x3F35_04F3));
    (e as f32, m - 1.0)
}

/// The natural logarithm.
#[inline(always)]
pub(crate) fn log(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let (e, z) = split(if tiny { x * 33_554_432.0 } else { x });
    let e = if tiny { e - 25.0 } else { e };
    let c = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let square = z * z;
    let small = polynomial(z, c) * z * square + e * LN_2_LOW - 0.5 * square;
    let y = z + small + e * LN_2_HIGH;
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    // Also for NaN, of either sign.
    if x >= 0.0 { y } else { f32::NAN }
}

/// `log(1 + x)`.
#[inline(always)]
pub(crate) fn log1p(x: f32) -> f32 {
    let u = 1.0 + x;
    // What rounding took from `1 + x`, relative to it.
    let lost = if x > 1.0 { 1.0 - (u - x) } else { x - (u - 1.0) } / u;
    let y = log(u) + if u > 0.0 && u < f32::INFINITY { lost } else { 0.0 };
    if x.abs() < 1e-7 { x } else { y }
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let square = x * x;
    let c = [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1];
    let near = polynomial(square, c) * square * x + x;
    let limited = if size > 10.0 { 10.0 } else { size };
    let far = 1.0 - 2.0 / (exp_near(2.0 * limited) + 1.0);
    // NaN is near.
    (if size >= 0.625 { far } else { near }).copysign(x)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let whole = 1.0 + e;
    let upper = if x < 0.0 { e } else { 1.0 };
    let scale = 1.0 / whole;
    let y = upper * scale;
    // What the product lacks, and what rounding took from `1 + e`.
    let lost = e - (whole - 1.0);
    let rest = y.mul_add(-lost, y.mul_add(-whole, upper));
    rest.mul_add(scale, y)
}

/// `log(1 + e^x)`.
#[inline(always)]
pub(crate) fn softplus(x: f32) -> f32 {
    (if x > 0.0 || x.is_nan() { x } else { 0.0 }) + log1p(exp(-x.abs()))
}

/// The error function.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let (size, square) = (x.abs(), x * x);
    let near = polynomial(
        square,
        [
            -5.967_617e-4,
            4.991_194_2e-3,
            -2.676_813_5e-2,
            1.128_199_25e-1,
            -3.761_253_4e-1,
            1.283_791_7e-1,
        ],
    );
    let near = near * x + x;
    let t = if size > 4.0 { 4.0 } else { size };
    let far = polynomial(
        t,
        [
            -1.728_534_7e-5,
            3.831_971_3e-4,
            -3.883_964_4e-3,
            2.425_462_2e-2,
            -1.067_778_8e-1,
            -6.348_467e-1,
            -1.287_175_1e-1,
        ],
    );
    // The exponent is between -18 and 0 where this is taken.
    let far = (1.0 - exp_near(far * t - t)).copysign(x);
    if size > 0.927_734_4 { far } else { near }
}
