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
