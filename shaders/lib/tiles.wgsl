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
