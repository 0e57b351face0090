//! Folds of rows of wide elements that another kernel has just computed: the same arithmetic in the same order
//! as `rows.rs`, so that it gives the same bits.

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use convoke_graph_core::{Compute, DType, ReduceKind};
use half::{bf16, f16};

use super::fold::{Fold, Max, Min, Ordered, Prod, Sum};
use super::rows::{LANES, RUN, collapse, fold, fold_each};
use crate::elements::{FromF64, wide_bytes};
use crate::elementwise::code::{rounding, store};

/// A fold for some dtype, with functions of bytes.
#[derive(Clone, Copy)]
pub(crate) struct WideFold {
    kind: ReduceKind,
    dtype: DType,
    functions: Functions,
}

#[derive(Clone, Copy)]
struct Functions {
    /// The bytes of a partial result.
    n_bytes: usize,
    start: fn(&mut Partial),
    add: fn(&mut Partial, &[u8]),
    end: fn(&Partial, usize, &mut [u8]),
    merge: fn(&mut [u8], &[u8]),
    /// The partial result of each row of so many elements.
    rows: fn(&[u8], usize, &mut [u8]),
}

/// The rows whose results are finished at once.
const ROWS: usize = 64;

/// The accumulators of a row that is given in parts, each but the last of a multiple of [`PART`] elements.
#[derive(Default)]
pub(crate) struct Partial {
    acc: [u64; LANES],
    len: usize,
}

/// See [`Partial`].
pub(crate) const PART: usize = RUN;

impl WideFold {
    /// The fold, if there is one.
    pub fn new(kind: ReduceKind, dtype: DType) -> Option<Self> {
        Some(Self { kind, dtype, functions: functions_for(kind, dtype)? })
    }

    /// The bytes of a partial result.
    pub fn n_bytes(&self) -> usize {
        self.functions.n_bytes
    }

    /// Before the first elements of a row.
    pub fn start(&self, partial: &mut Partial) {
        partial.len = 0;
        (self.functions.start)(partial);
    }

    /// Adds wide elements.
    pub fn add(&self, partial: &mut Partial, xs: &[u8]) {
        (self.functions.add)(partial, xs);
    }

    /// The partial result of all elements that were added.
    pub fn end(&self, partial: &Partial, out: &mut [u8]) {
        (self.functions.end)(partial, partial.len, out);
    }

    /// Adds one partial result to another.
    pub fn merge(&self, into: &mut [u8], from: &[u8]) {
        (self.functions.merge)(into, from);
    }

    /// Folds each row of `n` wide elements to a wide element.
    pub fn rows(&self, xs: &[u8], n: usize, out: &mut [u8]) {
        let mut partials = [0u64; ROWS];
        let partials: &mut [u8] = cast_slice_mut(&mut partials);
        let wide = wide_bytes(self.dtype);
        for (xs, out) in xs.chunks(ROWS * n * wide).zip(out.chunks_mut(ROWS * wide)) {
            let partials = &mut partials[..out.len() / wide * self.n_bytes()];
            (self.functions.rows)(xs, n, partials);
            self.finish(partials, n, out);
        }
    }

    /// Stores what one row of `n` elements gives.
    pub fn store(&self, partial: &mut [u8], n: usize, out: &mut [u8]) {
        let mut wide = [0u64; 1];
        let wide = &mut cast_slice_mut::<_, u8>(&mut wide)[..wide_bytes(self.dtype)];
        self.finish(partial, n, wide);
        if let Some(store) = store(self.dtype) {
            store(&[wide], out);
        }
    }

