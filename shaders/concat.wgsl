// concat: inputs one after the other along an axis.
//
// The output is [outer, axis, inner]; this dispatch writes its slices first .. first + part. One invocation
// per item: an element of those, or four bools (then all slices are written). `pick` reads the input that
// slice a comes from.
// CPU twin: crates/graph-core/src/ops/view.rs
//
// param items: u32
// param axis: u32
// param inner: u32
// param first: u32
// param part: u32
// hole const WG = 256u;
// hole alias T = u32;
// hole fn pick(outer: u32, a: u32, inner: u32) -> T { return outer + a + inner; }
// hole fn emit(item: u32) { if value(item) == place(item) { return; } }
// import place

fn value(i: u32) -> T {
    let a = i / p.inner % p.part;
    return pick(i / p.inner / p.part, a, i % p.inner);
}

fn place(i: u32) -> u32 {
    let a = i / p.inner % p.part + p.first;
    return (i / p.inner / p.part * p.axis + a) * p.inner + i % p.inner;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = linear(group, groups) * WG + lane;
    if item < p.items { emit(item); }
}
