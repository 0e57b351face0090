//! Convolutions and their gradients: products of filters and columns, which are what lies under each
//! window, block by block.
//!
//! An image at a time is brought into a frame (`frame.rs`), of which columns are made, and `gemm` does the
//! rest. Images are shared out to threads. Sums of the filters' gradient are made for fixed parts of the
//! batch and added in order, so that results do not depend on the number of threads.

mod frame;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use convoke_compiler::{Group, Kernel, Program};
use convoke_graph_core::{ConvGeometry, DType, ImageLayout, Result};
use gemm::Parallelism;

use crate::elements::{Stored, is_wide, wide_bytes, with_stored};
use crate::fast::{Gemm, Matrix, multiply_into};
use crate::threads::Threads;
use crate::{malformed, unsupported};
use frame::Frame;

/// The greatest size of the columns of a block: they stay in a core's own cache.
const BLOCK_BYTES: usize = 1 << 20;

/// Parts of the batch that the filters' gradient is summed in, if its partial sums take up less than
/// `PARTIAL_BYTES`.
const PARTS: usize = 8;
const PARTIAL_BYTES: usize = 1 << 26;

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Input,
    Filter,
}

/// A convolution or one of its gradients, compiled.
pub(crate) struct Conv {
    direction: Direction,
    dtype: DType,
    g: ConvGeometry,
    frame: Frame,
    /// Elements under a window in one group.
    depth: usize,
    /// Windows in a block.
    block: usize,
}

impl Conv {
    /// Compiles a group.
    pub fn compile(program: &Program, group: &Group) -> Result<Self> {
        let (direction, g) = match &group.kernel {
            Kernel::Conv2d(g) => (Direction::Forward, *g),
            Kernel::Conv2dInput(g) => (Direction::Input, *g),
            Kernel::Conv2dFilter(g) => (Direction::Filter, *g),
            other => return Err(malformed("convolution", &format!("{other}"))),
        };
        let ([a, b], &[out]) = (group.inputs.as_slice(), group.outputs.as_slice()) else {
            return Err(malformed("convolution", "expected two inputs and one output"));
        };
        let dtype = program.value(out).dtype;
        if !dtype.is_float() || [a, b].iter().any(|x| program.value(x.value).dtype != dtype) {
            return Err(unsupported(&format!("a convolution to {dtype}")));
        }
        let expected = match direction {
            Direction::Forward => [g.input_dims(), g.filter_dims(), g.output_dims()],
            Direction::Input => [g.filter_dims(), g.output_dims(), g.input_dims()],
            Direction::Filter => [g.input_dims(), g.output_dims(), g.filter_dims()],
        };
        for (operand, dims) in [a, b].into_iter().zip(&expected) {
            let whole = operand.layout.shape().len() == program.value(operand.value).shape.len();
            let packed = operand.layout.is_packed() && operand.layout.offset() == 0;
            if operand.layout.shape().dims() != dims || !packed || !whole {
                return Err(malformed(
                    "convolution",
                    &format!("{} is not {dims:?}", operand.value),
                ));
            }
        }
        if program.value(out).shape.dims() != expected[2] {
            return Err(malformed("convolution", &format!("{out} is not {:?}", expected[2])));
        }
        let frame = Frame::new(&g);
        let depth = g.in_channels / g.groups * g.window[0] * g.window[1];
        let pixels = g.out_size[0] * g.out_size[1];
        let fit = BLOCK_BYTES / (depth * wide_bytes(dtype)).max(1);
        let block = if frame.is_columns { pixels } else { fit.max(16).min(pixels) };
        Ok(Self { direction, dtype, g, frame, depth, block: block.max(1) })
    }

    /// A multiplication and an addition for each term.
    pub fn flops(&self) -> u64 {
        self.g.flops()
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        if self.g.flops() == 0 {
            outputs[0].fill(0);
            return Ok(());
        }
        match self.dtype {
            DType::F32 => self.floats::<f32>(inputs, outputs[0], threads),
            DType::F64 => self.floats::<f64>(inputs, outputs[0], threads),
            dtype if !is_wide(dtype) => self.narrow(inputs, outputs[0], threads),
            dtype => Err(unsupported(&format!("a convolution of {dtype}"))),
        }
    }

