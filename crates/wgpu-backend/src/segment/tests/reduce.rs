//! Reductions: rows, columns, all; every kind; layouts; more elements than one stage takes.

use convoke_compiler::Operand;
use convoke_graph_core::{DType, Layout, ReduceKind};

use super::harness::*;

/// The lanes of `layout`: for each output element, where its elements lie.
fn lanes(layout: &Layout, n_outer: usize) -> Vec<Vec<usize>> {
    let dims = layout.shape().dims();
    let n_rows: usize = dims[..n_outer].iter().product();
    let inner: usize = dims[n_outer..].iter().product();
    let at = |i: usize| layout.at(&layout.shape().coords(i));
    (0..n_rows).map(|o| (0..inner).map(|j| at(o * inner + j)).collect()).collect()
}

fn check_sum(dims: &[usize], layout: Layout, n_outer: usize) {
    let mut b = Build::new();
    let xs = noise(shape(dims).len(), 8);
    let value = b.upload(dims, &xs);
    let out = layout.shape().dims()[..n_outer].to_vec();
    let operand = Operand { value, layout: layout.clone() };
    for kind in [ReduceKind::Sum, ReduceKind::Max] {
        let y = b.one(reduction(kind, n_outer), std::slice::from_ref(&operand), DType::F32, &out);
        b.download(y);
    }
    let lanes = lanes(&layout, n_outer);
    let sums: Vec<f32> =
        lanes.iter().map(|l| l.iter().map(|&i| f64::from(xs[i])).sum::<f64>() as f32).collect();
    let maxes: Vec<f32> =
        lanes.iter().map(|l| l.iter().map(|&i| xs[i]).fold(f32::NEG_INFINITY, f32::max)).collect();
    let inner = lanes.first().map_or(0, Vec::len) as f32;
    b.on_all(|name, data| {
        let what = format!("{} after {n_outer} on {name}", layout.shape());
        assert_near(&elements::<f32>(&data[0]), &sums, 1e-6 * (1.0 + inner.sqrt()), &what);
        assert_eq!(elements::<f32>(&data[1]), maxes, "{what}");
    });
}

#[test]
fn rows_columns_and_all() {
    for dims in [[1, 1], [5, 7], [63, 65], [3, 1000], [1000, 3], [2, 100_003], [100_003, 2]] {
        check_sum(&dims, packed(&dims), 1);
        check_sum(&dims, packed(&dims).permute(&[1, 0]).unwrap(), 1);
        check_sum(&dims, packed(&dims), 0);
        check_sum(&dims, packed(&dims), 2);
    }
    check_sum(&[3, 0], packed(&[3, 0]), 1);
    check_sum(&[6, 7, 8], packed(&[6, 7, 8]).permute(&[1, 0, 2]).unwrap(), 1);
    check_sum(&[6, 7, 8], packed(&[6, 7, 8]).permute(&[0, 2, 1]).unwrap(), 2);
    let repeated = packed(&[7, 1]).broadcast(&shape(&[7, 50])).unwrap();
    check_sum(&[7, 1], repeated, 1);
    check_sum(&[70_000, 2], packed(&[70_000, 2]), 1);
}

#[test]
fn four_million_elements() {
    let n = 4 << 20;
    check_sum(&[n], packed(&[n]), 0);
    check_sum(&[n / 4, 4], packed(&[n / 4, 4]).permute(&[1, 0]).unwrap(), 1);
    // More than one invocation could count by itself: all ones are exact in i32.
    let mut b = Build::new();
    let value = b.upload(&[n], &vec![1i32; n]);
    let x = b.whole(value);
    let y = b.one(reduction(ReduceKind::Sum, 0), &[x], DType::I32, &[]);
    b.download(y);
    b.on_all(|name, data| assert_eq!(elements::<i32>(&data[0]), [n as i32], "{name}"));
}

#[test]
fn every_kind() {
    let (rows, inner) = (5, 777);
    let xs: Vec<i32> = (0..rows * inner).map(|i| (i * 7919 % 1013) as i32 - 500).collect();
    let fs: Vec<f32> = xs.iter().map(|&x| 1.0 + x as f32 / 1000.0).collect();
    let bs: Vec<bool> = (0..rows * inner).map(|i| i / inner == 1 || i == 3).collect();
    let mut b = Build::new();
    let ints = b.upload(&[rows, inner], &xs);
    let floats = b.upload(&[rows, inner], &fs);
    let bools = b.upload(&[rows, inner], &bs);
    let operands = [b.whole(ints), b.whole(floats), b.whole(bools)];
    for (operand, kind, dtype) in [
        (0, ReduceKind::Prod, DType::I32),
        (0, ReduceKind::Min, DType::I32),
        (0, ReduceKind::ArgMax, DType::I32),
        (0, ReduceKind::ArgMin, DType::I32),
        (1, ReduceKind::Mean, DType::F32),
        (1, ReduceKind::ArgMax, DType::I32),
        (2, ReduceKind::Any, DType::Bool),
        (2, ReduceKind::All, DType::Bool),
    ] {
        let operand = std::slice::from_ref(&operands[operand]);
        let y = b.one(reduction(kind, 1), operand, dtype, &[rows]);
        b.download(y);
    }
    fn each<T: Copy, U>(xs: &[T], inner: usize, f: impl Fn(&[T]) -> U) -> Vec<U> {
        xs.chunks(inner).map(f).collect()
    }
    let first = |best: fn(&[i32]) -> i32| {
        move |row: &[i32]| row.iter().position(|&x| x == best(row)).unwrap() as i32
    };
    let max: fn(&[i32]) -> i32 = |row| row.iter().copied().max().unwrap();
    let min: fn(&[i32]) -> i32 = |row| row.iter().copied().min().unwrap();
    b.on_all(|name, data| {
        let int = |i: usize| elements::<i32>(&data[i]);
        let product = |row: &[i32]| row.iter().fold(1i32, |a, &x| a.wrapping_mul(x));
        assert_eq!(int(0), each(&xs, inner, product), "{name}");
        assert_eq!(int(1), each(&xs, inner, min), "{name}");
        assert_eq!(int(2), each(&xs, inner, first(max)), "{name}");
        assert_eq!(int(3), each(&xs, inner, first(min)), "{name}");
        let mean = |row: &[f32]| row.iter().sum::<f32>() / inner as f32;
        assert_near(&elements::<f32>(&data[4]), &each(&fs, inner, mean), 1e-5, name);
        assert_eq!(int(5), int(2), "{name}");
        let any = each(&bs, inner, |row| row.iter().any(|&x| x));
        assert_eq!(elements::<bool>(&data[6]), any, "{name}");
        let all = each(&bs, inner, |row| row.iter().all(|&x| x));
        assert_eq!(elements::<bool>(&data[7]), all, "{name}");
    });
}

#[test]
fn nothing_reduces_to_the_identity() {
    let mut b = Build::new();
    let value = b.upload::<i32>(&[3, 0], &[]);
    let x = [b.whole(value)];
    let kinds = [ReduceKind::Sum, ReduceKind::Prod, ReduceKind::Max, ReduceKind::Min];
    for kind in kinds {
        let y = b.one(reduction(kind, 1), &x, DType::I32, &[3]);
        b.download(y);
    }
    b.on_all(|name, data| {
        for (bytes, identity) in data.iter().zip([0, 1, i32::MIN, i32::MAX]) {
            assert_eq!(elements::<i32>(bytes), [identity; 3], "{name}");
        }
    });
}
