// random: elements of a distribution, by their place, a key and the number of draws before.
//
// One invocation per element; `draw` is its value for the counters [i, 0, draws before, attempt].
// CPU twin: crates/graph-core/src/philox.rs, from which uniforms don't differ in a bit.
//
// param items: u32
// param key_low: u32
// param key_high: u32
// hole const WG = 256u;
// hole fn draws() -> u32 { return 0u; }
// hole fn sample(i: u32) -> f32 { return uniform_of(words(i, 0u).x); }
// hole fn store(i: u32, v: f32) { }
// import place, philox

const MAX_ATTEMPTS = 32u;

fn words(i: u32, attempt: u32) -> vec4<u32> {
    return philox(vec2<u32>(p.key_low, p.key_high), vec4<u32>(i, 0u, draws(), attempt));
}

// Drawn again while above 2 in magnitude; never so often that it ends.
fn truncated_normal(i: u32) -> f32 {
    for (var attempt = 0u; attempt < MAX_ATTEMPTS; attempt++) {
        let x = normal_of(words(i, attempt));
        if abs(x) <= 2.0 { return x; }
    }
    return 0.0;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = linear(group, groups) * WG + lane;
    if i < p.items { store(i, sample(i)); }
}
