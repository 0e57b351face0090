//! Matrix products: floats by `gemm`, integers by plain wrapping loops in their wide type.

use std::ops::Range;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use convoke_compiler::{Group, Head, Program};
use convoke_graph_core::{Compute, DType, Layout, Result};
use smallvec::SmallVec;

use crate::elements::{Stored, wide_bytes, with_stored};
use crate::fast::{Factor, Gemm, MADE_BYTES, Matrix, Needed, multiply, stripe, wide};
use crate::operand::{Operand, WHOLE_BYTES, Whole};
use crate::tail::Finish;
use crate::threads::{Threads, parts_of};
use crate::walk::{Walk, widen_run};
use crate::{malformed, unsupported};

/// Multiplications and additions from which threads share products among them.
const PARALLEL: usize = 1 << 21;

/// A batch of products, compiled.
pub(crate) struct Matmul {
    dtype: DType,
    sizes: [usize; 3],
    a: Side,
    b: Side,
    n_batches: usize,
}

/// The bytes of a result below which it is finished with others.
const TINY_BYTES: usize = 1 << 12;

/// Whether parts of a matrix of these sizes are made, which lie in the memory that they are made in as in the whole: `gemm`
/// looks at which neighbours follow each other.
fn is_cut(at: Matrix, [rows, cols]: [usize; 2]) -> bool {
    let (len, step) = if at.col == 1 { (cols, at.row) } else { (rows, at.col) };
    at.is_lines() && ((rows > 1 && cols > 1) || usize::try_from(step) == Ok(len))
}

/// The most scratch memory that each thread takes for parts of a head's operand.
pub(crate) fn made_bytes(program: &Program, group: &Group, head: &Head) -> usize {
    let n_bytes = program.value(head.value).n_bytes();
    let is_cut = match (head.layout.strides(), head.layout.shape().dims()) {
        (&[.., row, col], &[.., rows, cols]) => {
            is_cut(Matrix { offset: 0, row, col }, [rows, cols])
        }
        _ => false,
    };
    let is_made = is_cut && n_bytes > WHOLE_BYTES && result_bytes(program, group) >= TINY_BYTES;
    if is_made { MADE_BYTES } else { n_bytes }
}

/// The bytes of one product of a group.
fn result_bytes(program: &Program, group: &Group) -> usize {
    let result = group.tail.as_ref().map(|tail| tail.result).or(group.outputs.first().copied());
    let value = result.map(|id| program.value(id));
    value.map_or(0, |value| {
        let sizes = value.shape.dims().iter().rev().take(2);
        sizes.product::<usize>() * value.dtype.n_bytes()
    })
}

/// The most scratch memory that each thread takes for results that it finishes: all, where they are made at once.
pub(crate) fn finished_bytes(program: &Program, group: &Group, n_threads: usize) -> usize {
    let core = group.core();
    let value = core.outputs.first().map(|&id| program.value(id));
    let bare = group.bare();
    let k = bare.inputs.first().and_then(|x| x.layout.shape().dims().last()).copied();
    let (Some(value), Some(k)) = (value, k) else { return 0 };
    let (all, each, width) = (value.n_bytes(), result_bytes(program, group), value.dtype.n_bytes());
    let has_right = group.heads.iter().any(|head| head.operand == 1);
    let &[.., m, n] = value.shape.dims() else { return all };
    if has_right || each < TINY_BYTES {
        return all;
    }
    match stripe([m, n, k], n_threads, width, false) {
        Some(rows) if each == all => rows * n * width,
        // Of a batch, each thread may have one whole.
        Some(_) => each,
        None => all,
    }
}

/// The factors with what they are read from.
type Sides<'a> = [(&'a Side, Operand<'a>); 2];

/// One factor.
struct Side {
    /// The places of the first elements of the batches.
    batches: Walk,
    /// One matrix, its offset left out.
    matrix: Matrix,
    /// Its rows and columns.
    sizes: [usize; 2],
    /// The elements of one matrix.
    walk: Walk,
}