    /// Through wide copies of everything, rounded once at the end.
    fn narrow(&self, inputs: &[&[u8]], output: &mut [u8], threads: &Threads) -> Result<()> {
        let (width, n_bytes) = (wide_bytes(self.dtype), self.dtype.n_bytes());
        let wide = |bytes: &[u8]| bytes.len() / n_bytes * width;
        let (a, b, y) = (wide(inputs[0]), wide(inputs[1]), wide(output));
        let lines = |len: usize| len.next_multiple_of(64);
        let mut scratch = threads.scratch(lines(a) + lines(b) + y)?;
        let (wide_a, rest) = scratch.split_at_mut(lines(a));
        let (wide_b, wide_y) = rest.split_at_mut(lines(b));
        let (wide_a, wide_b, wide_y) = (&mut wide_a[..a], &mut wide_b[..b], &mut wide_y[..y]);
        with_stored!(self.dtype, T => {
            widen::<T>(inputs[0], wide_a);
            widen::<T>(inputs[1], wide_b);
        }, else ());
        self.floats::<f32>(&[wide_a, wide_b], wide_y, threads)?;
        with_stored!(self.dtype, T => round::<T>(wide_y, output), else ());
        Ok(())
    }

    fn floats<T: Float>(
        &self,
        inputs: &[&[u8]],
        output: &mut [u8],
        threads: &Threads,
    ) -> Result<()> {
        let (a, b): (&[T], &[T]) = (cast_slice(inputs[0]), cast_slice(inputs[1]));
        if self.direction == Direction::Filter {
            return self.filters(a, b, output, threads);
        }
        // Images of the output.
        let width = output.len() / self.g.batch;
        let share = self.g.batch >= threads.len();
        let mut outputs = [output];
        let images = |range: std::ops::Range<usize>, outputs: &mut [&mut [u8]]| {
            let mut scratch = threads.scratch(self.n_scratch() * size_of::<T>())?;
            let parallel = within(share, threads);
            for (n, out) in range.zip(outputs[0].chunks_exact_mut(width)) {
                let (scratch, out) = (self.split::<T>(&mut scratch), cast_slice_mut(out));
                if self.direction == Direction::Forward {
                    let x = image(a, self.g.batch, n);
                    self.image(x, b, out, scratch, parallel)?;
                } else {
                    let dy = image(b, self.g.batch, n);
                    self.input_image(a, dy, out, scratch, parallel)?;
                }
            }
            Ok(())
        };
        if share {
            return threads.split(true, 1, (&mut outputs, &[width]), self.g.batch, &images);
        }
        threads.install(|| images(0..self.g.batch, &mut outputs))
    }

    /// One image of the output.
    fn image<T: Float>(
        &self,
        x: &[T],
        filters: &[T],
        y: &mut [T],
        (frame, columns): (&mut [T], &mut [T]),
        parallel: Parallelism,
    ) -> Result<()> {
        let x = self.frame.fill(x, frame);
        for (group, pixels) in self.blocks() {
            let len = pixels.len();
            let c = self.columns(x, group, pixels.clone(), columns);
            let (f, y_at) = (self.filter_matrix(group), self.output_matrix(group, pixels.start));
            let k = self.g.out_channels / self.g.groups;
            let done = match self.g.layout {
                ImageLayout::Nchw => {
                    let sizes = [k, len, self.depth];
                    multiply_into(sizes, (y, y_at), (filters, f), c, false, parallel)
                }
                ImageLayout::Nhwc => {
                    let sizes = [len, k, self.depth];
                    multiply_into(sizes, (y, y_at), c, (filters, f), false, parallel)
                }
            };
            inside(done)?;
        }
        Ok(())
    }

