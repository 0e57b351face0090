//! Philox 4x32-10, and uniforms and normals made of its bits.
//!
//! Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Twin:
//! `shaders/lib/philox.wgsl`.
//!
//! Element `i` of draw `run` under `key` uses the counters `[i low, i high, run, attempt]`: every element
//! has its own, so that a rejected draw shifts no other.

use crate::op::Distribution;

/// Four random words for a key and a counter.
pub fn philox(key: u64, mut counter: [u32; 4]) -> [u32; 4] {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let p0 = 0xD251_1F53u64 * u64::from(counter[0]);
        let p1 = 0xCD9E_8D57u64 * u64::from(counter[2]);
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ k0,
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ k1,
            p0 as u32,
        ];
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    counter
}

/// The greatest number of draws for one truncated normal; each is rejected with probability 0.0455,
/// so that reaching the last has probability below 1e-42.
pub const MAX_ATTEMPTS: u32 = 32;

/// Element `index` of draw `run`, as an `f64` of which uniforms use 24 bits.
pub fn sample(distribution: Distribution, key: u64, index: u64, run: u32) -> f64 {
    let words = |attempt| philox(key, [index as u32, (index >> 32) as u32, run, attempt]);
    match distribution {
        Distribution::Uniform => uniform(words(0)[0]),
        Distribution::Normal => normal(words(0)),
        Distribution::TruncatedNormal => {
            let mut draws = (0..MAX_ATTEMPTS).map(|attempt| normal(words(attempt)));
            draws.find(|x| x.abs() <= 2.0).unwrap_or(0.0)
        }
    }
}

/// In `[0, 1)`: the upper 24 bits.
fn uniform(word: u32) -> f64 {
    f64::from(word >> 8) / f64::from(1 << 24)
}

/// By Box and Muller, from a radius in `(0, 1]` and an angle.
fn normal(words: [u32; 4]) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(words[0])).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(words[1])).cos()
}
