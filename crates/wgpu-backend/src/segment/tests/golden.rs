//! The text of assembled kernels and a printed schedule, compared with files. `UPDATE_EXPECT=1` writes them.

use std::path::PathBuf;

use convoke_compiler::{Arg, Fold, Fused, Instr, Kernel, Operand, Rows};
use convoke_graph_core::{DType, Elementwise, ReduceKind};
use expect_test::ExpectFile;
use smallvec::SmallVec;

use super::harness::*;
use super::together::differences;
use super::translate::with_subgroups;
use crate::gpu::{Adapter, AdapterKind, Gpu, GpuOptions};
use crate::segment::schedule::{Merging, Schedule, schedule};

fn golden(name: &str) -> ExpectFile {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"));
    ExpectFile { path: folder.join(name), position: "golden.rs" }
}

fn scheduled(b: &Build, wide_tiles: bool) -> Schedule {
    let options = GpuOptions { wide_tiles: Some(wide_tiles), ..GpuOptions::default() };
    let gpu = Gpu::open(&Adapter::noop(), &options).unwrap();
    schedule(gpu.info(), &b.program, &b.program.segments[0], Merging::Alike).unwrap()
}

/// The kernels of the one group that `build` makes.
fn check(name: &str, build: impl FnOnce(&mut Build)) {
    check_tiles(name, false, build);
}

fn check_tiles(name: &str, wide: bool, build: impl FnOnce(&mut Build)) {
    let mut b = Build::new();
    build(&mut b);
    compare(name, &scheduled(&b, wide));
}

/// The same on a device whose subgroups have so many invocations.
fn check_subgroups(name: &str, kind: AdapterKind, size: u32, build: impl FnOnce(&mut Build)) {
    let mut b = Build::new();
    build(&mut b);
    let gpu = Gpu::open(&Adapter::noop(), &GpuOptions::default()).unwrap();
    let info = with_subgroups(gpu.info(), kind, size);
    compare(name, &schedule(&info, &b.program, &b.program.segments[0], Merging::Alike).unwrap());
}

fn compare(name: &str, schedule: &Schedule) {
    for (i, (_, step)) in schedule.steps.iter().enumerate() {
        let end = if schedule.steps.len() > 1 { format!("_{i}") } else { String::new() };
        let text = step.kernel.assemble();
        golden(&format!("shaders/{name}{end}.wgsl")).assert_eq(&text);
    }
}

fn broadcast(b: &mut Build, from: &[usize], to: &[usize]) -> Operand {
    let value = b.upload(from, &vec![0f32; shape(from).len()]);
    Operand { value, layout: packed(from).broadcast(&shape(to)).unwrap() }
}

#[test]
fn elementwise() {
    check("elementwise_broadcast", |b| {
        let inputs = [broadcast(b, &[4, 1], &[4, 5]), broadcast(b, &[5], &[4, 5])];
        b.row("mul", &inputs, &[4, 5]);
    });
    check("elementwise_bool", |b| {
        let inputs = [broadcast(b, &[7], &[7]), broadcast(b, &[], &[7])];
        b.row("less", &inputs, &[7]);
    });
    check("elementwise_together", |b| {
        differences(b, &[3, 300, 5]);
    });
}

#[test]
fn reductions() {
    for (name, kind, m, k) in [
        ("reduce", ReduceKind::Sum, 3, 100),
        ("reduce_lanes", ReduceKind::Max, 100, 3),
        ("reduce_place", ReduceKind::ArgMax, 3, 100),
        ("reduce_stages", ReduceKind::Mean, 1, 1 << 20),
    ] {
        let dtype = if kind == ReduceKind::ArgMax { DType::I32 } else { DType::F32 };
        check(name, |b| {
            let x = broadcast(b, &[m, k], &[m, k]);
            b.one(reduction(kind, 1), &[x], dtype, &[m]);
        });
    }
}

/// Softmax: two folds, the second of what the first one is needed for.
pub(super) fn softmax(dims: &[usize]) -> Kernel {
    let instr = |name, args: &[Arg]| Instr {
        op: Elementwise::Row(row(name)),
        args: SmallVec::from_slice(args),
        dtype: DType::F32,
    };
    let fused = Fused {
        shape: shape(dims),
        input_dtypes: [DType::F32; 3].into_iter().collect(),
        constants: Vec::new(),
        instrs: vec![
            instr("sub", &[Arg::Input(0), Arg::Input(1)]),
            instr("exp", &[Arg::Instr(0)]),
            instr("div", &[Arg::Instr(1), Arg::Input(2)]),
        ],
        stores: [Arg::Instr(2)].into_iter().collect(),
        check: None,
    };
    let folds = vec![
        Fold { kind: ReduceKind::Max, arg: Arg::Input(0) },
        Fold { kind: ReduceKind::Sum, arg: Arg::Instr(1) },
    ];
    Kernel::Rows(Rows { n_outer: 1, fused, folds, seen: None, totals: Vec::new() })
}

