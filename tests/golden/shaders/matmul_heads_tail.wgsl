// matmul: the sum over k of a[z, i, k] * b[z, k, j].
//
// A workgroup of SIDE * SIDE invocations computes a tile of 4 SIDE rows and columns of one matrix z, or, with
// several splits, its sum over one part of k; split s of z is matrix s * batches + z of the result. An
// invocation keeps 4 rows of 4 columns in named registers; 16 steps of k at a time go through workgroup
// memory, where 4 rows of a, or 4 columns of b, are a vector.
// CPU twin: crates/graph-core/src/ops/matmul.rs
// Source: the register tile of tfjs-backend-webgpu's packed matmul.
//
// param k: u32
// param batches: u32
// param splits: u32
// param split: u32
// param tiles_m: u32
// param tiles_n: u32
// hole const SIDE = 8u;
// hole const PER = 1u;
// hole alias T = f32;
// hole fn a_start(z: u32) -> u32 { return z; }
// hole fn b_start(z: u32) -> u32 { return z; }
// import place, tiles

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = linear(group, groups);
    let matrix = tile / (p.tiles_n * p.tiles_m);
    if matrix >= p.batches * p.splits { return; } // The whole workgroup leaves, before any barrier.
    let i = tile / p.tiles_n % p.tiles_m * (4u * SIDE);
    let j = tile % p.tiles_n * (4u * SIDE);
    let a = a_start(matrix % p.batches);
    let b = b_start(matrix % p.batches);
    let begin = matrix / p.batches * p.split;
    let end = min(p.k, begin + p.split);
    let row = lane / SIDE;
    let column = lane % SIDE;

    var c0 = vec4<T>();
    var c1 = vec4<T>();
    var c2 = vec4<T>();
    var c3 = vec4<T>();
    for (var k = begin; k < end; k += DEPTH) {
        fetch(lane, a, b, i, j, k, end);
        workgroupBarrier();
        for (var step = 0u; step < DEPTH; step += 4u) {
            let a0 = tile_a[row * STEPS_A + step];
            let a1 = tile_a[row * STEPS_A + step + 1u];
            let a2 = tile_a[row * STEPS_A + step + 2u];
            let a3 = tile_a[row * STEPS_A + step + 3u];
            let b0 = tile_b[step * SIDE + column];
            let b1 = tile_b[(step + 1u) * SIDE + column];
            let b2 = tile_b[(step + 2u) * SIDE + column];
            let b3 = tile_b[(step + 3u) * SIDE + column];
            c0 += a0.x * b0 + a1.x * b1 + a2.x * b2 + a3.x * b3;
            c1 += a0.y * b0 + a1.y * b1 + a2.y * b2 + a3.y * b3;
            c2 += a0.z * b0 + a1.z * b1 + a2.z * b2 + a3.z * b3;
            c3 += a0.w * b0 + a1.w * b1 + a2.w * b2 + a3.w * b3;
        }
        workgroupBarrier();
    }

    let r = i + row * 4u;
    let s = j + column * 4u;
    store_four(matrix, r, s, c0);
    store_four(matrix, r + 1u, s, c1);
    store_four(matrix, r + 2u, s, c2);
    store_four(matrix, r + 3u, s, c3);
}

