//! The only unsafe code of the crate: loops compiled for wide vectors, products by `gemm`, and jobs lent to threads.

mod product;
mod team;

pub(crate) use product::{Factor, Gemm, MADE_BYTES, Matrix, Needed, multiply, stripe};
pub(crate) use team::Team;

/// Runs `f`, compiled for the widest vectors of this machine and for fused products: AVX-512, AVX2 or what every
/// machine has.
///
/// `f` must be `#[inline(always)]`, as must be what it calls: only what is inlined is compiled anew.
/// Rust never contracts a product and a sum by itself, so that every version gives the same bits.
#[inline(always)]
#[expect(unsafe_code, reason = "CPU features are tested at run time")]
pub(crate) fn wide<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2") {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: The features that the function is compiled for were just detected.
            return unsafe { avx512(f) };
        }
        // SAFETY: The features that the function is compiled for were just detected.
        return unsafe { avx2(f) };
    }
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}