impl Side {
    fn new(layout: &Layout) -> Self {
        let (dims, strides, n_lead) =
            (layout.shape().dims(), layout.strides(), layout.strides().len() - 2);
        Self {
            batches: Walk::of_axes(&dims[..n_lead], &strides[..n_lead], layout.offset()),
            matrix: Matrix { offset: 0, row: strides[n_lead], col: strides[n_lead + 1] },
            sizes: [dims[n_lead], dims[n_lead + 1]],
            walk: Walk::of_axes(&dims[n_lead..], &strides[n_lead..], 0),
        }
    }

    /// Where matrix `batch` begins.
    fn offset(&self, batch: usize) -> usize {
        let mut offset = 0;
        self.batches.runs(&mut self.batches.start(batch), 1, |at, _, _| offset = at);
        offset
    }

    fn matrix(&self, batch: usize) -> Matrix {
        Matrix { offset: self.offset(batch), ..self.matrix }
    }
}

impl Matmul {
    /// Compiles a group.
    pub fn compile(program: &Program, group: &Group) -> Result<Self> {
        let ([a, b], [c]) = (group.inputs.as_slice(), group.outputs.as_slice()) else {
            return Err(malformed("matmul", "expected two inputs and one output"));
        };
        let (value, dtypes) = (program.value(*c), [a, b].map(|x| program.value(x.value).dtype));
        let dtype = value.dtype;
        if dtypes != [dtype; 2] || dtype == DType::Bool {
            return Err(unsupported(&format!("matmul of {dtypes:?} to {dtype}")));
        }
        let (da, db, dc) = (a.layout.shape().dims(), b.layout.shape().dims(), value.shape.dims());
        let rank = dc.len();
        let fits = rank >= 2 && da.len() == rank && db.len() == rank && {
            let lead = rank - 2;
            da[..lead] == dc[..lead]
                && db[..lead] == dc[..lead]
                && [da[lead], db[lead + 1]] == dc[lead..]
                && da[lead + 1] == db[lead]
        };
        if !fits {
            return Err(malformed("matmul", &format!("{da:?} times {db:?} to {dc:?}")));
        }
        let (a, b) = (Side::new(&a.layout), Side::new(&b.layout));
        let sizes = [dc[rank - 2], dc[rank - 1], da[rank - 1]];
        let n_batches = dc[..rank - 2].iter().product();
        Ok(Self { dtype, sizes, a, b, n_batches }.folded())
    }

    /// With the batch as rows of one product, where all batches share the right side.
    fn folded(mut self) -> Self {
        let [m, n, k] = self.sizes;
        let follows = |s: isize| s == self.a.matrix.row * m as isize;
        if self.n_batches > 1
            && self.b.batches.is_scalar()
            && self.a.batches.dims().len() == 1
            && (m == 1 || follows(self.a.batches.inner_stride()))
        {
            let row = if m == 1 { self.a.batches.inner_stride() } else { self.a.matrix.row };
            let m = m * self.n_batches;
            let offset = self.a.batches.offset();
            self.a = Side {
                batches: Walk::of_axes(&[], &[], offset),
                matrix: Matrix { row, ..self.a.matrix },
                sizes: [m, k],
                walk: Walk::of_axes(&[m, k], &[row, self.a.matrix.col], 0),
            };
            (self.sizes, self.n_batches) = ([m, n, k], 1);
        }
        self
    }

    /// A multiplication and an addition for each term.
    pub fn flops(&self) -> u64 {
        let [m, n, k] = self.sizes.map(|s| s as u64);
        (2 * m * n).saturating_mul(k).saturating_mul(self.n_batches as u64)
    }