    /// One image of the gradient of the input.
    fn input_image<T: Float>(
        &self,
        filters: &[T],
        dy: &[T],
        dx: &mut [T],
        (frame, columns): (&mut [T], &mut [T]),
        parallel: Parallelism,
    ) -> Result<()> {
        let framed = !self.frame.is_image;
        let target: &mut [T] = if framed { frame } else { &mut *dx };
        if !self.frame.is_columns {
            target.fill(T::ZERO);
        }
        for (group, pixels) in self.blocks() {
            let len = pixels.len();
            let (f, dy_at) = (self.filter_matrix(group), self.output_matrix(group, pixels.start));
            let f = f.transposed();
            let k = self.g.out_channels / self.g.groups;
            let (out, at) = if self.frame.is_columns {
                (&mut *target, self.frame.matrix(group, pixels.start))
            } else {
                (&mut columns[..self.depth * len], self.column_matrix(len))
            };
            inside(match self.g.layout {
                ImageLayout::Nchw => {
                    let sizes = [self.depth, len, k];
                    multiply_into(sizes, (out, at), (filters, f), (dy, dy_at), false, parallel)
                }
                ImageLayout::Nhwc => {
                    let sizes = [len, self.depth, k];
                    multiply_into(sizes, (out, at), (dy, dy_at), (filters, f), false, parallel)
                }
            })?;
            if !self.frame.is_columns {
                self.frame.add_columns(&columns[..self.depth * len], group, pixels, target);
            }
        }
        if framed {
            self.frame.empty(frame, dx);
        }
        Ok(())
    }

    /// The gradient of the filters.
    fn filters<T: Float>(
        &self,
        x: &[T],
        dy: &[T],
        out: &mut [u8],
        threads: &Threads,
    ) -> Result<()> {
        let batch = self.g.batch;
        let n_parts = batch.min(PARTS).min((PARTIAL_BYTES / out.len()).max(1));
        let (width, share) = (out.len(), n_parts >= threads.len());
        let mut partial = threads.scratch(if n_parts > 1 { width * n_parts } else { 0 })?;
        let part = |range: std::ops::Range<usize>, sums: &mut [&mut [u8]]| {
            let mut scratch = threads.scratch(self.n_scratch() * size_of::<T>())?;
            for (part, sum) in range.zip(sums[0].chunks_exact_mut(width)) {
                let images = part * batch / n_parts..(part + 1) * batch / n_parts;
                for (i, n) in images.enumerate() {
                    let scratch = self.split::<T>(&mut scratch);
                    let (x, dy) = (image(x, batch, n), image(dy, batch, n));
                    let parallel = within(share, threads);
                    self.filter_image(x, dy, (cast_slice_mut(sum), i > 0), scratch, parallel)?;
                }
            }
            Ok(())
        };
        if n_parts == 1 {
            return threads.install(|| part(0..1, &mut [out]));
        }
        let parts = &mut partial[..width * n_parts];
        if share {
            threads.split(true, 1, (&mut [&mut *parts], &[width]), n_parts, &part)?;
        } else {
            threads.install(|| part(0..n_parts, &mut [&mut *parts]))?;
        }
        let (first, others) = parts.split_at(width);
        out.copy_from_slice(first);
        for part in others.chunks_exact(width) {
            add::<T>(cast_slice(part), cast_slice_mut(out));
        }
        Ok(())
    }

    /// What one image gives to the gradient of the filters; added if `adds`.
    fn filter_image<T: Float>(
        &self,
        x: &[T],
        dy: &[T],
        (sum, adds): (&mut [T], bool),
        (frame, columns): (&mut [T], &mut [T]),
        parallel: Parallelism,
    ) -> Result<()> {
        let x = self.frame.fill(x, frame);
        for (group, pixels) in self.blocks() {
            let (len, adds) = (pixels.len(), adds || pixels.start > 0);
            let (columns, at) = self.columns(x, group, pixels.clone(), columns);
            let c = (columns, at.transposed());
            let (f, dy_at) = (self.filter_matrix(group), self.output_matrix(group, pixels.start));
            let k = self.g.out_channels / self.g.groups;
            inside(match self.g.layout {
                ImageLayout::Nchw => {
                    multiply_into([k, self.depth, len], (sum, f), (dy, dy_at), c, adds, parallel)
                }
                ImageLayout::Nhwc => {
                    multiply_into([self.depth, k, len], (sum, f), c, (dy, dy_at), adds, parallel)
                }
            })?;
        }
        Ok(())
    }

