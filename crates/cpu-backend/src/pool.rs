//! Pooling and its gradients: one plane of one image after the other, planes shared out to threads.

use std::ops::{Add, AddAssign, Div, Range};

use bytemuck::{cast_slice, cast_slice_mut};
use convoke_compiler::{Group, PoolKind, Program};
use convoke_graph_core::{DType, ImageLayout, PoolGeometry, Result};
use smallvec::SmallVec;

use crate::elements::{Stored, wide_bytes};
use crate::fast::wide;
use crate::tail::Finish;
use crate::threads::{PartFn, Threads, parts_of};
use crate::{malformed, unsupported};

/// Bytes from which threads share the work.
const PARALLEL_BYTES: usize = 1 << 17;

/// The bytes of results that go through a tail at once.
pub(crate) const FINISHED_BYTES: usize = 1 << 15;

/// Pooling, or a gradient of it, compiled.
pub(crate) struct Pool {
    kind: PoolKind,
    dtype: DType,
    g: PoolGeometry,
}

impl Pool {
    /// Compiles a group.
    pub fn compile(
        program: &Program,
        group: &Group,
        kind: PoolKind,
        g: PoolGeometry,
    ) -> Result<Self> {
        let (x, y) = (g.input_dims(), g.output_dims());
        let (inputs, output) = match kind {
            PoolKind::Max | PoolKind::Avg => (vec![x], y),
            PoolKind::MaxAt => (vec![x, x], y),
            PoolKind::MaxGrad => (vec![x, y], x),
            PoolKind::AvgGrad => (vec![y], x),
            other => return Err(unsupported(&format!("pooling of the kind {other:?}"))),
        };
        let &[out] = group.outputs.as_slice() else {
            return Err(malformed("pooling", "expected one output"));
        };
        let value = program.value(out);
        if !value.dtype.is_float() {
            return Err(unsupported(&format!("pooling of {}", value.dtype)));
        }
        if group.inputs.len() != inputs.len() || value.shape.dims() != output {
            return Err(malformed(
                "pooling",
                &format!("{} inputs to {}", inputs.len(), value.shape),
            ));
        }
        for (operand, dims) in group.inputs.iter().zip(&inputs) {
            let from = program.value(operand.value);
            let layout = &operand.layout;
            let whole = layout.is_packed() && layout.offset() == 0;
            if from.dtype != value.dtype
                || layout.shape().dims() != dims
                || !whole
                || from.shape.len() != layout.shape().len()
            {
                return Err(malformed("pooling", &format!("{} is not {dims:?}", operand.value)));
            }
        }
        Ok(Self { kind, dtype: value.dtype, g })
    }

    /// One operation for each element under each window.
    pub fn flops(&self) -> u64 {
        self.g.flops()
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        finish: Option<&Finish<'_>>,
        threads: &Threads,
    ) -> Result<()> {
        if outputs[0].is_empty() {
            return Ok(());
        }
        let Some((finish, widths)) = finish.map(|finish| (finish, finish.widths())) else {
            let width = self.n_result() * self.dtype.n_bytes();
            return self.split(inputs, (outputs, &[width]), threads, &|parts, outputs| {
                self.some(parts, inputs, outputs[0], threads)
            });
        };
        let Some(widths) = widths else {
            return finish.whole(outputs, threads, |y| self.run(inputs, &mut [y], None, threads));
        };
        let len = self.n_result();
        let widths: SmallVec<[usize; 2]> = widths.iter().map(|width| width * len).collect();
        self.split(inputs, (outputs, &widths), threads, &|parts, outputs| {
            let n_bytes = len * self.dtype.n_bytes();
            // Small parts are finished together.
            let most = (FINISHED_BYTES / n_bytes.max(1)).min(parts.len()).max(1);
            let mut result = threads.scratch(most * n_bytes)?;
            for first in parts.clone().step_by(most) {
                let some = first..(first + most).min(parts.end);
                let result = &mut result[..some.len() * n_bytes];
                self.some(some.clone(), inputs, result, threads)?;
                let mut own =
                    parts_of(outputs, &widths, some.start - parts.start..some.end - parts.start);
                finish.block(some.start * len..some.end * len, result, &mut own, threads, false)?;
            }
            Ok(())
        })
    }

