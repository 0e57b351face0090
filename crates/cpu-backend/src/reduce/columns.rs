//! Neighbouring lanes walked together, row by row of memory.

use std::ops::Range;

use bytemuck::{Pod, cast_slice_mut};
use convoke_graph_core::Result;

use super::fold::Fold;
use super::{CHUNK, Lanes, Source};
use crate::elementwise::Lines;
use crate::fast::wide;
use crate::threads::Threads;

/// The lanes whose accumulators stay in the nearest cache.
pub(super) const TILE: usize = 512;

/// As [`TILE`], of lanes whose elements are computed on the way, which takes a call for each row; and the
/// elements that are computed at once.
const COMPUTED: usize = 4096;

/// A tile of neighbouring lanes and the elements of them that are taken.
struct Task {
    base: usize,
    stride: isize,
    first: usize,
    n: usize,
}

pub(super) fn run<W: Pod + Sync, F: Fold<W>>(
    lanes: &Lanes,
    (n_columns, stride): (usize, isize),
    source: Source<'_>,
    output: &mut [u8],
    threads: &Threads,
) -> Result<()> {
    let n_rows = (CHUNK / n_columns).max(64);
    let n_chunks = lanes.n_inner.div_ceil(n_rows);
    let (width, size) = (lanes.dtype.n_bytes(), size_of::<F::Acc>());
    let task = |row: usize, column: usize| {
        let first = row % n_chunks * n_rows;
        let base = lanes.base(row / n_chunks).wrapping_add_signed(column as isize * stride);
        Task { base, stride, first, n: n_rows.min(lanes.n_inner - first) }
    };
    let tile = if let Source::Computed(..) = source { COMPUTED } else { TILE };
    let grain = grain(lanes.grain(n_rows.min(lanes.n_inner)), n_columns.min(tile));
    let parallel = lanes.is_parallel();
    if n_chunks == 1 {
        let part = (&mut [output][..], &[width][..]);
        return threads.split(parallel, grain, part, lanes.n_outer, &|range, out| {
            let mut acc = [F::START; COMPUTED];
            tiles(range, n_columns, tile, &mut |at, row, column, n| {
                acc[..n].fill(F::START);
                fold::<W, F>(lanes, source, &task(row, column), &mut acc[..n], threads)?;
                lanes.store(&mut acc[..n], &mut out[0][at * width..][..n * width]);
                Ok(())
            })
        });
    }
    let n_parts = lanes.n_outer * n_chunks;
    let mut scratch = threads.scratch(size * n_parts)?;
    let parts = &mut scratch[..size * n_parts];
    threads.split(parallel, grain, (&mut [&mut *parts], &[size]), n_parts, &|range, out| {
        let acc: &mut [F::Acc] = cast_slice_mut(out[0]);
        tiles(range, n_columns, tile, &mut |at, row, column, n| {
            acc[at..][..n].fill(F::START);
            fold::<W, F>(lanes, source, &task(row, column), &mut acc[at..][..n], threads)
        })
    })?;
    let of_lanes = cast_slice_mut::<_, F::Acc>(parts).chunks_exact_mut(n_chunks * n_columns);
    for (out, parts) in output.chunks_exact_mut(n_columns * width).zip(of_lanes) {
        let (total, rest) = parts.split_at_mut(n_columns);
        for part in rest.chunks_exact(n_columns) {
            for (total, &part) in total.iter_mut().zip(part) {
                *total = F::merge(*total, part);
            }
        }
        lanes.store(total, out);
    }
    Ok(())
}

/// Whole tiles, at least `least` columns.
pub(super) fn grain(least: usize, tile: usize) -> usize {
    least.next_multiple_of(tile)
}

/// Cuts a range of columns, counted over all rows of `n_columns`, into parts of one row and at most
/// `tile` columns: calls `f` with where in the range a part begins, its row, its first column and its
/// length.
pub(super) fn tiles(
    range: Range<usize>,
    n_columns: usize,
    tile: usize,
    f: &mut dyn FnMut(usize, usize, usize, usize) -> Result<()>,
) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let (row, column) = (at / n_columns, at % n_columns);
        let n = tile.min(n_columns - column).min(range.end - at);
        f(at - range.start, row, column, n)?;
        at += n;
    }
    Ok(())
}

fn fold<W: Pod, F: Fold<W>>(
    lanes: &Lanes,
    source: Source<'_>,
    task: &Task,
    acc: &mut [F::Acc],
    threads: &Threads,
) -> Result<()> {
    let mut cursor = lanes.inner.start(task.first).moved(task.base);
    let mut buffer = [W::zeroed(); TILE];
    let (feed, inputs) = match source {
        Source::Computed(feed, inputs) => (feed, inputs),
        Source::Stored(input) => {
            lanes.inner.runs(&mut cursor, task.n, |at, stride, len| {
                for i in 0..len {
                    let at = at.wrapping_add_signed(i as isize * stride);
                    let buffer = &mut buffer[..acc.len()];
                    add::<W, F>(acc, lanes.widened(input, (at, task.stride), buffer));
                }
            });
            return Ok(());
        }
    };
    // Where the tile is all that lies between two rows, some rows are computed at once.
    let n_columns = acc.len();
    let width = n_columns * lanes.dtype.n_bytes();
    let most = (COMPUTED / n_columns).max(1);
    let mut scratch = threads.scratch(width * most)?;
    let mut result = Ok(());
    lanes.inner.runs(&mut cursor, task.n, |at, stride, len| {
        let is_packed = usize::try_from(stride) == Ok(n_columns);
        let most = if is_packed { most } else { 1 };
        for first in (0..len).step_by(most) {
            if result.is_err() {
                return;
            }
            let n = most.min(len - first);
            let at = at.wrapping_add_signed(first as isize * stride);
            let rows = &mut scratch[..n * width];
            result = feed.run_part(
                Lines::one(at..at + n * n_columns),
                0,
                inputs,
                &mut [&mut *rows],
                threads,
            );
            for i in 0..n {
                for (k, acc) in acc.chunks_mut(TILE).enumerate() {
                    let buffer = &mut buffer[..acc.len()];
                    add::<W, F>(acc, lanes.widened(rows, (i * n_columns + k * TILE, 1), buffer));
                }
            }
        }
    });
    result
}

#[inline]
fn add<W: Copy, F: Fold<W>>(acc: &mut [F::Acc], row: &[W]) {
    wide(
        #[inline(always)]
        || {
            for (acc, &x) in acc.iter_mut().zip(row) {
                *acc = F::step(*acc, x);
            }
        },
    );
}
