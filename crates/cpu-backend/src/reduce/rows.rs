//! Lanes walked one by one.

use convoke_graph_core::Result;
use rayon::prelude::*;

use super::fold::Fold;
use super::{CHUNK, Lanes};
use crate::elements::Stored;
use crate::fast::widest;
use crate::threads::Threads;
use crate::walk::copy_run;

/// The accumulators of a lane; element `i` of a run goes to number `i % LANES`.
const LANES: usize = 32;

/// The elements of a strided lane that are brought together at once.
const RUN: usize = 512;

pub(super) fn run<S: Stored, F: Fold<S>>(
    lanes: &Lanes,
    xs: &[S],
    out: &mut [F::Out],
    threads: &Threads,
) -> Result<()> {
    let n_chunks = lanes.n_inner.div_ceil(CHUNK).max(1);
    if n_chunks == 1 {
        let whole = |(first, out): (usize, &mut [F::Out])| {
            let mut outer = lanes.outer.start(first);
            let mut next = 0;
            lanes.outer.runs(&mut outer, out.len(), |at, stride, len| {
                for (i, out) in out[next..][..len].iter_mut().enumerate() {
                    let base = at.wrapping_add_signed(i as isize * stride);
                    let acc = chunk::<S, F>(lanes, xs, base, 0, lanes.n_inner);
                    *out = F::finish(acc, lanes.n_inner);
                }
                next += len;
            });
        };
        if lanes.is_parallel(threads) {
            let share = (CHUNK / lanes.n_inner.max(1)).max(1);
            let shares = out.par_chunks_mut(share).enumerate();
            shares.for_each(|(i, out)| whole((i * share, out)));
        } else {
            whole((0, out));
        }
        return Ok(());
    }
    let part = |i: usize| {
        let mut base = 0;
        let mut outer = lanes.outer.start(i / n_chunks);
        lanes.outer.runs(&mut outer, 1, |at, _, _| base = at);
        let first = i % n_chunks * CHUNK;
        chunk::<S, F>(lanes, xs, base, first, CHUNK.min(lanes.n_inner - first))
    };
    let n_parts = out.len() * n_chunks;
    let parts: Vec<F::Acc> = if lanes.is_parallel(threads) {
        (0..n_parts).into_par_iter().map(part).collect()
    } else {
        (0..n_parts).map(part).collect()
    };
    for (out, parts) in out.iter_mut().zip(parts.chunks_exact(n_chunks)) {
        *out = F::finish(parts.iter().copied().fold(F::START, F::merge), lanes.n_inner);
    }
    Ok(())
}

/// The elements `first..first + n` of the lane that begins at `base`.
fn chunk<S: Stored, F: Fold<S>>(
    lanes: &Lanes,
    xs: &[S],
    base: usize,
    first: usize,
    n: usize,
) -> F::Acc {
    let mut cursor = lanes.inner.start(first).moved(base);
    let mut acc = [F::START; LANES];
    let mut index = first;
    lanes.inner.runs(&mut cursor, n, |at, stride, len| {
        if stride == 1 {
            fold::<S, F>(&mut acc, &xs[at..][..len], index);
            index += len;
            return;
        }
        let mut buffer = [S::zeroed(); RUN];
        let mut done = 0;
        while done < len {
            let n = RUN.min(len - done);
            let at = at.wrapping_add_signed(done as isize * stride);
            copy_run(xs, at, stride, &mut buffer[..n]);
            fold::<S, F>(&mut acc, &buffer[..n], index);
            done += n;
            index += n;
        }
    });
    if n < LANES {
        return acc[0];
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] = F::merge(acc[i], acc[i + width]);
        }
        width /= 2;
    }
    acc[0]
}

/// Adds a run whose first element has `index` in its lane.
#[inline]
fn fold<S: Stored, F: Fold<S>>(acc: &mut [F::Acc; LANES], xs: &[S], index: usize) {
    let index = index as i32;
    if xs.len() < LANES {
        for (x, i) in xs.iter().zip(index..) {
            acc[0] = F::step(acc[0], *x, i);
        }
        return;
    }
    widest(
        #[inline(always)]
        || {
            let mut local = *acc;
            let (chunks, rest) = xs.as_chunks::<LANES>();
            let mut index = index;
            for chunk in chunks {
                for i in 0..LANES {
                    local[i] = F::step(local[i], chunk[i], index + i as i32);
                }
                index += LANES as i32;
            }
            for (i, x) in rest.iter().enumerate() {
                local[i] = F::step(local[i], *x, index + i as i32);
            }
            *acc = local;
        },
    );
}
