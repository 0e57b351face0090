//! f16 on every device that has it, where it is computed in f32 and rounded after each operation.

use convoke::half::f16;
use convoke::prelude::*;
use convoke::{Conv2d, ImageLayout, Padding, Pool};
use convoke_tests::{case, check, devices, ramp};

fn halves(elements: &[f32]) -> Vec<f16> {
    elements.iter().map(|&x| f16::from_f32(x)).collect()
}

#[test]
fn elementwise() {
    let half = |x: &Tensor| x.cast(F16);
    check(
        "each operation rounds",
        |xs| (&xs[0] + &xs[1]) - &xs[0],
        &[
            // 2048 + 1 is no f16: it rounds to 2048, and nothing is left.
            case("by hand").x(halves(&[2048.0, 1.0])).x(halves(&[1.0, 0.5])).y(halves(&[0.0, 0.5])),
        ],
    );
    check(
        "a chain with a constant, seen transposed",
        |xs| (half(&xs[0]).transpose() * 0.5 + half(&xs[1])).tanh().relu(),
        &[
            case("odd").x(ramp(&[17, 3])).x(ramp(&[3, 17])),
            case("one").x(ramp(&[1, 1])).x(ramp(&[1, 1])),
        ],
    );
    check(
        "to the nearest, ties to even",
        |xs| half(&xs[0]) * 1.0,
        &[
            // Steps are 2 from 2048 on and 2^-24 below 2^-14; 65504 is the greatest.
            case("by hand")
                .x([2049.0f32, 2051.0, -2049.0, 65504.0, 65519.0, 8.940_697e-8, 2.98e-8, 3e-8])
                .y(halves(&[
                    2048.0,
                    2052.0,
                    -2048.0,
                    65504.0,
                    65504.0,
                    5.960_464_5e-8 * 2.0,
                    0.0,
                    5.960_464_5e-8,
                ])),
        ],
    );
    check(
        "casts",
        |xs| half(&half(&xs[0]).cast(I32)) + half(&xs[1]) + half(&(half(&xs[0]).greater(0.0))),
        &[case("by hand").x([2.75f32, -2.75, 0.0]).x([1i32, 2, -3]).y(halves(&[4.0, 0.0, -3.0]))],
    );
}

#[test]
fn reductions_and_products() {
    let half = |x: &Tensor| x.cast(F16);
    for axis in [0i64, 1] {
        check(
            "sums and greatest",
            |xs| half(&xs[0]).sum(axis) + half(&xs[0]).max(axis),
            &[
                case("odd").x(ramp(&[257, 33])),
                case("long").x(ramp(&[3, 9000])),
                case("one").x(ramp(&[1, 1])),
            ],
        );
    }
    check(
        "gathered in f32",
        |xs| half(&xs[0]).sum(()),
        // In f16 the sum would stop at 2048.
        &[case("by hand").x(vec![1.0f32; 4000]).y(f16::from_f32(4000.0))],
    );
    check(
        "dense layer",
        |xs| (half(&xs[0]).matmul(half(&xs[1])) + half(&xs[2])).relu(),
        &[
            case("by hand")
                .x([[1.0f32, 2.0]])
                .x([[3.0f32], [0.25]])
                .x([1.0f32])
                .y([[f16::from_f32(4.5)]]),
            case("odd").x(ramp(&[37, 19])).x(ramp(&[19, 21])).x(ramp(&[21])),
            case("in parts").x(ramp(&[3, 3000])).x(ramp(&[3000, 5])).x(ramp(&[5])).within(2e-3),
        ],
    );
}

#[test]
fn moves() {
    let half = |x: &Tensor| x.cast(F16);
    check(
        "concat, pad and gather",
        |xs| {
            let x = half(&xs[0]);
            x.graph()
                .concat(&[&x, &x.slice(&[0, 1], &[None, Some(1)])], 1)
                .pad(&[[1, 0], [0, 2]])
                .gather(&xs[1], 0)
        },
        &[case("odd").x(ramp(&[3, 5])).x([3i32, 0, 1, 1])],
    );
    check(
        "softmax",
        |xs| half(&xs[0]).softmax(-1),
        &[
            case("equal").x([[2.0f32, 2.0]]).y([[f16::from_f32(0.5); 2]]),
            case("odd").x(ramp(&[5, 33])),
        ],
    );
}

#[test]
fn images() {
    let half = |x: &Tensor| x.cast(F16);
    let conv = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    let pool = Pool { window: [2, 2], stride: [2, 2], ..Pool::default() };
    check(
        "convolution, bias, relu and pooling",
        |xs| {
            let x = (half(&xs[0]).conv2d(half(&xs[1]), conv) + half(&xs[2])).relu();
            x.max_pool(pool) - x.avg_pool(pool)
        },
        // Differences of what was rounded twice.
        &[case("odd")
            .x(ramp(&[2, 3, 7, 5]))
            .x(ramp(&[4, 3, 3, 3]))
            .x(ramp(&[4, 1, 1]))
            .within(8e-3)],
    );
    for (layout, sizes) in [(ImageLayout::Nchw, [4, 4, 3, 3]), (ImageLayout::Nhwc, [3, 3, 4, 4])] {
        let (conv, pool) = (Conv2d { layout, ..conv }, Pool { layout, ..pool });
        check(
            "gradients",
            |xs| {
                let (x, filters) = (half(&xs[0]), half(&xs[1]));
                let y = x.conv2d(&filters, conv).max_pool(pool).sum(());
                let grads = y.gradients(&[&x, &filters]);
                let sum = |grad: &Option<Tensor>| grad.as_ref().unwrap().cast(F32).sum(());
                sum(&grads[0]) + sum(&grads[1])
            },
            &[case("odd").x(ramp(&[2, 4, 6, 4])).x(ramp(&sizes)).within(2e-2)],
        );
    }
}

#[test]
fn random_elements_are_equal_everywhere() {
    let mut truth = None;
    for device in devices() {
        let g = Graph::with_seed(5);
        let x = g.random_uniform(&[257], F16, 1);
        let session = device.session(&g);
        let own = session.run(&[], &x).unwrap().to_vec::<f16>().unwrap();
        assert_eq!(&own, truth.get_or_insert(own.clone()), "{}", device.name);
        assert!(own.iter().any(|x| x.to_f32() > 0.9) && own.iter().all(|x| x.to_f32() <= 1.0));
    }
}
