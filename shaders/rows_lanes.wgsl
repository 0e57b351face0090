// rows_lanes: elementwise work on the elements of rows, with what reductions of the same rows give; an
// invocation for each row.
//
// For short rows. `row` is that of rows.wgsl, its twin, with one lane. Where all rows are in one workgroup,
// `total` adds up what they have: SIDE * SIDE lanes are a workgroup.
// CPU twin: crates/cpu-backend/src/rows
//
// param rows: u32
// hole const WG = 64u;
// hole const SIDE = 8u;
// hole fn row(o: u32, lane: u32) { }
// hole fn total(o: u32, lane: u32) { }
// import place

const STEP = 1u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let o = linear(group, groups) * WG + lane;
    if o < p.rows { row(o, 0u); }
    total(o, lane);
}
