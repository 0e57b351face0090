//! Reductions, in an order that depends on the shape alone, never on the number of threads.
//!
//! Two ways, by which axis is contiguous. *Rows*: each lane (the elements that become one) is walked by
//! itself, with several accumulators. *Columns*: neighbouring lanes are walked together, so that memory
//! is read in order. Either way a lane is cut into chunks of fixed size, which threads share and whose
//! results are merged in order. Elements are widened first; sums, means and products of floats
//! accumulate in f64.

mod columns;
mod fold;
mod places;
mod rows;
mod wide;

use bytemuck::{cast_slice, cast_slice_mut};
use convoke_compiler::{Group, Program, Reduction, Rows, by_columns};
use convoke_graph_core::{Compute, DType, Layout, ReduceKind, Result};
use half::{bf16, f16};
use smallvec::SmallVec;

use crate::elements::{FromF64, Stored, with_stored};
use crate::elementwise::Elementwise;
use crate::threads::Threads;
use crate::walk::{Walk, widen_run};
use crate::{malformed, unsupported};
use fold::{All, Any, Fold, Max, Min, Prod, Sum};
pub(crate) use wide::{PART, Partial, WideFold};

/// Elements from which threads share the work.
const PARALLEL: usize = 1 << 17;

/// The elements of one chunk, about.
pub(crate) const CHUNK: usize = 1 << 16;

/// A reduction, compiled.
pub(crate) struct Reduce {
    lanes: Lanes,
    run: RunFn,
    /// What computes the elements, if they are not input 0.
    feed: Option<Elementwise>,
}

