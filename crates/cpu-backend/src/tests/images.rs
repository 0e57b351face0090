//! Convolutions and pooling against their operations' references, on odd shapes.

use convoke_graph_core::{
    Conv2d, DType, Graph, HostTensor, ImageLayout, Padding, Pool, Tensor, dims,
};

use super::assert_close;
use super::graphs::{noise, run};
use crate::Threads;

const BOTH: [ImageLayout; 2] = [ImageLayout::Nchw, ImageLayout::Nhwc];

/// Every node of `y` but placeholders, by the operations' references.
fn reference(y: &Tensor, feeds: &[(&Tensor, &HostTensor)]) -> HostTensor {
    let nodes = y.graph().snapshot().nodes;
    let mut values: Vec<Vec<HostTensor>> = Vec::new();
    for node in nodes.iter().take(y.output().node.0 as usize + 1) {
        assert!(node.invalid.is_none(), "{:?}", node.error());
        let fed = feeds.iter().find(|(tensor, _)| tensor.output().node == node.id);
        let inputs: Vec<HostTensor> = node
            .inputs
            .iter()
            .map(|input| values[input.node.0 as usize][input.index as usize].clone())
            .collect();
        values.push(match fed {
            Some((_, value)) => vec![(*value).clone()],
            None => node.op.eval(&inputs).unwrap().into_vec(),
        });
    }
    values[y.output().node.0 as usize][y.output().index as usize].clone()
}

/// `y` against its reference, with equal bits on one, two and three threads.
#[track_caller]
fn check(y: &Tensor, feeds: &[(&Tensor, &HostTensor)], what: &str) {
    let expected = reference(y, feeds);
    let found = run(y, feeds, &Threads::one());
    let tolerance = match y.dtype() {
        DType::F64 => 1e-12,
        DType::F32 => 2e-5,
        DType::F16 => 2e-3,
        _ => 2e-2,
    };
    // Sums that cancel have the error of their terms.
    let shifted = |x: &HostTensor| {
        let xs: Vec<f64> = x.to_f64s().unwrap().iter().map(|x| x + 100.0).collect();
        HostTensor::from_f64s(DType::F64, x.shape().clone(), &xs).unwrap()
    };
    assert_eq!(found.dtype(), expected.dtype(), "{what}");
    assert_close(&shifted(&found), &shifted(&expected), tolerance, what);
    for n in [2, 3] {
        let many = run(y, feeds, &Threads::new(n).unwrap());
        assert!(many == found, "{what}: {n} threads give other bits than one");
    }
}

/// A convolution of images `[n, c, h, w]` with filters `[k, c / groups, r, s]`, and both gradients.
#[track_caller]
fn check_conv(dtype: DType, x: [usize; 4], filters: [usize; 4], conv: Conv2d) {
    for layout in BOTH {
        let conv = Conv2d { layout, ..conv };
        let what = format!("{dtype} {x:?} with {filters:?} {conv:?}");
        let x_value = noise(dtype, &layout.image_dims(x), 1);
        let f_value = noise(dtype, &layout.filter_dims(filters), 2);
        let g = Graph::new();
        let x = g.placeholder("x", dtype, dims![None, None, None, None]);
        let f = g.placeholder("f", dtype, dims![None, None, None, None]);
        let y = x.conv2d(&f, conv);
        let feeds = [(&x, &x_value), (&f, &f_value)];
        check(&y, &feeds, &what);
        let weights = noise(dtype, reference(&y, &feeds).dims(), 3);
        let grads = (&y * g.constant(weights)).gradients(&[&x, &f]);
        for grad in grads {
            check(&grad.unwrap(), &feeds, &what);
        }
    }
}

