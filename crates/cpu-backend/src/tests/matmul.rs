//! Matrix products of every dtype and layout.

use convoke_compiler::Kernel;
use convoke_graph_core::{DType, HostTensor, Layout};

use super::{Case, assert_close, layouts, numbers, seen, shape};

#[track_caller]
fn check(
    dtype: DType,
    batch: &[usize],
    [m, n, k]: [usize; 3],
    a: (usize, Layout),
    b: (usize, Layout),
) {
    let dims = [batch, &[m, n]].concat();
    let n_batches: usize = batch.iter().product();
    let (x, y) = (numbers(dtype, a.0), numbers(dtype, b.0));
    let inputs = vec![(x.clone(), a.1.clone()), (y.clone(), b.1.clone())];
    let found = Case::new(Kernel::Matmul, inputs, &[(dtype, shape(&dims))]).run();
    let places = (0..n_batches * m * n).map(|i| (i / (m * n), i / n % m, i % n));
    let expected = if dtype.is_float() {
        let (xs, ys) = (seen(&x.to_f64s().unwrap(), &a.1), seen(&y.to_f64s().unwrap(), &b.1));
        let term =
            |(p, i, j): (usize, usize, usize), t| xs[(p * m + i) * k + t] * ys[(p * k + t) * n + j];
        let sums = places.map(|at| (0..k).map(|t| term(at, t)).sum()).collect::<Vec<f64>>();
        HostTensor::from_f64s(dtype, shape(&dims), &sums).unwrap()
    } else {
        let (xs, ys) = (seen(&x.to_i128s().unwrap(), &a.1), seen(&y.to_i128s().unwrap(), &b.1));
        let term = |(p, i, j): (usize, usize, usize), t: usize| {
            i128::wrapping_mul(xs[(p * m + i) * k + t], ys[(p * k + t) * n + j])
        };
        let sums = places.map(|at| (0..k).map(|t| term(at, t)).fold(0, i128::wrapping_add));
        let sums: Vec<i128> = sums.collect();
        HostTensor::from_i128s(dtype, shape(&dims), &sums).unwrap()
    };
    // The terms are multiples of 1/16, so that float sums are exact.
    let what = format!("{dtype} {:?} times {:?}", a.1, b.1);
    assert_close(&found, &expected, 0.0, &what);
}

#[test]
fn every_dtype_and_layout() {
    for (batch, sizes) in [
        (vec![], [1, 1, 1]),
        (vec![], [5, 7, 9]),
        (vec![], [1, 33, 40]),
        (vec![], [33, 1, 40]),
        (vec![], [3, 4, 0]),
        (vec![], [0, 4, 3]),
        (vec![3], [4, 6, 5]),
        (vec![0], [4, 6, 5]),
        (vec![2, 3], [2, 3, 4]),
        (vec![3], [1, 6, 5]),
    ] {
        let [m, n, k] = sizes;
        let (a, b) = ([&batch[..], &[m, k]].concat(), [&batch[..], &[k, n]].concat());
        for a in layouts(&a) {
            for b in layouts(&b) {
                for dtype in [DType::F32, DType::F64, DType::BF16, DType::I32] {
                    check(dtype, &batch, sizes, a.clone(), b.clone());
                }
            }
        }
    }
}

#[test]
fn integers_wrap() {
    for dtype in DType::NUMERIC.into_iter().filter(|dtype| *dtype != DType::Bool) {
        let sizes = [30, 20, 50];
        let (a, b) = (layouts(&[30, 50]).remove(1), layouts(&[50, 20]).remove(0));
        check(dtype, &[], sizes, a, b);
    }
}

#[test]
fn large_products_do_not_depend_on_threads() {
    for dtype in [DType::F32, DType::F64, DType::F16, DType::I32] {
        let (a, b) = (layouts(&[130, 70]).remove(0), layouts(&[70, 120]).remove(1));
        check(dtype, &[], [130, 120, 70], a, b);
        let (a, b) = (layouts(&[40, 30, 20]).remove(0), layouts(&[40, 20, 30]).remove(2));
        check(dtype, &[40], [30, 30, 20], a, b);
    }
}

#[test]
fn random_products_do_not_depend_on_threads() {
    let noise = |len: usize| {
        let xs: Vec<f32> =
            (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32).collect();
        HostTensor::from(xs)
    };
    let layout = |dims: &[usize]| Layout::packed(shape(dims));
    let mut sizes = vec![[300, 200, 700], [1000, 3, 600], [2, 900, 2000], [64, 64, 3000]];
    sizes.extend([[1, 3001, 700], [3001, 1, 700], [1, 530, 2000], [7, 700, 900]]);
    // Above and below what `gemm` treats as small, and blocks with little left over.
    sizes.extend((0..24).map(|i| [40 + i * 13 % 97, 33 + i * 29 % 131, 600 + 50 * i]));
    for [m, n, k] in sizes {
        let inputs = vec![(noise(m * k), layout(&[m, k])), (noise(k * n), layout(&[k, n]))];
        Case::new(Kernel::Matmul, inputs, &[(DType::F32, shape(&[m, n]))]).run_with_threads();
    }
}
