// reduce: elements become one, a workgroup for each result.
//
// Result w is of the elements chunk * c .. min(inner, chunk * (c + 1)) of row o, where w = o * chunks + c. The
// lanes of a workgroup stride over them, then combine by halves. More than one chunk is the first of two
// stages. Twin: reduce_lanes.wgsl, an invocation for each result.
// CPU twin: crates/graph-core/src/ops/reduce.rs
//
// param results: u32
// param inner: u32
// param chunk: u32
// param chunks: u32
// hole const WG = 256u;
// hole alias Acc = u32;
// hole fn identity() -> Acc { return 0u; }
// hole fn combine(a: Acc, b: Acc) -> Acc { return a + b; }
// hole fn row_start(o: u32) -> u32 { return o; }
// hole fn load(start: u32, j: u32) -> Acc { return start + j; }
// hole fn finish(w: u32, acc: Acc) { }
// import place

var<workgroup> lanes: array<Acc, WG>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let w = linear(group, groups);
    if w >= p.results { return; } // The whole workgroup leaves, before any barrier.
    let start = row_start(w / p.chunks);
    let first = (w % p.chunks) * p.chunk;
    let end = min(p.inner, first + p.chunk);

    var acc = identity();
    for (var j = first + lane; j < end; j += WG) {
        acc = combine(acc, load(start, j));
    }

    lanes[lane] = acc;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if lane < half { lanes[lane] = combine(lanes[lane], lanes[lane + half]); }
        workgroupBarrier();
    }
    if lane == 0u { finish(w, lanes[0]); }
}

const WG = 256u;
fn row_start(i: u32) -> u32 { return p.x; }
fn at_0(start: u32, i: u32) -> u32 { return start + i; }
fn element_at(start: u32, j: u32) -> f32 { return b0[at_0(start, j)]; }
alias Acc = f32;
fn identity() -> Acc { return p.identity; }
fn load(start: u32, j: u32) -> Acc { return element_at(start, j); }
fn combine(a: Acc, b: Acc) -> Acc { return a + b; }
fn store(i: u32, v: f32) { b1[i] = v; }
fn finish(w: u32, acc: Acc) { store(w, acc); }
struct Params { results: u32, inner: u32, chunk: u32, chunks: u32, x: u32, identity: f32, }
@group(0) @binding(0) var<storage, read> b0: array<f32>;
@group(0) @binding(1) var<storage, read_write> b1: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;
// place: the number of a workgroup in a grid that was folded because a dimension stops at 65,535.

fn linear(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
