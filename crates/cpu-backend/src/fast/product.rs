//! Products of matrices by `gemm`, shared among threads in blocks.
#![expect(unsafe_code, reason = "gemm takes pointers, and threads store in blocks of one matrix")]

use std::ops::Range;

use convoke_graph_core::Result;
use gemm::Parallelism;

use crate::malformed;
use crate::threads::Threads;

/// The least operations of a block, and of one of a vector, for each of which an element is read: what is less is not worth
/// a thread.
const PART: usize = 1 << 20;
const PART_OF_VECTOR: usize = 1 << 18;

/// Operations from which threads have more than one block each.
const LARGE: usize = 1 << 26;

/// The least rows or columns of blocks, where they are fewer than the product's.
const LEAST: usize = 16;

/// The least rows of a stripe that is cut for the sake of a cache: for each, all of the right side is read and brought into
/// order again, for which the time of deep products is dearer.
const LEAST_ROWS: usize = 128;
const LEAST_DEEP_ROWS: usize = 512;

/// Elements of the largest results that `gemm` computes one by one.
const SINGLE: usize = 256;

/// Rows and columns that `gemm`'s kernels have at once, or a multiple of them; the same of those for vectors.
const TILE: usize = 16;
const TILE_OF_VECTOR: usize = 64;

/// The most terms that are summed at once: what is made for them stays in a cache, and `gemm` splits no fewer.
const TERMS: usize = 512;

/// The most bytes that are made for a block, of an operand or of a result that is finished, where blocks can be so small.
pub(crate) const MADE_BYTES: usize = 1 << 20;