/// Fills the output of all lanes.
type RunFn = fn(&Lanes, Source<'_>, &mut [u8], &Threads) -> Result<()>;

/// Where elements come from.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// They are those of an input.
    Stored(&'a [u8]),
    /// They are computed from inputs, in the order in which they would be stored.
    Computed(&'a Elementwise, &'a [&'a [u8]]),
}

impl<'a> Source<'a> {
    /// The elements, if they are stored.
    fn stored(self) -> Result<&'a [u8]> {
        match self {
            Self::Stored(bytes) => Ok(bytes),
            Self::Computed(..) => Err(malformed("reduce", "only columns are computed on the way")),
        }
    }
}

/// Where the elements of all lanes lie, and how they are read and stored.
struct Lanes {
    kind: ReduceKind,
    dtype: DType,
    /// The first elements of the lanes, in the order of the output. Without the last axis if `columns`.
    outer: Walk,
    /// The elements of a lane, the first one's place left out.
    inner: Walk,
    /// The number and the stride of neighbouring lanes that are walked together.
    columns: Option<(usize, isize)>,
    n_outer: usize,
    n_inner: usize,
}

impl Reduce {
    /// Compiles a group.
    pub fn compile(program: &Program, group: &Group, reduction: Reduction) -> Result<Self> {
        let ([x], [output]) = (group.inputs.as_slice(), group.outputs.as_slice()) else {
            return Err(malformed("reduce", "expected one input and one output"));
        };
        let (dtype, output) = (program.value(x.value).dtype, program.value(*output));
        let dims = x.layout.shape().dims();
        let (kind, n) = (reduction.kind, reduction.n_outer);
        if n > dims.len() || output.shape.len() != dims[..n].iter().product() {
            let shape = &output.shape;
            return Err(malformed("reduce", &format!("{n} axes of {dims:?} to {shape}")));
        }
        let run = run_fn(kind, dtype).filter(|_| {
            let is_place = matches!(kind, ReduceKind::ArgMax | ReduceKind::ArgMin);
            output.dtype == if is_place { DType::I32 } else { dtype }
        });
        let run =
            run.ok_or_else(|| unsupported(&format!("{kind:?} of {dtype} to {}", output.dtype)))?;
        Ok(Self { lanes: Lanes::new(kind, dtype, &x.layout, n), run, feed: None })
    }

    /// Compiles columns of what is computed on the way.
    pub fn of_columns(
        program: &Program,
        group: &Group,
        work: &Rows,
        seen: &Layout,
    ) -> Result<Self> {
        let (Some(fold), &[output]) = (work.only_fold(), group.outputs.as_slice()) else {
            return Err(malformed("columns", "expected one fold and one output"));
        };
        let (dtype, output) = (work.dtype(&fold), program.value(output));
        if output.dtype != dtype || output.shape.len() != work.n_rows() {
            let shape = &output.shape;
            return Err(malformed("columns", &format!("{} to {shape}", work.fused.shape)));
        }
        let run = run_fn(fold.kind, dtype)
            .ok_or_else(|| unsupported(&format!("{:?} of {dtype}", fold.kind)))?;
        let lanes = Lanes::new(fold.kind, dtype, seen, work.n_outer);
        if lanes.columns.is_none_or(|(_, stride)| stride != 1) {
            return Err(malformed("columns", "they do not lie side by side"));
        }
        let axes = storage_order(seen);
        let turned = |layout: &Layout| {
            layout.permute(&axes).ok_or_else(|| malformed("columns", "an input has other axes"))
        };
        let mut feed = group.clone();
        for input in &mut feed.inputs {
            input.layout = turned(&input.layout)?;
        }
        let mut fused = work.fused.clone();
        fused.shape = turned(&Layout::packed(fused.shape.clone()))?.shape().clone();
        fused.input_dtypes.truncate(work.n_inputs());
        fused.stores = SmallVec::from_slice(&[fold.arg]);
        let feed = Elementwise::compile(program, &feed, &fused)?;
        Ok(Self { lanes, run, feed: Some(feed) })
    }

    /// One operation for each element, and those that compute it.
    pub fn flops(&self) -> u64 {
        let own = self.lanes.n_outer as u64 * self.lanes.n_inner as u64;
        own.saturating_add(self.feed.as_ref().map_or(0, Elementwise::flops))
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        let (lanes, output) = (&self.lanes, &mut *outputs[0]);
        if lanes.n_outer == 0 {
            return Ok(());
        }
        if lanes.n_inner == 0 && matches!(lanes.kind, ReduceKind::Max | ReduceKind::Min) {
            lanes.extrema_of_nothing(output);
            return Ok(());
        }
        let source = match &self.feed {
            Some(feed) => Source::Computed(feed, inputs),
            None => Source::Stored(inputs[0]),
        };
        (self.run)(lanes, source, output, threads)
    }
}

impl Lanes {
    /// Those of what `layout` shows, whose first `n` axes stay.
    fn new(kind: ReduceKind, dtype: DType, layout: &Layout, n: usize) -> Self {
        let (dims, strides) = (layout.shape().dims(), layout.strides());
        let outer = Walk::of_axes(&dims[..n], &strides[..n], layout.offset());
        let inner = Walk::of_axes(&dims[n..], &strides[n..], 0);
        let (n_outer, n_inner) = (outer.len(), inner.len());
        let (outer, columns) = if by_columns(layout, n) {
            let (dims, strides) = (outer.dims(), outer.strides());
            let last = dims.len() - 1;
            let (n, stride) = (dims[last], strides[last]);
            let lead = Walk::of_axes(&dims[..last], &strides[..last], outer.offset());
            (lead, Some((n, stride)))
        } else {
            (outer, None)
        };
        Self { kind, dtype, outer, inner, columns, n_outer, n_inner }
    }

    fn is_parallel(&self) -> bool {
        self.n_outer.saturating_mul(self.n_inner) >= PARALLEL
    }

    /// How many lanes, of which `n_inner` elements are taken, are worth a share of their own.
    fn grain(&self, n_inner: usize) -> usize {
        (CHUNK / n_inner.max(1)).max(1)
    }

    /// Where lane `index` of `outer` begins.
    fn base(&self, index: usize) -> usize {
        let mut base = 0;
        self.outer.runs(&mut self.outer.start(index), 1, |at, _, _| base = at);
        base
    }

    /// The dtype's least value for the greatest of nothing, and its greatest for the least.
    fn extrema_of_nothing(&self, output: &mut [u8]) {
        macro_rules! fill {
            ($($dtype:ident: $t:ty, $least:expr, $greatest:expr;)*) => {
                match self.dtype {
                    $(DType::$dtype => cast_slice_mut::<_, $t>(output).fill(
                        if self.kind == ReduceKind::Max { $least } else { $greatest },
                    ),)*
                    _ => {}
                }
            };
        }
        fill! {
            I8: i8, i8::MIN, i8::MAX; U8: u8, u8::MIN, u8::MAX;
            I16: i16, i16::MIN, i16::MAX; U16: u16, u16::MIN, u16::MAX;
            I32: i32, i32::MIN, i32::MAX; U32: u32, u32::MIN, u32::MAX;
            I64: i64, i64::MIN, i64::MAX; U64: u64, u64::MIN, u64::MAX;
            F16: f16, f16::NEG_INFINITY, f16::INFINITY;
            BF16: bf16, bf16::NEG_INFINITY, bf16::INFINITY;
            F32: f32, f32::NEG_INFINITY, f32::INFINITY;
            F64: f64, f64::NEG_INFINITY, f64::INFINITY;
        }
    }

    /// The elements of a run, widened to `W`: where they lie, or in `buffer`.
    #[inline]
    fn widened<'a, W: bytemuck::Pod>(
        &self,
        input: &'a [u8],
        (at, stride): (usize, isize),
        buffer: &'a mut [W],
    ) -> &'a [W] {
        with_stored!(self.dtype, T => {
            if <T as Stored>::IS_WIDE && stride == 1 {
                return &cast_slice(input)[at..][..buffer.len()];
            }
            widen_run::<T>(cast_slice(input), at, stride, cast_slice_mut(buffer));
        }, else ());
        buffer
    }

    /// Stores f64 sums and products, rounded once, and wide results of other kinds.
    fn store<A: bytemuck::Pod>(&self, results: &mut [A], output: &mut [u8]) {
        if self.dtype.is_float() && !matches!(self.kind, ReduceKind::Max | ReduceKind::Min) {
            let results: &mut [f64] = cast_slice_mut(results);
            if self.kind == ReduceKind::Mean {
                results.iter_mut().for_each(|x| *x /= self.n_inner as f64);
            }
            return match self.dtype {
                DType::F16 => round::<f16>(results, output),
                DType::BF16 => round::<bf16>(results, output),
                DType::F32 => round::<f32>(results, output),
                _ => round::<f64>(results, output),
            };
        }
        with_stored!(self.dtype, T => {
            let out = cast_slice_mut::<_, T>(output).iter_mut();
            for (out, &x) in out.zip(cast_slice::<A, <T as Stored>::Wide>(results)) {
                *out = T::narrow(x);
            }
        }, else ());
    }
}

