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

const WG = 256u;
fn at_0(i: u32) -> u32 { return p.x0 + i; }
fn load_0(i: u32) -> f32 { return b0[at_0(i)]; }
fn pick(outer: u32, a: u32, j: u32) -> f32 {
    return load_0((outer * p.size0 + a - p.start0) * p.inner + j);
}
alias T = f32;
fn store(i: u32, v: T) { b1[i] = v; }
struct Params { x0: u32, start0: u32, size0: u32, axis: u32, inner: u32, first: u32, part: u32, items: u32, }
@group(0) @binding(0) var<storage, read> b0: array<f32>;
@group(0) @binding(1) var<storage, read_write> b1: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;
// emit: one invocation stores one element of 4 bytes (or 2, of f16).
//
// Twin: lib/emit_bool.wgsl, for results of bool.
//
// hole fn value(i: u32) -> u32 { return i; }
// hole fn place(i: u32) -> u32 { return i; }
// hole fn store(i: u32, v: u32) { }

fn emit(item: u32) {
    store(place(item), value(item));
}
// place: the number of a workgroup in a grid that was folded because a dimension stops at 65,535.

fn linear(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
