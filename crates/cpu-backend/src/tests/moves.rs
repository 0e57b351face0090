//! Pad, concat, gather and scatter-add, of every layout.

use convoke_compiler::Kernel;
use convoke_graph_core::{DType, ErrorKind, HostTensor, Layout};

use super::{Case, assert_close, layouts, numbers, seen, shape};
use crate::Threads;

const DTYPES: [DType; 4] = [DType::I8, DType::F16, DType::F32, DType::I64];

/// The elements of a tensor as a layout sees them, as `i128` or four times a float.
fn ints(x: &HostTensor, layout: &Layout) -> Vec<i128> {
    if x.dtype().is_float() {
        let xs: Vec<i128> = x.to_f64s().unwrap().iter().map(|&x| (x * 4.0) as i128).collect();
        return seen(&xs, layout);
    }
    seen(&x.to_i128s().unwrap(), layout)
}

fn tensor(dtype: DType, dims: &[usize], xs: &[i128]) -> HostTensor {
    if dtype.is_float() {
        let xs: Vec<f64> = xs.iter().map(|&x| x as f64 / 4.0).collect();
        return HostTensor::from_f64s(dtype, shape(dims), &xs).unwrap();
    }
    HostTensor::from_i128s(dtype, shape(dims), xs).unwrap()
}

#[test]
fn pads() {
    for (dims, before, after) in [
        (vec![3, 5], vec![1, 2], vec![0, 3]),
        (vec![4, 6], vec![0, 0], vec![0, 0]),
        (vec![2, 3, 4], vec![1, 0, 0], vec![1, 0, 0]),
        (vec![], vec![], vec![]),
        (vec![0, 2], vec![1, 1], vec![1, 0]),
        (vec![5], vec![0], vec![7]),
    ] {
        let out: Vec<usize> = (0..dims.len()).map(|i| before[i] + dims[i] + after[i]).collect();
        for (len, layout) in layouts(&dims) {
            for dtype in DTYPES {
                let x = numbers(dtype, len);
                let mut expected = vec![0; shape(&out).len()];
                let to = Layout::packed(shape(&out));
                for (i, x) in ints(&x, &layout).into_iter().enumerate() {
                    let at = shape(&dims).coords(i);
                    let at: Vec<usize> = at.iter().zip(&before).map(|(c, b)| c + b).collect();
                    expected[to.at(&at)] = x;
                }
                let kernel = Kernel::Pad { before: before.clone() };
                let found =
                    Case::new(kernel, vec![(x, layout.clone())], &[(dtype, shape(&out))]).run();
                assert_close(&found, &tensor(dtype, &out, &expected), 0.0, &format!("{layout:?}"));
            }
        }
    }
}

#[test]
fn concatenates() {
    for axis in 0..3 {
        let mut sizes = [[2, 3, 4]; 3];
        (sizes[1][axis], sizes[2][axis]) = (0, 5);
        let mut out = [2, 3, 4];
        out[axis] += 5;
        for first in layouts(&sizes[0]) {
            for last in layouts(&sizes[2]) {
                let layouts = [first.clone(), (0, Layout::packed(shape(&sizes[1]))), last];
                let inputs = layouts.map(|(len, layout)| (numbers(DType::F32, len), layout));
                let mut expected = vec![0; shape(&out).len()];
                let (to, mut start) = (Layout::packed(shape(&out)), 0);
                for (x, layout) in &inputs {
                    for (i, x) in ints(x, layout).into_iter().enumerate() {
                        let mut at = layout.shape().coords(i);
                        at[axis] += start;
                        expected[to.at(&at)] = x;
                    }
                    start += layout.shape().dims()[axis];
                }
                let output = (DType::F32, shape(&out));
                let found = Case::new(Kernel::Concat { axis }, inputs.to_vec(), &[output]).run();
                assert_close(&found, &tensor(DType::F32, &out, &expected), 0.0, "concat");
            }
        }
    }
}

fn indices(dtype: DType, len: usize, size: usize) -> HostTensor {
    let xs: Vec<i128> = (0..len).map(|i| (i * 7 + 3) as i128 % size as i128).collect();
    HostTensor::from_i128s(dtype, shape(&[len]), &xs).unwrap()
}