    /// Elements of a part of the result.
    fn n_result(&self) -> usize {
        let is_gradient = matches!(self.kind, PoolKind::MaxGrad | PoolKind::AvgGrad);
        let [input, output] = self.lens();
        let plane = if is_gradient { input } else { output };
        if self.g.layout == ImageLayout::Nchw { plane } else { plane * self.g.channels }
    }

    /// Calls `f` with some parts of the output, and what is theirs of the outputs.
    fn split(
        &self,
        inputs: &[&[u8]],
        (outputs, widths): (&mut [&mut [u8]], &[usize]),
        threads: &Threads,
        f: &PartFn<'_>,
    ) -> Result<()> {
        // A part of the output is a plane, or an image with its channels side by side.
        let n_parts = match self.g.layout {
            ImageLayout::Nchw => self.g.batch * self.g.channels,
            ImageLayout::Nhwc => self.g.batch,
        };
        let result_bytes = n_parts * self.n_result() * self.dtype.n_bytes();
        let n_bytes = inputs.iter().map(|x| x.len()).sum::<usize>() + result_bytes;
        let grain = (PARALLEL_BYTES / 8).div_ceil(n_bytes / n_parts).min(n_parts);
        let parallel = n_bytes >= PARALLEL_BYTES;
        threads.split(parallel, grain, (outputs, widths), n_parts, f)
    }

    /// Some parts of the result.
    fn some(
        &self,
        parts: Range<usize>,
        inputs: &[&[u8]],
        output: &mut [u8],
        threads: &Threads,
    ) -> Result<()> {
        let mut scratch = threads.scratch(self.n_scratch() * wide_bytes(self.dtype))?;
        match self.dtype {
            DType::F16 => self.planes::<half::f16, _>(parts, inputs, output, &mut scratch),
            DType::BF16 => self.planes::<half::bf16, _>(parts, inputs, output, &mut scratch),
            DType::F32 => self.planes::<f32, _>(parts, inputs, output, &mut scratch),
            _ => self.planes::<f64, _>(parts, inputs, output, &mut scratch),
        }
        Ok(())
    }

    /// Elements of the input and of the output of one plane.
    fn lens(&self) -> [usize; 2] {
        [self.g.in_size, self.g.out_size].map(|[rows, columns]| rows * columns)
    }

    /// Elements of scratch memory: two planes of the input, one of the output, a row.
    fn n_scratch(&self) -> usize {
        let [input, output] = self.lens();
        2 * input + output + self.g.in_size[1]
    }

    /// The planes of some parts of the output, one after the other.
    fn planes<S: Stored<Wide = T>, T: Number>(
        &self,
        parts: Range<usize>,
        inputs: &[&[u8]],
        output: &mut [u8],
        scratch: &mut [u8],
    ) {
        let scratch: &mut [T] = &mut cast_slice_mut(scratch)[..self.n_scratch()];
        let [len, out_len] = self.lens();
        let (x, rest) = scratch.split_at_mut(len);
        let (second, rest) = rest.split_at_mut(len);
        let (y, row) = rest.split_at_mut(out_len);
        let step = if self.g.layout == ImageLayout::Nchw { 1 } else { self.g.channels };
        let inputs: SmallVec<[&[S]; 2]> = inputs.iter().map(|x| cast_slice(x)).collect();
        let output: &mut [S] = cast_slice_mut(output);
        for (i, part) in parts.enumerate() {
            for channel in 0..step {
                // Planes of one channel of an image, or the part itself.
                let at = |part: usize, len: usize| part * len * step + channel;
                let load = |k: usize, plane: &mut [T]| {
                    let from = &inputs[k][at(part, plane.len())..];
                    load(from, step, plane);
                };
                match self.kind {
                    PoolKind::Avg | PoolKind::Max => {
                        load(0, x);
                        self.pool(x, y, row);
                    }
                    PoolKind::MaxAt => {
                        load(0, x);
                        load(1, second);
                        self.max_places(x, |out, place| {
                            y[out] = place.map_or(T::ZERO, |place| second[place]);
                        });
                    }
                    PoolKind::MaxGrad => {
                        load(0, x);
                        load(1, y);
                        second.fill(T::ZERO);
                        self.max_gradient(x, y, second);
                    }
                    _ => {
                        load(0, y);
                        self.share_out(y, second, row);
                    }
                }
                let is_gradient = matches!(self.kind, PoolKind::MaxGrad | PoolKind::AvgGrad);
                let result = if is_gradient { &*second } else { &*y };
                store(result, step, &mut output[at(i, result.len())..]);
            }
        }
    }