const PER = 1u;
fn at_1(i: u32) -> u32 { var at = p.x1; var rest = i; at += rest % p.h0_d1 * p.x1_s1; rest /= p.h0_d1; return at + rest * p.x1_s0; }
fn load_1(i: u32) -> f32 { return b0[at_1(i)]; }
fn at_2(i: u32) -> u32 { var at = p.x2; var rest = i; at += rest % p.h0_d1 * p.x2_s1; rest /= p.h0_d1; return at + rest * p.x2_s0; }
fn load_2(i: u32) -> f32 { return b1[at_2(i)]; }
fn row_mul_f32(x: f32, y: f32) -> f32 { return x * y; }
fn head_0(i: u32) -> f32 {
    let i1 = load_1(i);
    let i2 = load_2(i);
    let c0 = p.c0;
    let t0 = row_mul_f32(i1, c0);
    let t1 = row_mul_f32(t0, i2);
    return t1;
}
fn a_start(i: u32) -> u32 { return p.xa; }
fn load_a(start: u32, row: u32, column: u32) -> T { return head_0(start + row * p.xa_row + column); }
fn at_3(i: u32) -> u32 { var at = p.x3; var rest = i; at += rest % p.h1_d1 * p.x3_s1; rest /= p.h1_d1; return at + rest * p.x3_s0; }
fn load_3(i: u32) -> f32 { return b2[at_3(i)]; }
fn at_4(i: u32) -> u32 { var at = p.x4; var rest = i; at += rest % p.h1_d1 * p.x4_s1; rest /= p.h1_d1; return at + rest * p.x4_s0; }
fn load_4(i: u32) -> f32 { return b3[at_4(i)]; }
fn head_1(i: u32) -> f32 {
    let i3 = load_3(i);
    let i4 = load_4(i);
    let c1 = p.c1;
    let t0 = row_mul_f32(i3, c1);
    let t1 = row_mul_f32(t0, i4);
    return t1;
}
fn b_start(i: u32) -> u32 { return p.xb; }
fn load_b(start: u32, row: u32, column: u32) -> T { return head_1(start + row * p.xb_row + column); }
alias T = f32;
const SIDE = 8u;
fn at_tail(i: u32) -> u32 { return 0u + i; }
fn at_5(i: u32) -> u32 { var at = p.x5; var rest = i; at += rest % p.e1 * p.x5_s1; rest /= p.e1; return at + rest * p.x5_s0; }
fn load_5(i: u32) -> f32 { return b4[at_5(i)]; }
fn row_add_f32(x: f32, y: f32) -> f32 { return x + y; }
fn row_maximum_f32(x: f32, y: f32) -> f32 { return max(x, y); }
fn store(at: u32, v: f32) {
    let i = at_tail(at);
    let i0 = v;
    let i5 = load_5(i);
    let t0 = row_add_f32(i0, i5);
    let t1 = row_maximum_f32(t0, i5);
    b5[i] = t1;
}
struct Params { h0_d1: u32, x1: u32, x1_s0: u32, x1_s1: u32, x2: u32, x2_s0: u32, x2_s1: u32, c0: f32, xa: u32, xa_row: u32, h1_d1: u32, x3: u32, x3_s0: u32, x3_s1: u32, x4: u32, x4_s0: u32, x4_s1: u32, c1: f32, xb: u32, xb_row: u32, m: u32, n: u32, k: u32, batches: u32, splits: u32, split: u32, tiles_m: u32, tiles_n: u32, e1: u32, x5: u32, x5_s0: u32, x5_s1: u32, }
@group(0) @binding(0) var<storage, read> b0: array<f32>;
@group(0) @binding(1) var<storage, read> b1: array<f32>;
@group(0) @binding(2) var<storage, read> b2: array<f32>;
@group(0) @binding(3) var<storage, read> b3: array<f32>;
@group(0) @binding(4) var<storage, read> b4: array<f32>;
@group(0) @binding(5) var<storage, read_write> b5: array<f32>;
@group(0) @binding(6) var<uniform> p: Params;
// place: the number of a workgroup in a grid that was folded because a dimension stops at 65,535.

fn linear(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
// tiles: what kernels of products share: how a part of both matrices comes into workgroup memory, and how results
// leave.
//
// A workgroup has SIDE * SIDE invocations, and PER vectors of 4 rows and of 4 columns for each along a side. DEPTH
// steps of k are in workgroup memory at a time.
//
// param m: u32
// param n: u32
// hole const SIDE = 8u;
// hole const PER = 1u;
// hole alias T = f32;
// hole fn load_a(start: u32, i: u32, k: u32) -> T { return T(start + i * k); }
// hole fn load_b(start: u32, k: u32, j: u32) -> T { return T(start + j * k); }
// hole fn store(i: u32, v: T) { }

const DEPTH = 16u;
const LANES = SIDE * SIDE;
const VECTORS = PER * SIDE; // Of 4 rows or columns.
const STEPS_A = DEPTH + 1u; // One more than needed, against conflicts of banks.

var<workgroup> tile_a: array<vec4<T>, STEPS_A * VECTORS>;
var<workgroup> tile_b: array<vec4<T>, DEPTH * VECTORS>;

fn a_or_zero(start: u32, i: u32, k: u32, end: u32) -> T {
    if i < p.m && k < end { return load_a(start, i, k); }
    return T();
}

fn b_or_zero(start: u32, k: u32, j: u32, end: u32) -> T {
    if j < p.n && k < end { return load_b(start, k, j); }
    return T();
}

fn store_four(matrix: u32, i: u32, j: u32, v: vec4<T>) {
    if i >= p.m { return; }
    let at = (matrix * p.m + i) * p.n + j;
    if j < p.n { store(at, v.x); }
    if j + 1u < p.n { store(at + 1u, v.y); }
    if j + 2u < p.n { store(at + 2u, v.z); }
    if j + 3u < p.n { store(at + 3u, v.w); }
}

// 4 rows from i of column k, and 4 columns from j of row k.
fn fetch(lane: u32, a: u32, b: u32, i: u32, j: u32, k: u32, end: u32) {
    for (var at = lane; at < DEPTH * VECTORS; at += LANES) {
        let ka = k + at % DEPTH;
        let ia = i + at / DEPTH * 4u;
        tile_a[at / DEPTH * STEPS_A + at % DEPTH] = vec4<T>(
            a_or_zero(a, ia, ka, end), a_or_zero(a, ia + 1u, ka, end),
            a_or_zero(a, ia + 2u, ka, end), a_or_zero(a, ia + 3u, ka, end));
        let kb = k + at / VECTORS;
        let jb = j + at % VECTORS * 4u;
        tile_b[at] = vec4<T>(
            b_or_zero(b, kb, jb, end), b_or_zero(b, kb, jb + 1u, end),
            b_or_zero(b, kb, jb + 2u, end), b_or_zero(b, kb, jb + 3u, end));
    }
}
