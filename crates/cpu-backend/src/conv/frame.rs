//! Frames: an image with the zeros that windows cover around it, and the columns under its windows.

use std::ops::Range;

use bytemuck::cast_slice_mut;
use convoke_graph_core::{ConvGeometry, ImageLayout, Result};

use super::Float;
use crate::fast::{Matrix, wide};
use crate::threads::Threads;

/// Elements that are copied at once. A copy may write as many too far, if what is there is written later.
const LANES: usize = 16;

/// How the part of an image that windows cover lies in memory: `[channels, rows, columns]` for `Nchw`, else
/// `[rows, columns, channels]`.
pub(super) struct Frame {
    g: ConvGeometry,
    /// The layout of images.
    outer: ImageLayout,
    rows: usize,
    cols: usize,
    /// True if no padding is needed: the frame is the image itself.
    pub is_image: bool,
    /// True if a window is one element, and every element is under one: columns are the frame itself.
    pub is_columns: bool,
}

impl Frame {
    /// A frame in the layout of `g`, for images in the layout `outer`.
    pub fn new(g: &ConvGeometry, outer: ImageLayout) -> Self {
        let reach = |i: usize| {
            g.out_size[i].saturating_sub(1) * g.stride[i] + (g.window[i] - 1) * g.dilation[i] + 1
        };
        let (rows, cols) = (reach(0), reach(1));
        let is_image = outer == g.layout
            && g.pad_before == [0, 0]
            && rows <= g.in_size[0]
            && cols <= g.in_size[1];
        let is_columns =
            is_image && g.window == [1, 1] && g.stride == [1, 1] && g.out_size == g.in_size;
        let [rows, cols] = if is_image { g.in_size } else { [rows, cols] };
        Self { g: *g, outer, rows, cols, is_image, is_columns }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.g.in_channels * self.rows * self.cols
    }

