//! Copies of values with their axes in another order, tile by tile, so that every cache line is read and
//! written once.

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use convoke_compiler::{Arg, Fused, Group, Program};
use convoke_graph_core::Result;
use smallvec::SmallVec;

use crate::threads::Threads;
use crate::walk::Walk;

/// Neighbouring elements of the input in a tile: a cache line of 4-byte elements.
const TILE_IN: usize = 16;

/// Neighbouring elements of the output in a tile.
const TILE_OUT: usize = 64;

/// Elements from which threads share the work.
const PARALLEL: usize = 1 << 16;

/// A copy whose input is contiguous along another axis than the last.
pub(crate) struct Reorder {
    n_bytes: usize,
    dims: SmallVec<[usize; 4]>,
    strides: SmallVec<[isize; 4]>,
    offset: usize,
    /// The axis along which the input is contiguous.
    axis: usize,
}

impl Reorder {
    /// Compiles a group, if it is such a copy and nothing else.
    pub fn compile(program: &Program, group: &Group, fused: &Fused) -> Option<Self> {
        let ([Arg::Input(0)], [], [operand]) =
            (fused.stores.as_slice(), fused.instrs.as_slice(), group.inputs.as_slice())
        else {
            return None;
        };
        if fused.check.is_some() {
            return None;
        }
        let walk = Walk::new(&operand.layout);
        let (dims, strides) = (walk.dims(), walk.strides());
        let last = dims.len() - 1;
        let axis = strides[..last].iter().position(|&stride| stride == 1)?;
        let is_worth = strides[last].unsigned_abs() > 1 && dims[axis] >= 8 && dims[last] >= 8;
        is_worth.then(|| Self {
            n_bytes: program.value(operand.value).dtype.n_bytes(),
            dims: SmallVec::from_slice(dims),
            strides: SmallVec::from_slice(strides),
            offset: walk.offset(),
            axis,
        })
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        let len: usize = self.dims.iter().product();
        if len == 0 {
            return Ok(());
        }
        let grain = if self.axis == 0 { TILE_IN } else { 1 };
        let width = [len / self.dims[0] * self.n_bytes];
        let parts = (outputs, &width[..]);
        threads.split(len >= PARALLEL, grain, parts, self.dims[0], &|range, outputs| {
            let (x, y) = (inputs[0], &mut *outputs[0]);
            match self.n_bytes {
                1 => self.part::<u8>(range.start, range.len(), cast_slice(x), cast_slice_mut(y)),
                2 => self.part::<u16>(range.start, range.len(), cast_slice(x), cast_slice_mut(y)),
                4 => self.part::<u32>(range.start, range.len(), cast_slice(x), cast_slice_mut(y)),
                _ => self.part::<u64>(range.start, range.len(), cast_slice(x), cast_slice_mut(y)),
            }
            Ok(())
        })
    }

    /// `n` indices of the first axis, from `first`.
    fn part<T: Pod>(&self, first: usize, n: usize, x: &[T], y: &mut [T]) {
        let mut dims = self.dims.clone();
        dims[0] = n;
        let mut steps: SmallVec<[isize; 4]> = self.strides.clone();
        let mut step = 1;
        for (to, &dim) in steps.iter_mut().zip(&dims).rev() {
            *to = step;
            step *= dim as isize;
        }
        let last = dims.len() - 1;
        let others = (0..last).filter(|&axis| axis != self.axis);
        let sizes: SmallVec<[usize; 4]> = others.clone().map(|axis| dims[axis]).collect();
        let from: SmallVec<[isize; 4]> = others.clone().map(|axis| self.strides[axis]).collect();
        let to: SmallVec<[isize; 4]> = others.map(|axis| steps[axis]).collect();
        let start = self.offset.wrapping_add_signed(first as isize * self.strides[0]);
        let (from, to) = (Walk::of_axes(&sizes, &from, start), Walk::of_axes(&sizes, &to, 0));
        let (mut read, mut write) = (from.start(0), to.start(0));
        let plane = Plane {
            n_in: dims[self.axis],
            n_out: dims[last],
            stride: self.strides[last],
            row: steps[self.axis] as usize,
        };
        for _ in 0..sizes.iter().product() {
            let (mut a, mut b) = (0, 0);
            from.runs(&mut read, 1, |at, _, _| a = at);
            to.runs(&mut write, 1, |at, _, _| b = at);
            plane.copy(x, a, &mut y[b..]);
        }
    }
}

/// Two axes: the one along which the input is contiguous, and the output's last.
struct Plane {
    n_in: usize,
    n_out: usize,
    /// The input's step along the output's last axis.
    stride: isize,
    /// The output's step along the other.
    row: usize,
}

impl Plane {
    fn copy<T: Pod>(&self, x: &[T], base: usize, y: &mut [T]) {
        let mut tile = [[T::zeroed(); TILE_IN]; TILE_OUT];
        for i in (0..self.n_in).step_by(TILE_IN) {
            let n_in = TILE_IN.min(self.n_in - i);
            for j in (0..self.n_out).step_by(TILE_OUT) {
                let n_out = TILE_OUT.min(self.n_out - j);
                for (k, line) in tile[..n_out].iter_mut().enumerate() {
                    let at = base.wrapping_add_signed((j + k) as isize * self.stride) + i;
                    line[..n_in].copy_from_slice(&x[at..][..n_in]);
                }
                for k in 0..n_in {
                    let out = &mut y[(i + k) * self.row + j..][..n_out];
                    for (out, line) in out.iter_mut().zip(&tile) {
                        *out = line[k];
                    }
                }
            }
        }
    }
}
