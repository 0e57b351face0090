//! Lanes walked one by one.

use std::ops::Range;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use convoke_graph_core::Result;

use super::fold::Fold;
use super::{CHUNK, Lanes};
use crate::fast::wide;
use crate::threads::Threads;

/// The accumulators of a lane; element `i` of a run goes to number `i % LANES`. So many keep the adders of wide
/// vectors busy while they wait for earlier sums.
pub(super) const LANES: usize = 32;

/// Elements of a run that one accumulator takes one after the other; half of the accumulators.
const FEW: usize = LANES / 2;

/// The elements of a run that are widened at once.
pub(super) const RUN: usize = 512;

/// The lanes whose results are stored at once.
const GROUP: usize = 64;

pub(super) fn run<W: Pod + Sync, F: Fold<W>>(
    lanes: &Lanes,
    input: &[u8],
    output: &mut [u8],
    threads: &Threads,
) -> Result<()> {
    let width = lanes.dtype.n_bytes();
    let n_chunks = lanes.n_inner.div_ceil(CHUNK).max(1);
    if n_chunks == 1 {
        let grain = lanes.grain(lanes.n_inner);
        let part = (&mut [output][..], &[width][..]);
        return threads.split(lanes.is_parallel(), grain, part, lanes.n_outer, &|range, out| {
            whole::<W, F>(lanes, input, range, out[0]);
            Ok(())
        });
    }
    let (size, n_parts) = (size_of::<F::Acc>(), lanes.n_outer * n_chunks);
    let mut scratch = threads.scratch(size * n_parts)?;
    let parts = &mut scratch[..size * n_parts];
    threads.split(
        lanes.is_parallel(),
        1,
        (&mut [&mut *parts], &[size]),
        n_parts,
        &|range, out| {
            let mut buffer = [W::zeroed(); RUN];
            for (i, out) in range.zip(cast_slice_mut::<_, F::Acc>(out[0])) {
                let first = i % n_chunks * CHUNK;
                let elements = first..lanes.n_inner.min(first + CHUNK);
                let base = lanes.base(i / n_chunks);
                *out = chunk::<W, F>(lanes, input, base, elements, &mut buffer);
            }
            Ok(())
        },
    )?;
    let of_lanes = cast_slice::<_, F::Acc>(parts).chunks_exact(n_chunks);
    for (out, parts) in output.chunks_exact_mut(width).zip(of_lanes) {
        lanes.store(&mut [parts.iter().copied().fold(F::START, F::merge)], out);
    }
    Ok(())
}

/// The lanes of a range, each in one chunk.
fn whole<W: Pod, F: Fold<W>>(lanes: &Lanes, input: &[u8], range: Range<usize>, out: &mut [u8]) {
    let width = lanes.dtype.n_bytes();
    let mut buffer = [W::zeroed(); RUN];
    let mut results = [F::START; GROUP];
    let mut outer = lanes.outer.start(range.start);
    for out in out.chunks_mut(GROUP * width) {
        let results = &mut results[..out.len() / width];
        let mut next = 0;
        lanes.outer.runs(&mut outer, results.len(), |at, stride, len| {
            for (i, result) in results[next..][..len].iter_mut().enumerate() {
                let base = at.wrapping_add_signed(i as isize * stride);
                *result = chunk::<W, F>(lanes, input, base, 0..lanes.n_inner, &mut buffer);
            }
            next += len;
        });
        lanes.store(results, out);
    }
}

/// Some elements of the lane that begins at `base`.
fn chunk<W: Pod, F: Fold<W>>(
    lanes: &Lanes,
    input: &[u8],
    base: usize,
    elements: Range<usize>,
    buffer: &mut [W; RUN],
) -> F::Acc {
    let mut cursor = lanes.inner.start(elements.start).moved(base);
    let mut acc = [F::START; LANES];
    lanes.inner.runs(&mut cursor, elements.len(), |at, stride, len| {
        let mut done = 0;
        while done < len {
            let n = RUN.min(len - done);
            let at = at.wrapping_add_signed(done as isize * stride);
            fold::<W, F>(&mut acc, lanes.widened(input, (at, stride), &mut buffer[..n]));
            done += n;
        }
    });
    collapse::<W, F>(acc, elements.len())
}