    /// From partial results, which change, of rows of `n` elements to wide elements.
    fn finish(&self, partials: &mut [u8], n: usize, out: &mut [u8]) {
        if !self.dtype.is_float() || matches!(self.kind, ReduceKind::Max | ReduceKind::Min) {
            out.copy_from_slice(partials);
            if let Some(round) = rounding(self.dtype) {
                round(out);
            }
            return;
        }
        let results: &mut [f64] = cast_slice_mut(partials);
        if self.kind == ReduceKind::Mean {
            results.iter_mut().for_each(|x| *x /= n as f64);
        }
        match self.dtype {
            DType::F16 => rounded(results, out, |x| <f16 as FromF64>::from_f64(x).to_f32()),
            DType::BF16 => rounded(results, out, |x| <bf16 as FromF64>::from_f64(x).to_f32()),
            DType::F32 => rounded(results, out, |x| x as f32),
            _ => rounded(results, out, |x| x),
        }
    }
}

fn rounded<W: Pod>(xs: &[f64], out: &mut [u8], f: impl Fn(f64) -> W) {
    for (out, &x) in cast_slice_mut::<_, W>(out).iter_mut().zip(xs) {
        *out = f(x);
    }
}

fn functions<W: Pod, F: Fold<W>>() -> Functions {
    Functions {
        n_bytes: size_of::<F::Acc>(),
        start: |partial| *lanes::<F::Acc>(partial) = [F::START; LANES],
        add: |partial, xs| {
            let xs: &[W] = cast_slice(xs);
            partial.len += xs.len();
            let acc = lanes::<F::Acc>(partial);
            xs.chunks(RUN).for_each(|run| fold::<W, F>(acc, run));
        },
        end: |partial, len, out| {
            let lanes: &[F::Acc] = cast_slice(&partial.acc);
            let mut acc = [F::START; LANES];
            acc.copy_from_slice(&lanes[..LANES]);
            cast_slice_mut::<_, F::Acc>(out)[0] = collapse::<W, F>(acc, len);
        },
        merge: |into, from| {
            for (a, &b) in cast_slice_mut::<_, F::Acc>(into).iter_mut().zip(cast_slice(from)) {
                *a = F::merge(*a, b);
            }
        },
        rows: |xs, n, out| fold_each::<W, F>(cast_slice(xs), n, cast_slice_mut(out)),
    }
}

fn lanes<A: Pod>(partial: &mut Partial) -> &mut [A; LANES] {
    let (arrays, _) = cast_slice_mut::<u64, A>(&mut partial.acc).as_chunks_mut::<LANES>();
    &mut arrays[0]
}

fn functions_for(kind: ReduceKind, dtype: DType) -> Option<Functions> {
    use ReduceKind as Kind;
    Some(match (kind, dtype.compute()?) {
        (Kind::Sum | Kind::Mean, Compute::F32) => functions::<f32, Sum>(),
        (Kind::Sum | Kind::Mean, Compute::F64) => functions::<f64, Sum>(),
        (Kind::Mean, _) | (_, Compute::Bool) => return None,
        // Signed and unsigned integers wrap to the same bits.
        (Kind::Sum, Compute::I32 | Compute::U32) => functions::<u32, Sum>(),
        (Kind::Sum, Compute::I64 | Compute::U64) => functions::<u64, Sum>(),
        (Kind::Prod, Compute::F32) => functions::<f32, Prod>(),
        (Kind::Prod, Compute::F64) => functions::<f64, Prod>(),
        (Kind::Prod, Compute::I32 | Compute::U32) => functions::<u32, Prod>(),
        (Kind::Prod, Compute::I64 | Compute::U64) => functions::<u64, Prod>(),
        (_, Compute::I32) => extremum::<i32>(kind)?,
        (_, Compute::U32) => extremum::<u32>(kind)?,
        (_, Compute::I64) => extremum::<i64>(kind)?,
        (_, Compute::U64) => extremum::<u64>(kind)?,
        (_, Compute::F32) => extremum::<f32>(kind)?,
        (_, Compute::F64) => extremum::<f64>(kind)?,
    })
}

fn extremum<W: Ordered>(kind: ReduceKind) -> Option<Functions> {
    Some(match kind {
        ReduceKind::Max => functions::<W, Max>(),
        ReduceKind::Min => functions::<W, Min>(),
        _ => return None,
    })
}
