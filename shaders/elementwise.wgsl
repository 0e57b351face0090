// elementwise: a chain or tree of operations, element by element; also copies.
//
// One invocation per item: one element, or four where a result is bool. `compute` loads what the item needs,
// and stores all its results. Nothing is stored if it is not allowed: commits ask the status word.
// CPU twin: the tables in crates/graph-core/src/ops/unary.rs and binary.rs
//
// param items: u32
// hole const WG = 256u;
// hole fn compute(item: u32) { }
// hole fn allowed() -> bool { return true; }
// import place

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = linear(group, groups) * WG + lane;
    if item < p.items && allowed() { compute(item); }
}
