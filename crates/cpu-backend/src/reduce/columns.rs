//! Neighbouring lanes walked together, row by row of memory.

use convoke_graph_core::Result;
use rayon::prelude::*;

use super::fold::Fold;
use super::{CHUNK, Lanes};
use crate::elements::Stored;
use crate::fast::widest;
use crate::threads::Threads;
use crate::walk::copy_run;

/// The lanes whose accumulators stay in the nearest cache.
const TILE: usize = 512;

/// A tile of neighbouring lanes and the elements of them that are taken.
struct Task {
    base: usize,
    stride: isize,
    first: usize,
    n: usize,
}

pub(super) fn run<S: Stored, F: Fold<S>>(
    lanes: &Lanes,
    (n_columns, stride): (usize, isize),
    xs: &[S],
    out: &mut [F::Out],
    threads: &Threads,
) -> Result<()> {
    let n_rows = (CHUNK / n_columns).max(64);
    let n_chunks = lanes.n_inner.div_ceil(n_rows).max(1);
    let base = |outer: usize, column: usize| {
        let mut base = 0;
        lanes.outer.runs(&mut lanes.outer.start(outer), 1, |at, _, _| base = at);
        base.wrapping_add_signed(column as isize * stride)
    };
    let parallel = lanes.is_parallel(threads);
    if n_chunks == 1 {
        let tile = |outer: usize, i: usize, out: &mut [F::Out]| {
            let mut acc = [F::START; TILE];
            let task = Task { base: base(outer, i * TILE), stride, first: 0, n: lanes.n_inner };
            fold::<S, F>(lanes, xs, &task, &mut acc[..out.len()]);
            for (out, acc) in out.iter_mut().zip(acc) {
                *out = F::finish(acc, lanes.n_inner);
            }
        };
        tiles(out, n_columns, parallel, &tile);
        return Ok(());
    }
    let mut parts = vec![F::START; lanes.n_outer * n_chunks];
    let tile = |row: usize, i: usize, acc: &mut [F::Acc]| {
        let (outer, first) = (row / n_chunks, row % n_chunks * n_rows);
        let n = n_rows.min(lanes.n_inner - first);
        let task = Task { base: base(outer, i * TILE), stride, first, n };
        fold::<S, F>(lanes, xs, &task, acc);
    };
    tiles(&mut parts, n_columns, parallel, &tile);
    for (out, parts) in out.chunks_exact_mut(n_columns).zip(parts.chunks(n_chunks * n_columns)) {
        for (column, out) in out.iter_mut().enumerate() {
            let parts = parts.iter().skip(column).step_by(n_columns);
            *out = F::finish(parts.copied().fold(F::START, F::merge), lanes.n_inner);
        }
    }
    Ok(())
}

/// Calls `f(row, tile, part)` for the tiles of each row of `n_columns`.
fn tiles<T: Send>(
    all: &mut [T],
    n_columns: usize,
    parallel: bool,
    f: &(impl Fn(usize, usize, &mut [T]) + Sync),
) {
    let row = |(row, part): (usize, &mut [T])| {
        if parallel && n_columns > TILE {
            part.par_chunks_mut(TILE).enumerate().for_each(|(i, part)| f(row, i, part));
        } else {
            part.chunks_mut(TILE).enumerate().for_each(|(i, part)| f(row, i, part));
        }
    };
    if parallel {
        all.par_chunks_mut(n_columns).enumerate().for_each(row);
    } else {
        all.chunks_mut(n_columns).enumerate().for_each(row);
    }
}

fn fold<S: Stored, F: Fold<S>>(lanes: &Lanes, xs: &[S], task: &Task, acc: &mut [F::Acc]) {
    let mut cursor = lanes.inner.start(task.first).moved(task.base);
    let mut index = task.first as i32;
    let mut buffer = [S::zeroed(); TILE];
    lanes.inner.runs(&mut cursor, task.n, |at, stride, len| {
        if task.stride == 1 {
            widest(
                #[inline(always)]
                || {
                    for i in 0..len {
                        let at = at.wrapping_add_signed(i as isize * stride);
                        add::<S, F>(acc, &xs[at..][..acc.len()], index + i as i32);
                    }
                },
            );
        } else {
            for i in 0..len {
                let at = at.wrapping_add_signed(i as isize * stride);
                copy_run(xs, at, task.stride, &mut buffer[..acc.len()]);
                add::<S, F>(acc, &buffer[..acc.len()], index + i as i32);
            }
        }
        index += len as i32;
    });
}

#[inline(always)]
fn add<S: Stored, F: Fold<S>>(acc: &mut [F::Acc], row: &[S], index: i32) {
    for (acc, &x) in acc.iter_mut().zip(row) {
        *acc = F::step(*acc, x, index);
    }
}
