// matmul_subgroups: the sum over k of a[z, i, k] * b[z, k, j], as matmul.wgsl, without workgroup memory: for adapters
// that are CPUs, where a barrier changes from each subgroup to the next, and each load costs as much as many products.
//
// A workgroup is a subgroup of 4 or 8 invocations, which computes 16 rows of 4 LANES columns of one matrix z, or,
// with several splits, its sum over one part of k; split s of z is matrix s * batches + z of the result. An invocation
// keeps 16 rows of 4 columns in named registers. For each k it loads its part of 16 elements of a, of which it gives
// each to all, and its own 4 of b.
// Twin: matmul_wide.wgsl.
// CPU twin: crates/graph-core/src/ops/matmul.rs
//
// param m: u32
// param n: u32
// param k: u32
// param batches: u32
// param splits: u32
// param split: u32
// param tiles_m: u32
// param tiles_n: u32
// hole const LANES = 8u;
// hole alias T = f32;
// hole fn a_start(z: u32) -> u32 { return z; }
// hole fn b_start(z: u32) -> u32 { return z; }
// hole fn load_a(start: u32, i: u32, k: u32) -> T { return T(start + i * k); }
// hole fn load_b(start: u32, k: u32, j: u32) -> T { return T(start + j * k); }
// hole fn store(i: u32, v: T) { }
// import place

const IS_EIGHT = LANES == 8u;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let tile = linear(group, groups);
    let matrix = tile / (p.tiles_n * p.tiles_m);
    if matrix >= p.batches * p.splits { return; } // The whole subgroup leaves.
    let i = tile / p.tiles_n % p.tiles_m * 16u;
    let j = tile % p.tiles_n * (4u * LANES) + lane;
    let a = a_start(matrix % p.batches);
    let b = b_start(matrix % p.batches);
    let begin = matrix / p.batches * p.split;
    let end = min(p.k, begin + p.split);
    // What would lie outside of a matrix is not stored; its last row or column stands for it.
    let rows = min(vec4<u32>(i + lane) + vec4<u32>(0u, 1u, 2u, 3u) * LANES, vec4<u32>(p.m - 1u));
    let columns = min(vec4<u32>(j) + vec4<u32>(0u, 1u, 2u, 3u) * LANES, vec4<u32>(p.n - 1u));

    var c0 = vec4<T>(); var c1 = vec4<T>(); var c2 = vec4<T>(); var c3 = vec4<T>();
    var c4 = vec4<T>(); var c5 = vec4<T>(); var c6 = vec4<T>(); var c7 = vec4<T>();
    var c8 = vec4<T>(); var c9 = vec4<T>(); var c10 = vec4<T>(); var c11 = vec4<T>();
    var c12 = vec4<T>(); var c13 = vec4<T>(); var c14 = vec4<T>(); var c15 = vec4<T>();
    for (var k = begin; k < end; k++) {
        // The rows 0 to 3, 4 to 7 and so on are in the first or second of 8 invocations' elements, or each in one of 4.
        let r0 = load_a(a, rows.x, k);
        let second = load_a(a, rows.y, k);
        var r1 = r0;
        var r2 = second;
        var r3 = second;
        if !IS_EIGHT {
            r1 = second;
            r2 = load_a(a, rows.z, k);
            r3 = load_a(a, rows.w, k);
        }
        let v = vec4<T>(
            load_b(b, k, columns.x), load_b(b, k, columns.y),
            load_b(b, k, columns.z), load_b(b, k, columns.w));
        c0 += subgroupBroadcast(r0, 0u) * v;
        c1 += subgroupBroadcast(r0, 1u) * v;
        c2 += subgroupBroadcast(r0, 2u) * v;
        c3 += subgroupBroadcast(r0, 3u) * v;
        c4 += subgroupBroadcast(r1, 4u % LANES) * v;
        c5 += subgroupBroadcast(r1, 5u % LANES) * v;
        c6 += subgroupBroadcast(r1, 6u % LANES) * v;
        c7 += subgroupBroadcast(r1, 7u % LANES) * v;
        c8 += subgroupBroadcast(r2, 8u % LANES) * v;
        c9 += subgroupBroadcast(r2, 9u % LANES) * v;
        c10 += subgroupBroadcast(r2, 10u % LANES) * v;
        c11 += subgroupBroadcast(r2, 11u % LANES) * v;
        c12 += subgroupBroadcast(r3, 12u % LANES) * v;
        c13 += subgroupBroadcast(r3, 13u % LANES) * v;
        c14 += subgroupBroadcast(r3, 14u % LANES) * v;
        c15 += subgroupBroadcast(r3, 15u % LANES) * v;
    }

    store_row(matrix, i + 0u, j, c0); store_row(matrix, i + 1u, j, c1);
    store_row(matrix, i + 2u, j, c2); store_row(matrix, i + 3u, j, c3);
    store_row(matrix, i + 4u, j, c4); store_row(matrix, i + 5u, j, c5);
    store_row(matrix, i + 6u, j, c6); store_row(matrix, i + 7u, j, c7);
    store_row(matrix, i + 8u, j, c8); store_row(matrix, i + 9u, j, c9);
    store_row(matrix, i + 10u, j, c10); store_row(matrix, i + 11u, j, c11);
    store_row(matrix, i + 12u, j, c12); store_row(matrix, i + 13u, j, c13);
    store_row(matrix, i + 14u, j, c14); store_row(matrix, i + 15u, j, c15);
}

fn store_row(matrix: u32, i: u32, j: u32, v: vec4<T>) {
    if i >= p.m { return; }
    let at = (matrix * p.m + i) * p.n + j;
    if j < p.n { store(at, v.x); }
    if j + LANES < p.n { store(at + LANES, v.y); }
    if j + 2u * LANES < p.n { store(at + 2u * LANES, v.z); }
    if j + 3u * LANES < p.n { store(at + 3u * LANES, v.w); }
}

fn a_start(i: u32) -> u32 { return p.xa; }
fn load_a(start: u32, row: u32, column: u32) -> T { return b0[start + row * p.xa_row + column]; }
fn b_start(i: u32) -> u32 { return p.xb; }
fn load_b(start: u32, row: u32, column: u32) -> T { return b1[start + row * p.xb_row + column]; }
alias T = f32;
const LANES = 8u;
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
