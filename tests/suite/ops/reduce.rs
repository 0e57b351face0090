//! Reductions.

use convoke::Tensor;
use convoke::prelude::*;
use convoke_tests::{case, cast, check, devices, ramp};

#[test]
fn by_hand() {
    let x = [[1.0f32, 5.0, 3.0], [4.0, 2.0, 6.0]];
    let one = |y: f32| HostTensor::from(y);
    check("sum", |xs| xs[0].sum(()), &[case("all").x(x).y(one(21.0))]);
    check("sum", |xs| xs[0].sum(0), &[case("rows").x(x).y([5.0f32, 7.0, 9.0])]);
    check("sum", |xs| xs[0].sum_keep(-1), &[case("columns").x(x).y([[9.0f32], [12.0]])]);
    check("mean", |xs| xs[0].mean([0, 1]), &[case("both").x(x).y(one(3.5))]);
    check("prod", |xs| xs[0].prod(1), &[case("columns").x(x).y([15.0f32, 48.0])]);
    check("max", |xs| xs[0].max(0), &[case("rows").x(x).y([4.0f32, 5.0, 6.0])]);
    check("min", |xs| xs[0].min(1), &[case("columns").x(x).y([1.0f32, 2.0])]);
    check("argmax", |xs| xs[0].argmax(1), &[case("columns").x(x).y([1i32, 2])]);
    check("argmin", |xs| xs[0].argmin(0), &[case("rows").x(x).y([0i32, 1, 0])]);
    check(
        "argmax",
        |xs| xs[0].argmax(0),
        &[case("the first of equals").x([2i32, 7, 7, 1]).y(HostTensor::from(1i32))],
    );
    let bools = HostTensor::new(&[2, 2], vec![true, false, true, true]).unwrap();
    check("all", |xs| xs[0].all(1), &[case("columns").x(bools.clone()).y([false, true])]);
    check("any", |xs| xs[0].any(0), &[case("rows").x(bools).y([true, true])]);
}

fn shapes(name: &str, build: impl Fn(&Tensor) -> Tensor + Copy) {
    check(
        name,
        |xs| build(&xs[0]),
        &[
            case("one").x(ramp(&[1, 1])).within(1e-4),
            case("longer than a workgroup").x(ramp(&[3, 1000])).within(1e-4),
            case("many short rows").x(ramp(&[1000, 3])).within(1e-4),
            case("odd").x(ramp(&[77, 129])).within(1e-4),
            case("no rows").x(ramp(&[0, 4])).within(1e-4),
        ],
    );
}

#[test]
fn odd_shapes_along_every_axis() {
    for axis in [0, 1] {
        shapes("sum", |x| x.sum(axis));
        shapes("mean", |x| x.mean(axis));
        shapes("max", |x| x.max(axis));
    }
    shapes("sum", |x| x.sum(()));
    shapes("min", |x| x.transpose().min(0));
    check(
        "sum",
        |xs| xs[0].sum([0, 2]),
        &[case("outer and inner").x(ramp(&[4, 5, 6])).within(1e-4)],
    );
    check("argmax", |xs| xs[0].argmax(1), &[case("long").x(ramp(&[7, 513]))]);
}

#[test]
fn dtypes_and_extremes() {
    for dtype in [I8, U8, I32, U32, I64, F16, F64] {
        check("sum", |xs| xs[0].sum(0), &[case(dtype.to_string()).x(cast(&ramp(&[9, 5]), dtype))]);
        check("max", |xs| xs[0].max(1), &[case(dtype.to_string()).x(cast(&ramp(&[9, 5]), dtype))]);
    }
    check(
        "sum",
        |xs| xs[0].sum(()),
        &[
            case("u8 wraps").x([200u8, 100]).y(HostTensor::from(44u8)),
            case("of nothing")
                .x(HostTensor::new(&[0], Vec::<i32>::new()).unwrap())
                .y(HostTensor::from(0i32)),
        ],
    );
    check(
        "max",
        |xs| xs[0].max(()),
        &[case("i32 of nothing")
            .x(HostTensor::new(&[0], Vec::<i32>::new()).unwrap())
            .y(HostTensor::from(i32::MIN))],
    );
}

#[test]
fn gradients() {
    let x = cast(&ramp(&[3, 4]), F64);
    check("sum", |xs| xs[0].sum(0).square(), &[case("rows").x(x.clone()).gradient()]);
    check("mean", |xs| xs[0].mean_keep(1).square(), &[case("columns").x(x.clone()).gradient()]);
    check("max", |xs| xs[0].max(1), &[case("columns").x(x.clone()).gradient()]);
    check(
        "prod",
        |xs| xs[0].prod(0),
        &[case("rows").x(cast(&convoke_tests::positive(&[3, 4]), F64)).gradient()],
    );
}

#[test]
fn refusals() {
    check(
        "sum",
        |xs| xs[0].sum(2),
        &[case("no axis").x(ramp(&[2, 2])).refused("axis 2 is out of range for rank 2")],
    );
    check(
        "sum",
        |xs| xs[0].sum([0, -2]),
        &[case("twice").x(ramp(&[2, 2])).refused("axis -2 is given twice")],
    );
    check(
        "mean",
        |xs| xs[0].mean(()),
        &[case("integers")
            .x([1i32])
            .refused("mean needs a tensor of floats, got i32; cast it first")],
    );
}

/// llvmpipe stops an invocation's loops after 65,535 iterations: a kernel that loops longer loses terms.
#[test]
fn a_sum_of_four_million_is_whole() {
    let n = 4 << 20;
    let x: Vec<f32> = (0..n).map(|i| (i % 2) as f32).collect();
    for device in devices() {
        let g = Graph::new();
        let a = g.placeholder("a", F32, [n]);
        let sum = device.session(&g).run(&[a.feed(&x)], a.sum(())).unwrap();
        assert_eq!(sum.scalar::<f32>().unwrap(), (n / 2) as f32, "{}", device.name);
    }
}
