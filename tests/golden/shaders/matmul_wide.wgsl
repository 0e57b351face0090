// matmul_wide: the sum over k of a[z, i, k] * b[z, k, j], as matmul.wgsl, with four times as many elements for each
// invocation.
//
// A workgroup of SIDE * SIDE invocations computes a tile of 8 SIDE rows and columns of one matrix z, or, with
// several splits, its sum over one part of k; split s of z is matrix s * batches + z of the result. An
// invocation keeps 8 rows of 8 columns in named registers; 16 steps of k at a time go through workgroup
// memory, where 4 rows of a, or 4 columns of b, are a vector.
// Twin: matmul.wgsl, whose invocations need fewer registers.
// CPU twin: crates/graph-core/src/ops/matmul.rs
//
// param k: u32
// param batches: u32
// param splits: u32
// param split: u32
// param tiles_m: u32
// param tiles_n: u32
// hole const SIDE = 8u;
// hole const PER = 2u;
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
    let i = tile / p.tiles_n % p.tiles_m * (8u * SIDE);
    let j = tile % p.tiles_n * (8u * SIDE);
    let a = a_start(matrix % p.batches);
    let b = b_start(matrix % p.batches);
    let begin = matrix / p.batches * p.split;
    let end = min(p.k, begin + p.split);
    let row = lane / SIDE;
    let column = lane % SIDE;

    // Rows 0 to 3 and 4 to 7 are SIDE vectors apart, and so are columns: neighbours read neighbours.
    var c0 = vec4<T>(); var d0 = vec4<T>();
    var c1 = vec4<T>(); var d1 = vec4<T>();
    var c2 = vec4<T>(); var d2 = vec4<T>();
    var c3 = vec4<T>(); var d3 = vec4<T>();
    var c4 = vec4<T>(); var d4 = vec4<T>();
    var c5 = vec4<T>(); var d5 = vec4<T>();
    var c6 = vec4<T>(); var d6 = vec4<T>();
    var c7 = vec4<T>(); var d7 = vec4<T>();
    for (var k = begin; k < end; k += DEPTH) {
        fetch(lane, a, b, i, j, k, end);
        workgroupBarrier();
        for (var step = 0u; step < DEPTH; step++) {
            let a0 = tile_a[row * STEPS_A + step];
            let a1 = tile_a[(row + SIDE) * STEPS_A + step];
            let b0 = tile_b[step * VECTORS + column];
            let b1 = tile_b[step * VECTORS + column + SIDE];
            c0 += a0.x * b0; d0 += a0.x * b1;
            c1 += a0.y * b0; d1 += a0.y * b1;
            c2 += a0.z * b0; d2 += a0.z * b1;
            c3 += a0.w * b0; d3 += a0.w * b1;
            c4 += a1.x * b0; d4 += a1.x * b1;
            c5 += a1.y * b0; d5 += a1.y * b1;
            c6 += a1.z * b0; d6 += a1.z * b1;
            c7 += a1.w * b0; d7 += a1.w * b1;
        }
        workgroupBarrier();
    }

    let r = i + row * 4u;
    let s = j + column * 4u;
    let t = r + 4u * SIDE;
    let u = s + 4u * SIDE;
    store_four(matrix, r, s, c0); store_four(matrix, r, u, d0);
    store_four(matrix, r + 1u, s, c1); store_four(matrix, r + 1u, u, d1);
    store_four(matrix, r + 2u, s, c2); store_four(matrix, r + 2u, u, d2);
    store_four(matrix, r + 3u, s, c3); store_four(matrix, r + 3u, u, d3);
    store_four(matrix, t, s, c4); store_four(matrix, t, u, d4);
    store_four(matrix, t + 1u, s, c5); store_four(matrix, t + 1u, u, d5);
    store_four(matrix, t + 2u, s, c6); store_four(matrix, t + 2u, u, d6);
    store_four(matrix, t + 3u, s, c7); store_four(matrix, t + 3u, u, d7);
}

const PER = 2u;
fn a_start(i: u32) -> u32 { return p.xa; }
fn load_a(start: u32, row: u32, column: u32) -> T { return b0[start + row * p.xa_row + column]; }
fn b_start(i: u32) -> u32 { return p.xb; }
fn load_b(start: u32, row: u32, column: u32) -> T { return b1[start + row * p.xb_row + column]; }
alias T = f32;
const SIDE = 8u;
fn store(i: u32, v: f32) { b2[i] = v; }
struct Params { xa: u32, xa_row: u32, xb: u32, xb_row: u32, m: u32, n: u32, k: u32, batches: u32, splits: u32, split: u32, tiles_m: u32, tiles_n: u32, }
@group(0) @binding(0) var<storage, read> b0: array<f32>;
@group(0) @binding(1) var<storage, read> b1: array<f32>;
@group(0) @binding(2) var<storage, read_write> b2: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;
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
