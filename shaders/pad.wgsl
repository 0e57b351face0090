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