/// The result of a lane of `len` elements.
pub(super) fn collapse<W, F: Fold<W>>(acc: [F::Acc; LANES], len: usize) -> F::Acc {
    wide(
        #[inline(always)]
        || merged(acc, len, F::merge),
    )
}

/// Adds a run of at most [`RUN`] elements.
#[inline]
pub(super) fn fold<W: Copy, F: Fold<W>>(acc: &mut [F::Acc; LANES], xs: &[W]) {
    wide(
        #[inline(always)]
        || {
            add::<W, F>(acc, xs);
        },
    );
}

/// The results of lanes of `n` elements each, one after the other.
pub(super) fn fold_each<W: Copy, F: Fold<W>>(xs: &[W], n: usize, out: &mut [F::Acc]) {
    wide(
        #[inline(always)]
        || {
            for (row, out) in xs.chunks_exact(n).zip(out) {
                let mut acc = [F::START; LANES];
                let mut is_odd = false;
                for run in row.chunks(RUN) {
                    is_odd |= add::<W, F>(&mut acc, run);
                }
                *out = match is_odd {
                    false => merged(acc, n, F::quick_merge),
                    true => merged(acc, n, F::merge),
                };
            }
        },
    );
}

/// The result of the accumulators of `len` elements, merged by halves.
#[inline(always)]
fn merged<A: Copy>(acc: [A; LANES], len: usize, merge: impl Fn(A, A) -> A) -> A {
    if len < FEW {
        return acc[0];
    }
    let of_16 = halves::<A, FEW>(&acc, &merge);
    let of_8 = halves::<A, { FEW / 2 }>(&of_16, &merge);
    let of_4 = halves::<A, { FEW / 4 }>(&of_8, &merge);
    let of_2 = halves::<A, { FEW / 8 }>(&of_4, &merge);
    merge(of_2[0], of_2[1])
}

/// The elements of both halves merged. Arrays of vectors' sizes stay in registers.
#[inline(always)]
fn halves<A: Copy, const N: usize>(all: &[A], merge: impl Fn(A, A) -> A) -> [A; N] {
    let (mut first, mut second) = ([all[0]; N], [all[0]; N]);
    first.copy_from_slice(&all[..N]);
    second.copy_from_slice(&all[N..]);
    for i in 0..N {
        first[i] = merge(first[i], second[i]);
    }
    first
}

/// Adds a run, and says whether an element of it is odd: it is taken to have none, and added again if it has.
#[inline(always)]
fn add<W: Copy, F: Fold<W>>(acc: &mut [F::Acc; LANES], xs: &[W]) -> bool {
    let before = *acc;
    let is_odd = steps::<W, F>(acc, xs, F::quick);
    if is_odd {
        *acc = before;
        steps::<W, F>(acc, xs, F::step);
    }
    is_odd
}

/// Adds a run by the given step, and says whether an element of it is odd.
#[inline(always)]
fn steps<W: Copy, F: Fold<W>>(
    acc: &mut [F::Acc; LANES],
    xs: &[W],
    step: impl Fn(F::Acc, W) -> F::Acc,
) -> bool {
    if xs.len() < FEW {
        let mut seen = F::NOTHING;
        for &x in xs {
            acc[0] = step(acc[0], x);
            seen = F::look(seen, x);
        }
        return F::has_odd(seen);
    }
    // Arrays of vectors' sizes stay in registers.
    let (mut even, mut odd) = ([acc[0]; FEW], [acc[0]; FEW]);
    even.copy_from_slice(&acc[..FEW]);
    odd.copy_from_slice(&acc[FEW..]);
    let mut seen = [F::NOTHING; FEW];
    let (chunks, rest) = xs.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..FEW {
            even[i] = step(even[i], chunk[i]);
            seen[i] = F::look(seen[i], chunk[i]);
        }
        for i in 0..FEW {
            odd[i] = step(odd[i], chunk[FEW + i]);
            seen[i] = F::look(seen[i], chunk[FEW + i]);
        }
    }
    acc[..FEW].copy_from_slice(&even);
    acc[FEW..].copy_from_slice(&odd);
    for (i, (acc, &x)) in acc.iter_mut().zip(rest).enumerate() {
        *acc = step(*acc, x);
        seen[i % FEW] = F::look(seen[i % FEW], x);
    }
    seen.into_iter().any(F::has_odd)
}
