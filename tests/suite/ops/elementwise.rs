//! The rows of the elementwise tables at their probe points, broadcasting, select and cast.

use convoke::prelude::*;
use convoke::{Shape, Tensor, ops};
use convoke_tests::{case, cast, check, devices, positive, ramp};

/// Every pair of `points`.
fn pairs(points: &[f64]) -> [Vec<f32>; 2] {
    let all = points.iter().flat_map(|&x| points.iter().map(move |&y| (x as f32, y as f32)));
    let (xs, ys) = all.unzip();
    [xs, ys]
}

fn apply(name: &'static str, xs: &[Tensor]) -> Tensor {
    let x = &xs[0];
    match (name, xs.get(1)) {
        ("neg", _) => -x,
        ("abs", _) => x.abs(),
        ("sign", _) => x.sign(),
        ("square", _) => x.square(),
        ("sqrt", _) => x.sqrt(),
        ("rsqrt", _) => x.rsqrt(),
        ("reciprocal", _) => x.reciprocal(),
        ("exp", _) => x.exp(),
        ("expm1", _) => x.expm1(),
        ("log", _) => x.log(),
        ("log1p", _) => x.log1p(),
        ("sin", _) => x.sin(),
        ("cos", _) => x.cos(),
        ("tan", _) => x.tan(),
        ("sinh", _) => x.sinh(),
        ("cosh", _) => x.cosh(),
        ("tanh", _) => x.tanh(),
        ("asin", _) => x.asin(),
        ("acos", _) => x.acos(),
        ("atan", _) => x.atan(),
        ("erf", _) => x.erf(),
        ("sigmoid", _) => x.sigmoid(),
        ("softplus", _) => x.softplus(),
        ("relu", _) => x.relu(),
        ("floor", _) => x.floor(),
        ("ceil", _) => x.ceil(),
        ("round", _) => x.round(),
        ("trunc", _) => x.trunc(),
        ("is_nan", _) => x.is_nan(),
        ("is_finite", _) => x.is_finite(),
        ("not", _) => !x,
        ("add", Some(y)) => x + y,
        ("sub", Some(y)) => x - y,
        ("mul", Some(y)) => x * y,
        ("div", Some(y)) => x / y,
        ("rem", Some(y)) => x % y,
        ("pow", Some(y)) => x.pow(y),
        ("maximum", Some(y)) => x.maximum(y),
        ("minimum", Some(y)) => x.minimum(y),
        ("atan2", Some(y)) => x.atan2(y),
        ("equal", Some(y)) => x.equal(y),
        ("not_equal", Some(y)) => x.not_equal(y),
        ("less", Some(y)) => x.less(y),
        ("less_equal", Some(y)) => x.less_equal(y),
        ("greater", Some(y)) => x.greater(y),
        ("greater_equal", Some(y)) => x.greater_equal(y),
        ("and", Some(y)) => x & y,
        ("or", Some(y)) => x | y,
        ("xor", Some(y)) => x ^ y,
        _ => unreachable!("a row without a method: {name}"),
    }
}

/// All rows of one arity in one graph for each dtype: few programs, so that slow drivers stay usable.
fn check_rows(dtype: DType, arity: usize) {
    for row in ops::rows().filter(|row| row.arity == arity && row.output(dtype).is_some()) {
        let [xs, ys] = pairs(row.probe);
        let unit: Vec<f32> = row.probe.iter().map(|&x| x as f32).collect();
        let mut case =
            case(format!("{} of {dtype}", row.name)).within(if dtype == F32 { 1e-4 } else { 0.0 });
        for points in if arity == 1 { vec![unit] } else { vec![xs, ys] } {
            // Integers and bools take what the cast makes of the points: unsigned ones wrap nothing.
            let points: Vec<f32> =
                points.iter().map(|&x| if dtype.is_unsigned_int() { x.abs() } else { x }).collect();
            case = case.x(cast(&points.into(), dtype));
        }
        if row.name == "div" || row.name == "rem" {
            // Fractions cut to 0 are divided by as WGSL says.
            case = case.within(1e-4);
        }
        check(row.name, |xs| apply(row.name, xs), &[case]);
    }
}