    /// The maximum or mean under each window of a plane: first along columns, into `row`, then along rows.
    fn pool<T: Number>(&self, x: &[T], y: &mut [T], row: &mut [T]) {
        let ([_, width], [_, out_width]) = (self.g.in_size, self.g.out_size);
        let is_max = self.kind == PoolKind::Max;
        for (i, y) in y.chunks_exact_mut(out_width.max(1)).enumerate() {
            let rows = self.g.cover(0, i);
            row.fill(if is_max { T::LEAST } else { T::ZERO });
            for x in rows.clone().map(|h| &x[h * width..][..width]) {
                wide(
                    #[inline(always)]
                    || {
                        for (best, &x) in row.iter_mut().zip(x) {
                            *best = if is_max { best.greater(x) } else { *best + x };
                        }
                    },
                );
            }
            if is_max && self.is_halving() {
                for (y, pair) in y.iter_mut().zip(row.chunks_exact(2)) {
                    *y = pair[0].greater(pair[1]);
                }
                continue;
            }
            for (j, y) in y.iter_mut().enumerate() {
                let columns = self.g.cover(1, j);
                let under = &row[columns.clone()];
                *y = if is_max {
                    under.iter().fold(T::LEAST, |best, &x| best.greater(x))
                } else {
                    let sum = under.iter().fold(T::ZERO, |sum, &x| sum + x);
                    sum / T::count(rows.len() * columns.len())
                };
            }
        }
    }

    /// Each element of `dy` at the first greatest element under its window; `dx` is zero before.
    fn max_gradient<T: Number>(&self, x: &[T], dy: &[T], dx: &mut [T]) {
        if self.is_halving() {
            return self.halving_gradient(x, dy, dx);
        }
        self.max_places(x, |out, place| {
            if let Some(place) = place {
                dx[place] += dy[out];
            }
        });
    }

    /// True if windows of 2 by 2 stand side by side, as they mostly do.
    fn is_halving(&self) -> bool {
        let PoolGeometry { window, stride, pad_before, in_size, out_size, .. } = self.g;
        let inside = (0..2).all(|i| 2 * out_size[i] <= in_size[i]);
        window == [2, 2] && stride == [2, 2] && pad_before == [0, 0] && inside
    }

    /// The gradient of the maximum where [`Self::is_halving`].
    fn halving_gradient<T: Number>(&self, x: &[T], dy: &[T], dx: &mut [T]) {
        let (width, out_width) = (self.g.in_size[1], self.g.out_size[1]);
        let rows = x.chunks_exact(2 * width).zip(dx.chunks_exact_mut(2 * width));
        for ((x, dx), dy) in rows.zip(dy.chunks_exact(out_width.max(1))) {
            let ((x0, x1), (dx0, dx1)) = (x.split_at(width), dx.split_at_mut(width));
            let x = x0.chunks_exact(2).zip(x1.chunks_exact(2));
            let dx = dx0.chunks_exact_mut(2).zip(dx1.chunks_exact_mut(2));
            for (((x0, x1), (dx0, dx1)), &dy) in x.zip(dx).zip(dy) {
                let (mut at, mut best) = (0, x0[0]);
                for (i, x) in [(1, x0[1]), (2, x1[0]), (3, x1[1])] {
                    let above = x.is_above(best);
                    (at, best) = (if above { i } else { at }, if above { x } else { best });
                }
                let part = |i: usize| if at == i { dy } else { T::ZERO };
                (dx0[0], dx0[1], dx1[0], dx1[1]) = (part(0), part(1), part(2), part(3));
            }
        }
    }

