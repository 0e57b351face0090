//! What networks are made of: softmax, normalisation, losses, convolutions, pooling.
//!
//! Values of cross entropy and softmax: arithmetic by hand; convolutions: sums over ones.

use convoke::prelude::*;
use convoke::{BatchNorm, Conv2d, ImageLayout, Padding, Pool};
use convoke_tests::{case, check, ramp};

#[test]
fn softmax() {
    check(
        "softmax",
        |xs| xs[0].softmax(-1),
        &[
            case("equal logits").x([[0.0f32, 0.0]]).y([[0.5f32, 0.5]]),
            case("large logits stay finite").x([[1e4f32, 1e4]]).y([[0.5f32, 0.5]]),
            case("longer than a workgroup").x(ramp(&[3, 1000])),
            case("empty batch").x(ramp(&[0, 4])),
            case("gradient").x(ramp(&[2, 5])).gradient(),
        ],
    );
    check(
        "log_softmax",
        |xs| xs[0].log_softmax(0),
        &[case("first axis").x(ramp(&[5, 3])).gradient()],
    );
}

/// With all but the images constant, the factors go into the filters.
#[test]
fn batch_norm_of_a_convolution() {
    for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
        let (axis, images, filters): (_, [usize; 4], [usize; 4]) = match layout {
            ImageLayout::Nchw => (1, [2, 3, 7, 6], [5, 3, 3, 2]),
            ImageLayout::Nhwc => (-1, [2, 7, 6, 3], [3, 2, 3, 5]),
        };
        check(
            &format!("batch norm of a convolution, {layout:?}"),
            |xs| {
                let g = xs[0].graph();
                let [scale, shift, mean] = [0.5f32, -1.0, 2.0]
                    .map(|x| g.constant((0..5).map(|i| x + i as f32 * 0.25).collect::<Vec<_>>()));
                let variance = g.constant([0.5f32, 1.0, 2.0, 3.0, 4.0]);
                let conv = Conv2d { layout, ..Conv2d::default() };
                let y = xs[0].conv2d(g.constant(ramp(&filters)), conv);
                let norm = BatchNorm { axis, epsilon: 1e-3 };
                y.batch_norm([&scale, &shift], [&mean, &variance], norm).relu()
            },
            &[
                case("odd").x(ramp(&images)).gradient(),
                case("none").x(ramp(&[&[0], &images[1..]].concat())),
            ],
        );
    }
}

/// What makes a convolution larger before it is multiplied does not go into its filters.
#[test]
fn products_that_are_larger_than_their_convolution() {
    let filters = ramp(&[5, 3, 2, 2]);
    check(
        "a shift of more pixels",
        |xs| {
            let g = xs[0].graph();
            let y = xs[0].conv2d(g.constant(filters.clone()), Conv2d::default());
            (y + g.constant(ramp(&[1, 5, 3, 4]))) * g.constant(ramp(&[5, 1, 1]))
        },
        &[case("one pixel").x(ramp(&[2, 3, 2, 2]))],
    );
    check(
        "a factor of more images",
        |xs| {
            let g = xs[0].graph();
            let y = xs[0].conv2d(g.constant(filters.clone()), Conv2d::default());
            y * g.constant(2.0f32).broadcast_to(&[4, 1, 1, 1])
        },
        &[case("one image").x(ramp(&[1, 3, 4, 3]))],
    );
}

#[test]
fn losses() {
    let ln2 = std::f32::consts::LN_2;
    check(
        "cross_entropy",
        |xs| xs[0].cross_entropy(&xs[1]),
        &[
            case("equal logits").x([[1.0f32, 1.0], [3.0, 3.0]]).x([0i32, 1]).y([ln2, ln2]),
            case("gradient").x(ramp(&[3, 4])).x([2i32, 0, 3]).gradient(),
            case("labels of u8").x([[1.0f32, 1.0]]).x([1u8]).y([ln2]),
            case("labels of i64").x([[1.0f32, 1.0]]).x([1i64]).y([ln2]),
        ],
    );
    check(
        "sigmoid_cross_entropy",
        |xs| xs[0].sigmoid_cross_entropy(&xs[1]),
        &[
            case("zero").x([0.0f32]).x([1.0f32]).y([ln2]),
            case("large").x([100.0f32, -100.0]).x([1.0f32, 0.0]).y([0.0f32, 0.0]),
        ],
    );
    check(
        "huber",
        |xs| xs[0].huber(&xs[1], 1.0),
        &[case("near and far").x([0.5f32, 3.0]).x([0.0f32, 0.0]).y([0.125f32, 2.5])],
    );
}

