//! Heads and tails that are computed block by block: the bits are those of kernels of their own.

use convoke_compiler::GroupLimits;
use convoke_graph_core::{
    Conv2d, DType, Graph, HostTensor, ImageLayout, Padding, Pool, Tensor, dims,
};

use super::graphs::run_grouped;
use super::shape;
use crate::Threads;

/// Numbers of which sums are rounded, so that another order of terms shows.
fn noise(dtype: DType, dims: &[usize], seed: u64) -> HostTensor {
    let whole = super::graphs::noise(dtype, dims, seed).to_f64s().unwrap();
    let xs: Vec<f64> = whole.iter().enumerate().map(|(i, x)| x / 7.3 + i as f64 * 1e-6).collect();
    HostTensor::from_f64s(dtype, shape(dims), &xs).unwrap()
}

/// Asserts that `y` has the bits of kernels of their own, whoever computes it; false if it is not one kernel with so many
/// heads.
#[track_caller]
fn is_one(y: &Tensor, feeds: &[(&Tensor, &HostTensor)], n_heads: usize, what: &str) -> bool {
    let (apart, groups) = run_grouped(y, feeds, &Threads::one(), GroupLimits::SINGLE);
    assert!(groups.len() > 1, "{what}: {} kernels", groups.len());
    let mut is_one = true;
    for n in [1, 2, 3] {
        let threads = Threads::new(n).unwrap();
        let (found, groups) = run_grouped(y, feeds, &threads, GroupLimits::default());
        assert!(found == apart, "{what}: other bits on {n} threads");
        is_one &= groups.len() == 1 && groups[0].heads.len() == n_heads;
    }
    is_one
}

#[track_caller]
fn check(y: &Tensor, feeds: &[(&Tensor, &HostTensor)], n_heads: usize, what: &str) {
    assert!(is_one(y, feeds, n_heads, what), "{what}: more than one kernel");
}

/// Sizes of products of which operands and results are above and below what is made whole, and of which blocks have
/// little left over.
const SIZES: [[usize; 3]; 12] = [
    [5, 7, 3],
    [1, 300, 1100],
    [1, 2011, 1100],
    [2011, 1, 1100],
    [300, 1, 1100],
    [9, 700, 1200],
    [517, 129, 1031],
    [700, 300, 40],
    [130, 2100, 520],
    [1100, 300, 513],
    // No whole number of tiles, and more rows or columns than terms.
    [1025, 40, 600],
    [3001, 17, 30],
];

#[test]
fn of_products() {
    let (mut n, mut n_one) = (0, 0);
    for (i, [rows, cols, depth]) in SIZES.into_iter().enumerate() {
        for turned in [[false, false], [true, false], [false, true], [true, true]] {
            let g = Graph::new();
            let size =
                |is_turned: bool, [a, b]: [usize; 2]| if is_turned { [b, a] } else { [a, b] };
            let (a, b) = (size(turned[0], [rows, depth]), size(turned[1], [depth, cols]));
            let x = g.placeholder("x", DType::F32, a);
            let w = g.placeholder("w", DType::F32, b);
            let bias = g.placeholder("bias", DType::F32, [cols]);
            // Columns of an operand are scaled, so that a wrong place shows.
            let columns = g.placeholder("columns", DType::F32, [a[1]]);
            let seen = |t: Tensor, is_turned: bool| if is_turned { t.transpose() } else { t };
            let values = [
                noise(DType::F32, &a, 1),
                noise(DType::F32, &b, 2),
                noise(DType::F32, &[cols], 3),
                noise(DType::F32, &[a[1]], 4),
            ];
            let feeds: Vec<_> = [&x, &w, &bias, &columns].into_iter().zip(&values).collect();
            let what = format!("{i}: {rows}x{cols}x{depth}, turned {turned:?}");
            let plain = [seen(x.clone(), turned[0]), seen(w.clone(), turned[1])];
            let made = [seen(&x * &columns, turned[0]), seen(&w * 0.5, turned[1])];
            let cases = [
                ((plain[0].matmul(&plain[1]) + &bias).relu(), 0),
                (made[0].matmul(&plain[1]), 1),
                (plain[0].matmul(&made[1]), 1),
                ((made[0].matmul(&made[1]) + &bias).tanh(), 2),
            ];
            n += cases.len();
            n_one += cases.iter().filter(|(y, heads)| is_one(y, &feeds, *heads, &what)).count();
        }
    }
    // What a GPU would compute too often is a kernel of its own.
    assert!(n_one * 2 > n, "{n_one} of {n} are one kernel");
}

