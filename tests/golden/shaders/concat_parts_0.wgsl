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
fn at_0(i: u32) -> u32 { var at = p.x0; var rest = i; at += rest % p.d1 * p.x0_s1; rest /= p.d1; return at + rest * p.x0_s0; }
fn load_0(i: u32) -> f32 { return b0[at_0(i)]; }
fn at_1(i: u32) -> u32 { var at = p.x1; var rest = i; at += rest % p.d1 * p.x1_s1; rest /= p.d1; return at + rest * p.x1_s0; }
fn load_1(i: u32) -> f32 { return b1[at_1(i)]; }
fn row_mul_f32(x: f32, y: f32) -> f32 { return x * y; }
fn part_0(i: u32) -> u32 { var at = p.y0; var rest = i; at += rest % p.y0_d1 * p.y0_s1; rest /= p.y0_d1; return at + rest * p.y0_s0; }
fn compute(i: u32) {
    let i0 = load_0(i);
    let i1 = load_1(i);
    let t0 = row_mul_f32(i0, i1);
    b2[part_0(i)] = t0;
}
struct Params { items: u32, d1: u32, x0: u32, x0_s0: u32, x0_s1: u32, x1: u32, x1_s0: u32, x1_s1: u32, y0: u32, y0_d1: u32, y0_s0: u32, y0_s1: u32, }
@group(0) @binding(0) var<storage, read> b0: array<f32>;
@group(0) @binding(1) var<storage, read> b1: array<f32>;
@group(0) @binding(2) var<storage, read_write> b2: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;
// place: the number of a workgroup in a grid that was folded because a dimension stops at 65,535.

fn linear(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