    /// Computes the group.
    pub fn run(
        &self,
        operands: &[Operand<'_>],
        outputs: &mut [&mut [u8]],
        finish: Option<&Finish<'_>>,
        threads: &Threads,
    ) -> Result<()> {
        let &[a, b] = operands else {
            return Err(malformed("matmul", "expected two operands"));
        };
        let ([m, n, _], sides) = (self.sizes, [(&self.a, a), (&self.b, b)]);
        if m * n * self.n_batches == 0 {
            return Ok(());
        }
        let Some(finish) = finish else { return self.products(sides, outputs[0], threads) };
        match self.stripe(sides, finish, threads) {
            Some(stripe) => self.finished(sides, outputs, (finish, stripe), threads),
            None => finish.whole(outputs, threads, |c| self.products(sides, c, threads)),
        }
    }

    /// All products, packed.
    fn products(&self, sides: Sides<'_>, c: &mut [u8], threads: &Threads) -> Result<()> {
        let [m, n, k] = self.sizes;
        if k == 0 {
            c.fill(0);
            return Ok(());
        }
        let whole = self.whole(sides, threads)?;
        let operands = self.operands(sides, &whole);
        let (share_batches, n_bytes) =
            (self.shares_batches(threads), [m * n * self.dtype.n_bytes()]);
        let mut c = [c];
        threads.split(share_batches, 1, (&mut c, &n_bytes), self.n_batches, &|range, c| {
            let products = c[0].chunks_exact_mut(n_bytes[0]);
            for (batch, c) in range.zip(products) {
                self.product(batch, 0..m, operands, c, threads, !share_batches)?;
            }
            Ok(())
        })
    }

    /// Many small products are shared out whole; a large one is shared in itself.
    fn shares_batches(&self, threads: &Threads) -> bool {
        let [m, n, k] = self.sizes;
        let each = (2 * m * n).saturating_mul(k);
        self.n_batches > 1
            && each.saturating_mul(self.n_batches) >= PARALLEL
            && (self.n_batches >= threads.len() * 2 || each < PARALLEL)
    }

    /// The rows that are finished at once. None if the product is computed whole before that: a small one stays in a cache,
    /// and what is made of a large right side would be made for each stripe.
    fn stripe(&self, sides: Sides<'_>, finish: &Finish<'_>, threads: &Threads) -> Option<usize> {
        let [m, n, k] = self.sizes;
        let is_small = finish.result_bytes() <= WHOLE_BYTES || self.is_tiny() || k == 0;
        if is_small || finish.widths().is_none() || !self.is_wide() {
            return None;
        }
        if self.shares_batches(threads) {
            return Some(m);
        }
        let [_, right] = sides.map(|(side, operand)| self.is_made(side, operand));
        if right {
            return None;
        }
        stripe(self.sizes, threads.len(), self.dtype.n_bytes(), finish.is_shared(m * n))
    }

    /// Whether a single result is not worth a call of its own.
    fn is_tiny(&self) -> bool {
        let [m, n, _] = self.sizes;
        m * n * self.dtype.n_bytes() < TINY_BYTES
    }

    /// The products, of which so many rows at once are finished.
    fn finished(
        &self,
        sides: Sides<'_>,
        outputs: &mut [&mut [u8]],
        (finish, stripe): (&Finish<'_>, usize),
        threads: &Threads,
    ) -> Result<()> {
        let [m, n, _] = self.sizes;
        let whole = self.whole(sides, threads)?;
        let operands = self.operands(sides, &whole);
        // Of a row.
        let width = n * self.dtype.n_bytes();
        let widths: SmallVec<[usize; 2]> =
            finish.widths().unwrap_or_default().iter().map(|width| n * width).collect();
        let rows = |batch: usize, rows: Range<usize>, outputs: &mut [&mut [u8]]| {
            let n_bytes = rows.len() * width;
            let mut scratch = threads.scratch(n_bytes)?;
            let c = &mut scratch[..n_bytes];
            self.product(batch, rows.clone(), operands, c, threads, false)?;
            let first = (batch * m + rows.start) * n;
            finish.block(first..first + rows.len() * n, c, outputs, threads, false)
        };
        // `outputs` begin with row `start`.
        let stripes = |batch: usize, range: Range<usize>, outputs: &mut [&mut [u8]]| {
            for start in range.clone().step_by(stripe) {
                let part = start..(start + stripe).min(range.end);
                let at = start - range.start;
                let mut own = parts_of(outputs, &widths, at..at + part.len());
                rows(batch, part, &mut own)?;
            }
            Ok(())
        };
        if self.shares_batches(threads) {
            let of_batch: SmallVec<[usize; 2]> = widths.iter().map(|width| m * width).collect();
            let parts = (outputs, of_batch.as_slice());
            return threads.split(true, 1, parts, self.n_batches, &|batches, outputs| {
                for (i, batch) in batches.enumerate() {
                    stripes(batch, 0..m, &mut parts_of(outputs, &of_batch, i..i + 1))?;
                }
                Ok(())
            });
        }
        for batch in 0..self.n_batches {
            let mut own = parts_of(outputs, &widths, batch * m..(batch + 1) * m);
            let parts = (own.as_mut_slice(), widths.as_slice());
            threads
                .split(true, stripe, parts, m, &|range, outputs| stripes(batch, range, outputs))?;
        }
        Ok(())
    }

    /// Whether products are of the stored elements themselves.
    fn is_wide(&self) -> bool {
        matches!(self.dtype, DType::F32 | DType::F64)
    }

    /// Whether parts of an operand are made where they are needed.
    fn is_made(&self, side: &Side, operand: Operand<'_>) -> bool {
        matches!(operand, Operand::Made(..))
            && operand.n_bytes() > WHOLE_BYTES
            && self.is_wide()
            && !self.is_tiny()
            && is_cut(side.matrix, side.sizes)
    }

    /// The operands that are made whole.
    fn whole<'a>(&self, sides: Sides<'a>, threads: &'a Threads) -> Result<[Option<Whole<'a>>; 2]> {
        let whole = |(side, operand): (&Side, Operand<'a>)| match operand {
            Operand::Made(..) if !self.is_made(side, operand) => operand.whole(threads).map(Some),
            _ => Ok(None),
        };
        let [a, b] = sides.map(whole);
        Ok([a?, b?])
    }

    /// The operands, where those that are made whole lie in memory.
    fn operands<'a>(
        &self,
        [a, b]: Sides<'a>,
        [whole_a, whole_b]: &'a [Option<Whole<'a>>; 2],
    ) -> [Operand<'a>; 2] {
        let lies = |whole: &'a Option<Whole<'a>>| whole.as_deref().map(Operand::Lies);
        [lies(whole_a).unwrap_or(a.1), lies(whole_b).unwrap_or(b.1)]
    }

    /// Some rows of a product.
    fn product(
        &self,
        batch: usize,
        rows: Range<usize>,
        operands: [Operand<'_>; 2],
        c: &mut [u8],
        threads: &Threads,
        share: bool,
    ) -> Result<()> {
        match (self.dtype, operands) {
            (DType::F32, _) => self.floats::<f32>(batch, rows, operands, c, threads, share),
            (DType::F64, _) => self.floats::<f64>(batch, rows, operands, c, threads, share),
            (_, [Operand::Lies(a), Operand::Lies(b)]) => {
                self.packed(batch, &[a, b], c, threads, share)
            }
            _ => Err(malformed("matmul", "an operand of another type is made in parts")),
        }
    }

    fn floats<T: Gemm + Stored>(
        &self,
        batch: usize,
        rows: Range<usize>,
        [a, b]: [Operand<'_>; 2],
        c: &mut [u8],
        threads: &Threads,
        share: bool,
    ) -> Result<()> {
        let ([_, n, k], first) = (self.sizes, rows.start);
        let (at_a, at_b) = (self.a.matrix(batch), self.b.matrix(batch));
        let make_a = |[rows, cols]: [Range<usize>; 2], f: &mut Needed<'_, T>| {
            a.part(at_a, [first + rows.start..first + rows.end, cols], threads, f)
        };
        let make_b =
            |part: [Range<usize>; 2], f: &mut Needed<'_, T>| b.part(at_b, part, threads, f);
        let a = match a {
            Operand::Lies(bytes) => Factor::Lies(cast_slice(bytes), at_a.moved(first, 0)),
            Operand::Made(..) => Factor::Made(&make_a),
        };
        let b = match b {
            Operand::Lies(bytes) => Factor::Lies(cast_slice(bytes), at_b),
            Operand::Made(..) => Factor::Made(&make_b),
        };
        multiplied([rows.len(), n, k], cast_slice_mut(c), a, b, share.then_some(threads))
    }

    /// Through wide copies of both factors, rounded or wrapped once at the end.
    fn packed(
        &self,
        batch: usize,
        inputs: &[&[u8]],
        c: &mut [u8],
        threads: &Threads,
        share: bool,
    ) -> Result<()> {
        let [m, n, k] = self.sizes;
        let width = wide_bytes(self.dtype);
        let sizes: SmallVec<[usize; 3]> =
            [m * k, k * n, m * n].iter().map(|len| (len * width).next_multiple_of(64)).collect();
        let mut scratch = threads.scratch(sizes.iter().sum())?;
        let (a, rest) = scratch.split_at_mut(sizes[0]);
        let (b, wide) = rest.split_at_mut(sizes[1]);
        let (a, b, wide) =
            (&mut a[..m * k * width], &mut b[..k * n * width], &mut wide[..m * n * width]);
        self.widen(&self.a, batch, inputs[0], a);
        self.widen(&self.b, batch, inputs[1], b);
        self.wide_product(a, b, wide, threads, share)?;
        with_stored!(self.dtype, T => narrow::<T>(wide, c), else ());
        Ok(())
    }

    fn widen(&self, side: &Side, batch: usize, input: &[u8], out: &mut [u8]) {
        let offset = side.offset(batch);
        with_stored!(self.dtype, T => widen::<T>(&side.walk, offset, input, out), else ());
    }

    fn wide_product(
        &self,
        a: &[u8],
        b: &[u8],
        c: &mut [u8],
        threads: &Threads,
        share: bool,
    ) -> Result<()> {
        let [m, n, k] = self.sizes;
        let compute = self.dtype.compute();
        if compute == Some(Compute::F32) {
            let at = |n_cols: usize| Matrix { offset: 0, row: n_cols as isize, col: 1 };
            let a = Factor::Lies(cast_slice(a), at(k));
            let b = Factor::Lies(cast_slice(b), at(n));
            let threads = share.then_some(threads);
            return multiplied::<f32>(self.sizes, cast_slice_mut(c), a, b, threads);
        }
        let width = wide_bytes(self.dtype);
        let parallel = share && (2 * m * n).saturating_mul(k) >= PARALLEL;
        threads.split(parallel, 1, (&mut [c], &[n * width]), m, &|rows, c| {
            let a = &a[rows.start * k * width..rows.end * k * width];
            match compute {
                Some(Compute::I32 | Compute::U32) => wrapping::<u32>(c[0], a, b, [n, k]),
                _ => wrapping::<u64>(c[0], a, b, [n, k]),
            }
            Ok(())
        })
    }
}

