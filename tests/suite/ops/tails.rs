//! Elementwise work on what products, convolutions and reductions give, done where it is stored.

use convoke::prelude::*;
use convoke::{Conv2d, Padding, Pool, Shape};
use convoke_tests::{case, check, devices, ramp};

#[test]
fn products() {
    let layer = |xs: &[Tensor]| (xs[0].matmul(&xs[1]) + &xs[2]).relu();
    check(
        "dense layer",
        |xs| layer(xs),
        &[
            case("by hand")
                .x([[1.0f32, 2.0], [3.0, -4.0]])
                .x([[1.0f32, 0.0], [0.5, 2.0]])
                .x([10.0f32, -5.0])
                // [[2, 4], [1, -8]] + [10, -5], without what is negative.
                .y([[12.0f32, 0.0], [11.0, 0.0]])
                .gradient(),
            case("one").x(ramp(&[1, 1])).x(ramp(&[1, 1])).x(ramp(&[1])),
            case("odd").x(ramp(&[67, 33])).x(ramp(&[33, 51])).x(ramp(&[51])).within(1e-4),
            case("deep, in parts")
                .x(ramp(&[5, 2000]))
                .x(ramp(&[2000, 7]))
                .x(ramp(&[7]))
                .within(1e-4),
            case("no depth").x(ramp(&[2, 0])).x(ramp(&[0, 3])).x([1.0f32, -1.0, 2.0]),
            case("no rows").x(ramp(&[0, 4])).x(ramp(&[4, 3])).x(ramp(&[3])),
        ],
    );
    check(
        "to another dtype",
        // Of whole numbers, so that no rounding decides where the cast cuts.
        |xs| ((&xs[0] * 4.0).round().matmul((&xs[1] * 4.0).round()) * 0.5).cast(I32),
        &[
            // 4 * 12 + 8 * 1, halved.
            case("by hand").x([[1.0f32, 2.0]]).x([[3.0f32], [0.25]]).y([[28i32]]),
            case("odd").x(ramp(&[17, 9])).x(ramp(&[9, 19])),
        ],
    );
    check(
        "seen in another shape, beside a transposed residual",
        |xs| xs[0].matmul(&xs[1]).reshape(&[-1]) * 0.5 + xs[2].transpose().reshape(&[-1]),
        &[case("odd").x(ramp(&[6, 5])).x(ramp(&[5, 4])).x(ramp(&[4, 6])).gradient().within(1e-4)],
    );
    check(
        "of a batch",
        |xs| xs[0].matmul(&xs[1]).sigmoid() * &xs[2],
        &[case("odd").x(ramp(&[3, 5, 4])).x(ramp(&[3, 4, 6])).x(ramp(&[5, 1])).gradient()],
    );
    check(
        "of integers",
        |xs| xs[0].matmul(&xs[1]) + 1,
        &[case("by hand").x([[1i32, 2]]).x([[3i32], [4]]).y([[12i32]])],
    );
}

#[test]
fn products_with_their_axes_in_another_order() {
    check(
        "stored with its axes in another order",
        |xs| xs[0].matmul(&xs[1]).permute(&[1, 0, 2]).reshape(&[-1, 18]),
        &[
            case("odd").x(ramp(&[3, 5, 4])).x(ramp(&[3, 4, 6])).gradient(),
            case("large").x(ramp(&[3, 70, 20])).x(ramp(&[3, 20, 6])).within(1e-4),
        ],
    );
    check(
        "turned, with a bias and a residual",
        |xs| (xs[0].matmul(&xs[1]).permute(&[2, 0, 1]) * 0.5 + &xs[2]).tanh() - &xs[3],
        &[
            // The product is [[1, 2], [3, 4]] of one matrix, turned [[1, 3], [2, 4]].
            case("by hand")
                .x(image(&[1.0, 0.0, 0.0, 1.0], &[1, 2, 2]))
                .x(image(&[1.0, 2.0, 3.0, 4.0], &[1, 2, 2]))
                .x(image(&[-0.5, -1.5, -1.0, -2.0], &[2, 1, 2]))
                .x(1.0f32)
                .y(image(&[-1.0; 4], &[2, 1, 2])),
            case("odd")
                .x(ramp(&[3, 5, 4]))
                .x(ramp(&[3, 4, 6]))
                .x(ramp(&[6, 1, 1]))
                .x(ramp(&[6, 3, 5]))
                .gradient(),
        ],
    );
}

