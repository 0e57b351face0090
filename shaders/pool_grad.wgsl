// pool_grad: each input gathers its share of the gradient of every window that it lies under.
//
// One invocation per input. It goes through the windows row by row, so that sums have an order.
// CPU twin: crates/cpu-backend/src/pool.rs
// Twin: pool.wgsl, from inputs to outputs.
//
// param items: u32
// hole const WG = 64u;
// hole alias T = f32;
// hole fn share(item: u32, place: vec4<u32>, i: u32, j: u32, count: u32) -> T { return T(i) / T(count); }
// hole fn store(i: u32, v: T) { }
// import place, cover

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = linear(group, groups) * WG + lane;
    if item >= p.items { return; }
    let place = place_of(item, p.in_h, p.in_w);
    let rows = windows(place.y, p.stride_h, p.window_h, p.pad_h, p.out_h);
    let columns = windows(place.z, p.stride_w, p.window_w, p.pad_w, p.out_w);

    var sum = T();
    for (var i = rows.x; i < rows.y; i++) {
        let height = cover_rows(i);
        for (var j = columns.x; j < columns.y; j++) {
            let width = cover_columns(j);
            let count = (height.y - height.x) * (width.y - width.x);
            sum += share(item, place, i, j, count);
        }
    }
    store(item, sum);
}
