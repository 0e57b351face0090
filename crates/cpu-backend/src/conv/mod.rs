//! Convolutions and their gradients: products of filters and columns, which are what lies under each
//! window, block by block.
//!
//! Without groups, elements of all channels lie side by side (`Nhwc`) while it is computed, which `gemm`
//! likes better; with groups, planes do. An image at a time is brought into a frame (`frame.rs`), of which columns are made, and `gemm` does the
//! rest. Images are shared out to threads, or the blocks of one where there are fewer images. Sums of the filters' gradient are made for fixed parts of the
//! batch and added in order, so that results do not depend on the number of threads.

mod frame;
mod places;
mod turn;

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use convoke_compiler::{Group, Kernel, Program};
use convoke_graph_core::{ConvGeometry, DType, ImageLayout, Result};
use smallvec::SmallVec;

use crate::elements::{Stored, wide_bytes, with_stored};
use crate::fast::{Factor, Gemm, Matrix, multiply};
use crate::operand::Operand;
use crate::tail::Finish;
use crate::threads::{Threads, parts_of};
use crate::{malformed, unsupported};
use frame::Frame;
use places::Room;
use turn::{add, round, transpose, turn_filters, widen};

/// The greatest size of the columns of a block: they stay in a core's own cache.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that a batch has at least, so that threads can share a few images, but for blocks of fewer windows than these.
const BLOCKS: usize = 32;
const LEAST_WINDOWS: usize = 256;

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
    /// As it is computed: in its own layout, or in the other one, which is faster.
    g: ConvGeometry,
    /// The layout of the inputs and the output.
    outer: ImageLayout,
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
        let dtype = check(program, group, direction, &g)?;
        let outer = g.layout;
        let is_pointwise = Frame::new(&g, outer).is_columns;
        let layout = match g.groups {
            _ if is_pointwise => outer,
            1 => ImageLayout::Nhwc,
            _ => ImageLayout::Nchw,
        };
        let g = ConvGeometry { layout, ..g };
        let frame = Frame::new(&g, outer);
        let depth = g.in_channels / g.groups * g.window[0] * g.window[1];
        let pixels = g.out_size[0] * g.out_size[1];
        let fit = BLOCK_BYTES / (depth * wide_bytes(dtype)).max(1);
        let block = if frame.is_columns {
            pixels
        } else {
            let is_shared = direction == Direction::Forward && g.groups == 1;
            let n_blocks = if is_shared { BLOCKS.div_ceil(g.batch.max(1)) } else { 1 };
            let shared = pixels.div_ceil(n_blocks).max(LEAST_WINDOWS);
            pixels.div_ceil(pixels.div_ceil(fit.max(16).min(shared)).max(1))
        };
        Ok(Self { direction, dtype, g, outer, frame, depth, block: block.max(1) })
    }

    /// A multiplication and an addition for each term.
    pub fn flops(&self) -> u64 {
        self.g.flops()
    }

    /// Computes the group.
    pub fn run(
        &self,
        operands: &[Operand<'_>],
        outputs: &mut [&mut [u8]],
        finish: Option<&Finish<'_>>,
        threads: &Threads,
    ) -> Result<()> {
        let &[a, b] = operands else {
            return Err(malformed("convolution", "expected two operands"));
        };
        let by_images = self.direction != Direction::Filter && self.g.flops() > 0;
        match finish {
            None => self.result([a, b], outputs[0], threads),
            Some(finish) if by_images && finish.widths().is_some() => match self.dtype {
                DType::F32 => self.images::<f32>([a, b], outputs, Some(finish), threads),
                _ => self.images::<f64>([a, b], outputs, Some(finish), threads),
            },
            Some(finish) => finish.whole(outputs, threads, |y| self.result([a, b], y, threads)),
        }
    }

    fn result(
        &self,
        operands: [Operand<'_>; 2],
        output: &mut [u8],
        threads: &Threads,
    ) -> Result<()> {
        if self.g.flops() == 0 || output.is_empty() {
            output.fill(0);
            return Ok(());
        }
        match self.dtype {
            DType::F32 => self.floats::<f32>(operands, output, threads),
            DType::F64 => self.floats::<f64>(operands, output, threads),
            _ => self.narrow(operands, output, threads),
        }
    }

    /// Through wide copies of everything, rounded once at the end.
    fn narrow(
        &self,
        operands: [Operand<'_>; 2],
        output: &mut [u8],
        threads: &Threads,
    ) -> Result<()> {
        let (width, n_bytes) = (wide_bytes(self.dtype), self.dtype.n_bytes());
        let wide = |bytes: &[u8]| bytes.len() / n_bytes * width;
        let [x, y] = [operands[0].whole(threads)?, operands[1].whole(threads)?];
        let (a, b, out) = (wide(&x), wide(&y), wide(output));
        let lines = |len: usize| len.next_multiple_of(64);
        let mut scratch = threads.scratch(lines(a) + lines(b) + out)?;
        let (wide_a, rest) = scratch.split_at_mut(lines(a));
        let (wide_b, wide_out) = rest.split_at_mut(lines(b));
        let (wide_a, wide_b, wide_out) = (&mut wide_a[..a], &mut wide_b[..b], &mut wide_out[..out]);
        with_stored!(self.dtype, T => {
            widen::<T>(&x, wide_a);
            widen::<T>(&y, wide_b);
        }, else ());
        self.floats::<f32>([Operand::Lies(wide_a), Operand::Lies(wide_b)], wide_out, threads)?;
        with_stored!(self.dtype, T => round::<T>(wide_out, output), else ());
        Ok(())
    }

    fn floats<T: Float>(
        &self,
        operands: [Operand<'_>; 2],
        output: &mut [u8],
        threads: &Threads,
    ) -> Result<()> {
        match self.direction {
            Direction::Filter => self.filters::<T>(operands, output, threads),
            _ => self.images::<T>(operands, &mut [output], None, threads),
        }
    }

    /// The images of the output, or what a tail makes of each.
    fn images<T: Float>(
        &self,
        [a, b]: [Operand<'_>; 2],
        outputs: &mut [&mut [u8]],
        finish: Option<&Finish<'_>>,
        threads: &Threads,
    ) -> Result<()> {
        let (images, filters) = if self.direction == Direction::Input { (b, a) } else { (a, b) };
        let filters = filters.whole(threads)?;
        let filters: &[T] = cast_slice(&filters);
        let n_turned = if self.is_turned() { filters.len() } else { 0 };
        let mut turned = threads.scratch(n_turned * size_of::<T>())?;
        let turned: &mut [T] = &mut cast_slice_mut(&mut turned)[..n_turned];
        let filters = if self.is_turned() {
            turn_filters(&self.g, filters, turned);
            turned
        } else {
            filters
        };
        let share = self.g.batch >= threads.len();
        let within = (!share).then_some(threads);
        let one = |n: usize, y: &mut [T], room: Room<'_, T>| {
            self.with_image(images, n, (threads, !share), |image| match self.direction {
                Direction::Input => self.input_image(filters, image, y, room, within),
                _ => self.image(image, filters, y, room, within),
            })
        };
        let len = self.n_result();
        let widths: SmallVec<[usize; 2]> = match finish {
            Some(finish) => finish.widths().unwrap_or_default().iter().map(|w| w * len).collect(),
            None => SmallVec::from_slice(&[len * size_of::<T>()]),
        };
        let some = |range: Range<usize>, outputs: &mut [&mut [u8]]| {
            let mut scratch = threads.scratch(self.n_scratch() * size_of::<T>())?;
            let n_result = if finish.is_some() { len } else { 0 };
            let mut result = threads.scratch(n_result * size_of::<T>())?;
            for (i, n) in range.enumerate() {
                let room = self.room(&mut scratch);
                let mut own = parts_of(outputs, &widths, i..i + 1);
                match finish {
                    None => one(n, cast_slice_mut(own[0]), room)?,
                    Some(finish) => {
                        let result = &mut result[..len * size_of::<T>()];
                        one(n, cast_slice_mut(result), room)?;
                        finish.block(n * len..(n + 1) * len, result, &mut own, threads, !share)?;
                    }
                }
            }
            Ok(())
        };
        threads.split(share, 1, (outputs, &widths), self.g.batch, &some)
    }

    /// Elements of an image of what is computed, which is not the filters' gradient.
    fn n_result(&self) -> usize {
        match self.direction {
            Direction::Input => self.g.in_channels * self.g.in_size[0] * self.g.in_size[1],
            _ => self.g.out_channels * self.g.out_size[0] * self.g.out_size[1],
        }
    }

    /// Calls `f` with image `n` of an operand.
    fn with_image<T: Float>(
        &self,
        images: Operand<'_>,
        n: usize,
        (threads, share): (&Threads, bool),
        f: impl FnOnce(&[T]) -> Result<()>,
    ) -> Result<()> {
        let len = images.n_bytes() / size_of::<T>() / self.g.batch;
        let n_made = if matches!(images, Operand::Made(..)) { len } else { 0 };
        let mut made = threads.scratch(n_made * size_of::<T>())?;
        let made: &mut [T] = &mut cast_slice_mut(&mut made)[..n_made];
        f(images.elements(n * len..(n + 1) * len, made, threads, share)?)
    }

    /// One image of the output.
    fn image<T: Float>(
        &self,
        x: &[T],
        filters: &[T],
        y: &mut [T],
        room: Room<'_, T>,
        threads: Option<&Threads>,
    ) -> Result<()> {
        let x = self.frame.fill(x, room.frame, threads)?;
        let target: &mut [T] = if self.is_turned() { &mut *room.output } else { &mut *y };
        let lie_together = self.g.layout == ImageLayout::Nhwc && self.g.groups == 1;
        match threads.filter(|_| lie_together && !self.frame.is_columns) {
            Some(threads) => self.shared_blocks(x, filters, target, threads)?,
            None => {
                for (group, pixels) in self.blocks() {
                    let at = self.output_matrix(group, pixels.start);
                    let out = (&mut *target, at);
                    self.windows(x, filters, (group, pixels), out, room.columns, threads)?;
                }
            }
        }
        if self.is_turned() {
            self.turn(room.output, y, false, threads)?;
        }
        Ok(())
    }

    /// The blocks of one image, each computed by one thread: the elements of a pixel lie side by side. Where blocks begin
    /// does not depend on the number of threads, so that nor does any bit.
    fn shared_blocks<T: Float>(
        &self,
        x: &[T],
        filters: &[T],
        y: &mut [T],
        threads: &Threads,
    ) -> Result<()> {
        let pixels = self.g.out_size[0] * self.g.out_size[1];
        let n_columns = self.depth * self.block;
        let (mut y, widths) = ([cast_slice_mut(y)], [self.g.out_channels * size_of::<T>()]);
        threads.split(true, self.block, (&mut y, &widths), pixels, &|range, part| {
            let mut scratch = threads.scratch(n_columns * size_of::<T>())?;
            let columns = &mut cast_slice_mut(&mut scratch)[..n_columns];
            let out: &mut [T] = cast_slice_mut(part[0]);
            for start in range.clone().step_by(self.block) {
                let windows = start..(start + self.block).min(range.end);
                let at = self.output_matrix(0, start - range.start);
                self.windows(x, filters, (0, windows), (&mut *out, at), columns, None)?;
            }
            Ok(())
        })
    }

    /// What some windows of a group give.
    fn windows<T: Float>(
        &self,
        x: &[T],
        filters: &[T],
        (group, pixels): (usize, Range<usize>),
        out: (&mut [T], Matrix),
        columns: &mut [T],
        threads: Option<&Threads>,
    ) -> Result<()> {
        let (len, k) = (pixels.len(), self.g.out_channels / self.g.groups);
        let (columns, at) = self.columns(x, group, pixels, columns);
        let c = Factor::Lies(columns, at);
        let f = Factor::Lies(filters, self.filter_matrix(group));
        match self.g.layout {
            ImageLayout::Nchw => multiply([k, len, self.depth], out, f, c, false, threads),
            ImageLayout::Nhwc => multiply([len, k, self.depth], out, c, f, false, threads),
        }
    }

    /// One image of the gradient of the input.
    fn input_image<T: Float>(
        &self,
        filters: &[T],
        dy: &[T],
        dx: &mut [T],
        room: Room<'_, T>,
        threads: Option<&Threads>,
    ) -> Result<()> {
        let dy = self.turned(dy, room.output, threads)?;
        let (framed, columns) = (!self.frame.is_image, room.columns);
        let target: &mut [T] = if framed { &mut *room.frame } else { &mut *dx };
        if !self.frame.is_columns {
            target.fill(T::ZERO);
        }
        for (group, pixels) in self.blocks() {
            let len = pixels.len();
            let f = Factor::Lies(filters, self.filter_matrix(group).transposed());
            let dy = Factor::Lies(dy, self.output_matrix(group, pixels.start));
            let k = self.g.out_channels / self.g.groups;
            let out = if self.frame.is_columns {
                (&mut *target, self.frame.matrix(group, pixels.start))
            } else {
                (&mut columns[..self.depth * len], self.column_matrix(len))
            };
            match self.g.layout {
                ImageLayout::Nchw => multiply([self.depth, len, k], out, f, dy, false, threads)?,
                ImageLayout::Nhwc => multiply([len, self.depth, k], out, dy, f, false, threads)?,
            }
            if !self.frame.is_columns {
                self.frame.add_columns(&columns[..self.depth * len], group, pixels, target);
            }
        }
        if framed {
            self.frame.empty(room.frame, dx);
        }
        Ok(())
    }

    /// The gradient of the filters: partial sums of fixed parts of the batch, added in order.
    fn filters<T: Float>(
        &self,
        [x, dy]: [Operand<'_>; 2],
        out: &mut [u8],
        threads: &Threads,
    ) -> Result<()> {
        let (batch, width) = (self.g.batch, out.len());
        let n_parts = batch.min(PARTS).min((PARTIAL_BYTES / width).max(1));
        let share = n_parts >= threads.len();
        let within = (!share).then_some(threads);
        let mut partial = threads.scratch(width * n_parts)?;
        let parts = &mut partial[..width * n_parts];
        let part = |range: Range<usize>, sums: &mut [&mut [u8]]| {
            let mut scratch = threads.scratch(self.n_scratch() * size_of::<T>())?;
            for (part, sum) in range.zip(sums[0].chunks_exact_mut(width)) {
                let images = part * batch / n_parts..(part + 1) * batch / n_parts;
                for (i, n) in images.enumerate() {
                    let (sum, room) = (cast_slice_mut::<u8, T>(sum), self.room(&mut scratch));
                    self.with_image::<T>(x, n, (threads, !share), |x| {
                        self.with_image(dy, n, (threads, !share), |dy| {
                            self.filter_image(x, dy, (sum, i > 0), room, within)
                        })
                    })?;
                }
            }
            Ok(())
        };
        if share {
            threads.split(true, 1, (&mut [&mut *parts], &[width]), n_parts, &part)?;
        } else {
            part(0..n_parts, &mut [&mut *parts])?;
        }
        let (sum, others) = parts.split_at_mut(width);
        let sum: &mut [T] = cast_slice_mut(sum);
        for part in others.chunks_exact(width) {
            add(cast_slice(part), sum);
        }
        if self.is_turned() {
            turn_filters(&ConvGeometry { layout: self.outer, ..self.g }, sum, cast_slice_mut(out));
        } else {
            out.copy_from_slice(cast_slice(sum));
        }
        Ok(())
    }

    /// What one image gives to the gradient of the filters; added if `adds`.
    fn filter_image<T: Float>(
        &self,
        x: &[T],
        dy: &[T],
        (sum, adds): (&mut [T], bool),
        room: Room<'_, T>,
        threads: Option<&Threads>,
    ) -> Result<()> {
        let x = self.frame.fill(x, room.frame, threads)?;
        let dy = self.turned(dy, room.output, threads)?;
        for (group, pixels) in self.blocks() {
            let (len, adds) = (pixels.len(), adds || pixels.start > 0);
            let (columns, at) = self.columns(x, group, pixels.clone(), room.columns);
            let c = Factor::Lies(columns, at.transposed());
            let dy = Factor::Lies(dy, self.output_matrix(group, pixels.start));
            let out = (&mut *sum, self.filter_matrix(group));
            let k = self.g.out_channels / self.g.groups;
            match self.g.layout {
                ImageLayout::Nchw => multiply([k, self.depth, len], out, dy, c, adds, threads)?,
                ImageLayout::Nhwc => multiply([self.depth, k, len], out, c, dy, adds, threads)?,
            }
        }
        Ok(())
    }

    /// True if it is computed in the other layout.
    fn is_turned(&self) -> bool {
        self.g.layout != self.outer
    }

    /// An image shaped like the output, in the layout that is computed in.
    fn turned<'y, T: Float>(
        &self,
        y: &'y [T],
        room: &'y mut [T],
        threads: Option<&Threads>,
    ) -> Result<&'y [T]> {
        if !self.is_turned() {
            return Ok(y);
        }
        self.turn(y, room, true, threads)?;
        Ok(room)
    }

    /// An image shaped like the output, from one layout to the other.
    fn turn<T: Float>(
        &self,
        from: &[T],
        to: &mut [T],
        inwards: bool,
        threads: Option<&Threads>,
    ) -> Result<()> {
        let (pixels, k) = (self.g.out_size[0] * self.g.out_size[1], self.g.out_channels);
        let from_planes = inwards == (self.outer == ImageLayout::Nchw);
        let sizes = if from_planes { [k, pixels] } else { [pixels, k] };
        transpose(from, to, sizes, threads)
    }

    /// The groups, and for each the windows, block by block.
    fn blocks(&self) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
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
        pixels: Range<usize>,
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
}

/// The dtype, if the group's values are what the geometry says.
fn check(
    program: &Program,
    group: &Group,
    direction: Direction,
    g: &ConvGeometry,
) -> Result<DType> {
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
            return Err(malformed("convolution", &format!("{} is not {dims:?}", operand.value)));
        }
    }
    if program.value(out).shape.dims() != expected[2] {
        return Err(malformed("convolution", &format!("{out} is not {:?}", expected[2])));
    }
    Ok(dtype)
}

/// What `gemm` and frames need of an element.
trait Float: Gemm + Stored + std::ops::AddAssign {}

impl Float for f32 {}
impl Float for f64 {}
