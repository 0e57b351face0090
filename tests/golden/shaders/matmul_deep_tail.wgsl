// matmul_deep: the sum over k of a[z, i, k] * b[z, k, j], for few elements and long sums.
//
// A workgroup of LANES invocations, a power of two of at least 16, computes 4 rows and columns of one matrix
// z. Invocation l sums steps l, l + LANES, ... of k in named registers; then workgroup memory adds what the
// invocations have, in a fixed order. Twin: matmul.wgsl, with tiles that share what they load.
// CPU twin: crates/graph-core/src/ops/matmul.rs
//
// param m: u32
// param n: u32
// param k: u32
// param batches: u32
// param tiles_m: u32
// param tiles_n: u32
// hole const LANES = 64u;
// hole alias T = f32;
// hole fn a_start(z: u32) -> u32 { return z; }
// hole fn b_start(z: u32) -> u32 { return z; }
// hole fn load_a(start: u32, i: u32, k: u32) -> T { return T(start + i * k); }
// hole fn load_b(start: u32, k: u32, j: u32) -> T { return T(start + j * k); }
// hole fn store(i: u32, v: T) { }
// import place

var<workgroup> parts: array<vec4<T>, 4u * LANES>; // Row r of invocation l is element r * LANES + l.

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = linear(group, groups);
    let matrix = tile / (p.tiles_n * p.tiles_m);
    if matrix >= p.batches { return; } // The whole workgroup leaves, before any barrier.
    let i = tile / p.tiles_n % p.tiles_m * 4u;
    let j = tile % p.tiles_n * 4u;
    let a = a_start(matrix);
    let b = b_start(matrix);
    // Beyond an edge, the last row and column are read again; their sums are not stored.
    let rows = min(vec3<u32>(i + 1u, i + 2u, i + 3u), vec3<u32>(p.m - 1u));
    let columns = min(vec3<u32>(j + 1u, j + 2u, j + 3u), vec3<u32>(p.n - 1u));

    var c0 = vec4<T>();
    var c1 = vec4<T>();
    var c2 = vec4<T>();
    var c3 = vec4<T>();
    for (var k = lane; k < p.k; k += LANES) {
        let row = vec4<T>(
            load_b(b, k, j), load_b(b, k, columns.x), load_b(b, k, columns.y), load_b(b, k, columns.z));
        c0 += load_a(a, i, k) * row;
        c1 += load_a(a, rows.x, k) * row;
        c2 += load_a(a, rows.y, k) * row;
        c3 += load_a(a, rows.z, k) * row;
    }

    parts[lane] = c0;
    parts[LANES + lane] = c1;
    parts[2u * LANES + lane] = c2;
    parts[3u * LANES + lane] = c3;
    // A quarter of the invocations adds up each row.
    let quarter = LANES / 4u;
    let own = lane / quarter * LANES + lane % quarter;
    workgroupBarrier();
    parts[own] += parts[own + quarter] + parts[own + 2u * quarter] + parts[own + 3u * quarter];
    for (var half = quarter / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % quarter < half { parts[own] += parts[own + half]; }
    }
    workgroupBarrier();

    let r = lane / 4u;
    let s = lane % 4u;
    if lane < 16u && i + r < p.m && j + s < p.n {
        store((matrix * p.m + i + r) * p.n + j + s, parts[r * LANES][s]);
    }
}

fn a_start(i: u32) -> u32 { return p.xa; }
fn load_a(start: u32, row: u32, column: u32) -> T { return b0[start + row * p.xa_row + column]; }
fn b_start(i: u32) -> u32 { return p.xb; }
fn load_b(start: u32, row: u32, column: u32) -> T { return b1[start + row * p.xb_row + column]; }
alias T = f32;
const LANES = 256u;
fn at_tail(i: u32) -> u32 { return 0u + i; }
fn at_1(i: u32) -> u32 { var at = p.x1; var rest = i; at += rest % p.e1 * p.x1_s1; rest /= p.e1; return at + rest * p.x1_s0; }
fn load_1(i: u32) -> f32 { return b2[at_1(i)]; }
fn row_add_f32(x: f32, y: f32) -> f32 { return x + y; }
fn row_maximum_f32(x: f32, y: f32) -> f32 { return max(x, y); }
fn store(at: u32, v: f32) {
    let i = at_tail(at);
    let i0 = v;
    let i1 = load_1(i);
    let t0 = row_add_f32(i0, i1);
    let t1 = row_maximum_f32(t0, i1);
    b3[i] = t1;
}
struct Params { xa: u32, xa_row: u32, xb: u32, xb_row: u32, m: u32, n: u32, k: u32, batches: u32, tiles_m: u32, tiles_n: u32, e1: u32, x1: u32, x1_s0: u32, x1_s1: u32, }
@group(0) @binding(0) var<storage, read> b0: array<f32>;
@group(0) @binding(1) var<storage, read> b1: array<f32>;
@group(0) @binding(2) var<storage, read> b2: array<f32>;
@group(0) @binding(3) var<storage, read_write> b3: array<f32>;
@group(0) @binding(4) var<uniform> p: Params;
// place: the number of a workgroup in a grid that was folded because a dimension stops at 65,535.

fn linear(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
