//! Elementwise steps of one level and one kind become one dispatch.

use convoke_compiler::Operand;

use super::harness::*;
use crate::gpu::{Adapter, Gpu, GpuOptions, LimitOverrides};
use crate::segment::GpuVariables;

/// `x - s` for each size, with `s` a scalar; gives what is subtracted from.
pub(super) fn differences(b: &mut Build, sizes: &[usize]) -> Vec<Vec<f32>> {
    let s = b.upload(&[], &[0.5f32]);
    let xs: Vec<Vec<f32>> = (1..).zip(sizes).map(|(seed, &n)| noise(n, seed)).collect();
    for x in &xs {
        let dims = [x.len()];
        let id = b.upload(&dims, x);
        let inputs = [b.whole(id), scalar(s, &dims)];
        let y = b.row("sub", &inputs, &dims);
        b.download(y);
    }
    xs
}

fn scalar(value: convoke_compiler::ValueId, dims: &[usize]) -> Operand {
    Operand { value, layout: packed(&[]).broadcast(&shape(dims)).unwrap() }
}

#[test]
fn steps_of_one_kind_are_one_dispatch() {
    let mut b = Build::new();
    let mut expected: Vec<Vec<f32>> = differences(&mut b, &[1, 256, 300, 257, 5000, 0]);
    expected.iter_mut().flatten().for_each(|x| *x -= 0.5);
    // However they lie: rows of a matrix less a vector. And another kind.
    for ([m, n], kind) in [([3, 5], "sub"), ([70, 9], "sub"), ([2, 3], "mul")] {
        let (x, v) = (noise(m * n, 7), noise(n, 8));
        let (at, by) = (b.upload(&[m, n], &x), b.upload(&[n], &v));
        let by = Operand { value: by, layout: packed(&[n]).broadcast(&shape(&[m, n])).unwrap() };
        let inputs = [b.whole(at), by];
        let y = b.row(kind, &inputs, &[m, n]);
        b.download(y);
        let both = x.iter().zip(v.iter().cycle());
        expected.push(both.map(|(x, v)| if kind == "sub" { x - v } else { x * v }).collect());
    }
    b.on_all(|device, downloads| {
        assert_eq!(downloads.len(), expected.len());
        for (i, (bytes, expected)) in downloads.iter().zip(&expected).enumerate() {
            assert_near(&elements(bytes), expected, 0.0, &format!("{device}: {i}"));
        }
    });
    let binds_all = |gpu: &Gpu| gpu.info().limits.max_storage_buffers_per_shader_stage >= 20;
    let gpus = gpus();
    assert!(gpus.is_empty() || gpus.iter().any(binds_all));
    for gpu in gpus.into_iter().filter(binds_all) {
        let segment = b.compile(&gpu, &GpuVariables::new(&gpu));
        assert_eq!((segment.n_dispatches(), segment.n_barriers()), (2, 0), "{segment}");
        let groups: Vec<Vec<u32>> =
            segment.origins().map(|all| all.iter().map(|origin| origin.group).collect()).collect();
        assert_eq!(groups, [vec![0, 1, 2, 3, 4, 6, 7], vec![8]]);
        let shares = segment.origins().next().unwrap().iter().map(|origin| origin.share);
        assert_eq!(shares.collect::<Vec<_>>(), [1, 256, 300, 257, 5000, 15, 630]);
    }
}

/// Each group binds two places of its own, and all of them the scalar.
#[test]
fn steps_are_together_as_far_as_they_can_be_bound() {
    let on = |gpu: &Gpu, n: usize| {
        let mut b = Build::new();
        differences(&mut b, &vec![10; n]);
        b.compile(gpu, &GpuVariables::new(gpu)).n_dispatches()
    };
    let dispatches = |n: usize, bindings: u32| {
        let limits = LimitOverrides {
            max_storage_buffers_per_shader_stage: Some(bindings),
            ..LimitOverrides::default()
        };
        let options = GpuOptions { limits: Some(limits), ..GpuOptions::default() };
        on(&Gpu::open(&Adapter::noop(), &options).unwrap(), n)
    };
    // Seven beside the status word: three groups.
    assert_eq!([3, 4, 6, 7].map(|n| dispatches(n, 8)), [1, 2, 2, 3]);
    assert_eq!([2, 3].map(|n| dispatches(n, 4)), [2, 3]);
    for gpu in gpus() {
        // At most sixteen groups, where there are bindings for as many.
        let each = (gpu.info().limits.max_storage_buffers_per_shader_stage as usize - 2) / 2;
        let each = each.min(16);
        assert_eq!([each, each + 1].map(|n| on(&gpu, n)), [1, 2], "{}", gpu.info().name);
    }
}

#[test]
fn what_follows_is_apart() {
    let mut b = Build::new();
    let (x, s) = (b.upload(&[9], &noise(9, 1)), b.upload(&[], &[0.5f32]));
    let inputs = [b.whole(x), scalar(s, &[9])];
    let y = b.row("sub", &inputs, &[9]);
    let inputs = [b.whole(y), scalar(s, &[9])];
    let z = b.row("sub", &inputs, &[9]);
    b.download(z);
    let gpu = Gpu::open(&Adapter::noop(), &GpuOptions::default()).unwrap();
    let segment = b.compile(&gpu, &GpuVariables::new(&gpu));
    assert_eq!((segment.n_dispatches(), segment.n_barriers()), (2, 1), "{segment}");
}
