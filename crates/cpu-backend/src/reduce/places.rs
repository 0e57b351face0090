//! The places of extrema: the first greatest or least element of each lane, or its first NaN.

use bytemuck::cast_slice_mut;
use convoke_graph_core::Result;

use super::columns::{TILE, grain, tiles};
use super::fold::{Extremum, Ordered};
use super::rows::RUN;
use super::{Lanes, Source};
use crate::fast::wide;
use crate::threads::Threads;

pub(super) fn run<W: Ordered, F: Extremum<W>>(
    lanes: &Lanes,
    source: Source<'_>,
    output: &mut [u8],
    threads: &Threads,
) -> Result<()> {
    let input = source.stored()?;
    let width = size_of::<i32>();
    let least = lanes.grain(lanes.n_inner);
    let grain = lanes.columns.map_or(least, |(n_columns, _)| grain(least, n_columns.min(TILE)));
    let part = (&mut [output][..], &[width][..]);
    threads.split(lanes.is_parallel(), grain, part, lanes.n_outer, &|range, out| {
        let out: &mut [i32] = cast_slice_mut(out[0]);
        if let Some((n_columns, stride)) = lanes.columns {
            return tiles(range, n_columns, TILE, &mut |at, row, column, n| {
                let base = lanes.base(row).wrapping_add_signed(column as isize * stride);
                of_columns::<W, F>(lanes, input, (base, stride), &mut out[at..][..n]);
                Ok(())
            });
        }
        let mut buffer = [W::zeroed(); RUN];
        let (mut outer, mut next) = (lanes.outer.start(range.start), 0);
        lanes.outer.runs(&mut outer, out.len(), |at, stride, len| {
            for (i, out) in out[next..][..len].iter_mut().enumerate() {
                let base = at.wrapping_add_signed(i as isize * stride);
                *out = of_row::<W, F>(lanes, input, base, &mut buffer);
            }
            next += len;
        });
        Ok(())
    })
}

/// Finds the extremum of each run first, then its place if it is better than all before.
fn of_row<W: Ordered, F: Extremum<W>>(
    lanes: &Lanes,
    input: &[u8],
    base: usize,
    buffer: &mut [W; RUN],
) -> i32 {
    let (mut index, mut best) = (0, None);
    let mut cursor = lanes.inner.start(0).moved(base);
    lanes.inner.runs(&mut cursor, lanes.n_inner, |at, stride, len| {
        let mut done = 0;
        while done < len {
            let n = RUN.min(len - done);
            let at = at.wrapping_add_signed(done as isize * stride);
            let xs = lanes.widened(input, (at, stride), &mut buffer[..n]);
            let found = extremum::<W, F>(xs);
            if best.is_none_or(|(best, _)| F::is_better(found, best)) {
                let place = xs.iter().position(|&x| x == found || x.is_nan());
                best = Some((found, index + place.unwrap_or(0)));
            }
            (done, index) = (done + n, index + n);
        }
    });
    best.map_or(0, |(_, place)| place as i32)
}

#[inline]
fn extremum<W: Ordered, F: Extremum<W>>(xs: &[W]) -> W {
    const LANES: usize = 16;
    if xs.len() < LANES {
        return xs.iter().fold(F::START, |best, &x| F::step(best, x));
    }
    wide(
        #[inline(always)]
        || {
            let mut best = [F::START; LANES];
            let (chunks, rest) = xs.as_chunks::<LANES>();
            for chunk in chunks {
                for i in 0..LANES {
                    best[i] = F::step(best[i], chunk[i]);
                }
            }
            best.iter().chain(rest).fold(F::START, |best, &x| F::step(best, x))
        },
    )
}

fn of_columns<W: Ordered, F: Extremum<W>>(
    lanes: &Lanes,
    input: &[u8],
    (base, step): (usize, isize),
    out: &mut [i32],
) {
    let mut buffer = [W::zeroed(); TILE];
    let mut best = [W::zeroed(); TILE];
    let best = &mut best[..out.len()];
    best.copy_from_slice(lanes.widened(input, (base, step), &mut buffer[..out.len()]));
    out.fill(0);
    let mut index = 0;
    let mut cursor = lanes.inner.start(0).moved(base);
    lanes.inner.runs(&mut cursor, lanes.n_inner, |at, stride, len| {
        for i in 0..len {
            let at = at.wrapping_add_signed(i as isize * stride);
            let row = lanes.widened(input, (at, step), &mut buffer[..out.len()]);
            wide(
                #[inline(always)]
                || {
                    for ((out, best), &x) in out.iter_mut().zip(best.iter_mut()).zip(row) {
                        let is_better = F::is_better(x, *best);
                        *best = if is_better { x } else { *best };
                        *out = if is_better { index } else { *out };
                    }
                },
            );
            index += 1;
        }
    });
}
