//! Reductions, in an order that depends on the shape alone, never on the number of threads.
//!
//! Two ways, by which axis is contiguous. *Rows*: each lane (the elements that become one) is walked by
//! itself, with [`LANES`] accumulators. *Columns*: neighbouring lanes are walked together, so that memory
//! is read in order. Either way a lane is cut into chunks of fixed size, which threads share and whose
//! results are merged in order. Sums, means and products of floats accumulate in f64.

mod columns;
mod fold;
mod rows;

use convoke_compiler::{Group, Program, Reduction};
use convoke_graph_core::{DType, ReduceKind, Result};

use crate::elements::{Bool, FromF64, Stored};
use crate::threads::Threads;
use crate::walk::Walk;
use crate::{malformed, unsupported};
use fold::{All, Any, ArgMax, ArgMin, Fold, Max, Mean, Min, Ordered, Prod, Sum};

/// Elements from which threads share the work.
const PARALLEL: usize = 1 << 17;

/// The elements of one chunk, about.
const CHUNK: usize = 1 << 16;

/// A reduction, compiled.
pub(crate) struct Reduce {
    lanes: Lanes,
    run: RunFn,
}

type RunFn = fn(&Lanes, &[u8], &mut [u8], &Threads) -> Result<()>;

/// Where the elements of all lanes lie.
struct Lanes {
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
        let (dims, strides) = (x.layout.shape().dims(), x.layout.strides());
        let n = reduction.n_outer;
        if n > dims.len() || output.shape.len() != dims[..n].iter().product() {
            let shape = &output.shape;
            return Err(malformed("reduce", &format!("{n} axes of {dims:?} to {shape}")));
        }
        let run = run_fn(reduction.kind, dtype).filter(|_| {
            let is_arg = matches!(reduction.kind, ReduceKind::ArgMax | ReduceKind::ArgMin);
            output.dtype == if is_arg { DType::I32 } else { dtype }
        });
        let run = run.ok_or_else(|| {
            unsupported(&format!("{:?} of {dtype} to {}", reduction.kind, output.dtype))
        })?;
        let outer = Walk::of_axes(&dims[..n], &strides[..n], x.layout.offset());
        let inner = Walk::of_axes(&dims[n..], &strides[n..], 0);
        Ok(Self { lanes: Lanes::new(outer, inner), run })
    }

    /// One operation for each element.
    pub fn flops(&self) -> u64 {
        self.lanes.n_outer as u64 * self.lanes.n_inner as u64
    }

    /// Computes the group.
    pub fn run(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]], threads: &Threads) -> Result<()> {
        if self.lanes.n_outer == 0 {
            return Ok(());
        }
        (self.run)(&self.lanes, inputs[0], outputs[0], threads)
    }
}

impl Lanes {
    fn new(outer: Walk, inner: Walk) -> Self {
        let (n_outer, n_inner) = (outer.len(), inner.len());
        let (dims, strides) = (outer.dims(), outer.strides());
        let last = dims.len() - 1;
        let (n, stride) = (dims[last], strides[last]);
        let by_columns = n > 1
            && n_inner > 1
            && stride.unsigned_abs() < inner.inner_stride().unsigned_abs();
        if !by_columns {
            return Self { outer, inner, columns: None, n_outer, n_inner };
        }
        let outer = Walk::of_axes(&dims[..last], &strides[..last], outer.offset());
        Self { outer, inner, columns: Some((n, stride)), n_outer, n_inner }
    }

    fn is_parallel(&self, threads: &Threads) -> bool {
        threads.len() > 1 && self.n_outer.saturating_mul(self.n_inner) >= PARALLEL
    }
}

fn reduce<S: Stored, F: Fold<S>>(
    lanes: &Lanes,
    input: &[u8],
    output: &mut [u8],
    threads: &Threads,
) -> Result<()> {
    let (xs, out) = (bytemuck::cast_slice(input), bytemuck::cast_slice_mut(output));
    let mut run = || match lanes.columns {
        Some(columns) => columns::run::<S, F>(lanes, columns, xs, out, threads),
        None => rows::run::<S, F>(lanes, xs, out, threads),
    };
    if lanes.is_parallel(threads) { threads.install(run) } else { run() }
}

fn run_fn(kind: ReduceKind, dtype: DType) -> Option<RunFn> {
    Some(match dtype {
        DType::Bool => match kind {
            ReduceKind::Any => reduce::<Bool, Any>,
            ReduceKind::All => reduce::<Bool, All>,
            _ => return None,
        },
        DType::I8 => numbers::<i8>(kind)?,
        DType::U8 => numbers::<u8>(kind)?,
        DType::I16 => numbers::<i16>(kind)?,
        DType::U16 => numbers::<u16>(kind)?,
        DType::I32 => numbers::<i32>(kind)?,
        DType::U32 => numbers::<u32>(kind)?,
        DType::I64 => numbers::<i64>(kind)?,
        DType::U64 => numbers::<u64>(kind)?,
        DType::F16 => floats::<half::f16>(kind)?,
        DType::BF16 => floats::<half::bf16>(kind)?,
        DType::F32 => floats::<f32>(kind)?,
        DType::F64 => floats::<f64>(kind)?,
        _ => return None,
    })
}

fn floats<S: FromF64 + Ordered>(kind: ReduceKind) -> Option<RunFn>
where
    Sum: Fold<S>,
    Prod: Fold<S>,
    Mean: Fold<S>,
{
    match kind {
        ReduceKind::Mean => Some(reduce::<S, Mean>),
        _ => numbers::<S>(kind),
    }
}

fn numbers<S: Ordered>(kind: ReduceKind) -> Option<RunFn>
where
    Sum: Fold<S>,
    Prod: Fold<S>,
{
    Some(match kind {
        ReduceKind::Sum => reduce::<S, Sum>,
        ReduceKind::Prod => reduce::<S, Prod>,
        ReduceKind::Max => reduce::<S, Max>,
        ReduceKind::Min => reduce::<S, Min>,
        ReduceKind::ArgMax => reduce::<S, ArgMax>,
        ReduceKind::ArgMin => reduce::<S, ArgMin>,
        _ => return None,
    })
}
