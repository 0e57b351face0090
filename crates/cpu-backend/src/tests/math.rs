//! The vectorising functions against `f64`, over bit patterns of all magnitudes.

use bytemuck::{cast_slice, cast_slice_mut};
use convoke_graph_core::{DType, Float, ops};

use crate::elementwise::code::Code;
use crate::elementwise::math;
use crate::elementwise::rows::exp_of_difference;

/// The greatest error in units in the last place, over every 1009th bit pattern.
fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64) -> (f64, f32) {
    let mut worst = (0.0, 0.0);
    for bits in (0..=u32::MAX).step_by(1009) {
        let x = f32::from_bits(bits);
        let (y, e) = (f(x), exact(f64::from(x)));
        let rounded = e as f32;
        if y == rounded || (y.is_nan() && e.is_nan()) {
            continue;
        }
        let unit = f64::from(rounded.abs().next_up()) - f64::from(rounded.abs());
        let error = (f64::from(y) - e).abs() / unit;
        if error.is_nan() || error > worst.0 {
            worst = (error, x);
        }
        if error.is_nan() {
            break;
        }
    }
    worst
}

#[test]
fn functions_stay_within_their_errors() {
    type Row = (&'static str, fn(f32) -> f32, fn(f64) -> f64);
    let functions: [Row; 8] = [
        ("exp", math::exp, f64::exp),
        ("log", math::log, f64::ln),
        ("expm1", math::expm1, f64::exp_m1),
        ("log1p", math::log1p, f64::ln_1p),
        ("tanh", math::tanh, f64::tanh),
        ("sigmoid", math::sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
        ("softplus", math::softplus, |x| x.max_nan(0.0) + (-x.abs()).exp().ln_1p()),
        ("erf", math::erf, Float::erf),
    ];
    for (name, f, exact) in functions {
        let (error, x) = worst(f, exact);
        println!("{name}: {error:.2} units at {x:e}");
        assert!(error <= 2.0, "{name}: {error} units at {x:e}: {} for {}", f(x), exact(x.into()));
    }
}

#[test]
fn special_values_are_those_of_std() {
    let xs =
        [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, -1.0, 89.0, -89.0, 1e30];
    let same = |a: f32, b: f32| {
        (a.is_nan() && b.is_nan()) || a == b && a.is_sign_negative() == b.is_sign_negative()
    };
    for x in xs {
        for (name, found, expected) in [
            ("expm1", math::expm1(x), x.exp_m1()),
            ("log", math::log(x), x.ln()),
            ("log1p", math::log1p(x), x.ln_1p()),
            ("exp", math::exp(x), x.exp()),
            ("sigmoid", math::sigmoid(x), (1.0 / (1.0 + (-f64::from(x)).exp())) as f32),
        ] {
            let close = (found - expected).abs() <= 1e-6 * expected.abs();
            assert!(same(found, expected) || close, "{name} of {x}: {found}, not {expected}");
        }
        assert!(same(math::tanh(x), x.tanh()) || x.abs() == 1.0, "tanh of {x}");
        assert!(same(math::erf(x), Float::erf(x)) || x.abs() == 1.0, "erf of {x}");
    }
}

#[test]
fn near_zero_the_shorter_exponential_has_the_same_bits() {
    for size in (0..=math::NEAR.to_bits()).step_by(211).chain([math::NEAR.to_bits()]) {
        let size = f32::from_bits(size);
        for x in [size, -size] {
            assert_eq!(math::exp_near(x).to_bits(), math::exp(x).to_bits(), "{x:e}");
        }
    }
}

/// Runs in which all, none, or some arguments are near zero, one after the other.
#[test]
fn blocks_of_exponentials_are_those_of_the_function() {
    let row = ops::rows().find(|row| row.name == "exp").unwrap();
    let exp = Code::of_row(row, DType::F32).unwrap();
    for far in [0.0f32, 1.0, 86.1, 1e4, f32::INFINITY, f32::NAN] {
        for (n, run) in [(0usize, 1), (1, 1), (1023, 1), (1024, 1), (1025, 1), (6000, 2), (6000, 3)]
        {
            let mut xs: Vec<f32> = (0..n).map(|i| (i % 97) as f32 * 0.5 - 30.0).collect();
            for x in xs.iter_mut().rev().step_by(run * 1024) {
                *x = far;
            }
            let mut ys = vec![0.0f32; n];
            exp.call(&[cast_slice(&xs)], cast_slice_mut(&mut ys));
            let expected: Vec<u32> = xs.iter().map(|&x| math::exp(x).to_bits()).collect();
            assert_eq!(
                ys.iter().map(|y| y.to_bits()).collect::<Vec<_>>(),
                expected,
                "{far} {n} {run}"
            );
            let args: [&[u8]; 2] = [cast_slice(&xs), cast_slice(&[2.5f32])];
            exp_of_difference().call(&args, cast_slice_mut(&mut ys));
            let expected: Vec<u32> = xs.iter().map(|&x| math::exp(x - 2.5).to_bits()).collect();
            assert_eq!(
                ys.iter().map(|y| y.to_bits()).collect::<Vec<_>>(),
                expected,
                "{far} {n} {run}"
            );
        }
    }
}
