//! Variables: in place, swapped, read and stored in one run, kept between runs.

use convoke_compiler::{Arg, Instr, Operand};
use convoke_graph_core::{DType, Elementwise, Error, HostTensor, NodeId};
use smallvec::smallvec;

use super::harness::*;
use crate::gpu::{Adapter, Gpu, GpuOptions};
use crate::segment::{GpuSegment, GpuVariables};

const LEN: usize = 1000;

/// `w - g * 0.1`, over `[LEN]`.
fn step(b: &mut Build, w: Operand, g: Operand) -> convoke_compiler::ValueId {
    let rate = HostTensor::new(&[], vec![0.1f32]).unwrap();
    let instr = |name, args| Instr { op: Elementwise::Row(row(name)), args, dtype: DType::F32 };
    let instrs = vec![
        instr("mul", smallvec![Arg::Input(1), Arg::Constant(0)]),
        instr("sub", smallvec![Arg::Input(0), Arg::Instr(0)]),
    ];
    let inputs = [w, g];
    let kernel = b.fused(&[LEN], &inputs, vec![rate], instrs, &[Arg::Instr(1)]);
    b.one(kernel, &inputs, DType::F32, &[LEN])
}

#[test]
fn a_step_is_stored_in_place_run_after_run() {
    let mut b = Build::new();
    let w = b.variable(1, DType::F32, &[LEN]);
    let x = noise(LEN, 4);
    let input = b.upload(&[LEN], &x);
    let (whole_w, whole_x) = (b.whole(w), b.whole(input));
    let g = b.row("add", &[whole_w.clone(), whole_x], &[LEN]);
    let whole_g = b.whole(g);
    let stored = step(&mut b, whole_w, whole_g);
    b.commit(1, stored);
    b.download(w);
    for gpu in gpus() {
        let variables = GpuVariables::new(&gpu);
        let mut expected = noise(LEN, 5);
        variables.store(NodeId(1), bytemuck::cast_slice(&expected)).unwrap();
        let segment = b.compile(&gpu, &variables);
        // The sum, and the step that stores into the variable.
        assert_eq!(segment.n_dispatches(), 2, "{segment}");
        assert!(segment.to_string().contains("=variable %1"), "{segment}");
        let lease = segment.lease(&|| Ok(())).unwrap();
        for _ in 0..3 {
            let run = segment.run(&lease, &b.uploads()).unwrap();
            assert_near(&elements(&run.downloads[0]), &expected, 1e-6, "at the start");
            for (w, x) in expected.iter_mut().zip(&x) {
                *w -= (*w + x) * 0.1;
            }
        }
        let bytes = variables.load(NodeId(1), 4 * LEN as u64).unwrap();
        assert_near(&elements(&bytes), &expected, 1e-5, "at the end");
    }
}

#[test]
fn variables_are_swapped_by_their_values_at_the_start() {
    let mut b = Build::new();
    let (u, v) = (b.variable(1, DType::Bool, &[5]), b.variable(2, DType::Bool, &[5]));
    b.commit(1, v);
    b.commit(2, u);
    for gpu in gpus() {
        let variables = GpuVariables::new(&gpu);
        let (ones, some) = ([1u8; 5], [0, 1, 1, 0, 1]);
        variables.store(NodeId(1), &ones).unwrap();
        variables.store(NodeId(2), &some).unwrap();
        let segment = b.compile(&gpu, &variables);
        segment.run(&segment.lease(&|| Ok(())).unwrap(), &[]).unwrap();
        assert_eq!(variables.load(NodeId(1), 5).unwrap().to_vec(), some);
        assert_eq!(variables.load(NodeId(2), 5).unwrap().to_vec(), ones);
    }
}

