// pad: an input inside of zeros.
//
// One invocation per item: an element of the output, or four bools. `source` says where in the input an
// element of the output comes from, OUTSIDE for a zero.
// CPU twin: crates/graph-core/src/ops/pad.rs
//
// param items: u32
// hole const WG = 256u;
// hole alias T = u32;
// hole fn source(i: u32) -> u32 { return i; }
// hole fn load_0(i: u32) -> T { return i; }
// hole fn emit(item: u32) { if value(item) == 0u { return; } }
// import place

const OUTSIDE = 0xffffffffu;

fn value(i: u32) -> T {
    let at = source(i);
    if at == OUTSIDE { return T(); }
    return load_0(at);
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
fn place(i: u32) -> u32 { return i; }
fn at_0(i: u32) -> u32 { return p.x0 + i; }
fn load_0(i: u32) -> f32 { return b0[at_0(i)]; }
fn source(i: u32) -> u32 {
    var at = 0u; var rest = i;
    let c0 = rest % p.to0 - p.before0; rest /= p.to0;
    if c0 >= p.from0 { return OUTSIDE; } let scale0 = p.from0;
    return c0;
}
alias T = f32;
fn store(i: u32, v: T) { b1[i] = v; }
struct Params { x0: u32, from0: u32, to0: u32, before0: u32, items: u32, }
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