#[test]
fn unary_rows_of_f32() {
    check_rows(F32, 1);
}

#[test]
fn binary_rows_of_f32() {
    check_rows(F32, 2);
}

#[test]
fn rows_of_integers_and_bool() {
    for dtype in [I32, U32, Bool] {
        check_rows(dtype, 1);
        check_rows(dtype, 2);
    }
}

#[test]
fn rows_of_dtypes_that_run_on_the_cpu() {
    for dtype in [I8, U8, I16, U16, I64, U64, F16, BF16, F64] {
        check_rows(dtype, 1);
        check_rows(dtype, 2);
    }
}

#[test]
fn gradients_of_rows() {
    // Where a function has a corner, it has no derivative to compare with.
    let smooth = |points: &[f64]| -> Vec<f32> {
        points
            .iter()
            .map(|&x| x as f32)
            .filter(|x| x.abs() > 0.1 && (x.abs() - 1.0).abs() > 0.05)
            .filter(|x| x.abs() < 5.0)
            .collect()
    };
    let flat = ["floor", "ceil", "round", "trunc", "sign", "is_nan", "is_finite", "not"];
    for row in ops::rows().filter(|row| row.arity == 1 && !flat.contains(&row.name)) {
        check(
            row.name,
            |xs| apply(row.name, xs),
            &[case("gradient").x(cast(&smooth(row.probe).into(), F64)).gradient()],
        );
    }
    for name in ["add", "sub", "mul", "div", "pow", "maximum", "minimum", "atan2"] {
        let (x, y) = (cast(&positive(&[2, 3]), F64), cast(&positive(&[3]), F64));
        check(name, |xs| apply(name, xs), &[case("broadcast gradient").x(x).x(y).gradient()]);
    }
}

#[test]
fn broadcasting() {
    check(
        "add",
        |xs| &xs[0] + &xs[1],
        &[
            case("by hand")
                .x([[1.0f32, 2.0], [3.0, 4.0]])
                .x([10.0f32, 20.0])
                .y([[11.0f32, 22.0], [13.0, 24.0]]),
            case("scalar").x(ramp(&[5])).x(2.0f32),
            case("both sides").x(ramp(&[4, 1, 3])).x(ramp(&[5, 1])),
            case("one element").x(ramp(&[1])).x(ramp(&[1])),
            case("empty").x(ramp(&[0, 3])).x(ramp(&[3])),
            case("not a multiple of any tile").x(ramp(&[1031, 7])).x(ramp(&[7])),
            case("misfit")
                .x(ramp(&[2, 3]))
                .x(ramp(&[4]))
                .refused("shapes [2, 3] and [4] do not broadcast together"),
            case("two dtypes")
                .x(1.0f32)
                .x(1i32)
                .refused("dtypes differ: f32 and i32; cast one of them"),
        ],
    );
}

#[test]
fn a_million_elements() {
    check(
        "fused chain",
        |xs| (&xs[0] * 2.0 + 1.0).relu() - &xs[1],
        &[case("large").x(ramp(&[1_000_003])).x(ramp(&[1_000_003]))],
    );
}

#[test]
fn select() {
    let x = HostTensor::new(&[4], vec![true, false, true, false]).unwrap();
    check(
        "select",
        |xs| xs[0].select(&xs[1], &xs[2]),
        &[
            case("by hand")
                .x(x.clone())
                .x([1.0f32, 2.0, 3.0, 4.0])
                .x([9.0f32; 4])
                .y([1.0f32, 9.0, 3.0, 9.0]),
            case("NaN that is not chosen")
                .x(x.clone())
                .x([1.0f32, f32::NAN, 3.0, f32::INFINITY])
                .x([9.0f32; 4])
                .y([1.0f32, 9.0, 3.0, 9.0]),
            case("integers, broadcast").x(x).x(7i32).x([1i32, 2, 3, 4]).y([7i32, 2, 7, 4]),
        ],
    );
}

