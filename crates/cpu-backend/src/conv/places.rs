//! Where matrices lie in filters, outputs and columns, and the parts of the scratch memory for an image.

use bytemuck::cast_slice_mut;
use convoke_graph_core::ImageLayout;

use super::{Conv, Float};
use crate::fast::Matrix;

/// Elements of a line, on which each part of the scratch memory begins.
const LINE: usize = 16;

/// Scratch memory for one image.
pub(super) struct Room<'s, T> {
    pub frame: &'s mut [T],
    pub columns: &'s mut [T],
    /// The image of the output, or its gradient, in the layout that is computed in.
    pub output: &'s mut [T],
}

impl Conv {
    pub(super) fn column_matrix(&self, len: usize) -> Matrix {
        let row = if self.g.layout == ImageLayout::Nchw { len } else { self.depth };
        Matrix { offset: 0, row: row as isize, col: 1 }
    }

    /// The filters of a group: `[k, depth]` for `Nchw`, else `[depth, k]`.
    pub(super) fn filter_matrix(&self, group: usize) -> Matrix {
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
    pub(super) fn output_matrix(&self, group: usize, pixel: usize) -> Matrix {
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

    /// Elements of scratch memory for one image, each part in whole lines.
    pub(super) fn n_scratch(&self) -> usize {
        self.n_parts().iter().map(|n| n.next_multiple_of(LINE)).sum()
    }

    fn n_parts(&self) -> [usize; 3] {
        let n_output = self.g.out_channels * self.g.out_size[0] * self.g.out_size[1];
        [
            if self.frame.is_image { 0 } else { self.frame.len() },
            if self.frame.is_columns { 0 } else { self.depth * self.block },
            if self.is_turned() { n_output } else { 0 },
        ]
    }

    pub(super) fn room<'s, T: Float>(&self, scratch: &'s mut [u8]) -> Room<'s, T> {
        let n = self.n_parts();
        let all = &mut cast_slice_mut(scratch)[..self.n_scratch()];
        let (frame, rest) = all.split_at_mut(n[0].next_multiple_of(LINE));
        let (columns, output) = rest.split_at_mut(n[1].next_multiple_of(LINE));
        Room {
            frame: &mut frame[..n[0]],
            columns: &mut columns[..n[1]],
            output: &mut output[..n[2]],
        }
    }
}