#[test]
fn rows() {
    for (name, dims) in [("rows", [3, 100]), ("rows_lanes", [3, 10])] {
        check(name, |b| {
            let x = broadcast(b, &dims, &dims);
            b.one(softmax(&dims), &[x], DType::F32, &dims);
        });
    }
}

#[test]
fn subgroups() {
    let software = AdapterKind::Cpu;
    for (name, kind, size, dims) in [
        ("rows_subgroups", AdapterKind::Discrete, 32, [3, 100]),
        ("rows_subgroups_software", software, 8, [3, 1000]),
    ] {
        check_subgroups(name, kind, size, |b| {
            let x = broadcast(b, &dims, &dims);
            b.one(softmax(&dims), &[x], DType::F32, &dims);
        });
    }
    check_subgroups("matmul_subgroups", software, 8, |b| {
        let inputs = [broadcast(b, &[33, 65], &[33, 65]), broadcast(b, &[65, 17], &[65, 17])];
        b.one(Kernel::Matmul, &inputs, DType::F32, &[33, 17]);
    });
    check_subgroups("reduce_subgroups", software, 8, |b| {
        let x = broadcast(b, &[3, 100], &[3, 100]);
        b.one(reduction(ReduceKind::Sum, 1), &[x], DType::F32, &[3]);
    });
}

#[test]
fn products() {
    let product = |b: &mut Build, [m, k, n]: [usize; 3]| {
        let inputs = [broadcast(b, &[m, k], &[m, k]), broadcast(b, &[k, n], &[k, n])];
        b.one(Kernel::Matmul, &inputs, DType::F32, &[m, n]);
    };
    check("matmul", |b| {
        product(b, [33, 65, 17]);
    });
    check_tiles("matmul_wide", true, |b| {
        product(b, [100, 65, 100]);
    });
    check("matmul_tail", |b| {
        product(b, [33, 65, 17]);
        let bias = broadcast(b, &[17], &[33, 17]);
        b.tail(bias);
    });
    check("matmul_heads_tail", |b| {
        product(b, [33, 65, 17]);
        let (columns, rows) = (broadcast(b, &[65], &[33, 65]), broadcast(b, &[65, 1], &[65, 17]));
        b.head(0, columns);
        b.head(1, rows);
        let bias = broadcast(b, &[17], &[33, 17]);
        b.tail(bias);
    });
    check("matmul_deep_tail", |b| {
        product(b, [4, 5000, 5]);
        let bias = broadcast(b, &[5], &[4, 5]);
        b.tail(bias);
    });
    check("matmul_parts_tail", |b| {
        product(b, [100, 5000, 100]);
        let bias = broadcast(b, &[100], &[100, 100]);
        b.tail(bias);
    });
}

#[test]
fn parts_of_concatenations() {
    check("concat_parts", |b| {
        let inputs = [broadcast(b, &[4, 1], &[4, 5]), broadcast(b, &[4, 5], &[4, 5])];
        let product = b.row("mul", &inputs, &[4, 5]);
        let parts = [b.whole(product), inputs[1].clone()];
        let whole = b.one(Kernel::Concat { axis: 1 }, &parts, DType::F32, &[4, 10]);
        b.download(whole);
    });
}

#[test]
fn moves() {
    check("pad", |b| {
        let x = broadcast(b, &[2, 3], &[2, 3]);
        b.one(Kernel::Pad { before: vec![1, 0] }, &[x], DType::F32, &[4, 3]);
    });
    check("concat", |b| {
        let inputs = [broadcast(b, &[2, 3], &[2, 3]), broadcast(b, &[2, 1], &[2, 1])];
        b.one(Kernel::Concat { axis: 1 }, &inputs, DType::F32, &[2, 4]);
    });
    let indexed = |b: &mut Build| {
        let indices = b.upload(&[7], &[0i32; 7]);
        b.whole(indices)
    };
    check("gather", |b| {
        let inputs = [broadcast(b, &[4, 5], &[4, 5]), indexed(b)];
        b.one(Kernel::Gather { axis: 0 }, &inputs, DType::F32, &[7, 5]);
    });
    check("scatter_add", |b| {
        let inputs = [indexed(b), broadcast(b, &[7, 5], &[7, 5])];
        b.one(Kernel::ScatterAdd { axis: 0 }, &inputs, DType::F32, &[4, 5]);
    });
}

/// A dense layer and the step that its gradient takes: the product goes straight into the variable.
#[test]
fn a_schedule() {
    let mut b = Build::new();
    let x = broadcast(&mut b, &[8, 4], &[8, 4]);
    let w = b.variable(1, DType::F32, &[4, 3]);
    let y = b.one(Kernel::Matmul, &[x.clone(), b.whole(w)], DType::F32, &[8, 3]);
    let turned = Operand { value: x.value, layout: packed(&[8, 4]).permute(&[1, 0]).unwrap() };
    b.one(Kernel::Matmul, &[turned, b.whole(y)], DType::F32, &[4, 3]);
    let next = b.tail(b.whole(w));
    b.commit(1, next);
    b.download(y);
    golden("schedules/dense_step.txt").assert_eq(&scheduled(&b, false).to_string());
}