    /// Calls `f` with each window and the place of the first greatest element under it, row by row; the
    /// first NaN is greatest.
    fn max_places<T: Number>(&self, x: &[T], mut f: impl FnMut(usize, Option<usize>)) {
        let [height, width] = self.g.out_size;
        let mut out = 0;
        for i in 0..height {
            let rows = self.g.cover(0, i);
            for j in 0..width {
                let columns = self.g.cover(1, j);
                let mut best: Option<(usize, T)> = None;
                for h in rows.clone() {
                    for w in columns.clone() {
                        let at = h * self.g.in_size[1] + w;
                        let here = x[at];
                        if best.is_none_or(|(_, best)| here.is_above(best)) {
                            best = Some((at, here));
                        }
                    }
                }
                f(out, best.map(|(at, _)| at));
                out += 1;
            }
        }
    }

    /// The gradient of the mean: each element in equal shares under its window.
    fn share_out<T: Number>(&self, dy: &[T], dx: &mut [T], row: &mut [T]) {
        let ([_, width], [_, out_width]) = (self.g.in_size, self.g.out_size);
        dx.fill(T::ZERO);
        for (i, dy) in dy.chunks_exact(out_width.max(1)).enumerate() {
            let rows = self.g.cover(0, i);
            row.fill(T::ZERO);
            for (j, &dy) in dy.iter().enumerate() {
                let columns = self.g.cover(1, j);
                let share = dy / T::count(rows.len() * columns.len());
                row[columns].iter_mut().for_each(|x| *x += share);
            }
            for h in rows {
                for (dx, &share) in dx[h * width..][..width].iter_mut().zip(row.iter()) {
                    *dx += share;
                }
            }
        }
    }
}

/// What pooling computes in.
trait Number:
    Copy + bytemuck::Pod + Add<Output = Self> + AddAssign + Div<Output = Self> + Send + Sync
{
    const ZERO: Self;
    const LEAST: Self;
    fn count(n: usize) -> Self;
    /// The greater; NaN if either is.
    fn greater(self, other: Self) -> Self;
    /// True if it is greater than `best`, or the first NaN.
    fn is_above(self, best: Self) -> bool;
}

macro_rules! number {
    ($($t:ty),*) => { $(
        impl Number for $t {
            const ZERO: Self = 0.0;
            const LEAST: Self = Self::NEG_INFINITY;

            fn count(n: usize) -> Self {
                n as Self
            }

            #[inline(always)]
            fn greater(self, other: Self) -> Self {
                if self > other || self.is_nan() { self } else { other }
            }

            #[inline(always)]
            fn is_above(self, best: Self) -> bool {
                self > best || (self.is_nan() && !best.is_nan())
            }
        }
    )* };
}

number! { f32, f64 }

/// Every `step`-th element, widened.
fn load<S: Stored>(from: &[S], step: usize, plane: &mut [S::Wide]) {
    if step == 1 {
        plane.iter_mut().zip(from).for_each(|(to, &x)| *to = x.widen());
        return;
    }
    plane.iter_mut().zip(from.iter().step_by(step)).for_each(|(to, &x)| *to = x.widen());
}

/// To every `step`-th element, rounded.
fn store<S: Stored>(plane: &[S::Wide], step: usize, to: &mut [S]) {
    if step == 1 {
        to.iter_mut().zip(plane).for_each(|(to, &x)| *to = S::narrow(x));
        return;
    }
    to.iter_mut().step_by(step).zip(plane).for_each(|(to, &x)| *to = S::narrow(x));
}
