// scatter_add: zeros [outer, axis, inner] to which slices of the updates [outer, n, inner] are added at the
// indices [n].
//
// One invocation per element of the output looks at all indices, in order: the same sum at every run. As many
// invocations as there are indices also check one each, and report it if it is out of range.
// CPU twin: the gradient of gather.
//
// param len: u32
// param axis: u32
// param inner: u32
// param n: u32
// hole const WG = 256u;
// hole alias T = u32;
// hole fn load_0(i: u32) -> u32 { return i; }
// hole fn load_1(i: u32) -> T { return i; }
// hole fn store(i: u32, v: T) { }
// hole fn report(position: u32, index: u32, size: u32) { }
// import place

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = linear(group, groups) * WG + lane;
    if item < p.n {
        let index = u32(load_0(item));
        if index >= p.axis { report(item, index, p.axis); }
    }
    if item >= p.len { return; }
    let a = item / p.inner % p.axis;
    let start = item / p.inner / p.axis * p.n;
    var sum = T();
    for (var j = 0u; j < p.n; j++) {
        if u32(load_0(j)) == a { sum += load_1((start + j) * p.inner + item % p.inner); }
    }
    store(item, sum);
}

const WG = 256u;
fn at_0(i: u32) -> u32 { return p.x0 + i; }
fn load_0(i: u32) -> i32 { return b0[at_0(i)]; }
fn at_1(i: u32) -> u32 { return p.x1 + i; }
fn load_1(i: u32) -> f32 { return b1[at_1(i)]; }
alias T = f32;
fn store(i: u32, v: T) { b3[i] = v; }
struct Params { x0: u32, x1: u32, axis: u32, inner: u32, n: u32, len: u32, kernel: u32, }
@group(0) @binding(0) var<storage, read> b0: array<i32>;
@group(0) @binding(1) var<storage, read> b1: array<f32>;
@group(0) @binding(2) var<storage, read_write> status: array<atomic<u32>>;
@group(0) @binding(3) var<storage, read_write> b3: array<f32>;
@group(0) @binding(4) var<uniform> p: Params;
// status: tells the host that an index in the data is out of range.
//
// Word 0 says that it happened; the invocation that set it first says where: the number of the kernel, the
// position of the index, the index and the size of the axis.
//
// param kernel: u32

fn report(position: u32, index: u32, size: u32) {
    if atomicMax(&status[0], 1u) == 0u {
        atomicStore(&status[1], p.kernel);
        atomicStore(&status[2], position);
        atomicStore(&status[3], index);
        atomicStore(&status[4], size);
    }
}
// place: the number of a workgroup in a grid that was folded because a dimension stops at 65,535.

fn linear(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}
