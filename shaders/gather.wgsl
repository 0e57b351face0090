// gather: slices of x [outer, axis, inner] at the indices [n]; the output is [outer, n, inner].
//
// One invocation per item: an element of the output, or four bools. An index that is negative or not below
// the size of the axis is reported, and its slice is zero.
//
// param items: u32
// param axis: u32
// param inner: u32
// param n: u32
// hole const WG = 256u;
// hole alias T = u32;
// hole fn load_0(i: u32) -> T { return i; }
// hole fn load_1(i: u32) -> u32 { return i; }
// hole fn report(position: u32, index: u32, size: u32) { }
// hole fn emit(item: u32) { if value(item) == 0u { return; } }
// import place

fn value(i: u32) -> T {
    let position = i / p.inner % p.n;
    let index = u32(load_1(position)); // A negative one is far above any size.
    if index >= p.axis {
        report(position, index, p.axis);
        return T();
    }
    return load_0((i / p.inner / p.n * p.axis + index) * p.inner + i % p.inner);
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