/// As [`multiply`], to a packed matrix.
fn multiplied<T: Gemm>(
    sizes: [usize; 3],
    c: &mut [T],
    a: Factor<'_, T>,
    b: Factor<'_, T>,
    threads: Option<&Threads>,
) -> Result<()> {
    let at = Matrix { offset: 0, row: sizes[1] as isize, col: 1 };
    multiply(sizes, (c, at), a, b, false, threads)
}

/// Signed and unsigned integers wrap to the same bits.
trait Wrapping: Pod {
    fn add_product(self, a: Self, b: Self) -> Self;
}

impl Wrapping for u32 {
    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        self.wrapping_add(a.wrapping_mul(b))
    }
}

impl Wrapping for u64 {
    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        self.wrapping_add(a.wrapping_mul(b))
    }
}

/// `c = a b`, row by row.
fn wrapping<T: Wrapping>(c: &mut [u8], a: &[u8], b: &[u8], [n, k]: [usize; 2]) {
    let (c, a, b): (&mut [T], &[T], &[T]) = (cast_slice_mut(c), cast_slice(a), cast_slice(b));
    c.fill(T::zeroed());
    for (c, a) in c.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
        for (&a, b) in a.iter().zip(b.chunks_exact(n)) {
            wide(
                #[inline(always)]
                || {
                    for (c, &b) in c.iter_mut().zip(b) {
                        *c = c.add_product(a, b);
                    }
                },
            );
        }
    }
}

fn widen<S: Stored>(walk: &Walk, offset: usize, input: &[u8], out: &mut [u8]) {
    let (xs, out): (&[S], &mut [S::Wide]) = (cast_slice(input), cast_slice_mut(out));
    let (mut cursor, mut done) = (walk.start(0).moved(offset), 0);
    walk.runs(&mut cursor, out.len(), |at, stride, len| {
        widen_run(xs, at, stride, &mut out[done..][..len]);
        done += len;
    });
}

fn narrow<S: Stored>(wide: &[u8], out: &mut [u8]) {
    let (xs, out): (&[S::Wide], &mut [S]) = (cast_slice(wide), cast_slice_mut(out));
    for (out, &x) in out.iter_mut().zip(xs) {
        *out = S::narrow(x);
    }
}
