// rows: elementwise work on the elements of rows, with what reductions of the same rows give; a workgroup for
// each row.
//
// `row` walks over the row once for each stage of its work: the lanes of the workgroup stride over the
// elements, then fold what they have. SIDE * SIDE lanes are a workgroup.
// Twin: rows_lanes.wgsl, an invocation for each row.
// CPU twin: crates/cpu-backend/src/rows
//
// param rows: u32
// hole const WG = 256u;
// hole const SIDE = 16u;
// hole fn row(o: u32, lane: u32) { }
// import place

const STEP = WG;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let o = linear(group, groups);
    if o >= p.rows { return; } // The whole workgroup leaves, before any barrier.
    row(o, lane);
}