/// The most terms of a product whose result takes long to go through memory, beside its own time.
const DEEP: usize = 256;

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
    pub fn moved(self, row: usize, col: usize) -> Self {
        let offset = self.offset as isize + row as isize * self.row + col as isize * self.col;
        Self { offset: offset as usize, ..self }
    }

    /// With rows and columns swapped.
    pub fn transposed(self) -> Self {
        Self { offset: self.offset, row: self.col, col: self.row }
    }

    /// True if its rows, or its columns, are lines of elements that follow each other, one line after the other.
    pub fn is_lines(&self) -> bool {
        (self.col == 1 && self.row > 0) || (self.row == 1 && self.col > 0)
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

/// Takes some rows and columns of a matrix.
pub(crate) type Needed<'f, T> = dyn FnMut(&[T], Matrix) -> Result<()> + 'f;

/// Makes some rows and columns of a matrix, and gives them to what needs them.
pub(crate) type Making<'f, T> =
    dyn Fn([Range<usize>; 2], &mut Needed<'_, T>) -> Result<()> + Sync + 'f;

/// A factor of a product.
#[derive(Clone, Copy)]
pub(crate) enum Factor<'a, T> {
    /// It lies in a slice.
    Lies(&'a [T], Matrix),
    /// It is made block by block.
    Made(&'a Making<'a, T>),
}

impl<T> Factor<'_, T> {
    fn is_made(&self) -> bool {
        matches!(self, Self::Made(_))
    }

    /// Calls `f` with some rows and columns.
    fn part(&self, [rows, cols]: [Range<usize>; 2], f: &mut Needed<'_, T>) -> Result<()> {
        match self {
            Self::Lies(all, at) => f(all, at.moved(rows.start, cols.start)),
            Self::Made(make) => make([rows, cols], f),
        }
    }
}

/// `c [m, n] = a [m, k] * b [k, n]`, added to what `c` is if `adds`. Shared among `threads` if it is large; how many there
/// are, and whether factors are made, changes no bit.
///
/// # Errors
/// A matrix is not inside its slice, or the rows of `c` are not apart and packed. What making a factor fails with.
pub(crate) fn multiply<T: Gemm>(
    [m, n, k]: [usize; 3],
    (c, at_c): (&mut [T], Matrix),
    a: Factor<'_, T>,
    b: Factor<'_, T>,
    adds: bool,
    threads: Option<&Threads>,
) -> Result<()> {
    let fits = at_c.is_inside(m, n, c.len())
        && at_c.col == 1
        && (m <= 1 || usize::try_from(at_c.row).is_ok_and(|row| row >= n));
    if !fits {
        return Err(outside());
    }
    let made = [a.is_made(), b.is_made()];
    let grid = Grid::new([m, n, k], threads.map_or(1, Threads::len), made, size_of::<T>());
    let c = Target(c.as_mut_ptr());
    let multiply_block = |part: usize| {
        let c = &c;
        let (rows, cols) = grid.block(part);
        let c = c.0.wrapping_add(at_c.moved(rows.start, cols.start).offset);
        for (i, terms) in panels(k).enumerate() {
            let sizes = [rows.len(), cols.len(), terms.len()];
            let adds = adds || i > 0;
            a.part([rows.clone(), terms.clone()], &mut |a, at_a| {
                b.part([terms.clone(), cols.clone()], &mut |b, at_b| {
                    // SAFETY: Every element of `c` lies in its slice, as was checked, and so do those of its blocks; it is
                    // borrowed exclusively, so that it overlaps neither `a` nor `b`, its rows do not overlap each
                    // other, and each block of it is of one part.
                    unsafe { multiply_one(sizes, (c, at_c), (a, at_a), (b, at_b), adds) }
                })
            })?;
        }
        Ok(())
    };
    match threads {
        Some(threads) => threads.try_share(grid.len(), &multiply_block),
        None => (0..grid.len()).try_for_each(multiply_block),
    }
}

/// A block of a product, for some of its terms.
///
/// # Safety
/// All elements of `c`, from its first on, may be written, lie apart from each other, and are borrowed by nobody else.
unsafe fn multiply_one<T: Gemm>(
    [m, n, k]: [usize; 3],
    (c, at_c): (*mut T, Matrix),
    (a, at_a): (&[T], Matrix),
    (b, at_b): (&[T], Matrix),
    adds: bool,
) -> Result<()> {
    if !at_a.is_inside(m, k, a.len()) || !at_b.is_inside(k, n, b.len()) {
        return Err(outside());
    }
    // SAFETY: Every element of `a` and `b` lies in its slice, as was just checked; `c` is the caller's. `f32` and `f64`
    // are supported types.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
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
    Ok(())
}

fn outside() -> convoke_graph_core::Error {
    malformed("product", "a matrix leaves its buffer")
}

/// The terms of sums, as many at once as depends on how many there are alone.
fn panels(k: usize) -> impl Iterator<Item = Range<usize>> {
    let each = k.div_ceil(k.div_ceil(TERMS).max(1)).max(1);
    (0..k.max(1)).step_by(each).map(move |start| start.min(k)..(start + each).min(k))
}

/// How many rows of a product's result one thread has finished at once, so that they are still in its cache and all threads
/// have some, as they have at least if finishing `is_shared` by itself. None if only parts of rows are worth a thread each.
pub(crate) fn stripe(
    sizes: [usize; 3],
    n_threads: usize,
    width: usize,
    is_shared: bool,
) -> Option<usize> {
    let grid = Grid::stripes(sizes, n_threads, width, is_shared);
    let alone = grid.len() == 1
        && (is_shared || Grid::new(sizes, n_threads, [false; 2], width).len() > 1)
        && n_threads > 1;
    (!alone).then_some(grid.block[0])
}

/// Has `gemm` look at the processor's caches, as it does before its first product: on Linux it reads some forty
/// small files of each core.
pub(super) fn look_at_caches() {
    const N: usize = 8;
    let at = Matrix { offset: 0, row: N as isize, col: 1 };
    let factor = [0.0f32; N * N];
    let factor = Factor::Lies(&factor, at);
    // It fits; what comes out is of no use.
    _ = multiply([N; 3], (&mut [0.0; N * N], at), factor, factor, false, None);
}

/// Where the blocks of a product go.
struct Target<T>(*mut T);

// SAFETY: It is used within the borrow that it was made of, and each part stores in a block of its own.
unsafe impl<T: Gemm> Sync for Target<T> {}

/// How many blocks a product has at least, if there can be so many: of large ones, so many for each thread.
fn n_parts([m, n, k]: [usize; 3], n_threads: usize, of_large: usize) -> usize {
    let flops = (2 * m).saturating_mul(n).saturating_mul(k);
    let part = if m == 1 || n == 1 { PART_OF_VECTOR } else { PART };
    if n_threads < 2 || flops < 2 * part {
        return 1;
    }
    (flops / part).min(if flops < LARGE { n_threads } else { n_threads * of_large })
}

/// How a product is shared: blocks of rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grid {
    sizes: [usize; 2],
    /// Rows and columns of a block; the last ones may have fewer.
    block: [usize; 2],
}

