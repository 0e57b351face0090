//! What one step of a block does: a function of bytes, chosen when a group is compiled.

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use convoke_graph_core::ops::Block;
use convoke_graph_core::{Compute, DType, Row};
use smallvec::SmallVec;

use super::{cast, rows};
use crate::elements::{Stored, with_stored};
use crate::fast::wide;

/// A function of blocks of wide elements: one slice for each argument, then the output.
pub(super) type BlockFn = fn(&[&[u8]], &mut [u8]);

/// Rounds or wraps a block of wide elements to a narrow dtype.
pub(crate) type Rounding = fn(&mut [u8]);

/// One step.
#[derive(Clone, Copy)]
pub(crate) enum Code {
    /// A function of this crate.
    Fast(BlockFn),
    /// A function of this crate with two arguments, one of which may be a single element.
    Binary(BlockFn),
    F32(Block<f32>),
    F64(Block<f64>),
    I32(Block<i32>),
    U32(Block<u32>),
    I64(Block<i64>),
    U64(Block<u64>),
    Bool(BlockFn),
}

impl Code {
    /// The step of a row for inputs of `dtype`, if the row accepts it.
    pub fn of_row(row: &'static Row, dtype: DType) -> Option<Self> {
        row.output(dtype)?;
        let compute = dtype.compute()?;
        if let Some(fast) = rows::fast(row.name, compute) {
            return Some(if row.arity == 2 { Self::Binary(fast) } else { Self::Fast(fast) });
        }
        let (float, int) = (row.float.as_ref(), row.int.as_ref());
        Some(match compute {
            Compute::Bool => Self::Bool(row.bools.as_ref()?.block),
            Compute::I32 => Self::I32(int?.i32),
            Compute::U32 => Self::U32(int?.u32),
            Compute::I64 => Self::I64(int?.i64),
            Compute::U64 => Self::U64(int?.u64),
            Compute::F32 => Self::F32(float?.f32),
            Compute::F64 => Self::F64(float?.f64),
        })
    }

    /// The step of a cast.
    pub fn of_cast(from: DType, to: DType) -> Option<Self> {
        cast::cast(from.compute()?, to).map(Self::Fast)
    }

    /// The step of a select between elements of `width` bytes.
    pub fn of_select(width: usize) -> Option<Self> {
        Some(Self::Fast(match width {
            1 => select::<u8>,
            4 => select::<u32>,
            8 => select::<u64>,
            _ => return None,
        }))
    }

    /// Computes one block.
    pub fn call(self, args: &[&[u8]], out: &mut [u8]) {
        match self {
            Self::Fast(f) | Self::Binary(f) | Self::Bool(f) => f(args, out),
            Self::F32(f) => typed(f, args, out),
            Self::F64(f) => typed(f, args, out),
            Self::I32(f) => typed(f, args, out),
            Self::U32(f) => typed(f, args, out),
            Self::I64(f) => typed(f, args, out),
            Self::U64(f) => typed(f, args, out),
        }
    }
}

fn typed<T: Pod>(block: Block<T>, args: &[&[u8]], out: &mut [u8]) {
    let args: SmallVec<[&[T]; 3]> = args.iter().map(|bytes| cast_slice(bytes)).collect();
    match block {
        Block::Same(f) => f(&args, cast_slice_mut(out)),
        Block::Test(f) => f(&args, out),
    }
}

fn select<T: Pod>(args: &[&[u8]], out: &mut [u8]) {
    let (xs, ys, out) = (cast_slice::<_, T>(args[1]), cast_slice(args[2]), cast_slice_mut(out));
    let conditions = args[0];
    wide(
        #[inline(always)]
        || {
            for (((out, &c), &x), &y) in out.iter_mut().zip(conditions).zip(xs).zip(ys) {
                *out = std::hint::select_unpredictable(c != 0, x, y);
            }
        },
    );
}

/// Rounds or wraps a block of wide elements to `dtype`; `None` where nothing is to be done.
pub(crate) fn rounding(dtype: DType) -> Option<Rounding> {
    with_stored!(dtype, T => if <T as Stored>::IS_WIDE { None } else { Some(round::<T>) }, else None)
}

fn round<S: Stored>(block: &mut [u8]) {
    let block: &mut [S::Wide] = cast_slice_mut(block);
    wide(
        #[inline(always)]
        || {
            for x in block {
                *x = S::narrow(*x).widen();
            }
        },
    );
}

/// Stores a block of wide elements.
pub(crate) fn store(dtype: DType) -> Option<BlockFn> {
    with_stored!(dtype, T => Some(narrow::<T>), else None)
}

fn narrow<S: Stored>(args: &[&[u8]], out: &mut [u8]) {
    if S::IS_WIDE {
        out.copy_from_slice(args[0]);
        return;
    }
    let (xs, out): (&[S::Wide], &mut [S]) = (cast_slice(args[0]), cast_slice_mut(out));
    wide(
        #[inline(always)]
        || {
            for (out, &x) in out.iter_mut().zip(xs) {
                *out = S::narrow(x);
            }
        },
    );
}
