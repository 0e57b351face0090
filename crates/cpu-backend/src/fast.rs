//! The only unsafe code of the crate: loops compiled for wide vectors, and calls of `gemm`.
#![expect(unsafe_code, reason = "CPU features are tested at run time, and gemm takes pointers")]

use gemm::Parallelism;

/// Runs `f`, compiled for the widest vectors of this machine and for fused products: AVX-512, AVX2 or what every
/// machine has.
///
/// `f` must be `#[inline(always)]`, as must be what it calls: only what is inlined is compiled anew.
/// Rust never contracts a product and a sum by itself, so that every version gives the same bits.
#[inline(always)]
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

/// A matrix in a slice: element `(i, j)` is at `offset + i * row + j * col`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    /// Where the first element lies.
    pub offset: usize,
    /// The step from one row to the next.
    pub row: isize,
    /// The step from one column to the next.
    pub col: isize,
}

impl Matrix {
    /// With rows and columns swapped.
    pub fn transposed(self) -> Self {
        Self { offset: self.offset, row: self.col, col: self.row }
    }

    /// True if all elements of `n_rows` and `n_cols` lie in a slice of `len`.
    fn is_inside(&self, n_rows: usize, n_cols: usize, len: usize) -> bool {
        if n_rows == 0 || n_cols == 0 {
            return true;
        }
        let ends = [(n_rows, self.row), (n_cols, self.col)];
        let (mut low, mut high) = (self.offset as i128, self.offset as i128);
        for (n, stride) in ends {
            let reach = (n as i128 - 1) * stride as i128;
            low += reach.min(0);
            high += reach.max(0);
        }
        low >= 0 && high < len as i128
    }
}

/// A type that `gemm` multiplies.
pub(crate) trait Gemm: Copy + 'static {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
}

impl Gemm for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

impl Gemm for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

/// `c [m, n], packed = a [m, k] * b [k, n]`; false if a matrix is not inside its slice.
#[must_use]
pub(crate) fn multiply<T: Gemm>(
    [m, n, k]: [usize; 3],
    c: &mut [T],
    a: (&[T], Matrix),
    b: (&[T], Matrix),
    parallel: Parallelism,
) -> bool {
    let at_c = Matrix { offset: 0, row: n as isize, col: 1 };
    m.checked_mul(n) == Some(c.len()) && multiply_into([m, n, k], (c, at_c), a, b, false, parallel)
}

/// `c [m, n] = a [m, k] * b [k, n]`, added to what `c` is if `adds`; false if a matrix is not inside its
/// slice, or if the rows of `c` are not apart and packed.
#[must_use]
pub(crate) fn multiply_into<T: Gemm>(
    [m, n, k]: [usize; 3],
    (c, at_c): (&mut [T], Matrix),
    (a, at_a): (&[T], Matrix),
    (b, at_b): (&[T], Matrix),
    adds: bool,
    parallel: Parallelism,
) -> bool {
    let fits = at_c.is_inside(m, n, c.len())
        && at_c.col == 1
        && (m <= 1 || usize::try_from(at_c.row).is_ok_and(|row| row >= n))
        && at_a.is_inside(m, k, a.len())
        && at_b.is_inside(k, n, b.len());
    if !fits {
        return false;
    }
    // SAFETY: Every element of the three matrices lies in its slice, as was checked; `c` is borrowed
    // exclusively, so that it overlaps neither `a` nor `b`, and its rows do not overlap each other. `f32`
    // and `f64` are supported types.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr().wrapping_add(at_c.offset),
            at_c.col,
            at_c.row,
            adds,
            a.as_ptr().wrapping_add(at_a.offset),
            at_a.col,
            at_a.row,
            b.as_ptr().wrapping_add(at_b.offset),
            at_b.col,
            at_b.row,
            if adds { T::ONE } else { T::ZERO },
            T::ONE,
            false,
            false,
            false,
            parallel,
        );
    }
    true
}