impl Grid {
    /// Blocks so that each thread has one or, of large products, a few; so that little of a factor that is `made` is made
    /// twice, and not much of it at once. Elements have `width` bytes.
    ///
    /// `gemm` goes over the terms of a sum in other ways for [`SINGLE`] elements, and for vectors, of which the last elements
    /// are no whole tile. Blocks are as the product is.
    fn new(sizes: [usize; 3], n_threads: usize, made: [bool; 2], width: usize) -> Self {
        let n_parts = n_parts(sizes, n_threads, 4);
        let line_bytes = sizes[2].min(TERMS).saturating_mul(width);
        let mut grid = Self::whole(sizes);
        loop {
            let is_large = |axis: usize| {
                made[axis] && grid.block[axis].saturating_mul(line_bytes) > MADE_BYTES
            };
            // Making an element again takes longer than reading one.
            let weight = match made {
                [true, false] => [4, 1],
                [false, true] => [1, 8],
                _ => [2, 1],
            };
            let [rows, cols] = [0, 1].map(|axis| grid.block[axis].saturating_mul(weight[axis]));
            let longest = usize::from(cols > rows);
            let axes = [longest, 1 - longest];
            let next = match grid.len() < n_parts {
                true => grid.halved(&axes),
                false => axes
                    .into_iter()
                    .filter(|&axis| is_large(axis))
                    .find_map(|axis| grid.halved(&[axis])),
            };
            match next {
                Some(next) => grid = next,
                None => return grid,
            }
        }
    }

    /// Blocks of whole rows, so that each thread has some, and not much at once.
    fn stripes(sizes: [usize; 3], n_threads: usize, width: usize, is_shared: bool) -> Self {
        let n_parts = n_parts(sizes, n_threads, 2).max(if is_shared { n_threads } else { 1 });
        let row_bytes = sizes[1].saturating_mul(width);
        let mut grid = Self::whole(sizes);
        loop {
            let [rows, _] = grid.block;
            let least = if sizes[2] <= DEEP { LEAST_ROWS } else { LEAST_DEEP_ROWS };
            let is_large = rows >= 2 * least && rows.saturating_mul(row_bytes) > MADE_BYTES;
            match grid.halved(&[0]).filter(|_| grid.len() < n_parts || is_large) {
                Some(next) => grid = next,
                None => return grid,
            }
        }
    }

    fn whole([m, n, _]: [usize; 3]) -> Self {
        Self { sizes: [m, n], block: [m, n] }
    }

    /// With blocks of half the rows or columns, along the first of these axes along which they are fair.
    fn halved(&self, axes: &[usize]) -> Option<Self> {
        let [rows, cols] = self.block;
        let is_vector = self.sizes.contains(&1);
        let tile = if is_vector { TILE_OF_VECTOR } else { TILE };
        let half = |n: usize| n.div_ceil(2).next_multiple_of(tile);
        let halves = [[half(rows), cols], [rows, half(cols)]].map(|block| self.with(block));
        let is_next = |next: &Self| next.is_fair() && next.len() > self.len();
        axes.iter().map(|&axis| halves[axis]).find(is_next)
    }

    /// Whether `gemm` treats all blocks as it would the product, and none is too small.
    fn is_fair(&self) -> bool {
        let (last, n_blocks) = (self.last(), self.n_blocks());
        (0..2).all(|axis| n_blocks[axis] == 1 || last[axis] >= LEAST) && last[0] * last[1] > SINGLE
    }

    /// Rows and columns of the last block, which has the fewest.
    fn last(&self) -> [usize; 2] {
        let n_blocks = self.n_blocks();
        [0, 1].map(|axis| self.sizes[axis] - (n_blocks[axis] - 1) * self.block[axis])
    }

    fn with(&self, block: [usize; 2]) -> Self {
        Self { block, ..*self }
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
