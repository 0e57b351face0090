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
