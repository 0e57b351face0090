//! Matrix products: floats by `gemm`, integers by plain wrapping loops in their wide type.

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use convoke_compiler::{Group, Program};
use convoke_graph_core::{Compute, DType, Layout, Result};
use smallvec::SmallVec;

use crate::elements::{Stored, wide_bytes, with_stored};
use crate::fast::{Gemm, Matrix, multiply, wide};
use crate::threads::Threads;
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

/// One factor.
struct Side {
    /// The places of the first elements of the batches.
    batches: Walk,
    /// One matrix, its offset left out.
    matrix: Matrix,
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
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        let [m, n, k] = self.sizes;
        if m * n * self.n_batches == 0 {
            return Ok(());
        }
        if k == 0 {
            outputs[0].fill(0);
            return Ok(());
        }
        // Many small products are shared out whole; a large one is shared in itself.
        let each = (2 * m * n).saturating_mul(k);
        let share_batches = self.n_batches > 1
            && each.saturating_mul(self.n_batches) >= PARALLEL
            && (self.n_batches >= threads.len() * 2 || each < PARALLEL);
        let n_bytes = [m * n * self.dtype.n_bytes()];
        threads.split(share_batches, 1, (outputs, &n_bytes), self.n_batches, &|range, outputs| {
            let products = outputs[0].chunks_exact_mut(n_bytes[0]);
            for (batch, c) in range.zip(products) {
                self.product(batch, inputs, c, threads, !share_batches)?;
            }
            Ok(())
        })
    }

    fn product(
        &self,
        batch: usize,
        inputs: &[&[u8]],
        c: &mut [u8],
        threads: &Threads,
        share: bool,
    ) -> Result<()> {
        match self.dtype {
            DType::F32 => self.floats::<f32>(batch, inputs, c, threads, share),
            DType::F64 => self.floats::<f64>(batch, inputs, c, threads, share),
            _ => self.packed(batch, inputs, c, threads, share),
        }
    }

    fn floats<T: Gemm + Stored>(
        &self,
        batch: usize,
        inputs: &[&[u8]],
        c: &mut [u8],
        threads: &Threads,
        share: bool,
    ) -> Result<()> {
        let a = (cast_slice(inputs[0]), self.a.matrix(batch));
        let b = (cast_slice(inputs[1]), self.b.matrix(batch));
        multiplied::<T>(self.sizes, cast_slice_mut(c), a, b, share.then_some(threads))
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
            let (a, b) = ((cast_slice(a), at(k)), (cast_slice(b), at(n)));
            return multiplied::<f32>(
                self.sizes,
                cast_slice_mut(c),
                a,
                b,
                share.then_some(threads),
            );
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

/// As [`multiply`], or why not.
fn multiplied<T: Gemm>(
    sizes: [usize; 3],
    c: &mut [T],
    a: (&[T], Matrix),
    b: (&[T], Matrix),
    threads: Option<&Threads>,
) -> Result<()> {
    let done = multiply(sizes, c, a, b, threads);
    if done { Ok(()) } else { Err(malformed("matmul", "a matrix leaves its buffer")) }
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
