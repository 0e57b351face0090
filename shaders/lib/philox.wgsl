// philox: four random words for a key and a counter, by Philox 4x32-10.
//
// CPU twin: crates/graph-core/src/philox.rs
// Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

// The upper and the lower half of a product of 64 bits.
fn product(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let low = a0 * b0;
    let middle = a1 * b0 + (low >> 16u);
    let other = a0 * b1 + (middle & 0xffffu);
    return vec2<u32>(a1 * b1 + (middle >> 16u) + (other >> 16u), a * b);
}

fn philox(key: vec2<u32>, start: vec4<u32>) -> vec4<u32> {
    var k = key;
    var c = start;
    for (var round = 0u; round < 10u; round++) {
        let p0 = product(0xD2511F53u, c.x);
        let p1 = product(0xCD9E8D57u, c.z);
        c = vec4<u32>(p1.x ^ c.y ^ k.x, p1.y, p0.x ^ c.w ^ k.y, p0.y);
        k += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// In [0, 1): the upper 24 bits, exact in f32.
fn uniform_of(word: u32) -> f32 {
    return f32(word >> 8u) * (1.0 / 16777216.0);
}

// The cosine of a number of turns in [0, 1). Devices' own cosines may be off by 2^-11.
fn cos_turns(turns: f32) -> f32 {
    let half = abs(turns - 0.5);
    let quarter = min(half, 0.5 - half);
    let z = 39.478418 * quarter * quarter;
    let series = 1.0 + z * (-0.5 + z * (4.1666668e-2 + z * (-1.3888889e-3 + z * (2.4801587e-5
        + z * (-2.7557319e-7 + z * 2.0876757e-9)))));
    return select(series, -series, half <= 0.25);
}

// By Box and Muller, from a radius in (0, 1] and an angle.
fn normal_of(words: vec4<u32>) -> f32 {
    let radius = sqrt(-2.0 * log(1.0 - uniform_of(words.x)));
    return radius * cos_turns(uniform_of(words.y));
}
