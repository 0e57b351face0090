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

fn at_0(i: u32) -> u32 { return p.x0 + i; }
fn load_0(i: u32) -> f32 { return b0[at_0(i)]; }
fn fold_max_f32(a: f32, b: f32) -> f32 { return max(a, b); }
fn row_sub_f32(x: f32, y: f32) -> f32 { return x - y; }
fn row_exp_f32(x: f32) -> f32 { return exp(x); }
fn fold_sum_f32(a: f32, b: f32) -> f32 { return a + b; }
fn row_div_f32(x: f32, y: f32) -> f32 { return x / y; }
fn row(o: u32, lane: u32) {
    let first = o * p.inner;
    var a0 = p.identity0;
    for (var j = lane; j < p.inner; j += STEP) {
    let i = first + j;
    let i0 = load_0(i);
    a0 = fold_max_f32(a0, i0);
    }
    let i1 = subgroupMax(a0);
    var a1 = p.identity1;
    for (var j = lane; j < p.inner; j += STEP) {
    let i = first + j;
    let i0 = load_0(i);
    let t0 = row_sub_f32(i0, i1);
    let t1 = row_exp_f32(t0);
    a1 = fold_sum_f32(a1, t1);
    }
    let i2 = subgroupAdd(a1);
    for (var j = lane; j < p.inner; j += STEP) {
    let i = first + j;
    let i0 = load_0(i);
    let t0 = row_sub_f32(i0, i1);
    let t1 = row_exp_f32(t0);
    let t2 = row_div_f32(t1, i2);
    b1[i] = t2;
    }
}
const WG = 8u;
const STEP = 8u;
struct Params { rows: u32, inner: u32, x0: u32, identity0: f32, identity1: f32, }
@group(0) @binding(0) var<storage, read> b0: array<f32>;
@group(0) @binding(1) var<storage, read_write> b1: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;
// place: the number of a workgroup in a grid that was folded because a dimension stops at 65,535.

fn linear(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
