//! Loops over whole operands of a convolution: other layouts, other types, sums.

use bytemuck::{cast_slice, cast_slice_mut};
use convoke_graph_core::{ConvGeometry, ImageLayout};

use super::Float;
use crate::elements::Stored;

/// Filters in the layout of `g`, from those in the other one.
pub(super) fn turn_filters<T: Float>(g: &ConvGeometry, from: &[T], to: &mut [T]) {
    let (k, c, taps) = (g.out_channels, g.in_channels / g.groups, g.window[0] * g.window[1]);
    for i in 0..k {
        for j in 0..c {
            for tap in 0..taps {
                let (planes, pixels) = ((i * c + j) * taps + tap, (tap * c + j) * k + i);
                match g.layout {
                    ImageLayout::Nchw => to[planes] = from[pixels],
                    ImageLayout::Nhwc => to[pixels] = from[planes],
                }
            }
        }
    }
}

/// A matrix of these sizes, with rows and columns swapped.
pub(super) fn transpose<T: Float>(from: &[T], to: &mut [T], [n_rows, n_cols]: [usize; 2]) {
    const TILE: usize = 16;
    for row in (0..n_rows).step_by(TILE) {
        let rows = row..(row + TILE).min(n_rows);
        for col in 0..n_cols {
            let out = &mut to[col * n_rows..][rows.clone()];
            for (out, row) in out.iter_mut().zip(rows.clone()) {
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
