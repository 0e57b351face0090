//! Rows, casts, selects, layouts and fused groups.

use convoke_compiler::{Arg, Fused, Instr, Kernel};
use convoke_graph_core::{DType, Elementwise, HostTensor, Layout, Row, ops};
use smallvec::{SmallVec, smallvec};

use super::{Case, assert_close, layouts, numbers, seen, shape};
use crate::{Threads, supports};

fn row(name: &str) -> Elementwise {
    Elementwise::Row(ops::rows().find(|row| row.name == name).unwrap())
}

fn instr(op: Elementwise, args: &[Arg], dtype: DType) -> Instr {
    Instr { op, args: SmallVec::from_slice(args), dtype }
}

fn fused(
    dims: &[usize],
    inputs: &[DType],
    constants: Vec<HostTensor>,
    instrs: Vec<Instr>,
) -> Fused {
    let stores = smallvec![Arg::Instr(instrs.len() as u32 - 1)];
    let input_dtypes = SmallVec::from_slice(inputs);
    Fused { shape: shape(dims), input_dtypes, constants, instrs, stores, check: None }
}

/// One operation of packed inputs of one length.
fn apply(op: Elementwise, inputs: Vec<HostTensor>, dtype: DType) -> Case {
    let len = inputs[0].len();
    let dtypes: Vec<DType> = inputs.iter().map(HostTensor::dtype).collect();
    let args: Vec<Arg> = (0..inputs.len() as u32).map(Arg::Input).collect();
    let fused = fused(&[len], &dtypes, vec![], vec![instr(op, &args, dtype)]);
    let inputs = inputs.into_iter().map(|t| (t, Layout::packed(shape(&[len])))).collect();
    Case::new(Kernel::Elementwise(fused), inputs, &[(dtype, shape(&[len]))])
}

/// Points for each input, repeated to `len`.
fn points(row: &Row, dtype: DType, len: usize) -> Vec<Vec<f64>> {
    let mut probe = row.probe.to_vec();
    if dtype.is_float() {
        probe.extend([f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e4, -1e-6, 3e38, -95.0]);
    } else {
        probe.extend([127.0, -128.0, 255.0, 65_535.0]);
    }
    let n = probe.len();
    let at = |axis: usize, i: usize| probe[if axis == 0 { i % n } else { i / n % n }];
    (0..row.arity).map(|axis| (0..len).map(|i| at(axis, i)).collect()).collect()
}

fn tensor(dtype: DType, xs: &[f64]) -> HostTensor {
    let ints: Vec<i128> = xs.iter().map(|&x| x as i128).collect();
    let shape = shape(&[xs.len()]);
    if dtype.is_float() {
        HostTensor::from_f64s(dtype, shape, xs).unwrap()
    } else {
        HostTensor::from_i128s(dtype, shape, &ints).unwrap()
    }
}

fn expected(row: &Row, inputs: &[HostTensor], output: DType) -> HostTensor {
    let (dtype, shape) = (inputs[0].dtype(), inputs[0].shape().clone());
    if dtype.is_float() {
        let xs: Vec<Vec<f64>> = inputs.iter().map(|t| t.to_f64s().unwrap()).collect();
        let reference = row.float.as_ref().unwrap().reference;
        let at = |i| reference(&xs.iter().map(|x| x[i]).collect::<Vec<_>>());
        let ys: Vec<f64> = (0..shape.len()).map(at).collect();
        return if output == DType::Bool {
            tensor(output, &ys)
        } else {
            HostTensor::from_f64s(output, shape, &ys).unwrap()
        };
    }
    let xs: Vec<Vec<i128>> = inputs.iter().map(|t| t.to_i128s().unwrap()).collect();
    let at = |i: usize| {
        let args: Vec<i128> = xs.iter().map(|x| x[i]).collect();
        if dtype == DType::Bool {
            let args: Vec<bool> = args.iter().map(|&x| x != 0).collect();
            i128::from((row.bools.as_ref().unwrap().reference)(&args))
        } else {
            (row.int.as_ref().unwrap().reference)(&args)
        }
    };
    let ys: Vec<i128> = (0..shape.len()).map(at).collect();
    HostTensor::from_i128s(output, shape, &ys).unwrap()
}

#[test]
fn every_row_of_every_dtype_is_its_reference() {
    for row in ops::rows() {
        for dtype in DType::NUMERIC {
            let Some(output) = row.output(dtype) else { continue };
            for len in [0, 1, 1023, 1025, 5000] {
                let inputs: Vec<HostTensor> =
                    points(row, dtype, len).iter().map(|xs| tensor(dtype, xs)).collect();
                let expected = expected(row, &inputs, output);
                let found = apply(Elementwise::Row(row), inputs, output).run();
                let tolerance = match dtype {
                    DType::F64 => 1e-14,
                    DType::F16 => 1e-3,
                    DType::BF16 => 8e-3,
                    _ => 5e-7,
                };
                assert_close(&found, &expected, tolerance, &format!("{} of {dtype}", row.name));
            }
        }
    }
}

