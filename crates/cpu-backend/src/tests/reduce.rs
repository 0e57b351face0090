//! Reductions of every kind, dtype and layout.

use convoke_compiler::{Kernel, Reduction};
use convoke_graph_core::{DType, HostTensor, Layout, ReduceKind};

use super::{Case, assert_close, layouts, numbers, seen, shape};
use crate::supports;

const KINDS: [ReduceKind; 9] = [
    ReduceKind::Sum,
    ReduceKind::Mean,
    ReduceKind::Prod,
    ReduceKind::Max,
    ReduceKind::Min,
    ReduceKind::Any,
    ReduceKind::All,
    ReduceKind::ArgMax,
    ReduceKind::ArgMin,
];

fn case(kind: ReduceKind, n_outer: usize, x: HostTensor, layout: Layout) -> Case {
    let is_arg = matches!(kind, ReduceKind::ArgMax | ReduceKind::ArgMin);
    let dtype = if is_arg { DType::I32 } else { x.dtype() };
    let output = (dtype, shape(&layout.shape().dims()[..n_outer]));
    Case::new(Kernel::Reduce(Reduction { kind, n_outer }), vec![(x, layout)], &[output])
}

fn of_floats(kind: ReduceKind, xs: &[f64]) -> f64 {
    let place = |better: fn(f64, f64) -> bool| {
        let nan = xs.iter().position(|x| x.is_nan());
        let best = (0..xs.len()).reduce(|a, b| if better(xs[b], xs[a]) { b } else { a });
        nan.or(best).unwrap_or(0) as f64
    };
    let nan = xs.iter().any(|x| x.is_nan());
    match kind {
        ReduceKind::Sum => xs.iter().sum(),
        ReduceKind::Mean => xs.iter().sum::<f64>() / xs.len() as f64,
        ReduceKind::Prod => xs.iter().product(),
        ReduceKind::Max | ReduceKind::Min if nan => f64::NAN,
        ReduceKind::Max => xs.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ReduceKind::Min => xs.iter().copied().fold(f64::INFINITY, f64::min),
        ReduceKind::ArgMax => place(|x, best| x > best),
        _ => place(|x, best| x < best),
    }
}

fn of_ints(kind: ReduceKind, dtype: DType, xs: &[i128]) -> i128 {
    let (low, high) = dtype.int_range().unwrap();
    let first = |of: Option<&i128>| xs.iter().position(|x| Some(x) == of).unwrap_or(0) as i128;
    match kind {
        ReduceKind::Prod => xs.iter().fold(1, |a, &x| a.wrapping_mul(x)),
        ReduceKind::Max => xs.iter().copied().max().unwrap_or(low),
        ReduceKind::Min => xs.iter().copied().min().unwrap_or(high),
        ReduceKind::Any => i128::from(xs.contains(&1)),
        ReduceKind::All => i128::from(!xs.contains(&0)),
        ReduceKind::ArgMax => first(xs.iter().max()),
        ReduceKind::ArgMin => first(xs.iter().min()),
        _ => xs.iter().sum(),
    }
}

fn expected(
    kind: ReduceKind,
    n_outer: usize,
    x: &HostTensor,
    layout: &Layout,
    out: DType,
) -> HostTensor {
    let dims = layout.shape().dims();
    let n: usize = dims[n_outer..].iter().product();
    let n_lanes: usize = dims[..n_outer].iter().product();
    let shape = shape(&dims[..n_outer]);
    if x.dtype().is_float() {
        let xs = seen(&x.to_f64s().unwrap(), layout);
        let ys: Vec<f64> = (0..n_lanes).map(|i| of_floats(kind, &xs[i * n..][..n])).collect();
        if out.is_float() {
            return HostTensor::from_f64s(out, shape, &ys).unwrap();
        }
        let ys: Vec<i128> = ys.iter().map(|&y| y as i128).collect();
        return HostTensor::from_i128s(out, shape, &ys).unwrap();
    }
    let xs = seen(&x.to_i128s().unwrap(), layout);
    let ys: Vec<i128> = (0..n_lanes).map(|i| of_ints(kind, x.dtype(), &xs[i * n..][..n])).collect();
    HostTensor::from_i128s(out, shape, &ys).unwrap()
}