#[test]
fn convolutions_on_odd_shapes() {
    let same = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    let valid = Conv2d::default();
    check_conv(DType::F32, [2, 3, 8, 7], [4, 3, 3, 3], same);
    check_conv(DType::F32, [2, 3, 8, 7], [4, 3, 3, 2], valid);
    check_conv(DType::F32, [3, 1, 1, 1], [2, 1, 1, 1], valid);
    check_conv(DType::F32, [1, 1, 1, 1], [2, 1, 5, 5], same);
    check_conv(DType::F32, [4, 5, 6, 4], [3, 5, 1, 1], valid);
    check_conv(DType::F32, [4, 4, 5, 5], [6, 2, 1, 1], Conv2d { groups: 2, ..valid });
    check_conv(DType::F64, [2, 2, 9, 8], [3, 2, 3, 4], Conv2d { stride: [2, 3], ..same });
    check_conv(DType::F32, [2, 2, 9, 8], [3, 2, 3, 4], Conv2d { stride: [2, 3], ..valid });
    check_conv(DType::F32, [2, 2, 9, 20], [3, 2, 3, 3], Conv2d { dilation: [2, 2], ..same });
    check_conv(DType::F32, [2, 4, 7, 6], [6, 2, 3, 3], Conv2d { groups: 2, ..same });
    check_conv(DType::F32, [2, 4, 7, 6], [4, 1, 3, 3], Conv2d { groups: 4, ..same });
    let wide = Padding::Explicit([[3, 1], [0, 4]]);
    check_conv(DType::F32, [2, 2, 2, 3], [3, 2, 5, 4], Conv2d { padding: wide, ..valid });
    check_conv(DType::F32, [2, 2, 3, 3], [3, 2, 1, 1], Conv2d { padding: wide, ..valid });
    // Windows that end before the image begins, and an image of no columns.
    for (pad, stride) in [([[0, 5], [2, 0]], [1, 3]), ([[0, 0], [2, 0]], [1, 3])] {
        let beside = Conv2d { padding: Padding::Explicit(pad), stride, ..valid };
        check_conv(DType::F32, [1, 2, 10, 1], [3, 2, 1, 1], beside);
        check_conv(DType::F32, [4, 2, 10, 1], [3, 2, 1, 1], beside);
    }
    let around = Padding::Explicit([[0, 0], [1, 1]]);
    check_conv(
        DType::F32,
        [2, 4, 3, 0],
        [4, 2, 2, 2],
        Conv2d { groups: 2, padding: around, ..valid },
    );
    check_conv(DType::F32, [2, 4, 3, 0], [4, 4, 2, 2], Conv2d { padding: around, ..valid });
    let skewed = Conv2d { stride: [3, 2], dilation: [2, 1], padding: wide, ..valid };
    check_conv(DType::F32, [2, 2, 6, 9], [3, 2, 3, 2], skewed);
}

#[test]
fn convolutions_of_large_images_are_cut_into_blocks() {
    let same = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    check_conv(DType::F32, [1, 8, 41, 50], [2, 8, 7, 7], same);
    // Fewer images than threads: those share the blocks of one.
    let wide = Padding::Explicit([[3, 1], [0, 4]]);
    let strided = Conv2d { stride: [1, 2], padding: wide, ..same };
    check_conv(DType::F32, [1, 3, 37, 61], [17, 3, 3, 3], strided);
    check_conv(DType::F64, [2, 3, 33, 31], [5, 3, 2, 2], same);
}

/// Scratch memory goes from one kernel to the next, whatever their elements are.
#[test]
fn convolutions_of_other_dtypes_follow_each_other() {
    for threads in [Threads::one(), Threads::new(2).unwrap()] {
        for (dtype, x, filters) in [
            (DType::F32, [1, 3, 17, 47], [1, 3, 3, 3]),
            (DType::F32, [1, 3, 5, 5], [5, 3, 3, 3]),
            (DType::F64, [1, 3, 5, 5], [1, 3, 3, 3]),
            (DType::F16, [1, 3, 5, 5], [3, 3, 3, 3]),
            (DType::F64, [1, 1, 4, 4], [1, 1, 2, 2]),
        ] {
            let (x_value, f_value) = (noise(dtype, &x, 1), noise(dtype, &filters, 2));
            let g = Graph::new();
            let x = g.placeholder("x", dtype, dims![None, None, None, None]);
            let f = g.placeholder("f", dtype, dims![None, None, None, None]);
            let y = x.conv2d(&f, Conv2d::default());
            let feeds = [(&x, &x_value), (&f, &f_value)];
            assert_close(&run(&y, &feeds, &threads), &reference(&y, &feeds), 2e-2, "in turn");
        }
    }
}

#[test]
fn narrow_convolutions_are_rounded_once() {
    let same = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    check_conv(DType::F16, [2, 2, 4, 5], [3, 2, 3, 3], same);
    check_conv(DType::BF16, [2, 2, 4, 5], [3, 2, 3, 3], same);
}

#[test]
fn empty_batches_and_channels_convolve() {
    let same = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    check_conv(DType::F32, [0, 2, 4, 5], [3, 2, 3, 3], same);
    check_conv(DType::F32, [2, 0, 4, 5], [3, 0, 3, 3], same);
    check_conv(DType::F32, [2, 2, 4, 5], [0, 2, 3, 3], same);
    check_conv(DType::F32, [2, 2, 0, 5], [3, 2, 3, 3], same);
}

