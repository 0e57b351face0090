// scatter: each element of a variable, changed by the updates whose index is its row, in their order.
//
// One invocation for each element looks at all indices. They are checked before, and one out of range is no row's.
// CPU twin: scatter.rs
//
// import place

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear(group, groups) * 64u + lane;
    if i >= p.y0_len { return; }
    let row = i / p.inner;
    let column = i % p.inner;
    var x = load_0(i);
    for (var at = 0u; at < p.x1_len; at++) {
        if u32(load_1(at)) != row { continue; }
        let update = load_2(at * p.inner + column);
        switch p.kind {
            case 1u: { x = x + update; }
            case 2u: { x = x - update; }
            case 3u: { x = x * update; }
            case 4u: { x = x / update; }
            case 5u: { x = min(x, update); }
            case 6u: { x = max(x, update); }
            default: { x = update; }
        }
    }
    store_0(i, x);
}
