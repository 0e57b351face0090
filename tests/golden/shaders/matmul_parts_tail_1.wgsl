// reduce_lanes: elements become one, an invocation for each result.
//
// For few elements per result, and for columns, where neighbouring results lie side by side. Result
// w = o * chunks + c is of the elements chunk * c .. min(inner, chunk * (c + 1)) of row o; neighbouring
// invocations have neighbouring rows. Twin: reduce.wgsl, a workgroup for each result.
// CPU twin: crates/graph-core/src/ops/reduce.rs
//
// param results: u32
// param inner: u32
// param chunk: u32
// param chunks: u32
// hole const WG = 64u;
// hole alias Acc = u32;
// hole fn identity() -> Acc { return 0u; }
// hole fn combine(a: Acc, b: Acc) -> Acc { return a + b; }
// hole fn row_start(o: u32) -> u32 { return o; }
// hole fn load(start: u32, j: u32) -> Acc { return start + j; }
// hole fn finish(w: u32, acc: Acc) { }
// import place

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = linear(group, groups) * WG + lane;
    if item >= p.results { return; }
    let rows = p.results / p.chunks;
    let o = item % rows;
    let c = item / rows;
    let start = row_start(o);
    let end = min(p.inner, p.chunk * (c + 1u));

    var acc = identity();
    for (var j = p.chunk * c; j < end; j++) {
        acc = combine(acc, load(start, j));
    }
    finish(o * p.chunks + c, acc);
}

const WG = 64u;
fn row_start(i: u32) -> u32 { return p.x + i; }
fn at_0(start: u32, i: u32) -> u32 { var at = start; var rest = i; return at + rest * p.j_s0; }
fn element_at(start: u32, j: u32) -> f32 { return b0[at_0(start, j)]; }
alias Acc = f32;
fn identity() -> Acc { return p.identity; }
fn load(start: u32, j: u32) -> Acc { return element_at(start, j); }
fn combine(a: Acc, b: Acc) -> Acc { return a + b; }
fn at_tail(i: u32) -> u32 { return 0u + i; }
fn at_1(i: u32) -> u32 { var at = p.x1; var rest = i; at += rest % p.e1 * p.x1_s1; rest /= p.e1; return at + rest * p.x1_s0; }
fn load_1(i: u32) -> f32 { return b1[at_1(i)]; }
fn row_add_f32(x: f32, y: f32) -> f32 { return x + y; }
fn row_maximum_f32(x: f32, y: f32) -> f32 { return max(x, y); }
fn store(at: u32, v: f32) {
    let i = at_tail(at);
    let i0 = v;
    let i1 = load_1(i);
    let t0 = row_add_f32(i0, i1);
    let t1 = row_maximum_f32(t0, i1);
    b2[i] = t1;
}
fn finish(w: u32, acc: Acc) { store(w, acc); }
struct Params { results: u32, inner: u32, chunk: u32, chunks: u32, x: u32, j_s0: u32, identity: f32, e1: u32, x1: u32, x1_s0: u32, x1_s1: u32, }
@group(0) @binding(0) var<storage, read> b0: array<f32>;
@group(0) @binding(1) var<storage, read> b1: array<f32>;
@group(0) @binding(2) var<storage, read_write> b2: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;
// place: the number of a workgroup in a grid that was folded because a dimension stops at 65,535.

fn linear(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