/// By the rules of `Tensor::cast`.
fn converted(x: &HostTensor, to: DType) -> HostTensor {
    match (x.dtype().is_float(), to.is_float()) {
        (true, true) => {
            HostTensor::from_f64s(to, x.shape().clone(), &x.to_f64s().unwrap()).unwrap()
        }
        (true, false) => {
            let (low, high) = to.int_range().unwrap();
            let cut = |&x: &f64| match to {
                DType::Bool => i128::from(x != 0.0),
                _ => (x as i128).clamp(low, high),
            };
            let ints: Vec<i128> = x.to_f64s().unwrap().iter().map(cut).collect();
            HostTensor::from_i128s(to, x.shape().clone(), &ints).unwrap()
        }
        (false, true) => {
            let once = |&x: &i128| if to == DType::F64 { x as f64 } else { (x as f32).into() };
            let floats: Vec<f64> = x.to_i128s().unwrap().iter().map(once).collect();
            HostTensor::from_f64s(to, x.shape().clone(), &floats).unwrap()
        }
        (false, false) => {
            let ints = x.to_i128s().unwrap();
            HostTensor::from_i128s(to, x.shape().clone(), &ints).unwrap()
        }
    }
}

#[test]
fn casts_follow_the_rules() {
    let xs = [
        0.0,
        -0.0,
        1.0,
        2.5,
        -2.5,
        3.5,
        127.0,
        128.0,
        -129.0,
        255.5,
        256.0,
        300.0,
        65_536.0,
        1e5,
        -1e5,
        3e9,
        5e9,
        -3e9,
        1e19,
        2e19,
        -1e19,
        1e39,
        65_519.0,
        65_520.0,
        1e-7,
        0.1,
        1.0 / 3.0,
    ];
    for from in DType::NUMERIC {
        let mut xs = xs.repeat(60);
        if from.is_float() {
            xs.extend([f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
        }
        let x = tensor(from, &xs);
        for to in DType::NUMERIC {
            let found = apply(Elementwise::Cast, vec![x.clone()], to).run();
            let expected = converted(&x, to);
            assert_close(&found, &expected, 0.0, &format!("{from} to {to}"));
        }
    }
}

#[test]
fn select_takes_one_side_whatever_the_other_is() {
    for dtype in DType::NUMERIC {
        let condition = HostTensor::from((0..1500).map(|i| i % 3 == 0).collect::<Vec<bool>>());
        let (x, y) = (numbers(dtype, 1500), tensor(dtype, &[1.0; 1500]));
        let found = apply(Elementwise::Select, vec![condition, x.clone(), y.clone()], dtype).run();
        let n = dtype.n_bytes();
        for i in 0..1500 {
            let side = if i % 3 == 0 { &x } else { &y };
            assert_eq!(found.bytes()[i * n..][..n], side.bytes()[i * n..][..n], "{dtype} at {i}");
        }
    }
}

#[test]
fn every_layout_is_copied_for_every_dtype() {
    let all = [
        vec![],
        vec![7],
        vec![3, 40],
        vec![5, 1, 9],
        vec![2, 3, 2, 300],
        vec![0, 4],
        vec![70, 33],
        vec![9, 20, 33],
        vec![210, 150],
    ];
    for dims in all {
        for (len, layout) in layouts(&dims) {
            for dtype in DType::NUMERIC {
                let x = numbers(dtype, len);
                let n = dtype.n_bytes();
                let chunks: Vec<&[u8]> = x.bytes().chunks_exact(n).collect();
                let expected = seen(&chunks, &layout).concat();
                let fused = Fused {
                    shape: shape(&dims),
                    input_dtypes: smallvec![dtype],
                    constants: vec![],
                    instrs: vec![],
                    stores: smallvec![Arg::Input(0)],
                    check: None,
                };
                let output = (dtype, shape(&dims));
                let case =
                    Case::new(Kernel::Elementwise(fused), vec![(x, layout.clone())], &[output]);
                assert_eq!(case.run().bytes(), expected, "{dtype} {layout:?}");
            }
        }
    }
}

/// `tanh(relu((x * v + x) * 0.5 - v))`, with a row vector `v`.
fn chain(dims: [usize; 2]) -> (Fused, Vec<(HostTensor, Layout)>) {
    let f = DType::F32;
    let (x, v, half) = (Arg::Input(0), Arg::Input(1), Arg::Constant(0));
    let t = Arg::Instr;
    let instrs = vec![
        instr(row("mul"), &[x, v], f),
        instr(row("add"), &[t(0), x], f),
        instr(row("mul"), &[t(1), half], f),
        instr(row("sub"), &[t(2), v], f),
        instr(row("relu"), &[t(3)], f),
        instr(row("tanh"), &[t(4)], f),
    ];
    let fused = fused(&dims, &[f, f], vec![HostTensor::from(0.5f32)], instrs);
    let x = (numbers(f, dims[0] * dims[1]), Layout::packed(shape(&dims)));
    let repeated = Layout::packed(shape(&[dims[1]])).broadcast(&shape(&dims)).unwrap();
    (fused, vec![x, (numbers(f, dims[1]), repeated)])
}

#[test]
fn a_chain_is_its_steps() {
    for dims in [[1, 1], [3, 5], [41, 100], [700, 333]] {
        let (fused, inputs) = chain(dims);
        let (xs, vs) = (inputs[0].0.to_f64s().unwrap(), inputs[1].0.to_f64s().unwrap());
        let vs = seen(&vs, &inputs[1].1);
        let one = |(x, v): (&f64, &f64)| ((x * v + x) * 0.5 - v).max(0.0).tanh();
        let expected: Vec<f64> = xs.iter().zip(&vs).map(one).collect();
        let expected = HostTensor::from_f64s(DType::F32, shape(&dims), &expected).unwrap();
        let case = Case::new(Kernel::Elementwise(fused), inputs, &[(DType::F32, shape(&dims))]);
        assert_close(&case.run(), &expected, 5e-7, "chain");
    }
}

#[test]
fn several_results_are_stored() {
    let len = 3000;
    let (f, h) = (DType::F32, DType::F16);
    let instrs = vec![
        instr(row("add"), &[Arg::Input(0), Arg::Input(0)], f),
        instr(row("square"), &[Arg::Instr(0)], f),
        instr(Elementwise::Cast, &[Arg::Instr(1)], h),
        instr(row("less"), &[Arg::Instr(0), Arg::Constant(0)], DType::Bool),
    ];
    let mut fused = fused(&[len], &[f], vec![HostTensor::from(0.0f32)], instrs);
    let (t, x) = (Arg::Instr, Arg::Input(0));
    fused.stores = smallvec![t(2), t(0), t(3), x, t(0), Arg::Constant(0)];
    let input = numbers(f, len);
    let dtypes = [h, f, DType::Bool, f, f, f].map(|dtype| (dtype, shape(&[len])));
    let inputs = vec![(input.clone(), Layout::packed(shape(&[len])))];
    let case = Case::new(Kernel::Elementwise(fused), inputs, &dtypes);
    let found = case.try_run(&Threads::one()).unwrap();
    let xs = input.to_f64s().unwrap();
    let map = |f: fn(f64) -> f64| xs.iter().map(|&x| f(x)).collect::<Vec<_>>();
    let expected = [
        map(|x| 4.0 * x * x),
        map(|x| 2.0 * x),
        map(|x| f64::from(u8::from(x < 0.0))),
        xs.clone(),
        map(|x| 2.0 * x),
        map(|_| 0.0),
    ];
    for ((found, expected), (dtype, _)) in found.iter().zip(&expected).zip(dtypes) {
        assert_close(found, &tensor(dtype, expected), 0.0, "several results");
    }
}

#[test]
fn narrow_results_wrap_after_each_step() {
    let x = HostTensor::from(vec![200u8; 100]);
    let (u, add, div) = (DType::U8, row("add"), row("div"));
    let two = HostTensor::from(2u8);
    let instrs = vec![
        instr(add, &[Arg::Input(0), Arg::Input(0)], u),
        instr(div, &[Arg::Instr(0), Arg::Constant(0)], u),
    ];
    let fused = fused(&[100], &[u], vec![two], instrs);
    let inputs = vec![(x, Layout::packed(shape(&[100])))];
    let case = Case::new(Kernel::Elementwise(fused), inputs, &[(u, shape(&[100]))]);
    assert_eq!(case.run().to_vec::<u8>().unwrap(), vec![72; 100]);
}

#[test]
fn what_has_no_kernel_is_refused() {
    let x = numbers(DType::I32, 3);
    let case = apply(row("exp"), vec![x], DType::I32);
    assert!(!supports(&case.program, &case.group));
    let error = case.try_run(&Threads::one()).unwrap_err();
    assert_eq!(error.kind(), convoke_graph_core::ErrorKind::Unimplemented);
    assert!(error.message().contains("unsupported"), "{error}");
}
