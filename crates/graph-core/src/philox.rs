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
    let draw = |attempt| {
        let [first, second, ..] = words(attempt);
        normal(first, second)
    };
    match distribution {
        Distribution::Uniform => uniform(words(0)[0]),
        Distribution::Normal => draw(0),
        Distribution::TruncatedNormal => {
            let mut draws = (0..MAX_ATTEMPTS).map(draw);
            draws.find(|x| x.abs() <= 2.0).unwrap_or(0.0)
        }
    }
}

/// How many elements [`samples`] makes at once.
pub const LANES: usize = 16;

/// Elements `first` to `first + LANES` as [`sample`] gives them, bit for bit, made side by side so that they vectorise.
#[inline(always)]
pub fn samples(distribution: Distribution, key: u64, first: u64, run: u32) -> [f64; LANES] {
    let [first_words, second_words] = lanes(key, first, run);
    match distribution {
        Distribution::Uniform => first_words.map(uniform),
        Distribution::Normal => std::array::from_fn(|i| normal(first_words[i], second_words[i])),
        Distribution::TruncatedNormal => std::array::from_fn(|i| {
            let x = normal(first_words[i], second_words[i]);
            let redraw = || sample(distribution, key, first.wrapping_add(i as u64), run);
            if x.abs() <= 2.0 { x } else { redraw() }
        }),
    }
}

/// The first two words of [`philox`] for the first attempts at `LANES` elements.
#[inline(always)]
fn lanes(key: u64, first: u64, run: u32) -> [[u32; LANES]; 2] {
    let index = |i: usize| first.wrapping_add(i as u64);
    let mut c0: [u32; LANES] = std::array::from_fn(|i| index(i) as u32);
    let mut c1: [u32; LANES] = std::array::from_fn(|i| (index(i) >> 32) as u32);
    let (mut c2, mut c3) = ([run; LANES], [0u32; LANES]);
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        for i in 0..LANES {
            let p0 = 0xD251_1F53u64 * u64::from(c0[i]);
            let p1 = 0xCD9E_8D57u64 * u64::from(c2[i]);
            c0[i] = (p1 >> 32) as u32 ^ c1[i] ^ k0;
            c1[i] = p1 as u32;
            c2[i] = (p0 >> 32) as u32 ^ c3[i] ^ k1;
            c3[i] = p0 as u32;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1]
}

/// In `[0, 1)`: the upper 24 bits.
#[inline(always)]
fn uniform(word: u32) -> f64 {
    f64::from(word >> 8) / f64::from(1 << 24)
}

/// By Box and Muller, from a radius in `(0, 1]` and an angle.
#[inline(always)]
fn normal(first: u32, second: u32) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(first)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(second)).cos()
}
