// pool: the elements under a window become one.
//
// One invocation per output. It goes through the elements row by row; `take` puts them together, and
// `finish` is given how many there were.
// CPU twin: crates/cpu-backend/src/pool.rs
// Twin: pool_grad.wgsl, from outputs to inputs.
//
// param items: u32
// hole const WG = 64u;
// hole alias Acc = u32;
// hole fn nothing() -> Acc { return 0u; }
// hole fn take(acc: Acc, at: u32) -> Acc { return acc + at; }
// hole fn finish(item: u32, acc: Acc, count: u32) { }
// import place, cover

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = linear(group, groups) * WG + lane;
    if item >= p.items { return; }
    let place = place_of(item, p.out_h, p.out_w);
    let rows = cover_rows(place.y);
    let columns = cover_columns(place.z);

    var acc = nothing();
    for (var y = rows.x; y < rows.y; y++) {
        for (var x = columns.x; x < columns.y; x++) {
            acc = take(acc, at_in(place, y, x));
        }
    }
    finish(item, acc, (rows.y - rows.x) * (columns.y - columns.x));
}