#[test]
fn casts() {
    let to = |dtype: DType| move |xs: &[Tensor]| xs[0].cast(dtype);
    check(
        "cast",
        to(I32),
        &[
            case("cut, saturate, NaN is 0").x([1.9f32, -1.9, 3e9, -3e9, f32::NAN]).y([
                1i32,
                -1,
                i32::MAX,
                i32::MIN,
                0,
            ]),
            case("bool").x([true, false]).y([1i32, 0]),
            case("u32 wraps").x([u32::MAX, 5]).y([-1i32, 5]),
        ],
    );
    check(
        "cast",
        to(U8),
        &[
            case("saturate").x([-1.0f32, 300.0, 7.5]).y([0u8, 255, 7]),
            case("wrap").x([-1i32, 300]).y([255u8, 44]),
        ],
    );
    check("cast", to(U32), &[case("saturate").x([-1.0f32, 5e9, 7.5]).y([0u32, u32::MAX, 7])]);
    check(
        "cast",
        to(F32),
        &[
            case("rounds to even").x([16_777_217i32, -3]).y([16_777_216.0f32, -3.0]),
            case("u32").x([u32::MAX]).y([4_294_967_296.0f32]),
            case("bool").x([true, false, true, true, false]).y([1.0f32, 0.0, 1.0, 1.0, 0.0]),
        ],
    );
    check("cast", to(Bool), &[case("not 0").x([0.0f32, -2.0, 0.5]).y([false, true, true])]);
    check("cast", to(I64), &[case("exact").x([i32::MIN, 7]).y([i64::from(i32::MIN), 7])]);
}

#[test]
fn bools_pack_on_every_length() {
    for n in 1..10usize {
        let bools: Vec<bool> = (0..n).map(|i| i % 3 == 0).collect();
        let flipped: Vec<bool> = bools.iter().map(|b| !b).collect();
        let expected = HostTensor::with_shape(Shape::new(&[n]).unwrap(), flipped).unwrap();
        check("not", |xs| !&xs[0], &[case(format!("{n} bools")).x(bools).y(expected)]);
    }
}

/// What gives its argument as it is may be left out; the sign of zero, NaN and infinities stay.
#[test]
fn identities() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, 1.5];
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![6]);
    let n = g.placeholder("n", I32, dims![3]);
    let yes = g.constant(true);
    let same = [&x * 1.0, 1.0 * &x, &x / 1.0, &x - 0.0, &x + -0.0, yes.select(&x, 2.0)];
    let ints = [&n + 0, g.constant(0i32) + &n, &n * 1, &n - 0];
    // Of -0 this gives 0.
    let not = &x + 0.0;
    for device in devices() {
        let session = device.session(&g);
        let run =
            |fetch: &Tensor| session.run_with(&[x.feed(odd)], fetch, Default::default()).unwrap();
        for y in &same {
            let (y, metadata) = run(y);
            let bits = |xs: &[f32]| xs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&y.to_vec::<f32>().unwrap()), bits(&odd), "{}", device.name);
            assert_eq!(metadata.kernel_bytes, 0, "{}: nothing is computed", device.name);
        }
        for y in &ints {
            let y = session.run(&[n.feed([1i32, 0, -7])], y).unwrap();
            assert_eq!(y.to_vec::<i32>().unwrap(), [1, 0, -7], "{}", device.name);
        }
        let (y, _) = run(&not);
        assert!(y.to_vec::<f32>().unwrap()[3].is_sign_positive(), "{}", device.name);
    }
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let wide = g.constant([[1.0f32], [2.0]]) - &(&x * 0.0 + 1.0).slice(&[5], &[Some(1)]) * 1.0;
    assert_eq!(session.run(&[x.feed(odd)], &wide).unwrap().to_vec::<f32>().unwrap(), [0.0, 1.0]);
}