/// A column of a made matrix, whose neighbours lie far apart, is a vector for `gemm` only if it is one in memory.
#[test]
fn of_products_with_a_column_of_what_is_made() {
    for m in [40, 1100] {
        let (n, k) = (48, 2048);
        let g = Graph::new();
        let x = g.placeholder("x", DType::F32, [k, n]);
        let w = g.placeholder("w", DType::F32, [m, k]);
        let values = [noise(DType::F32, &[k, n], 1), noise(DType::F32, &[m, k], 2)];
        let feeds: Vec<_> = [&x, &w].into_iter().zip(&values).collect();
        let column = (&x * 0.5).slice(&[0, 3], &[None, Some(1)]);
        check(&w.matmul(&column), &feeds, 1, &format!("{m} rows"));
        check(&column.transpose().matmul(w.transpose()), &feeds, 1, &format!("{m} columns"));
    }
}

#[test]
fn of_a_batch_of_products() {
    for [batch, m, n, k] in
        [[3, 200, 150, 60], [40, 60, 70, 30], [2, 300, 400, 600], [9000, 3, 4, 5]]
    {
        let g = Graph::new();
        let x = g.placeholder("x", DType::F32, [batch, m, k]);
        let w = g.placeholder("w", DType::F32, [batch, k, n]);
        let rows = g.placeholder("rows", DType::F32, dims![m, 1]);
        let values = [
            noise(DType::F32, &[batch, m, k], 1),
            noise(DType::F32, &[batch, k, n], 2),
            noise(DType::F32, &[m, 1], 3),
        ];
        let feeds: Vec<_> = [&x, &w, &rows].into_iter().zip(&values).collect();
        let what = format!("{batch} of {m}x{n}x{k}");
        check(&((&x * 0.5).matmul(&w * 2.0) * &rows).relu(), &feeds, 2, &what);
        check(&(x.matmul(&w) * &rows), &feeds, 0, &what);
        // Of one right side for all.
        let first = w.slice(&[0, 0, 0], &[Some(1), None, None]).squeeze(&[0]);
        let all = &(&x + 1.0).matmul(first) * &rows;
        check(&all, &feeds, 1, &what);
    }
}

/// Another dtype is stored than computed, and more than one result.
#[test]
fn of_products_that_are_cast() {
    let g = Graph::new();
    let [m, n, k] = [400, 300, 700];
    let x = g.placeholder("x", DType::F16, [m, k]);
    let w = g.placeholder("w", DType::F16, [k, n]);
    let values = [noise(DType::F16, &[m, k], 1), noise(DType::F16, &[k, n], 2)];
    let feeds: Vec<_> = [&x, &w].into_iter().zip(&values).collect();
    let y = x.cast(DType::F32).matmul(w.cast(DType::F32));
    check(&y, &feeds, 2, "of f16");
    check(&(&y * 0.25).cast(DType::F16), &feeds, 2, "of f16 to f16");
    // In f16 itself, through wide copies of all.
    check(&((&x * 0.5).matmul(&w) + 1.0), &feeds, 1, "in f16");
}

