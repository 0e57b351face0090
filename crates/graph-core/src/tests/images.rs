//! Convolutions, pooling and batch normalisation.

use super::nodes::{assert_gradients, assert_refused, assert_value, eval, floats, noise};
use crate::{
    BatchNorm, Collection, Conv2d, DType, Dims, Graph, ImageLayout, Init, Padding, Pool, dims,
};

const BOTH: [ImageLayout; 2] = [ImageLayout::Nchw, ImageLayout::Nhwc];

/// Images `[n, c, h, w]` and filters `[k, c / groups, r, s]`, with both orders of the axes.
#[track_caller]
fn check_conv(x: [usize; 4], filters: [usize; 4], conv: Conv2d, expected: [usize; 4]) {
    for layout in BOTH {
        let conv = Conv2d { layout, ..conv };
        let g = Graph::new();
        let [_, b, c, d] = layout.image_dims(x);
        let vx = noise(&layout.image_dims(x));
        let vf = noise(&layout.filter_dims(filters));
        let x = g.placeholder("x", DType::F64, dims![None, b, c, d]);
        let f = g.placeholder("f", DType::F64, layout.filter_dims(filters));
        let y = x.conv2d(&f, conv);
        let feeds = [(&x, &vx), (&f, &vf)];
        assert_eq!(eval(&y, &feeds).dims(), layout.image_dims(expected));
        assert_eq!(y.dims().dims().unwrap()[0], x.dims().dims().unwrap()[0]);
        assert_gradients(&y, &[&x, &f], &feeds);
    }
}

#[test]
fn conv2d_by_hand() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F64, dims![1, 1, 2, 3]);
    let f = g.placeholder("f", DType::F64, dims![1, 1, 2, 2]);
    let vx = floats(&[1, 1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let vf = floats(&[1, 1, 2, 2], &[1.0, 10.0, 100.0, 1000.0]);
    let feeds = [(&x, &vx), (&f, &vf)];
    let y = x.conv2d(&f, Conv2d::default());
    assert_value(&y, &feeds, &[1, 1, 1, 2], &[5421.0, 6532.0]);
    // The odd row and column of zeros stand at the end.
    let y = x.conv2d(&f, Conv2d { padding: Padding::Same, ..Conv2d::default() });
    let expected = [5421.0, 6532.0, 603.0, 54.0, 65.0, 6.0];
    assert_value(&y, &feeds, &[1, 1, 2, 3], &expected);
    let padding = Padding::Explicit([[1, 0], [1, 0]]);
    let y = x.conv2d(&f, Conv2d { padding, stride: [2, 2], ..Conv2d::default() });
    assert_value(&y, &feeds, &[1, 1, 1, 2], &[1000.0, 3200.0]);
}

#[test]
fn conv2d_gradients() {
    let same = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    let valid = Conv2d::default();
    check_conv([2, 2, 3, 4], [2, 2, 2, 3], valid, [2, 2, 2, 2]);
    check_conv([1, 2, 3, 4], [1, 2, 3, 3], Conv2d { stride: [2, 3], ..same }, [1, 1, 2, 2]);
    check_conv([1, 2, 4, 5], [2, 1, 2, 2], Conv2d { groups: 2, ..same }, [1, 2, 4, 5]);
    check_conv([1, 1, 5, 4], [1, 1, 2, 2], Conv2d { dilation: [2, 2], ..valid }, [1, 1, 3, 2]);
    let padding = Padding::Explicit([[1, 2], [0, 3]]);
    check_conv([1, 1, 1, 1], [2, 1, 3, 2], Conv2d { padding, ..valid }, [1, 2, 2, 3]);
    check_conv([0, 1, 3, 3], [2, 1, 2, 2], valid, [0, 2, 2, 2]);
}

#[test]
fn conv2d_refuses() {
    let refused = |x: [usize; 4], f: [usize; 4], conv: Conv2d, message: &str| {
        let g = Graph::new();
        let x = g.placeholder("x", DType::F32, x);
        let f = g.placeholder("f", DType::F32, f);
        let _ = x.conv2d(&f, conv);
        assert_refused(&g, message);
    };
    let conv = Conv2d::default();
    refused(
        [1, 3, 4, 4],
        [2, 2, 1, 1],
        conv,
        "filters [2, 2, 1, 1] take 2 channels in each of 1 groups, and the images [1, 3, 4, 4] have 3",
    );
    refused(
        [1, 4, 4, 4],
        [3, 2, 1, 1],
        Conv2d { groups: 2, ..conv },
        "3 filters cannot be shared out to 2 groups",
    );
    refused(
        [1, 1, 2, 4],
        [1, 1, 3, 1],
        conv,
        "a window that spans 3 rows does not fit into 2, padding included; pad more, or use \
         Padding::Same",
    );
    refused(
        [1, 1, 2, 4],
        [1, 1, 1, 1],
        Conv2d { stride: [0, 1], ..conv },
        "a convolution's stride 0 is out of range: expected at least 1",
    );
    let huge = Padding::Explicit([[usize::MAX, 1], [0, 0]]);
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, [1, 1, 2, 2]);
    let _ = x.conv2d(g.constant([1.0f32]).reshape(&[1, 1, 1, 1]), Conv2d { padding: huge, ..conv });
    assert_eq!(g.check().len(), 1);
}