/// For axis `axis` of `dims` and indices of `seen`: the shape, and the place and index of each element.
fn gathered(dims: &[usize], axis: usize, n: &[usize]) -> Vec<usize> {
    [&dims[..axis], n, &dims[axis + 1..]].concat()
}

#[test]
fn gathers_and_scatters() {
    let dims = [4, 5, 6];
    for axis in 0..3 {
        for n in [vec![], vec![3], vec![2, 4], vec![0]] {
            let out = gathered(&dims, axis, &n);
            for (len, layout) in layouts(&dims) {
                for (i_len, i_layout) in layouts(&n).into_iter().take(4) {
                    let index = indices(DType::I32, i_len, dims[axis]);
                    gather(
                        axis,
                        (numbers(DType::F32, len), layout.clone()),
                        (index, i_layout),
                        &out,
                    );
                }
            }
            for (len, layout) in layouts(&out) {
                for dtype in DTYPES {
                    let index = indices(DType::U8, shape(&n).len(), dims[axis]);
                    let index = (index, Layout::packed(shape(&n)));
                    scatter(axis, index, (numbers(dtype, len), layout.clone()), &dims);
                }
            }
        }
    }
}

#[track_caller]
fn gather(axis: usize, x: (HostTensor, Layout), index: (HostTensor, Layout), out: &[usize]) {
    let (xs, is) = (ints(&x.0, &x.1), ints(&index.0, &index.1));
    let dims = x.1.shape().dims();
    let inner: usize = dims[axis + 1..].iter().product();
    let of = |i: usize| {
        let (outer, j, k) = (i / inner / is.len(), i / inner % is.len(), i % inner);
        xs[(outer * dims[axis] + is[j] as usize) * inner + k]
    };
    let expected: Vec<i128> = (0..shape(out).len()).map(of).collect();
    let what = format!("{:?} at {:?} along {axis}", x.1, index.1);
    let dtype = x.0.dtype();
    let found = Case::new(Kernel::Gather { axis }, vec![x, index], &[(dtype, shape(out))]).run();
    assert_close(&found, &tensor(dtype, out, &expected), 0.0, &what);
}

#[track_caller]
fn scatter(axis: usize, index: (HostTensor, Layout), x: (HostTensor, Layout), out: &[usize]) {
    let (xs, is) = (ints(&x.0, &x.1), ints(&index.0, &index.1));
    let inner: usize = out[axis + 1..].iter().product();
    let mut expected = vec![0; shape(out).len()];
    for (i, x) in xs.into_iter().enumerate() {
        let (outer, j, k) = (i / inner / is.len(), i / inner % is.len(), i % inner);
        expected[(outer * out[axis] + is[j] as usize) * inner + k] += x;
    }
    let dtype = x.0.dtype();
    let what = format!("{dtype} {:?} along {axis}", x.1);
    let found =
        Case::new(Kernel::ScatterAdd { axis }, vec![index, x], &[(dtype, shape(out))]).run();
    assert_close(&found, &tensor(dtype, out, &expected), 0.0, &what);
}

#[test]
fn large_gathers_are_shared() {
    let (x, index) = (numbers(DType::F32, 1000 * 64), indices(DType::I64, 5000, 1000));
    let layouts = [&[1000, 64][..], &[5000]].map(|dims| Layout::packed(shape(dims)));
    let [x_layout, i_layout] = layouts;
    gather(0, (x, x_layout), (index, i_layout), &[5000, 64]);
}

#[test]
fn indices_out_of_range_are_errors() {
    let x = (numbers(DType::F32, 12), Layout::packed(shape(&[4, 3])));
    for (index, message) in [
        (HostTensor::from([1i32, -1]), "index -1 at position 1 is out of range for an axis of 4"),
        (HostTensor::from([4u8, 9]), "index 4 at position 0 is out of range for an axis of 4"),
    ] {
        let index = (index, Layout::packed(shape(&[2])));
        let output = (DType::F32, shape(&[2, 3]));
        let case = Case::new(Kernel::Gather { axis: 0 }, vec![x.clone(), index.clone()], &[output]);
        let error = case.try_run(&Threads::one()).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, message));
        let updates = (numbers(DType::F32, 6), Layout::packed(shape(&[2, 3])));
        let output = (DType::F32, shape(&[4, 3]));
        let case = Case::new(Kernel::ScatterAdd { axis: 0 }, vec![index, updates], &[output]);
        let error = case.try_run(&Threads::one()).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, message));
    }
}