    /// The groups, and for each the windows, block by block.
    fn blocks(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + use<> {
        let (pixels, block) = (self.g.out_size[0] * self.g.out_size[1], self.block);
        (0..self.g.groups).flat_map(move |group| {
            (0..pixels).step_by(block).map(move |at| (group, at..(at + block).min(pixels)))
        })
    }

    /// What lies under each of some windows: `[depth, len]` for `Nchw`, else `[len, depth]`.
    fn columns<'c, T: Float>(
        &self,
        frame: &'c [T],
        group: usize,
        pixels: std::ops::Range<usize>,
        columns: &'c mut [T],
    ) -> (&'c [T], Matrix) {
        if self.frame.is_columns {
            return (frame, self.frame.matrix(group, pixels.start));
        }
        let len = pixels.len();
        let columns = &mut columns[..self.depth * len];
        self.frame.columns(frame, group, pixels, columns);
        (columns, self.column_matrix(len))
    }

    fn column_matrix(&self, len: usize) -> Matrix {
        let row = if self.g.layout == ImageLayout::Nchw { len } else { self.depth };
        Matrix { offset: 0, row: row as isize, col: 1 }
    }

    /// The filters of a group: `[k, depth]` for `Nchw`, else `[depth, k]`.
    fn filter_matrix(&self, group: usize) -> Matrix {
        let k = self.g.out_channels / self.g.groups;
        match self.g.layout {
            ImageLayout::Nchw => {
                Matrix { offset: group * k * self.depth, row: self.depth as isize, col: 1 }
            }
            ImageLayout::Nhwc => {
                Matrix { offset: group * k, row: self.g.out_channels as isize, col: 1 }
            }
        }
    }

    /// The output of a group from a window on: `[k, len]` for `Nchw`, else `[len, k]`.
    fn output_matrix(&self, group: usize, pixel: usize) -> Matrix {
        let k = self.g.out_channels / self.g.groups;
        let pixels = self.g.out_size[0] * self.g.out_size[1];
        match self.g.layout {
            ImageLayout::Nchw => {
                Matrix { offset: group * k * pixels + pixel, row: pixels as isize, col: 1 }
            }
            ImageLayout::Nhwc => {
                let row = self.g.out_channels;
                Matrix { offset: pixel * row + group * k, row: row as isize, col: 1 }
            }
        }
    }

    fn n_scratch(&self) -> usize {
        self.n_frame() + if self.frame.is_columns { 0 } else { self.depth * self.block }
    }

    /// In whole lines, so that columns begin on one.
    fn n_frame(&self) -> usize {
        if self.frame.is_image { 0 } else { self.frame.len().next_multiple_of(16) }
    }

    /// Scratch memory for a frame and for columns.
    fn split<'s, T: Pod>(&self, scratch: &'s mut [u8]) -> (&'s mut [T], &'s mut [T]) {
        let all = &mut cast_slice_mut(scratch)[..self.n_scratch()];
        let (frame, columns) = all.split_at_mut(self.n_frame());
        let len = self.frame.len().min(frame.len());
        (&mut frame[..len], columns)
    }
}

/// What `gemm` and frames need of an element.
trait Float: Gemm + Stored + std::ops::AddAssign {}

impl Float for f32 {}
impl Float for f64 {}

/// Image `n` of a batch.
fn image<T>(xs: &[T], batch: usize, n: usize) -> &[T] {
    let len = xs.len() / batch;
    &xs[n * len..][..len]
}

/// How a product is shared, if images are, or are not.
fn within(share: bool, threads: &Threads) -> Parallelism {
    if share || threads.len() < 2 { Parallelism::None } else { Parallelism::Rayon(threads.len()) }
}

fn inside(done: bool) -> Result<()> {
    if done { Ok(()) } else { Err(malformed("convolution", "a matrix leaves its buffer")) }
}

fn add<T: Float>(xs: &[T], sums: &mut [T]) {
    for (sum, &x) in sums.iter_mut().zip(xs) {
        *sum += x;
    }
}

fn widen<S: Stored>(input: &[u8], out: &mut [u8]) {
    let (xs, out): (&[S], &mut [S::Wide]) = (cast_slice(input), cast_slice_mut(out));
    for (out, &x) in out.iter_mut().zip(xs) {
        *out = x.widen();
    }
}

fn round<S: Stored>(wide: &[u8], out: &mut [u8]) {
    let (xs, out): (&[S::Wide], &mut [S]) = (cast_slice(wide), cast_slice_mut(out));
    for (out, &x) in out.iter_mut().zip(xs) {
        *out = S::narrow(x);
    }
}
