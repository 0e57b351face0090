// reduce_subgroups: elements become one, a subgroup for each result.
//
// As reduce.wgsl, its twin, with the lanes of a subgroup, which is a whole workgroup: no lane waits at a barrier.
// CPU twin: crates/graph-core/src/ops/reduce.rs
//
// param results: u32
// param inner: u32
// param chunk: u32
// param chunks: u32
// hole const WG = 8u;
// hole alias Acc = u32;
// hole fn identity() -> Acc { return 0u; }
// hole fn combine(a: Acc, b: Acc) -> Acc { return a + b; }
// hole fn together(acc: Acc) -> Acc { return subgroupAdd(acc); }
// hole fn row_start(o: u32) -> u32 { return o; }
// hole fn load(start: u32, j: u32) -> Acc { return start + j; }
// hole fn finish(w: u32, acc: Acc) { }
// import place

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let w = linear(group, groups);
    if w >= p.results { return; } // The whole subgroup leaves.
    let start = row_start(w / p.chunks);
    let first = (w % p.chunks) * p.chunk;
    let end = min(p.inner, first + p.chunk);

    var acc = identity();
    for (var j = first + lane; j < end; j += WG) {
        acc = combine(acc, load(start, j));
    }
    let all = together(acc);
    if lane == 0u { finish(w, all); }
}

fn row_start(i: u32) -> u32 { var at = p.x; var rest = i; return at + rest * p.r_s0; }
fn at_0(start: u32, i: u32) -> u32 { return start + i; }
fn element_at(start: u32, j: u32) -> f32 { return b0[at_0(start, j)]; }
alias Acc = f32;
fn identity() -> Acc { return p.identity; }
fn load(start: u32, j: u32) -> Acc { return element_at(start, j); }
fn combine(a: Acc, b: Acc) -> Acc { return a + b; }
fn store(i: u32, v: f32) { b1[i] = v; }
fn finish(w: u32, acc: Acc) { store(w, acc); }
const WG = 8u;
fn together(acc: Acc) -> Acc { return subgroupAdd(acc); }
struct Params { results: u32, inner: u32, chunk: u32, chunks: u32, x: u32, r_s0: u32, identity: f32, }
@group(0) @binding(0) var<storage, read> b0: array<f32>;
@group(0) @binding(1) var<storage, read_write> b1: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;
// place: the number of a workgroup in a grid that was folded because a dimension stops at 65,535.

fn linear(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