#[test]
fn normalisation_and_activations() {
    check(
        "layer_norm",
        |xs| xs[0].layer_norm(&xs[1], &xs[2], 1e-5),
        &[
            case("two")
                .x([[1.0f32, 3.0]])
                .x([1.0f32, 1.0])
                .x([0.0f32, 0.0])
                .y([[-1.0f32, 1.0]])
                .within(1e-4),
            case("odd").x(ramp(&[5, 37])).x(ramp(&[37])).x(ramp(&[37])).within(1e-3),
        ],
    );
    check(
        "gelu",
        |xs| xs[0].gelu(),
        &[case("points").x([0.0f32, 1.0, -1.0]).y([0.0f32, 0.841_344_7, -0.158_655_3])],
    );
    check("elu", |xs| xs[0].elu(), &[case("points").x([0.5f32, -1.0]).y([0.5f32, -0.632_120_6])]);
}

#[test]
fn convolutions() {
    let same = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    let ones = HostTensor::new(&[1, 1, 3, 3], vec![1.0f32; 9]).unwrap();
    let sums = HostTensor::new(&[1, 1, 3, 3], vec![4.0f32, 6.0, 4.0, 6.0, 9.0, 6.0, 4.0, 6.0, 4.0])
        .unwrap();
    check(
        "conv2d",
        |xs| xs[0].conv2d(&xs[1], same),
        &[
            case("ones").x(ones.clone()).x(ones).y(sums),
            case("odd").x(ramp(&[2, 3, 7, 5])).x(ramp(&[4, 3, 3, 2])).within(1e-4),
            case("gradient").x(ramp(&[1, 2, 4, 3])).x(ramp(&[2, 2, 3, 3])).gradient(),
            case("no images").x(ramp(&[0, 1, 5, 5])).x(ramp(&[2, 1, 3, 3])),
        ],
    );
    let strided = Conv2d { stride: [2, 1], dilation: [1, 2], ..Conv2d::default() };
    check(
        "conv2d",
        |xs| xs[0].conv2d(&xs[1], strided),
        &[case("stride and dilation").x(ramp(&[2, 2, 9, 8])).x(ramp(&[3, 2, 3, 2])).within(1e-4)],
    );
    let grouped = Conv2d { groups: 2, ..Conv2d::default() };
    check(
        "conv2d",
        |xs| xs[0].conv2d(&xs[1], grouped),
        &[case("groups").x(ramp(&[2, 4, 5, 5])).x(ramp(&[6, 2, 3, 3])).within(1e-4)],
    );
}

#[test]
fn pooling() {
    let pool = Pool { window: [2, 2], stride: [2, 2], ..Pool::default() };
    let x =
        HostTensor::new(&[1, 1, 2, 4], vec![1.0f32, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]).unwrap();
    let shaped = |v: [f32; 2]| HostTensor::new(&[1, 1, 1, 2], v.to_vec()).unwrap();
    check(
        "max_pool",
        |xs| xs[0].max_pool(pool),
        &[
            case("by hand").x(x.clone()).y(shaped([4.0, 8.0])),
            case("gradient").x(ramp(&[2, 3, 4, 6])).gradient(),
        ],
    );
    check(
        "avg_pool",
        |xs| xs[0].avg_pool(pool),
        &[
            case("by hand").x(x).y(shaped([2.5, 6.5])),
            case("gradient").x(ramp(&[2, 3, 4, 6])).gradient(),
        ],
    );
}