/// Pooling of images `[n, c, h, w]`, its gradient, and the gradient of that.
#[track_caller]
fn check_pool(dtype: DType, x: [usize; 4], pool: Pool) {
    for layout in BOTH {
        let pool = Pool { layout, ..pool };
        let what = format!("{dtype} {x:?} {pool:?}");
        let x_value = noise(dtype, &layout.image_dims(x), 5);
        for is_max in [true, false] {
            let g = Graph::new();
            let x = g.placeholder("x", dtype, dims![None, None, None, None]);
            let y = if is_max { x.max_pool(pool) } else { x.avg_pool(pool) };
            let feeds = [(&x, &x_value)];
            check(&y, &feeds, &what);
            let weights = noise(dtype, reference(&y, &feeds).dims(), 7);
            let dx = (y.square() * g.constant(weights)).gradients(&[&x])[0].clone().unwrap();
            check(&dx, &feeds, &what);
            let second = dx.square().gradients(&[&x])[0].clone().unwrap();
            check(&second, &feeds, &what);
        }
    }
}

#[test]
fn pooling_on_odd_shapes() {
    let pool = Pool::default();
    check_pool(DType::F32, [2, 3, 6, 8], pool);
    check_pool(DType::F32, [2, 3, 7, 9], Pool { padding: Padding::Same, ..pool });
    check_pool(DType::F64, [2, 3, 7, 9], Pool { window: [3, 2], stride: [1, 3], ..pool });
    let same = Pool { window: [3, 3], padding: Padding::Same, ..pool };
    check_pool(DType::F32, [1, 2, 1, 1], same);
    check_pool(DType::F32, [2, 2, 5, 4], Pool { stride: [1, 1], ..same });
    check_pool(DType::F32, [2, 2, 5, 4], Pool { stride: [3, 4], ..same });
    let explicit = Padding::Explicit([[2, 1], [0, 2]]);
    check_pool(DType::F32, [2, 2, 2, 3], Pool { padding: explicit, ..same });
    check_pool(DType::F16, [2, 3, 6, 8], pool);
    check_pool(DType::F32, [0, 3, 6, 8], pool);
    check_pool(DType::F32, [2, 0, 6, 8], pool);
    check_pool(DType::F32, [2, 3, 0, 8], Pool { padding: Padding::Same, ..pool });
}

#[test]
fn pooling_on_threads() {
    check_pool(DType::F32, [8, 16, 28, 28], Pool::default());
}

#[test]
fn pooling_passes_nan_on() {
    let x = HostTensor::new(&[1, 1, 2, 4], vec![1f32, f32::NAN, 3.0, 4.0, f32::NAN, 2.0, 5.0, 0.0]);
    let x = x.unwrap();
    let g = Graph::new();
    let p = g.placeholder("x", DType::F32, dims![1, 1, 2, 4]);
    let y = p.max_pool(Pool::default());
    let found = run(&y, &[(&p, &x)], &Threads::one());
    assert!(found.as_slice::<f32>().unwrap()[0].is_nan());
    assert_eq!(found.as_slice::<f32>().unwrap()[1], 5.0);
    let dx = run(&y.gradients(&[&p])[0].clone().unwrap(), &[(&p, &x)], &Threads::one());
    assert_eq!(dx.to_vec::<f32>().unwrap(), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
}

#[test]
fn gathers_and_concats_of_a_graph() {
    let (dtype, table) = (DType::F32, noise(DType::F32, &[5, 3], 1));
    let ids = HostTensor::from([4i32, 0, 4, 2]);
    let g = Graph::new();
    let x = g.placeholder("x", dtype, dims![None, 3]);
    let i = g.placeholder("ids", DType::I32, dims![None]);
    let rows = x.embedding(&i);
    let feeds = [(&x, &table), (&i, &ids)];
    check(&rows, &feeds, "embedding");
    check(&rows.square().gradients(&[&x])[0].clone().unwrap(), &feeds, "its gradient");
    // The sizes along the axis are known in the run only.
    let both = g.concat(&[&rows, &x], 0);
    check(&both, &feeds, "concat");
    check(&both.square().gradients(&[&x])[0].clone().unwrap(), &feeds, "its gradient");
    let stacked = g.stack(&[&x, &x], 1);
    check(&stacked.square().gradients(&[&x])[0].clone().unwrap(), &feeds, "stack");
}
