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