#[test]
fn a_value_that_others_want_is_copied() {
    let mut b = Build::new();
    let w = b.variable(1, DType::F32, &[LEN]);
    let x = b.upload(&[LEN], &noise(LEN, 6));
    let (whole_w, whole_x) = (b.whole(w), b.whole(x));
    let next = step(&mut b, whole_w, whole_x);
    let whole_next = b.whole(next);
    let twice = b.row("add", &[whole_next.clone(), whole_next], &[LEN]);
    b.download(next);
    b.download(twice);
    b.commit(1, next);
    let constant = b.constant(&[3], &[7i32, 8, 9]);
    b.commit(2, constant);
    for gpu in gpus() {
        let variables = GpuVariables::new(&gpu);
        let segment = b.compile(&gpu, &variables);
        let run = segment.run(&segment.lease(&|| Ok(())).unwrap(), &b.uploads()).unwrap();
        let next: Vec<f32> = elements(&run.downloads[0]);
        let doubled: Vec<f32> = next.iter().map(|x| x + x).collect();
        assert_eq!(elements::<f32>(&run.downloads[1]), doubled);
        let stored = variables.load(NodeId(1), 4 * LEN as u64).unwrap();
        assert_eq!(elements::<f32>(&stored), next);
        let stored = variables.load(NodeId(2), 12).unwrap();
        assert_eq!(elements::<i32>(&stored), [7, 8, 9]);
    }
}

#[test]
fn a_variable_read_in_another_layout_is_not_stored_in_place() {
    let mut b = Build::new();
    let value = b.variable(1, DType::F32, &[40, 25]);
    let flat = packed(&[LEN]);
    let back = flat.slice(&[LEN - 1], &[LEN], &[-1]).unwrap();
    let operands = [Operand { value, layout: flat }, Operand { value, layout: back }];
    let next = b.row("sub", &operands, &[LEN]);
    b.commit(1, next);
    for gpu in gpus() {
        let variables = GpuVariables::new(&gpu);
        let w = noise(LEN, 9);
        variables.store(NodeId(1), bytemuck::cast_slice(&w)).unwrap();
        let segment = b.compile(&gpu, &variables);
        assert_eq!(segment.n_dispatches(), 2, "{segment}");
        segment.run(&segment.lease(&|| Ok(())).unwrap(), &[]).unwrap();
        let expected: Vec<f32> = (0..LEN).map(|i| w[i] - w[LEN - 1 - i]).collect();
        let stored = variables.load(NodeId(1), 4 * LEN as u64).unwrap();
        assert_eq!(elements::<f32>(&stored), expected);
    }
}

#[test]
fn a_variable_of_another_device_is_uploaded() {
    let mut b = Build::new();
    let w = b.variable(1, DType::F32, &[3]);
    b.segment().uploads.push(w);
    b.uploads.push(bytemuck::cast_slice(&[1f32, 2.0, 3.0]).to_vec());
    let operands = [b.whole(w), b.whole(w)];
    let twice = b.row("add", &operands, &[3]);
    b.download(twice);
    b.commit(2, w);
    for gpu in gpus() {
        let variables = GpuVariables::new(&gpu);
        let segment = b.compile(&gpu, &variables);
        let run = segment.run(&segment.lease(&|| Ok(())).unwrap(), &b.uploads()).unwrap();
        assert_eq!(elements::<f32>(&run.downloads[0]), [2.0, 4.0, 6.0]);
        assert!(!variables.contains(NodeId(1)));
        assert_eq!(elements::<f32>(&variables.load(NodeId(2), 12).unwrap()), [1.0, 2.0, 3.0]);
    }
}

#[test]
fn a_value_that_nobody_computes_is_refused() {
    let gpu = Gpu::open(&Adapter::noop(), &GpuOptions::default()).unwrap();
    let mut b = Build::new();
    let x = b.upload(&[4], &[1f32; 4]);
    let operand = b.whole(x);
    let y = b.row("neg", &[operand], &[4]);
    b.segment().uploads.clear();
    b.download(y);
    let error = GpuSegment::compile(&gpu, &b.program, 0, &GpuVariables::new(&gpu)).unwrap_err();
    let error = Error::from(error);
    assert_eq!(error.message(), "v0 is neither uploaded nor computed");
}