#[track_caller]
fn check(kind: ReduceKind, n_outer: usize, x: HostTensor, layout: Layout) {
    let case = case(kind, n_outer, x.clone(), layout.clone());
    if !supports(&case.program, &case.group) {
        return;
    }
    let out = case.program.values[1].dtype;
    let expected = expected(kind, n_outer, &x, &layout, out);
    let found = if layout.shape().len() > 100_000 { case.run_with_threads() } else { case.run() };
    let what = format!("{kind:?} of {} after {n_outer} axes of {layout:?}", x.dtype());
    let tolerance = if out == DType::F64 { 1e-12 } else { 1e-7 };
    assert_close(&found, &expected, tolerance, &what);
}

#[test]
fn every_kind_of_every_dtype_and_layout() {
    let all = [
        vec![],
        vec![5],
        vec![0],
        vec![3, 0],
        vec![0, 3],
        vec![33, 65],
        vec![4, 3, 50],
        vec![2, 5, 2, 7],
    ];
    for dims in all {
        for n_outer in 0..=dims.len() {
            for (len, layout) in layouts(&dims) {
                for kind in KINDS {
                    let is_arg = matches!(kind, ReduceKind::ArgMax | ReduceKind::ArgMin);
                    if is_arg && (dims.len() != n_outer + 1 || dims[n_outer] == 0) {
                        continue;
                    }
                    for dtype in DType::NUMERIC {
                        check(kind, n_outer, numbers(dtype, len), layout.clone());
                    }
                }
            }
        }
    }
}

#[test]
fn long_lanes_are_cut_into_chunks() {
    for (dims, n_outer) in [(vec![200_003], 0), (vec![3, 150_001], 1), (vec![2, 5000, 30], 1)] {
        for (len, layout) in layouts(&dims).into_iter().take(4) {
            for kind in [ReduceKind::Sum, ReduceKind::Max, ReduceKind::ArgMin] {
                if kind == ReduceKind::ArgMin && dims.len() != n_outer + 1 {
                    continue;
                }
                for dtype in [DType::F32, DType::I8, DType::F16] {
                    check(kind, n_outer, numbers(dtype, len), layout.clone());
                }
            }
        }
    }
}

#[test]
fn nan_passes_and_is_found_first() {
    // Rows of one run, of three, and of three with NaN in the last one only.
    for (n, nan) in [(77, [40, 90]), (1500, [700, 1501]), (1500, [1499, 2999])] {
        for dims in [vec![2, n], vec![n, 2]] {
            let mut xs = vec![1.0f32; 2 * n];
            (xs[nan[0]], xs[nan[1]], xs[nan[1] - 1]) = (-f32::NAN, f32::NAN, f32::INFINITY);
            let rows = Layout::packed(shape(&dims));
            let layout = if dims[0] == 2 { rows } else { rows.permute(&[1, 0]).unwrap() };
            for kind in [ReduceKind::Max, ReduceKind::Min, ReduceKind::ArgMax, ReduceKind::ArgMin] {
                check(kind, 1, HostTensor::from(xs.clone()), layout.clone());
            }
        }
    }
}

#[test]
fn a_sum_of_four_million_keeps_its_digits() {
    let xs: Vec<f32> = (0..4 << 20).map(|i| (i % 1000) as f32 * 0.001 + 0.1).collect();
    let exact: f64 = xs.iter().map(|&x| f64::from(x)).sum();
    let layout = Layout::packed(shape(&[xs.len()]));
    let found = case(ReduceKind::Sum, 0, HostTensor::from(xs), layout).run_with_threads();
    let found = f64::from(found.scalar::<f32>().unwrap());
    assert!((found - exact).abs() <= 1e-7 * exact, "{found} is not {exact}");
}

#[test]
fn means_of_integers_are_refused() {
    let x = numbers(DType::I32, 4);
    let case = case(ReduceKind::Mean, 0, x, Layout::packed(shape(&[4])));
    assert!(!supports(&case.program, &case.group));
}
