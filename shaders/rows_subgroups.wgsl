// rows_subgroups: elementwise work on the elements of rows, with what reductions of the same rows give; a
// subgroup for each row.
//
// No lane waits at a barrier, and nothing goes through workgroup memory. `row` is that of rows.wgsl, its twin, with
// the lanes of a subgroup; WG / STEP subgroups are a workgroup.
// CPU twin: crates/cpu-backend/src/rows
//
// param rows: u32
// hole const WG = 64u;
// hole const STEP = 32u;
// hole fn row(o: u32, lane: u32) { }
// import place

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let o = linear(group, groups) * (WG / STEP) + subgroup;
    if o >= p.rows { return; } // The whole subgroup leaves.
    row(o, lane);
}
