// cumsum: the running sum along rows. One invocation per row.
//
// import place

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = linear(group, groups) * 64u + lane;
    if row >= p.rows { return; }
    var sum = 0.0;
    for (var i = 0u; i < p.row_len; i++) {
        let at = row * p.row_len + select(i, p.row_len - 1u - i, p.reverse == 1u);
        sum += load_0(at);
        store_0(at, sum);
    }
}
