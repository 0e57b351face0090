//! Loops over whole operands of a convolution: other layouts, other types, sums.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use convoke_graph_core::{ConvGeometry, ImageLayout, Result};

use super::Float;
use crate::elements::Stored;
use crate::threads::Threads;

/// Rows and columns that are turned together: a line of a cache.
const TILE: usize = 16;

/// Filters in the layout of `g`, from those in the other one.
pub(super) fn turn_filters<T: Float>(g: &ConvGeometry, from: &[T], to: &mut [T]) {
    let (k, c, taps) = (g.out_channels, g.in_channels / g.groups, g.window[0] * g.window[1]);
    // The order of what is written.
    match g.layout {
        ImageLayout::Nchw => {
            for (i, of_filter) in to.chunks_exact_mut((c * taps).max(1)).enumerate() {
                for (j, of_channel) in of_filter.chunks_exact_mut(taps.max(1)).enumerate() {
                    for (tap, to) in of_channel.iter_mut().enumerate() {
                        *to = from[(tap * c + j) * k + i];
                    }
                }
            }
        }
        ImageLayout::Nhwc => {
            for (at, row) in to.chunks_exact_mut(k.max(1)).enumerate() {
                let (tap, j) = (at / c.max(1), at % c.max(1));
                for (i, to) in row.iter_mut().enumerate() {
                    *to = from[(i * c + j) * taps + tap];
                }
            }
        }
    }
}

/// A matrix of these sizes, with rows and columns swapped; what becomes a row is shared out to `threads`.
pub(super) fn transpose<T: Float>(
    from: &[T],
    to: &mut [T],
    [n_rows, n_cols]: [usize; 2],
    threads: Option<&Threads>,
) -> Result<()> {
    let Some(threads) = threads else {
        transpose_columns(from, to, [n_rows, n_cols], 0..n_cols);
        return Ok(());
    };
    let (mut to, widths) = ([cast_slice_mut(to)], [n_rows * size_of::<T>()]);
    threads.split(true, TILE, (&mut to, &widths), n_cols, &|columns, part| {
        transpose_columns(from, cast_slice_mut(part[0]), [n_rows, n_cols], columns);
        Ok(())
    })
}

fn transpose_columns<T: Float>(
    from: &[T],
    to: &mut [T],
    [n_rows, n_cols]: [usize; 2],
    columns: Range<usize>,
) {
    for row in (0..n_rows).step_by(TILE) {
        let rows = row..(row + TILE).min(n_rows);
        for (col, out) in columns.clone().zip(to.chunks_exact_mut(n_rows)) {
            for (out, row) in out[rows.clone()].iter_mut().zip(rows.clone()) {
                *out = from[row * n_cols + col];
            }
        }
    }
}

/// Adds to sums.
pub(super) fn add<T: Float>(xs: &[T], sums: &mut [T]) {
    for (sum, &x) in sums.iter_mut().zip(xs) {
        *sum += x;
    }
}

/// The elements in their wide type.
pub(super) fn widen<S: Stored>(input: &[u8], out: &mut [u8]) {
    let (xs, out): (&[S], &mut [S::Wide]) = (cast_slice(input), cast_slice_mut(out));
    for (out, &x) in out.iter_mut().zip(xs) {
        *out = x.widen();
    }
}

/// The elements from their wide type.
pub(super) fn round<S: Stored>(wide: &[u8], out: &mut [u8]) {
    let (xs, out): (&[S::Wide], &mut [S]) = (cast_slice(wide), cast_slice_mut(out));
    for (out, &x) in out.iter_mut().zip(xs) {
        *out = S::narrow(x);
    }
}
