//! Walks over the elements of a layout in row-major order, run by run, without divisions.

use convoke_graph_core::{Error, Layout, Result};
use smallvec::{SmallVec, smallvec};

use crate::elements::Stored;
use crate::fast::wide;

/// A layout with sizes of 1 left out and neighbouring axes merged where they can be.
#[derive(Debug, Clone)]
pub(crate) struct Walk {
    dims: SmallVec<[usize; 4]>,
    strides: SmallVec<[isize; 4]>,
    offset: usize,
}

/// A place in a [`Walk`].
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    coords: SmallVec<[usize; 4]>,
    at: isize,
}

impl Walk {
    /// The elements of `layout`.
    pub fn new(layout: &Layout) -> Self {
        Self::of_axes(layout.shape().dims(), layout.strides(), layout.offset())
    }

    /// The elements of some axes.
    pub fn of_axes(dims: &[usize], strides: &[isize], offset: usize) -> Self {
        let mut walk = Self { dims: smallvec![], strides: smallvec![], offset };
        for (&dim, &stride) in dims.iter().zip(strides).filter(|&(&dim, _)| dim != 1) {
            match (walk.dims.last_mut(), walk.strides.last_mut()) {
                (Some(d), Some(s)) if *s == stride * dim as isize => {
                    *d *= dim;
                    *s = stride;
                }
                _ => {
                    walk.dims.push(dim);
                    walk.strides.push(stride);
                }
            }
        }
        if walk.dims.is_empty() {
            walk.dims.push(1);
            walk.strides.push(1);
        }
        walk
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// The merged sizes, at least one.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The merged strides.
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Where the first element lies.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// True if the elements lie one after the other.
    pub fn is_packed(&self) -> bool {
        self.dims.len() == 1 && (self.strides[0] == 1 || self.dims[0] <= 1)
    }

    /// True if all elements are one.
    pub fn is_scalar(&self) -> bool {
        self.strides.iter().zip(&self.dims).all(|(&stride, &dim)| stride == 0 || dim == 1)
    }

    /// The stride of the innermost axis.
    pub fn inner_stride(&self) -> isize {
        self.strides.last().copied().unwrap_or(1)
    }

    /// An error unless every element lies in a buffer of `len` elements.
    pub fn check(&self, len: usize) -> Result<()> {
        if self.dims.contains(&0) {
            return Ok(());
        }
        let (mut low, mut high) = (self.offset as i128, self.offset as i128);
        for (&dim, &stride) in self.dims.iter().zip(&self.strides) {
            let reach = (dim as i128 - 1) * stride as i128;
            low += reach.min(0);
            high += reach.max(0);
        }
        if low < 0 || high >= len as i128 {
            let message = format!("a layout reaches from {low} to {high} in a value of {len}");
            return Err(Error::internal(message));
        }
        Ok(())
    }

    /// The place of element `index` in row-major order.
    pub fn start(&self, mut index: usize) -> Cursor {
        let mut coords: SmallVec<[usize; 4]> = smallvec![0; self.dims.len()];
        let mut at = self.offset as isize;
        for ((c, &dim), &stride) in coords.iter_mut().zip(&self.dims).zip(&self.strides).rev() {
            *c = index % dim.max(1);
            index /= dim.max(1);
            at += *c as isize * stride;
        }
        Cursor { coords, at }
    }

    /// Calls `f(at, stride, len)` for the runs of the next `n` elements.
    #[inline]
    pub fn runs(&self, cursor: &mut Cursor, mut n: usize, mut f: impl FnMut(usize, isize, usize)) {
        let last = self.dims.len() - 1;
        let (dim, stride) = (self.dims[last], self.strides[last]);
        while n > 0 {
            let len = n.min(dim - cursor.coords[last]);
            if len == 0 {
                return;
            }
            f(cursor.at as usize, stride, len);
            n -= len;
            cursor.coords[last] += len;
            cursor.at += len as isize * stride;
            if cursor.coords[last] == dim {
                self.carry(cursor);
            }
        }
    }

    /// To the start of the next innermost run.
    fn carry(&self, cursor: &mut Cursor) {
        for axis in (0..self.dims.len()).rev() {
            if cursor.coords[axis] < self.dims[axis] {
                return;
            }
            cursor.at -= self.dims[axis] as isize * self.strides[axis];
            cursor.coords[axis] = 0;
            if axis > 0 {
                cursor.coords[axis - 1] += 1;
                cursor.at += self.strides[axis - 1];
            }
        }
    }
}

impl Cursor {
    /// The same place, `offset` elements further in the buffer.
    pub fn moved(mut self, offset: usize) -> Self {
        self.at += offset as isize;
        self
    }
}

/// Calls `f` with each of the `len` elements of a run and its place in the output.
#[inline(always)]
fn each<S: Copy, T>(xs: &[S], (at, stride): (usize, isize), out: &mut [T], f: impl Fn(S) -> T) {
    let len = out.len();
    if len == 0 {
        return;
    }
    let step = stride.unsigned_abs().max(1);
    if stride >= 0 {
        for (o, &x) in out.iter_mut().zip(xs[at..].iter().step_by(step)) {
            *o = f(x);
        }
    } else {
        let low = at - (len - 1) * step;
        for (o, &x) in out.iter_mut().zip(xs[low..=at].iter().rev().step_by(step)) {
            *o = f(x);
        }
    }
}

/// The elements of a run, widened.
#[inline]
pub(crate) fn widen_run<S: Stored>(xs: &[S], at: usize, stride: isize, out: &mut [S::Wide]) {
    match stride {
        0 => out.fill(xs[at].widen()),
        1 if out.len() < 16 => each(xs, (at, 1), out, S::widen),
        1 => {
            let xs = &xs[at..][..out.len()];
            wide(
                #[inline(always)]
                || {
                    for (o, &x) in out.iter_mut().zip(xs) {
                        *o = x.widen();
                    }
                },
            );
        }
        _ => each(xs, (at, stride), out, S::widen),
    }
}

/// The elements of a run.
#[inline]
pub(crate) fn copy_run<T: Copy>(xs: &[T], at: usize, stride: isize, out: &mut [T]) {
    match stride {
        0 => out.fill(xs[at]),
        1 => out.copy_from_slice(&xs[at..][..out.len()]),
        _ => each(xs, (at, stride), out, |x| x),
    }
}