#[test]
fn of_convolutions() {
    for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
        // One image, fewer than threads, and more.
        for (batch, groups) in [(1, 1), (2, 1), (5, 1), (2, 2)] {
            let (images, filters) = match layout {
                ImageLayout::Nchw => ([batch, 6, 23, 31], [8, 6 / groups, 3, 3]),
                _ => ([batch, 23, 31, 6], [3, 3, 6 / groups, 8]),
            };
            let conv = Conv2d { padding: Padding::Same, layout, groups, ..Conv2d::default() };
            let g = Graph::new();
            let x = g.placeholder("x", DType::F32, images);
            let w = g.placeholder("w", DType::F32, filters);
            let values = [noise(DType::F32, &images, 1), noise(DType::F32, &filters, 2)];
            let feeds: Vec<_> = [&x, &w].into_iter().zip(&values).collect();
            let what = format!("{layout:?}, {batch} images in {groups} groups");
            check(&(x.conv2d(&w, conv) * 0.5 - 1.0).relu(), &feeds, 0, &what);
            // Filters are made for each image on a GPU, so that of many they are not.
            let (filters, n_heads) = if batch < 5 { (&w * 2.0, 2) } else { (w.clone(), 1) };
            check(&((&x * 0.5).conv2d(filters, conv) + 1.0).tanh(), &feeds, n_heads, &what);
            let outputs = match layout {
                ImageLayout::Nchw => [batch, 8, 23, 31],
                _ => [batch, 23, 31, 8],
            };
            let d = g.placeholder("d", DType::F32, outputs);
            let values = [&values[..], &[noise(DType::F32, &outputs, 3)]].concat();
            let feeds: Vec<_> = [&x, &w, &d].into_iter().zip(&values).collect();
            let y = (&x * 0.5).conv2d(&w, conv);
            let both = (&y * (&d * 0.25)).sum(()).gradients(&[&x, &w]);
            let [Some(dx), Some(dw)] = &both[..] else { panic!("both are differentiable") };
            check(dx, &feeds, 1, &format!("{what}, to the images"));
            check(dw, &feeds, 2, &format!("{what}, to the filters"));
        }
    }
}

#[test]
fn of_pooling() {
    for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
        for dtype in [DType::F32, DType::F16] {
            let g = Graph::new();
            let x = g.placeholder("x", dtype, [4, 40, 32, 24]);
            let pool = Pool { window: [2, 2], stride: [2, 2], layout, ..Pool::default() };
            let values = [noise(dtype, &[4, 40, 32, 24], 1)];
            let y = (x.max_pool(pool) * 0.5 + 1.0).square();
            check(&y, &[(&x, &values[0])], 0, &format!("{dtype} {layout:?}"));
        }
    }
}

/// Of an operand of 16 MiB and of results of 8 MiB, two threads have a block of at most 1 MiB each at a time.
#[test]
fn what_is_made_and_finished_in_blocks_takes_the_memory_of_blocks() {
    let g = Graph::new();
    let sizes: [&[usize]; 5] =
        [&[2048, 2048], &[2048, 64], &[64, 1024], &[32, 4, 128, 128], &[4, 4, 1, 1]];
    let values = sizes.map(|dims| noise(DType::F32, dims, 1));
    let fed = sizes.map(|dims| g.placeholder("x", DType::F32, dims));
    let feeds: Vec<_> = fed.iter().zip(&values).collect();
    let [x, w, v, images, filters] = &fed;
    let conv = (images * 0.5).conv2d(filters, Conv2d::default()).tanh();
    let pool = images.max_pool(Pool { stride: [1, 1], padding: Padding::Same, ..Pool::default() });
    for (y, feeds, what) in [
        ((x * 0.5).matmul(w), &feeds[..2], "a left side"),
        (w.matmul(v).tanh(), &feeds[1..3], "a product's result"),
        (conv, &feeds[3..], "images before and behind a convolution"),
        (pool * 0.5, &feeds[3..4], "pooled planes"),
    ] {
        let threads = Threads::new(2).unwrap();
        let (_, groups) = run_grouped(&y, feeds, &threads, GroupLimits::default());
        assert_eq!(groups.len(), 1, "{what}");
        // Besides, registers and what convolutions and pooling take for an image or a plane.
        let kept = threads.kept_bytes();
        assert!(kept <= 3 << 20, "{what}: {kept} bytes");
    }
}
