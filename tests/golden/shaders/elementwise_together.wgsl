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

const WG = 256u;
fn allowed() -> bool { return true; }
fn at_0(i: u32) -> u32 { return p.x0 + i; }
fn load_0(i: u32) -> f32 { return b0[at_0(i)]; }
fn at_1(i: u32) -> u32 { return p.x1; }
fn load_1(i: u32) -> f32 { return b1[at_1(i)]; }
fn row_sub_f32(x: f32, y: f32) -> f32 { return x - y; }
fn compute_0(i: u32) {
    let i0 = load_0(i);
    let i1 = load_1(i);
    let t0 = row_sub_f32(i0, i1);
    b2[i] = t0;
}
fn at_2(i: u32) -> u32 { return p.x2 + i; }
fn load_2(i: u32) -> f32 { return b3[at_2(i)]; }
fn at_3(i: u32) -> u32 { return p.x3; }
fn load_3(i: u32) -> f32 { return b1[at_3(i)]; }
fn compute_1(i: u32) {
    let i2 = load_2(i);
    let i3 = load_3(i);
    let t0 = row_sub_f32(i2, i3);
    b4[i] = t0;
}
fn at_4(i: u32) -> u32 { return p.x4 + i; }
fn load_4(i: u32) -> f32 { return b5[at_4(i)]; }
fn at_5(i: u32) -> u32 { return p.x5; }
fn load_5(i: u32) -> f32 { return b1[at_5(i)]; }
fn compute_2(i: u32) {
    let i4 = load_4(i);
    let i5 = load_5(i);
    let t0 = row_sub_f32(i4, i5);
    b6[i] = t0;
}
fn compute(item: u32) {
    var i = item;
    if i < p.w0 {
        if i < p.n0 { compute_0(i); }
        return;
    }
    i -= p.w0;
    if i < p.w1 {
        if i < p.n1 { compute_1(i); }
        return;
    }
    i -= p.w1;
    compute_2(i);
}
struct Params { x0: u32, x1: u32, n0: u32, w0: u32, x2: u32, x3: u32, n1: u32, w1: u32, x4: u32, x5: u32, items: u32, }
@group(0) @binding(0) var<storage, read> b0: array<f32>;
@group(0) @binding(1) var<storage, read> b1: array<f32>;
@group(0) @binding(2) var<storage, read_write> b2: array<f32>;
@group(0) @binding(3) var<storage, read> b3: array<f32>;
@group(0) @binding(4) var<storage, read_write> b4: array<f32>;
@group(0) @binding(5) var<storage, read> b5: array<f32>;
@group(0) @binding(6) var<storage, read_write> b6: array<f32>;
@group(0) @binding(7) var<uniform> p: Params;
// place: the number of a workgroup in a grid that was folded because a dimension stops at 65,535.

fn linear(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