#[test]
fn reductions() {
    check(
        "norms of columns and rows",
        |xs| xs[0].square().sum(0).sqrt() * 2.0 - xs[0].square().mean(1).sqrt().sum(()),
        &[
            case("by hand")
                .x([[3.0f32, 0.0], [4.0, 0.0]])
                .y([10.0 - (4.5f32.sqrt() + 8f32.sqrt()), -(4.5f32.sqrt() + 8f32.sqrt())]),
            case("odd").x(ramp(&[71, 130])).within(1e-4),
            case("in stages").x(ramp(&[3, 70_000])).within(1e-3),
        ],
    );
    check(
        "through two shapes",
        |xs| (xs[0].sum(1).expand_dims(1).square() + 1.0).reshape(&[-1]) * &xs[0].max(0),
        &[
            // (3^2 + 1, 7^2 + 1) times (3, 4).
            case("by hand").x([[1.0f32, 2.0], [3.0, 4.0]]).y([30.0f32, 200.0]),
            case("empty").x(ramp(&[0, 0])),
        ],
    );
    check(
        "greatest, shifted",
        |xs| xs[0].max(-1) - &xs[1],
        &[
            case("by hand").x([[1i32, 5], [7, -2]]).x([1i32, 10]).y([4i32, -3]),
            case("empty").x(ramp(&[0, 3])).x(1.0f32),
        ],
    );
}

fn image(elements: &[f32], sizes: &[usize]) -> HostTensor {
    HostTensor::from(elements.to_vec()).reshaped(Shape::new(sizes).unwrap()).unwrap()
}

#[test]
fn convolutions() {
    let conv = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    check(
        "convolution, bias, relu",
        |xs| (xs[0].conv2d(&xs[1], conv) + &xs[2]).relu(),
        &[
            case("by hand")
                .x(image(&[1.0, 2.0, 3.0, 4.0], &[1, 1, 2, 2]))
                .x(image(&[2.0], &[1, 1, 1, 1]))
                .x(image(&[-4.0], &[1, 1, 1]))
                .y(image(&[0.0, 0.0, 2.0, 4.0], &[1, 1, 2, 2])),
            case("odd")
                .x(ramp(&[2, 3, 7, 5]))
                .x(ramp(&[4, 3, 3, 3]))
                .x(ramp(&[4, 1, 1]))
                .within(1e-4),
        ],
    );
}

#[test]
fn pooling() {
    let pool = |window, stride| Pool { window, stride, ..Pool::default() };
    check(
        "the gradient of pooling, masked",
        move |xs| {
            let pooled = xs[0].relu().max_pool(pool([2, 2], [2, 2]));
            pooled.square().sum(()).gradients(&[&xs[0]])[0].clone().unwrap()
        },
        &[
            // Of each window, twice the greatest at its place; nothing where none is above 0.
            case("by hand")
                .x(image(&[1.0, 3.0, -1.0, -2.0, 2.0, 0.5, -4.0, -3.0], &[1, 1, 2, 4]))
                .y(image(&[0.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &[1, 1, 2, 4])),
            case("odd").x(ramp(&[2, 3, 7, 5])),
        ],
    );
    check(
        "pooling with windows that overlap",
        move |xs| {
            let pooled = xs[0].max_pool(pool([3, 3], [2, 2])) * 2.0;
            pooled.sum(()).gradients(&[&xs[0]])[0].clone().unwrap() + 1.0
        },
        &[case("odd").x(ramp(&[2, 3, 9, 7]))],
    );
    check(
        "means, scaled",
        move |xs| (xs[0].avg_pool(pool([2, 2], [1, 1])) + &xs[1]).tanh(),
        &[case("odd").x(ramp(&[2, 3, 6, 5])).x(ramp(&[3, 1, 1])).gradient().within(1e-3)],
    );
}

/// The product of a gradient goes straight into the variable; a failed run stores nothing.
#[test]
fn an_update_is_one_dispatch() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2, 2]);
        let at = g.placeholder("at", I32, dims![2]);
        let w = g.variable("w", Init::Constant(1.0), F32, [2, 2]);
        let step = w.assign_sub(&x.matmul(x.gather(&at, 0)) * 0.5).operation();
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let run = |at_rows: [i32; 2]| {
            let feeds = [x.feed([[1.0f32, 2.0], [3.0, 4.0]]), at.feed(at_rows)];
            session.run_with(&feeds, &step, Default::default())
        };
        let ((), metadata) = run([0, 1]).unwrap();
        assert_eq!(metadata.dispatches, 2, "{}: a gather and a product\n{metadata}", device.name);
        // The square of x is [[7, 10], [15, 22]].
        let expected = [-2.5, -4.0, -6.5, -10.0];
        assert_eq!(session.run(&[], &w).unwrap().to_vec::<f32>().unwrap(), expected);
        assert!(run([0, 2]).is_err());
        assert_eq!(session.run(&[], &w).unwrap().to_vec::<f32>().unwrap(), expected);
    }
}
