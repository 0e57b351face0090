// math: what rows of the elementwise tables and casts need beyond WGSL's own functions.
//
// NaN and infinities are told by their bits, since WGSL may assume that there are none.
// Twin: the CPU columns of crates/graph-core/src/ops/unary.rs and cast.rs.

fn is_nan_f32(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn is_finite_f32(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) < 0x7f800000u;
}

// The series below 0.5; elsewhere Abramowitz and Stegun, Handbook (1964), 7.1.26, within 1.5e-7.
fn erf_f32(x: f32) -> f32 {
    let a = abs(x);
    let s = x * x;
    let series = x * (1.1283791671 + s * (-0.3761263890 + s * (0.1128379167 + s * (-0.0268661706
        + s * (0.0052239776 - s * 0.0008548327)))));
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027
        + t * 1.061405429))));
    let far = sign(x) * (1.0 - sum * exp(-min(s, 80.0)));
    return select(far, series, a < 0.5);
}

// Sine of x plus `ahead` quarter turns. WGSL's own may be off by 2^-11. Source: Cephes, sinf.c (Moshier): the
// quarter turns are taken off in three parts, exact up to 8192, then a polynomial within a quarter of pi.
fn sin_from(x: f32, ahead: i32) -> f32 {
    let quarters = round(x * 0.63661977);
    let r = ((x - quarters * 1.5703125) - quarters * 4.837512969970703e-4)
        - quarters * 7.549789948768648e-8;
    let z = r * r;
    let s = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4));
    let c = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3
        + z * 2.443315711809948e-5));
    let k = (i32(quarters) + ahead) & 3;
    let y = select(s, c, (k & 1) == 1);
    return select(y, -y, k >= 2);
}

fn sin_f32(x: f32) -> f32 { return sin_from(x, 0); }

fn cos_f32(x: f32) -> f32 { return sin_from(x, 1); }

fn tan_f32(x: f32) -> f32 { return sin_from(x, 0) / sin_from(x, 1); }

// Source of asin, acos and atan: Cephes, asinf.c and atanf.c (Moshier). Drivers' own are off by 4e-4.
fn asin_f32(x: f32) -> f32 {
    let a = abs(x);
    let far = a > 0.5;
    let z = select(a * a, 0.5 * (1.0 - a), far);
    let r = select(a, sqrt(z), far);
    let near = r + r * z * (1.6666752422e-1 + z * (7.4953002686e-2 + z * (4.5470025998e-2
        + z * (2.4181311049e-2 + z * 4.2163199048e-2))));
    let y = select(near, 1.5707963268 - 2.0 * near, far);
    return select(y, -y, x < 0.0);
}

fn acos_f32(x: f32) -> f32 {
    if x > 0.5 { return 2.0 * asin_f32(sqrt(0.5 * (1.0 - x))); }
    return 1.5707963268 - asin_f32(x);
}

fn atan_f32(x: f32) -> f32 {
    let a = abs(x);
    let far = a > 2.414213562;
    let middle = a > 0.4142135624 && !far;
    let first = select(0.0, 0.7853981634, middle);
    let base = select(first, 1.5707963268, far);
    let r = select(select(a, (a - 1.0) / (a + 1.0), middle), -1.0 / max(a, 1.0), far);
    let z = r * r;
    let y = base + r + r * z * (-3.33329491539e-1 + z * (1.99777106478e-1
        + z * (-1.38776856032e-1 + z * 8.05374449538e-2)));
    return select(y, -y, x < 0.0);
}

// Towards zero, saturating; NaN is 0.
fn f32_to_i32(x: f32) -> i32 {
    if is_nan_f32(x) { return 0; }
    if x >= 2147483648.0 { return 2147483647; }
    if x <= -2147483648.0 { return i32(-2147483648); }
    return i32(x);
}

fn f32_to_u32(x: f32) -> u32 {
    if is_nan_f32(x) || x <= 0.0 { return 0u; }
    if x >= 4294967296.0 { return 4294967295u; }
    return u32(x);
}

fn f32_to_bool(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) != 0u;
}

// The nearest f16, ties to even, as f32. By bits: NVIDIA's compiler takes f32(f16(x)) for x.
fn round_f16(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let size = bits & 0x7fffffffu;
    if size > 0x7f800000u { return x; }
    // Below the normal numbers of f16 they are 2^-24 apart.
    if size < 0x38800000u { return round(x * 16777216.0) * (1.0 / 16777216.0); }
    let rounded = (bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u;
    let overflows = (rounded & 0x7fffffffu) >= 0x47800000u;
    return bitcast<f32>(select(rounded, (bits & 0x80000000u) | 0x7f800000u, overflows));
}