fn round<T: FromF64>(xs: &[f64], out: &mut [u8]) {
    for (out, &x) in cast_slice_mut::<_, T>(out).iter_mut().zip(xs) {
        *out = T::from_f64(x);
    }
}

fn reduce<W: bytemuck::Pod + Sync, F: Fold<W>>(
    lanes: &Lanes,
    source: Source<'_>,
    output: &mut [u8],
    threads: &Threads,
) -> Result<()> {
    match lanes.columns {
        Some(columns) => columns::run::<W, F>(lanes, columns, source, output, threads),
        None => rows::run::<W, F>(lanes, source.stored()?, output, threads),
    }
}

/// The axes of a layout that shows all elements of something packed, in the order in which those lie.
fn storage_order(layout: &Layout) -> SmallVec<[usize; 6]> {
    let strides = layout.strides();
    let mut axes: SmallVec<[usize; 6]> = (0..strides.len()).collect();
    axes.sort_by_key(|&axis| (std::cmp::Reverse(strides[axis]), axis));
    axes
}

fn run_fn(kind: ReduceKind, dtype: DType) -> Option<RunFn> {
    use ReduceKind as Kind;
    Some(match (kind, dtype.compute()?) {
        (Kind::Any, Compute::Bool) => reduce::<u8, Any>,
        (Kind::All, Compute::Bool) => reduce::<u8, All>,
        (_, Compute::Bool) | (Kind::Any | Kind::All, _) => return None,
        (Kind::Sum | Kind::Mean, Compute::F32) => reduce::<f32, Sum>,
        (Kind::Sum | Kind::Mean, Compute::F64) => reduce::<f64, Sum>,
        (Kind::Mean, _) => return None,
        // Signed and unsigned integers wrap to the same bits.
        (Kind::Sum, Compute::I32 | Compute::U32) => reduce::<u32, Sum>,
        (Kind::Sum, Compute::I64 | Compute::U64) => reduce::<u64, Sum>,
        (Kind::Prod, Compute::F32) => reduce::<f32, Prod>,
        (Kind::Prod, Compute::F64) => reduce::<f64, Prod>,
        (Kind::Prod, Compute::I32 | Compute::U32) => reduce::<u32, Prod>,
        (Kind::Prod, Compute::I64 | Compute::U64) => reduce::<u64, Prod>,
        (_, Compute::I32) => ordered::<i32>(kind)?,
        (_, Compute::U32) => ordered::<u32>(kind)?,
        (_, Compute::I64) => ordered::<i64>(kind)?,
        (_, Compute::U64) => ordered::<u64>(kind)?,
        (_, Compute::F32) => ordered::<f32>(kind)?,
        (_, Compute::F64) => ordered::<f64>(kind)?,
    })
}

fn ordered<W: fold::Ordered>(kind: ReduceKind) -> Option<RunFn> {
    Some(match kind {
        ReduceKind::Max => reduce::<W, Max>,
        ReduceKind::Min => reduce::<W, Min>,
        ReduceKind::ArgMax => places::run::<W, Max>,
        ReduceKind::ArgMin => places::run::<W, Min>,
        _ => return None,
    })
}