    /// The image in its frame, for which `frame` is the memory; rows of pixels are shared out to `threads`.
    pub fn fill<'f, T: Float>(
        &self,
        image: &'f [T],
        frame: &'f mut [T],
        threads: Option<&Threads>,
    ) -> Result<&'f [T]> {
        if self.is_image {
            return Ok(image);
        }
        let fill = |rows: Range<usize>, first: usize, frame: &mut [T]| {
            frame.fill(T::ZERO);
            self.rows(rows, |at, step, in_image, image_step, len| {
                let to = &mut frame[at - first..];
                copy_steps(&image[in_image..], image_step, to, step, len);
            });
        };
        match threads.filter(|_| self.g.layout == ImageLayout::Nhwc) {
            None => fill(0..self.rows, 0, frame),
            Some(threads) => {
                let width = self.cols * self.g.in_channels;
                let (mut own, widths) = ([cast_slice_mut(frame)], [width * size_of::<T>()]);
                threads.split(true, 1, (&mut own, &widths), self.rows, &|rows, part| {
                    fill(rows.clone(), rows.start * width, cast_slice_mut(part[0]));
                    Ok(())
                })?;
            }
        }
        Ok(frame)
    }

    /// The image from its frame; what no window covers is zero.
    pub fn empty<T: Float>(&self, frame: &[T], image: &mut [T]) {
        image.fill(T::ZERO);
        self.rows(0..self.rows, |at, step, in_image, image_step, len| {
            copy_steps(&frame[at..], step, &mut image[in_image..], image_step, len);
        });
    }

    /// Calls `f` with the place and step in the frame, the place and step in the image, and the length, of
    /// each of these rows of the frame that is in both.
    fn rows(&self, rows: Range<usize>, mut f: impl FnMut(usize, usize, usize, usize, usize)) {
        let ([height, width], [top, left]) = (self.g.in_size, self.g.pad_before);
        let rows = rows.start.saturating_sub(top)..rows.end.saturating_sub(top).min(height);
        let n_cols = self.cols.saturating_sub(left).min(width);
        let channels = self.g.in_channels;
        // All of the image is beyond what windows cover.
        if n_cols == 0 {
            return;
        }
        if [self.outer, self.g.layout] == [ImageLayout::Nhwc; 2] {
            for row in rows {
                let at = ((top + row) * self.cols + left) * channels;
                f(at, 1, row * width * channels, 1, n_cols * channels);
            }
            return;
        }
        let place =
            |layout, channel: usize, row: usize, [rows, cols]: [usize; 2], col: usize| match layout
            {
                ImageLayout::Nchw => ((channel * rows + row) * cols + col, 1),
                ImageLayout::Nhwc => ((row * cols + col) * channels + channel, channels),
            };
        for row in rows {
            for channel in 0..channels {
                let size = [self.rows, self.cols];
                let (at, step) = place(self.g.layout, channel, top + row, size, left);
                let (in_image, image_step) = place(self.outer, channel, row, [height, width], 0);
                f(at, step, in_image, image_step, n_cols);
            }
        }
    }

    /// The frame as the columns of a group from a window on, where [`Self::is_columns`].
    pub fn matrix(&self, group: usize, pixel: usize) -> Matrix {
        let of_group = self.g.in_channels / self.g.groups;
        match self.g.layout {
            ImageLayout::Nchw => {
                let row = self.rows * self.cols;
                Matrix { offset: group * of_group * row + pixel, row: row as isize, col: 1 }
            }
            ImageLayout::Nhwc => {
                let row = self.g.in_channels;
                Matrix { offset: pixel * row + group * of_group, row: row as isize, col: 1 }
            }
        }
    }

    /// Writes what lies under some windows of a group: `[depth, windows]` for `Nchw`, else
    /// `[windows, depth]`.
    pub fn columns<T: Float>(
        &self,
        frame: &[T],
        group: usize,
        pixels: Range<usize>,
        out: &mut [T],
    ) {
        wide(
            #[inline(always)]
            || {
                self.runs(group, pixels, |at, step, in_columns, len| {
                    if step == 1 {
                        copy(frame, at, out, in_columns, len);
                    } else {
                        let from = frame[at..].iter().step_by(step);
                        for (out, &x) in out[in_columns..][..len].iter_mut().zip(from) {
                            *out = x;
                        }
                    }
                });
            },
        );
    }

    /// Adds what was computed for columns, as [`Self::columns`] gives them, to the frame.
    pub fn add_columns<T: Float>(
        &self,
        columns: &[T],
        group: usize,
        pixels: Range<usize>,
        frame: &mut [T],
    ) {
        wide(
            #[inline(always)]
            || {
                self.runs(group, pixels, |at, step, in_columns, len| {
                    if step == 1 {
                        add(columns, in_columns, frame, at, len);
                    } else {
                        let to = frame[at..].iter_mut().step_by(step);
                        for (to, &x) in to.zip(&columns[in_columns..][..len]) {
                            *to += x;
                        }
                    }
                });
            },
        );
    }

    /// Calls `f` with the place in the frame, the step there, the place in the columns and the length of
    /// each run, in the order of the columns.
    #[inline(always)]
    fn runs(&self, group: usize, pixels: Range<usize>, f: impl FnMut(usize, usize, usize, usize)) {
        match self.g.layout {
            ImageLayout::Nchw => self.plane_runs(group, pixels, f),
            ImageLayout::Nhwc => self.pixel_runs(group, pixels, f),
        }
    }

    #[inline(always)]
    fn plane_runs(
        &self,
        group: usize,
        pixels: Range<usize>,
        mut f: impl FnMut(usize, usize, usize, usize),
    ) {
        let ConvGeometry { stride, dilation, window, out_size, .. } = self.g;
        let of_group = self.g.in_channels / self.g.groups;
        let width = out_size[1];
        let (first_row, first_col) = (pixels.start / width, pixels.start % width);
        let mut done = 0;
        for channel in group * of_group..(group + 1) * of_group {
            for r in 0..window[0] {
                for s in 0..window[1] {
                    let plane =
                        (channel * self.rows + r * dilation[0]) * self.cols + s * dilation[1];
                    let (mut row, mut col, mut left) = (first_row, first_col, pixels.len());
                    while left > 0 {
                        let len = (width - col).min(left);
                        let at = plane + row * stride[0] * self.cols + col * stride[1];
                        f(at, stride[1], done, len);
                        (row, col, left, done) = (row + 1, 0, left - len, done + len);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn pixel_runs(
        &self,
        group: usize,
        pixels: Range<usize>,
        mut f: impl FnMut(usize, usize, usize, usize),
    ) {
        let ConvGeometry { stride, dilation, window, out_size, in_channels, .. } = self.g;
        let of_group = in_channels / self.g.groups;
        // Channels of neighbouring columns follow each other if all are in the group.
        let joined = self.g.groups == 1 && dilation[1] == 1;
        let (n_runs, len) = if joined { (1, window[1] * of_group) } else { (window[1], of_group) };
        let mut done = 0;
        for pixel in pixels {
            let (row, col) = (pixel / out_size[1] * stride[0], pixel % out_size[1] * stride[1]);
            for r in 0..window[0] {
                for s in 0..n_runs {
                    let place = (row + r * dilation[0]) * self.cols + col + s * dilation[1];
                    f(place * in_channels + group * of_group, 1, done, len);
                    done += len;
                }
            }
        }
    }
}

/// Copies `len` elements, so many apart.
fn copy_steps<T: Copy>(from: &[T], from_step: usize, to: &mut [T], step: usize, len: usize) {
    match (from_step, step) {
        _ if len == 0 => {}
        (1, 1) => to[..len].copy_from_slice(&from[..len]),
        _ => {
            let to = to.iter_mut().step_by(step);
            to.zip(from.iter().step_by(from_step)).take(len).for_each(|(to, &x)| *to = x);
        }
    }
}

/// Copies `len` elements, and possibly some that follow.
#[inline(always)]
fn copy<T: Copy>(from: &[T], mut at: usize, to: &mut [T], mut out: usize, mut len: usize) {
    while len > 0 {
        let (source, target) = (&from[at..], &mut to[out..]);
        match (source.first_chunk::<LANES>(), target.first_chunk_mut::<LANES>()) {
            (Some(source), Some(target)) => *target = *source,
            _ => {
                target[..len].copy_from_slice(&source[..len]);
                return;
            }
        }
        let n = len.min(LANES);
        (at, out, len) = (at + n, out + n, len - n);
    }
}

/// Adds `len` elements to others.
#[inline(always)]
fn add<T: Float>(from: &[T], mut at: usize, to: &mut [T], mut out: usize, mut len: usize) {
    while len > 0 {
        let (source, target) = (&from[at..], &mut to[out..]);
        match (source.first_chunk::<LANES>(), target.first_chunk_mut::<LANES>()) {
            (Some(source), Some(target)) => {
                for i in 0..LANES {
                    // A whole vector is added, of which what follows is zero.
                    target[i] += if i < len { source[i] } else { T::ZERO };
                }
            }
            _ => {
                for (to, &x) in target[..len].iter_mut().zip(source) {
                    *to += x;
                }
                return;
            }
        }
        let n = len.min(LANES);
        (at, out, len) = (at + n, out + n, len - n);
    }
}
