//! Matrix products.

use convoke::prelude::*;
use convoke_tests::{case, cast, check, devices, ramp};

#[test]
fn matmul() {
    check(
        "matmul",
        |xs| xs[0].matmul(&xs[1]),
        &[
            case("by hand")
                .x([[1.0f32, 2.0], [3.0, 4.0]])
                .x([[5.0f32, 6.0], [7.0, 8.0]])
                .y([[19.0f32, 22.0], [43.0, 50.0]]),
            case("one").x([[2.0f32]]).x([[3.0f32]]).y([[6.0f32]]),
            case("odd").x(ramp(&[33, 65])).x(ramp(&[65, 129])).within(1e-4),
            case("a vector").x(ramp(&[1, 300])).x(ramp(&[300, 7])).within(1e-4),
            case("a short vector").x(ramp(&[1, 128])).x(ramp(&[128, 10])).within(1e-4),
            case("few rows").x(ramp(&[3, 67])).x(ramp(&[67, 33])).within(1e-4),
            case("few columns").x(ramp(&[2, 50, 64])).x(ramp(&[2, 64, 4])).within(1e-4),
            case("no rows").x(ramp(&[0, 3])).x(ramp(&[3, 2])),
            case("no terms").x(ramp(&[2, 0])).x(ramp(&[0, 3])).y([[0.0f32; 3]; 2]),
            case("batches").x(ramp(&[3, 5, 7])).x(ramp(&[3, 7, 2])).within(1e-4),
            case("one for all batches").x(ramp(&[2, 3, 4, 5])).x(ramp(&[5, 6])).within(1e-4),
            case("integers wrap").x(cast(&ramp(&[2, 3]), I32)).x(cast(&ramp(&[3, 2]), I32)),
            case("misfit")
                .x(ramp(&[2, 3]))
                .x(ramp(&[4, 5]))
                .refused("inner sizes differ: [2, 3] times [4, 5]"),
            case("a vector has no rows")
                .x(ramp(&[3]))
                .x(ramp(&[3, 2]))
                .refused("expected rank 2, got shape [3]"),
        ],
    );
}

#[test]
fn transposed_sides_and_gradients() {
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        let a = if ta { ramp(&[4, 3]) } else { ramp(&[3, 4]) };
        let b = if tb { ramp(&[5, 4]) } else { ramp(&[4, 5]) };
        check(
            "matmul",
            |xs| xs[0].matmul_with(&xs[1], ta, tb),
            &[case(format!("{ta} {tb}")).x(a).x(b).gradient()],
        );
    }
    check(
        "matmul",
        |xs| xs[0].matmul(xs[1].transpose()),
        &[case("transposed view").x(ramp(&[17, 9])).x(ramp(&[21, 9])).within(1e-4)],
    );
    check(
        "matmul",
        |xs| xs[0].matmul(&xs[1]),
        &[case("batched gradient").x(ramp(&[2, 3, 4])).x(ramp(&[4, 2])).gradient()],
    );
}

#[test]
fn other_floats_and_narrow_integers() {
    for dtype in [F16, BF16, F64, I8, U8, I64] {
        check(
            "matmul",
            |xs| xs[0].matmul(&xs[1]),
            &[case(dtype.to_string())
                .x(cast(&ramp(&[5, 6]), dtype))
                .x(cast(&ramp(&[6, 3]), dtype))],
        );
    }
}

/// Drivers fail silently at large sizes: the sum of all elements has a closed form here.
#[test]
fn large_products_have_the_right_values() {
    const N: usize = 300;
    let ones = HostTensor::new(&[N, N], vec![1.0f32; N * N]).unwrap();
    let rows: Vec<f32> = (0..N * N).map(|i| (i / N % 8) as f32).collect();
    let x = HostTensor::new(&[N, N], rows.clone()).unwrap();
    for device in devices() {
        let g = Graph::new();
        let (a, b) = (g.placeholder("a", F32, [N, N]), g.placeholder("b", F32, [N, N]));
        let y = a.matmul(&b);
        let y = device.session(&g).run(&[a.feed(&x), b.feed(&ones)], &y).unwrap();
        for (i, &y) in y.as_slice::<f32>().unwrap().iter().enumerate() {
            assert_eq!(y, rows[i / N * N] * N as f32, "{} at {i}", device.name);
        }
    }
}

/// No invocation may loop so often as the sum is long: the sums are of ones, so that each is exact.
#[test]
fn sums_of_many_products_have_the_right_values() {
    let [m, k, n] = [97, 61_003, 98];
    let ones = |sizes: [usize; 2]| {
        let len = sizes.iter().product();
        HostTensor::new(&sizes, vec![1.0f32; len]).unwrap()
    };
    let (x, y) = (ones([m, k]), ones([k, n]));
    for device in devices() {
        let g = Graph::new();
        let (a, b) = (g.placeholder("a", F32, [m, k]), g.placeholder("b", F32, [k, n]));
        let sums = device.session(&g).run(&[a.feed(&x), b.feed(&y)], &a.matmul(&b)).unwrap();
        let sums = sums.as_slice::<f32>().unwrap();
        assert_eq!(sums.len(), m * n);
        assert!(sums.iter().all(|&sum| sum == k as f32), "{}: {sums:?}", device.name);
    }
}