#[test]
fn pooling_by_hand() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F64, dims![1, 1, 3, 3]);
    let vx = floats(&[1, 1, 3, 3], &[1.0, 5.0, 5.0, 4.0, 2.0, 3.0, 7.0, 7.0, 0.0]);
    let feeds = [(&x, &vx)];
    let same = Pool { padding: Padding::Same, ..Pool::default() };
    let max = x.max_pool(same);
    assert_value(&max, &feeds, &[1, 1, 2, 2], &[5.0, 5.0, 7.0, 0.0]);
    // Padding is not counted.
    assert_value(&x.avg_pool(same), &feeds, &[1, 1, 2, 2], &[3.0, 4.0, 7.0, 0.0]);
    // Of equal maxima the first gets the gradient.
    let dx = max.gradients(&[&x])[0].clone().unwrap();
    assert_value(&dx, &feeds, &[1, 1, 3, 3], &[0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
}

#[test]
fn pooling_gradients() {
    for layout in BOTH {
        for pool in [
            Pool { layout, ..Pool::default() },
            Pool { layout, window: [3, 2], stride: [1, 2], padding: Padding::Same },
            Pool {
                layout,
                window: [2, 3],
                padding: Padding::Explicit([[1, 0], [2, 1]]),
                stride: [2, 1],
            },
        ] {
            let g = Graph::new();
            let vx = noise(&layout.image_dims([2, 2, 4, 3]));
            let [_, b, c, d] = layout.image_dims([2, 2, 4, 3]);
            let x = g.placeholder("x", DType::F64, dims![None, b, c, d]);
            assert_gradients(&x.max_pool(pool).square(), &[&x], &[(&x, &vx)]);
            assert_gradients(&x.avg_pool(pool).square(), &[&x], &[(&x, &vx)]);
        }
    }
}

#[test]
fn pooling_refuses_padding_of_a_whole_window() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, [1, 1, 4, 4]);
    let _ = x.max_pool(Pool { padding: Padding::Explicit([[0, 2], [0, 0]]), ..Pool::default() });
    assert_refused(
        &g,
        "the padding of pooling 2 is out of range: expected less than the window's 2",
    );
}

#[test]
fn batch_norm_in_training_has_mean_zero_and_variance_one() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F64, dims![None, 2, 1, 3]);
    let (scale, shift) = (g.constant([1.0f64, 1.0]), g.constant([0.0f64, 5.0]));
    let norm = BatchNorm { epsilon: 0.0, ..BatchNorm::default() };
    let normalized = x.batch_norm_training(&scale, &shift, norm);
    let value = noise(&[4, 2, 1, 3]);
    let feeds = [(&x, &value)];
    let axes = [0i64, 2, 3];
    assert_value(&normalized.output.mean(axes), &feeds, &[2], &[0.0, 5.0]);
    let spread = (&normalized.output - normalized.output.mean_keep(axes)).square().mean(axes);
    assert_value(&spread, &feeds, &[2], &[1.0, 1.0]);
    // With its own statistics given, the mode for inference gives the same.
    let given = [&normalized.mean, &normalized.variance];
    let same = x.batch_norm([&scale, &shift], given, norm);
    assert_value(&(same - &normalized.output), &feeds, &[4, 2, 1, 3], &[0.0; 24]);
}

#[test]
fn batch_norm_gradients_and_averages() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F64, dims![3, 2]);
    let scale = g.placeholder("scale", DType::F64, dims![2]);
    let shift = g.placeholder("shift", DType::F64, dims![2]);
    let (vx, vs) = (noise(&[3, 2]), floats(&[2], &[1.5, 0.5]));
    let normalized =
        x.batch_norm_training(&scale, &shift, BatchNorm { axis: -1, ..BatchNorm::default() });
    let feeds = [(&x, &vx), (&scale, &vs), (&shift, &vs)];
    assert_gradients(&normalized.output, &[&x, &scale, &shift], &feeds);
    let mean = g.untrained_variable("mean", Init::Zeros, DType::F64, [2]);
    let variance = g.untrained_variable("variance", Init::Constant(1.0), DType::F64, [2]);
    let _ = normalized.track(&mean, &variance, 0.99);
    assert_eq!(g.collection(&Collection::Updates).len(), 2);
    assert!(g.check().is_empty(), "{:?}", g.check());
}

#[test]
fn batch_norm_refuses_an_unknown_rank() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F64, Dims::UnknownRank);
    let one = g.constant([1.0f64]);
    let _ = x.batch_norm_training(&one, &one, BatchNorm::default());
    assert_refused(&g, "unsupported: batch normalisation of a tensor of unknown rank");
}
