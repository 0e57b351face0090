//! Products of matrices by `gemm`, shared among threads in blocks.
#![expect(unsafe_code, reason = "gemm takes pointers, and threads store in blocks of one matrix")]

use std::ops::Range;

use gemm::Parallelism;

use crate::threads::Threads;

/// The least operations of a block: what is less is not worth a thread.
const PART: usize = 1 << 20;

/// Operations from which threads have more than one block each.
const LARGE: usize = 1 << 26;

/// Rows and columns of the largest blocks that `gemm` treats as small.
const SMALL: usize = 64;

/// The least rows or columns of a block.
const LEAST: usize = 16;

/// Elements of the largest results that `gemm` computes one by one.
const SINGLE: usize = 256;

/// Rows and columns that `gemm`'s kernels have at once, or a multiple of them.
const TILE: usize = 16;

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
    /// The part of it from this row and this column on; both are inside it.
    fn moved(self, row: usize, col: usize) -> Self {
        let offset = self.offset as isize + row as isize * self.row + col as isize * self.col;
        Self { offset: offset as usize, ..self }
    }

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
pub(crate) trait Gemm: Copy + Send + Sync + 'static {
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
    threads: Option<&Threads>,
) -> bool {
    let at_c = Matrix { offset: 0, row: n as isize, col: 1 };
    m.checked_mul(n) == Some(c.len()) && multiply_into([m, n, k], (c, at_c), a, b, false, threads)
}

/// `c [m, n] = a [m, k] * b [k, n]`, added to what `c` is if `adds`; false if a matrix is not inside its
/// slice, or if the rows of `c` are not apart and packed. Shared among `threads` if it is large; how many there are
/// changes no bit.
#[must_use]
pub(crate) fn multiply_into<T: Gemm>(
    [m, n, k]: [usize; 3],
    (c, at_c): (&mut [T], Matrix),
    (a, at_a): (&[T], Matrix),
    (b, at_b): (&[T], Matrix),
    adds: bool,
    threads: Option<&Threads>,
) -> bool {
    let fits = at_c.is_inside(m, n, c.len())
        && at_c.col == 1
        && (m <= 1 || usize::try_from(at_c.row).is_ok_and(|row| row >= n))
        && at_a.is_inside(m, k, a.len())
        && at_b.is_inside(k, n, b.len());
    if !fits {
        return false;
    }
    let grid = Grid::new([m, n, k], threads.map_or(1, Threads::len));
    let c = Target(c.as_mut_ptr());
    let multiply_block = |part: usize| {
        let c = &c;
        let (rows, cols) = grid.block(part);
        let at_c = at_c.moved(rows.start, cols.start);
        let (at_a, at_b) = (at_a.moved(rows.start, 0), at_b.moved(0, cols.start));
        // SAFETY: Every element of the three matrices lies in its slice, as was checked, and so do those of their
        // blocks; `c` is borrowed exclusively, so that it overlaps neither `a` nor `b`, its rows do not overlap
        // each other, and each block of it is of one part. `f32` and `f64` are supported types.
        unsafe {
            gemm::gemm(
                rows.len(),
                cols.len(),
                k,
                c.0.wrapping_add(at_c.offset),
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
                Parallelism::None,
            );
        }
    };
    match threads {
        Some(threads) => threads.share(grid.len(), &multiply_block),
        None => multiply_block(0),
    }
    true
}

/// Has `gemm` look at the processor's caches, as it does before its first product: on Linux it reads some forty
/// small files of each core.
pub(super) fn look_at_caches() {
    const N: usize = 8;
    let at = Matrix { offset: 0, row: N as isize, col: 1 };
    let factor = [0.0f32; N * N];
    // It fits; what comes out is of no use.
    _ = multiply([N; 3], &mut [0.0; N * N], (&factor, at), (&factor, at), None);
}

/// About half, in whole tiles.
fn half(n: usize) -> usize {
    (n / 2).next_multiple_of(TILE)
}

/// Where the blocks of a product go.
struct Target<T>(*mut T);

// SAFETY: It is used within the borrow that it was made of, and each part stores in a block of its own.
unsafe impl<T: Gemm> Sync for Target<T> {}

/// How a product is shared: blocks of rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grid {
    sizes: [usize; 2],
    /// Rows and columns of a block; the last ones may have fewer.
    block: [usize; 2],
}

impl Grid {
    /// Blocks so that each thread has one or, of large products, a few.
    ///
    /// `gemm` goes over the terms of a sum in one way if the block has more than [`SMALL`] rows or columns, in
    /// another if it has not, and in more ways for vectors and [`SINGLE`] elements. Blocks are as the product is.
    fn new([m, n, k]: [usize; 3], n_threads: usize) -> Self {
        let whole = Self { sizes: [m, n], block: [m, n] };
        let flops = (2 * m).saturating_mul(n).saturating_mul(k);
        if n_threads < 2 || flops < 2 * PART || m < 2 || n < 2 {
            return whole;
        }
        let n_parts = (flops / PART).min(if flops < LARGE { n_threads } else { n_threads * 4 });
        let mut grid = whole;
        while grid.len() < n_parts {
            let [rows, cols] = grid.block;
            let halves = [[half(rows), cols], [rows, half(cols)]].map(|block| whole.with(block));
            let longest = usize::from(cols > rows);
            let mut next = [halves[longest], halves[1 - longest]].into_iter();
            match next.find(|next| next.is_like(&whole) && next.len() > grid.len()) {
                Some(next) => grid = next,
                None => break,
            }
        }
        grid
    }

    /// Whether `gemm` treats the blocks of both in the same way.
    fn is_like(&self, other: &Self) -> bool {
        let is_small = |block: [usize; 2]| block.iter().all(|&n| n <= SMALL);
        let last = self.last();
        last.iter().all(|&n| n >= LEAST)
            && last[0] * last[1] > SINGLE
            && is_small(last) == is_small(other.block)
    }

    /// Rows and columns of the last block, which has the fewest.
    fn last(&self) -> [usize; 2] {
        let n_blocks = self.n_blocks();
        [0, 1].map(|axis| self.sizes[axis] - (n_blocks[axis] - 1) * self.block[axis])
    }

    fn with(self, block: [usize; 2]) -> Self {
        Self { block, ..self }
    }

    fn n_blocks(&self) -> [usize; 2] {
        [0, 1].map(|axis| self.sizes[axis].div_ceil(self.block[axis].max(1)).max(1))
    }

    fn len(&self) -> usize {
        let [rows, cols] = self.n_blocks();
        rows * cols
    }

    /// The rows and columns of a block.
    fn block(&self, part: usize) -> (Range<usize>, Range<usize>) {
        let n_cols = self.n_blocks()[1];
        let range = |axis: usize, at: usize| {
            let start = at * self.block[axis];
            start..(start + self.block[axis]).min(self.sizes[axis])
        };
        (range(0, part / n_cols), range(1, part % n_cols))
    }
}
