//! Matrix products: sizes, batches, broadcasting, transposition, integers, long sums.

use convoke_compiler::{Kernel, Operand};
use convoke_graph_core::{DType, Layout};

use super::harness::*;

/// Both operands as layouts of `[batch.., m, k]` and `[batch.., k, n]`, and the shapes of their values.
fn check(a: (&[usize], Layout), b: (&[usize], Layout), tolerance: f32) {
    let mut build = Build::new();
    let (xs, ys) = (noise(shape(a.0).len(), 5), noise(shape(b.0).len(), 6));
    let (va, vb) = (build.upload(a.0, &xs), build.upload(b.0, &ys));
    let (la, lb) = (a.1, b.1);
    let rank = la.shape().rank();
    let mut dims = la.shape().dims().to_vec();
    let k = dims[rank - 1];
    dims[rank - 1] = lb.shape().dims()[rank - 1];
    let inputs =
        [Operand { value: va, layout: la.clone() }, Operand { value: vb, layout: lb.clone() }];
    let y = build.one(Kernel::Matmul, &inputs, DType::F32, &dims);
    build.download(y);
    let out = shape(&dims);
    let expected: Vec<f32> = (0..out.len())
        .map(|i| {
            let (mut at_a, mut at_b) = (out.coords(i), out.coords(i));
            let mut sum = 0.0;
            for t in 0..k {
                (at_a[rank - 1], at_b[rank - 2]) = (t, t);
                sum += f64::from(xs[la.at(&at_a)]) * f64::from(ys[lb.at(&at_b)]);
            }
            sum as f32
        })
        .collect();
    build.with_all_tiles(|name, data| {
        let what = format!("{} x {} on {name}", la.shape(), lb.shape());
        assert_near(&elements::<f32>(&data[0]), &expected, tolerance, &what);
    });
}

#[test]
fn sizes() {
    for [m, k, n] in [
        [1, 1, 1],
        [5, 7, 3],
        [33, 65, 129],
        [256, 256, 256],
        [1, 300, 70],
        [70, 300, 1],
        [4, 0, 3],
        [64, 16, 2048],
        [35, 40_000, 34],
        [700, 33, 65],
        [900, 20, 800],
        [1, 5000, 1],
        [8, 4097, 9],
        [3, 70_001, 6],
        [100, 4500, 90],
    ] {
        check((&[m, k], packed(&[m, k])), (&[k, n], packed(&[k, n])), 1e-4);
    }
}

#[test]
fn transposed_and_batched() {
    let swap = |dims: &[usize], axes: &[usize]| packed(dims).permute(axes).unwrap();
    check((&[65, 33], swap(&[65, 33], &[1, 0])), (&[65, 40], packed(&[65, 40])), 1e-4);
    check((&[33, 65], packed(&[33, 65])), (&[40, 65], swap(&[40, 65], &[1, 0])), 1e-4);
    let a = swap(&[4, 9, 7], &[0, 2, 1]);
    let b = swap(&[4, 11, 9], &[0, 2, 1]);
    check((&[4, 9, 7], a), (&[4, 11, 9], b), 1e-4);
    // Batches [2, 3]: the left is repeated along the first, the right along the second.
    let a = packed(&[3, 6, 5]).broadcast(&shape(&[2, 3, 6, 5])).unwrap();
    let b = packed(&[2, 1, 5, 4]).broadcast(&shape(&[2, 3, 5, 4])).unwrap();
    check((&[3, 6, 5], a), (&[2, 1, 5, 4], b), 1e-4);
    // A part of a larger matrix, upside down.
    let a = packed(&[20, 30]).slice(&[19, 3], &[17, 25], &[-1, 1]).unwrap();
    check((&[20, 30], a), (&[25, 6], packed(&[25, 6])), 1e-4);
    let many = 70_000;
    check((&[many, 1, 2], packed(&[many, 1, 2])), (&[many, 2, 1], packed(&[many, 2, 1])), 1e-4);
}

#[test]
fn integers_wrap() {
    for [m, k, n] in [[5, 7, 3], [5, 5000, 6]] {
        let mut b = Build::new();
        let mixed = |i: usize, by: i32, less: i32| (i as i32).wrapping_mul(by).wrapping_sub(less);
        let xs: Vec<i32> = (0..m * k).map(|i| mixed(i, 123_456_789, 0)).collect();
        let ys: Vec<i32> = (0..k * n).map(|i| mixed(i, 987_654_321, 77)).collect();
        let (x, y) = (b.upload(&[m, k], &xs), b.upload(&[k, n], &ys));
        let inputs = [b.whole(x), b.whole(y)];
        let z = b.one(Kernel::Matmul, &inputs, DType::I32, &[m, n]);
        b.download(z);
        b.on_all(|name, data| {
            let product = |i: usize, j: usize, t: usize| xs[i * k + t].wrapping_mul(ys[t * n + j]);
            let at = |i, j| (0..k).fold(0i32, |sum, t| sum.wrapping_add(product(i, j, t)));
            let expected: Vec<i32> = (0..m * n).map(|i| at(i / n, i % n)).collect();
            assert_eq!(elements::<i32>(&data[0]), expected, "{name}");
        });
    }
}
