//! Which operands are made where they are loaded, printed.

use convoke_graph_core::{Conv2d, DType, Graph, Tensor, dims};
use expect_test::{Expect, expect};

use crate::tests::{host, program, signature};
use crate::{Apart, ValueId};

fn print(g: &Graph, fetches: &[&Tensor], feeds: &[(&Tensor, &[usize])]) -> String {
    let (tensors, shapes): (Vec<&Tensor>, Vec<&[usize]>) = feeds.iter().copied().unzip();
    let program = program(g, signature(fetches, &[], &tensors), &shapes, &host).unwrap();
    let line = |(value, why): &(ValueId, Apart)| format!("{value}: {why}\n");
    let text: String = program.apart.iter().map(line).collect();
    format!("{program}{text}")
}

#[track_caller]
fn check(expected: &Expect, fetches: &[&Tensor], g: &Graph, feeds: &[(&Tensor, &[usize])]) {
    expected.assert_eq(&print(g, fetches, feeds));
}

#[test]
fn what_is_loaded_is_scaled_and_cast() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::I32, dims![3, 4]);
    let w = g.placeholder("w", DType::F32, dims![5, 4]);
    let y = x.cast(DType::F32).matmul((&w * 0.5).transpose()) + 1.0;
    check(
        &expect![[r#"
        v0 i32[3, 4] = feed %0
        v1 f32[5, 4] = feed %1
        segment on device 0
          v5 f32[3, 5] = [operand 0: t0 = cast f32(i0); store t0; operand 1: t0 = mul(i0, f32[] [0.5]); store t0; matmul; t0 = add(i0, f32[] [1]); store t0] of v0, v1
        fetch v5
    "#]],
        &[&y],
        &g,
        &[(&x, &[3, 4]), (&w, &[5, 4])],
    );
}

#[test]
fn images_are_scaled_where_windows_meet_them() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::I32, dims![2, 3, 8, 8]);
    let w = g.placeholder("w", DType::F32, dims![4, 3, 3, 3]);
    let y = (x.cast(DType::F32) * (1.0 / 255.0)).conv2d(&w, Conv2d::default());
    check(
        &expect![[r#"
        v0 i32[2, 3, 8, 8] = feed %0
        v1 f32[4, 3, 3, 3] = feed %1
        segment on device 0
          v4 f32[2, 4, 6, 6] = [operand 0: t0 = cast f32(i0); t1 = mul(t0, f32[] [0.003921569]); store t1; conv2d [3, 3] stride [1, 1] dilation [1, 1] groups 1 pad [0, 0] Nchw] of v0, v1
        fetch v4
    "#]],
        &[&y],
        &g,
        &[(&x, &[2, 3, 8, 8]), (&w, &[4, 3, 3, 3])],
    );
}

#[test]
fn what_keeps_an_operand_in_memory() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![8, 512]);
    let w = g.placeholder("w", DType::F32, dims![512, 512]);
    let (turned, fetched) = (x.reshape(&[64, 64]).transpose() * 2.0, &w * 3.0);
    let fetches = [
        // Two products would each compute it.
        &(x.square().matmul(&w) + x.square().matmul(w.square().transpose())),
        // 16 tiles of columns would each compute a function.
        &x.tanh().matmul(&w),
        &x.matmul(&fetched),
        &fetched,
        &turned.matmul(turned.exp()),
    ];
    check(
        &expect![[r#"
            v0 f32[8, 512] = feed %0
            v1 f32[512, 512] = feed %1
            segment on device 0
              v3 f32[512, 512] = [t0 = mul(i0, f32[] [3]); store t0] of v1
              v4 f32[8, 512] = [t0 = square(i0); store t0] of v0
              v7 f32[8, 512] = [operand 1: t0 = square(i0); store t0; matmul] of v4, v1
              v8 f32[8, 512] = [matmul; t0 = add(i0, i1); store t0] of v4, v1, v7
              v9 f32[8, 512] = [t0 = tanh(i0); store t0] of v0
              v10 f32[8, 512] = [matmul] of v9, v1
              v11 f32[8, 512] = [matmul] of v0, v3
              v2 f32[64, 64], v12 f32[64, 64] = [t0 = mul(i0, f32[] [2]); t1 = exp(t0); store t0, t1] of v0[64, 64]+0*[1, 64]
              v13 f32[64, 64] = [matmul] of v2, v12
            fetch v8, v10, v11, v3, v13
            v3: a fetch or a variable needs it too
            v4: 2 kernels read it
            v7: both ends are more than elementwise work
            v9: it would be computed 16 times, which takes 240 operations an element and saves 64
            v2: the kernel that computes it stores 2 values
            v12: the kernel that computes it stores 2 values
        "#]],
        &fetches,
        &g,
        &[(&x, &[8, 512]), (&w, &[512, 512])],
    );
}
