//! A warm run makes nothing on the device and is one submission; leases are bounded.

use std::cell::Cell;

use convoke_compiler::Kernel;
use convoke_graph_core::{DType, Error, ErrorKind, ReduceKind};

use super::harness::*;
use crate::gpu::{Adapter, Gpu, GpuOptions};
use crate::segment::GpuVariables;

/// A layer and a step: matmul, bias, relu, mean; the weights move.
fn model() -> Build {
    let mut b = Build::new();
    let x = b.upload(&[32, 20], &noise(640, 1));
    let w = b.variable(1, DType::F32, &[20, 10]);
    let bias = b.constant(&[10], &noise(10, 2));
    let inputs = [b.whole(x), b.whole(w)];
    let h = b.one(Kernel::Matmul, &inputs, DType::F32, &[32, 10]);
    let layout = packed(&[10]).broadcast(&shape(&[32, 10])).unwrap();
    let inputs = [b.whole(h), convoke_compiler::Operand { value: bias, layout }];
    let h = b.row("add", &inputs, &[32, 10]);
    let operand = b.whole(h);
    let h = b.row("relu", &[operand], &[32, 10]);
    let operand = b.whole(h);
    let mean = b.one(reduction(ReduceKind::Mean, 0), &[operand], DType::F32, &[]);
    let spread = packed(&[]).broadcast(&shape(&[20, 10])).unwrap();
    let inputs = [b.whole(w), convoke_compiler::Operand { value: mean, layout: spread }];
    let next = b.row("sub", &inputs, &[20, 10]);
    b.commit(1, next);
    b.download(mean);
    b
}

#[test]
fn a_hundred_warm_runs_make_nothing() {
    let b = model();
    for gpu in gpus() {
        // A device of its own: other tests make things on the shared ones.
        let name = gpu.info().name.clone();
        let all = crate::gpu::enumerate();
        let adapter: &Adapter = all.iter().find(|a| a.info().name == name).unwrap();
        let gpu = Gpu::open(adapter, &GpuOptions::default()).unwrap();
        let variables = GpuVariables::new(&gpu);
        let segment = b.compile(&gpu, &variables);
        for _ in 0..2 {
            segment.run(&segment.lease(&|| Ok(())).unwrap(), &b.uploads()).unwrap();
        }
        let before = gpu.counters();
        let internal = gpu.internal_counters();
        for _ in 0..100 {
            let run = segment.run(&segment.lease(&|| Ok(())).unwrap(), &b.uploads()).unwrap();
            assert_eq!(run.submissions, 1);
            assert_eq!(run.dispatches as usize, segment.n_dispatches());
            assert_eq!((run.upload_bytes, run.download_bytes), (2560, 4));
        }
        let after = gpu.counters();
        assert_eq!(after.submissions - before.submissions, 100, "{name}");
        assert_eq!(after.buffers_created, before.buffers_created, "{name}");
        assert_eq!(after.bind_groups_created, before.bind_groups_created, "{name}");
        assert_eq!(after.pipelines_created, before.pipelines_created, "{name}");
        assert_eq!(after.bytes_alive, before.bytes_alive, "{name}");
        assert_eq!(gpu.internal_counters(), internal, "{name}");
        assert_eq!(gpu.stray_error(), None);
    }
}

#[test]
fn many_threads_share_a_segment() {
    let mut b = Build::new();
    let x = b.upload(&[1000], &vec![0f32; 1000]);
    let operand = b.whole(x);
    let y = b.row("square", &[operand], &[1000]);
    b.download(y);
    for gpu in gpus() {
        let segment = b.compile(&gpu, &GpuVariables::new(&gpu)).with_max_instances(3);
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let segment = &segment;
                scope.spawn(move || {
                    for i in 0..10 {
                        let x = vec![(thread * 100 + i) as f32; 1000];
                        let lease = segment.lease(&|| Ok(())).unwrap();
                        let run = segment.run(&lease, &[bytemuck::cast_slice(&x)]).unwrap();
                        let y: Vec<f32> = elements(&run.downloads[0]);
                        assert!(y.iter().all(|&y| y == x[0] * x[0]));
                    }
                });
            }
        });
    }
}

#[test]
fn leases_are_bounded_and_errors_have_kinds() {
    let gpu = Gpu::open(&Adapter::noop(), &GpuOptions::default()).unwrap();
    let b = model();
    let segment = b.compile(&gpu, &GpuVariables::new(&gpu)).with_max_instances(1);
    let first = segment.lease(&|| Ok(())).unwrap();
    let asked = Cell::new(0);
    let ends = || {
        asked.set(asked.get() + 1);
        if asked.get() < 3 { Ok(()) } else { Err(Error::new(ErrorKind::DeadlineExceeded, "late")) }
    };
    assert_eq!(segment.lease(&ends).unwrap_err().message(), "late");
    let error = segment.run(&first, &[]).unwrap_err();
    assert_eq!(error.message(), "expected 1 uploads, got 0");
    let error = segment.run(&first, &[&[1, 2, 3]]).unwrap_err();
    assert_eq!(error.message(), "expected 2560 bytes for v0 of shape [32, 20], got 3");
    drop(first);
    segment.lease(&|| Ok(())).unwrap();
    gpu.destroy();
    let lease = segment.lease(&|| Ok(())).unwrap();
    let error = segment.run(&lease, &b.uploads()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[test]
fn a_budget_that_is_too_small_is_an_error() {
    let options = GpuOptions { budget_bytes: Some(1000), ..GpuOptions::default() };
    let gpu = Gpu::open(&Adapter::noop(), &options).unwrap();
    let error =
        crate::segment::GpuSegment::compile(&gpu, &model().program, 0, &GpuVariables::new(&gpu));
    assert_eq!(Error::from(error.unwrap_err()).kind(), ErrorKind::ResourceExhausted);
}
