//! Concrete shapes with checked sizes, and strided layouts over a buffer.

use std::fmt;

use smallvec::{SmallVec, smallvec};

use crate::{Dim, Dims, OpError};

/// The greatest rank of a tensor.
pub const MAX_RANK: usize = 8;

/// The greatest number of elements: what is indexed on the host fits an `isize` in bytes of 8.
const MAX_LEN: usize = isize::MAX as usize / 8;

/// A shape whose every size is known and whose element count was checked when it was made.
///
/// This is the only way to an element count. The product of the sizes that are not zero fits too, so
/// that strides never overflow.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape {
    dims: SmallVec<[usize; 6]>,
}

impl Shape {
    /// A shape of these sizes.
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions, or a product (zeros left out) above the greatest count.
    pub fn new(dims: &[usize]) -> Result<Self, OpError> {
        if dims.len() > MAX_RANK {
            return Err(OpError::RankLimit { found: dims.len(), max: MAX_RANK });
        }
        dims.iter()
            .filter(|&&d| d != 0)
            .try_fold(1usize, |n, &d| n.checked_mul(d).filter(|&n| n <= MAX_LEN))
            .ok_or_else(|| OpError::Overflow { dims: dims.to_vec(), max: MAX_LEN })?;
        Ok(Self { dims: SmallVec::from_slice(dims) })
    }

    /// The shape of a scalar: no dimensions, one element.
    pub fn scalar() -> Self {
        Self::default()
    }

    /// The sizes.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.dims.contains(&0)
    }

    /// Row-major strides in elements.
    pub fn strides(&self) -> SmallVec<[isize; 6]> {
        let mut strides = smallvec![0; self.rank()];
        let mut step = 1;
        for (stride, &dim) in strides.iter_mut().zip(&self.dims).rev() {
            *stride = step;
            step *= dim.max(1) as isize;
        }
        strides
    }

    /// The shape that two shapes broadcast to, by NumPy's rule.
    ///
    /// # Errors
    /// Two aligned sizes differ and neither is 1.
    pub fn broadcast(&self, other: &Self) -> Result<Self, OpError> {
        let rank = self.rank().max(other.rank());
        let at = |s: &Self, i: usize| (i + s.rank()).checked_sub(rank).map_or(1, |i| s.dims[i]);
        let dims: Option<SmallVec<[usize; 6]>> = (0..rank)
            .map(|i| match (at(self, i), at(other, i)) {
                (a, b) if a == b => Some(a),
                (1, d) | (d, 1) => Some(d),
                _ => None,
            })
            .collect();
        let dims =
            dims.ok_or_else(|| OpError::Broadcast { lhs: self.into(), rhs: other.into() })?;
        Self::new(&dims)
    }

    /// The row-major index of each element's coordinates, in order, is `0..len`; this gives the
    /// coordinates of one.
    pub fn coords(&self, mut index: usize) -> SmallVec<[usize; 6]> {
        let mut coords = smallvec![0; self.rank()];
        for (at, &dim) in coords.iter_mut().zip(&self.dims).rev() {
            *at = index % dim.max(1);
            index /= dim.max(1);
        }
        coords
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims.as_slice())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<&Shape> for Dims {
    fn from(shape: &Shape) -> Self {
        Dims::Known(shape.dims.iter().map(|&d| Dim::Known(d)).collect())
    }
}

impl From<Shape> for Dims {
    fn from(shape: Shape) -> Self {
        (&shape).into()
    }
}

/// How a tensor of some shape lies in a buffer: element `c` is at `offset + sum(c * strides)`.
///
/// Strides are in elements, 0 along a broadcast axis, negative along a reversed one. Every element of
/// the shape lies inside the buffer that the layout was made for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    shape: Shape,
    strides: SmallVec<[isize; 6]>,
    offset: usize,
}

impl Layout {
    /// Row-major, without gaps.
    pub fn packed(shape: Shape) -> Self {
        Self { strides: shape.strides(), shape, offset: 0 }
    }

    /// The shape that is seen.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Steps in elements, one for each dimension.
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Where the first element lies.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// True if the elements lie one after the other in row-major order, from any offset.
    pub fn is_packed(&self) -> bool {
        self.shape.is_empty()
            || (self.shape.dims.iter().zip(&self.strides).zip(&self.shape.strides()))
                .all(|((&dim, &a), &b)| dim == 1 || a == b)
    }

    /// Where element `coords` lies.
    pub fn at(&self, coords: &[usize]) -> usize {
        let step: isize = coords.iter().zip(&self.strides).map(|(&c, &s)| c as isize * s).sum();
        self.offset.wrapping_add_signed(step)
    }

    /// Seen as `shape`, to which this layout's shape broadcasts; `None` if it does not.
    pub fn broadcast(&self, shape: &Shape) -> Option<Self> {
        let lead = shape.rank().checked_sub(self.shape.rank())?;
        let mut strides = smallvec![0; lead];
        for ((&from, &to), &stride) in
            self.shape.dims.iter().zip(&shape.dims[lead..]).zip(&self.strides)
        {
            match (from, to) {
                (a, b) if a == b => strides.push(stride),
                (1, _) => strides.push(0),
                _ => return None,
            }
        }
        Some(Self { shape: shape.clone(), strides, offset: self.offset })
    }

    /// What `view` shows of packed elements, where those lie as this layout says; `None` where strides cannot say
    /// it.
    pub fn through(&self, view: &Self) -> Option<Self> {
        if self.is_packed() {
            return Some(Self { offset: self.offset.checked_add(view.offset)?, ..view.clone() });
        }
        if view.is_packed() && view.offset == 0 && view.shape.len() == self.shape.len() {
            return self.reshape(&view.shape);
        }
        let (dims, own) = (&self.shape.dims, self.shape.strides());
        let starts = self.shape.coords(view.offset);
        let mut taken: SmallVec<[bool; 6]> = smallvec![false; dims.len()];
        let mut strides = SmallVec::new();
        for (&dim, &stride) in view.shape.dims.iter().zip(&view.strides) {
            if dim == 1 || stride == 0 {
                strides.push(0);
                continue;
            }
            // Each axis of the view goes along one of this layout's, by whole steps, and stays inside.
            let goes_along = |&axis: &usize| {
                let step = stride.checked_div(own[axis]).unwrap_or(0);
                let last = starts[axis] as i128 + (dim as i128 - 1) * step as i128;
                step > 0 && stride % own[axis] == 0 && last < dims[axis] as i128 && !taken[axis]
            };
            let axis = (0..dims.len()).find(goes_along)?;
            taken[axis] = true;
            strides.push(self.strides[axis].checked_mul(stride / own[axis])?);
        }
        Some(Self { shape: view.shape.clone(), strides, offset: self.at(&starts) })
    }

    /// With the axes in another order: axis `i` of the result is axis `axes[i]` of this.
    pub fn permute(&self, axes: &[usize]) -> Option<Self> {
        let dims: Option<SmallVec<[usize; 6]>> =
            axes.iter().map(|&a| self.shape.dims.get(a).copied()).collect();
        let strides = axes.iter().map(|&a| self.strides.get(a).copied()).collect::<Option<_>>()?;
        Some(Self { shape: Shape::new(&dims?).ok()?, strides, offset: self.offset })
    }

    /// The part that begins at `starts`, has `sizes` elements along each axis, `steps` apart. `None`
    /// if the part is not inside.
    pub fn slice(&self, starts: &[usize], sizes: &[usize], steps: &[isize]) -> Option<Self> {
        if sizes.len() != self.shape.rank() {
            return None;
        }
        let mut offset = self.offset;
        let mut strides = SmallVec::new();
        for (axis, &dim) in self.shape.dims.iter().enumerate() {
            let (start, size, step) = (*starts.get(axis)?, *sizes.get(axis)?, *steps.get(axis)?);
            if size > 0 {
                let last = (start as i128) + (size as i128 - 1) * (step as i128);
                if start >= dim || last < 0 || last >= dim as i128 {
                    return None;
                }
                offset = offset.wrapping_add_signed(start as isize * self.strides[axis]);
            }
            strides.push(self.strides[axis].checked_mul(step)?);
        }
        Some(Self { shape: Shape::new(sizes).ok()?, strides, offset })
    }

    /// Seen with other sizes of the same count, without moving elements; `None` where that cannot be.
    pub fn reshape(&self, shape: &Shape) -> Option<Self> {
        if shape.len() != self.shape.len() {
            return None;
        }
        if self.is_packed() {
            return Some(Self { offset: self.offset, ..Self::packed(shape.clone()) });
        }
        let strides = reshaped_strides(&self.shape.dims, &self.strides, &shape.dims)?;
        Some(Self { shape: shape.clone(), strides, offset: self.offset })
    }
}

/// Strides of `to` over a strided `from`: both are cut into runs of equal products, and a run of
/// `from` must lie without gaps.
fn reshaped_strides(from: &[usize], steps: &[isize], to: &[usize]) -> Option<SmallVec<[isize; 6]>> {
    let old: SmallVec<[(usize, isize); 6]> =
        from.iter().copied().zip(steps.iter().copied()).filter(|&(d, _)| d != 1).collect();
    let mut strides: SmallVec<[isize; 6]> = smallvec![0; to.len()];
    let (mut i, mut j) = (0, 0);
    while j < to.len() {
        if to[j] == 1 {
            j += 1;
            continue;
        }
        let (first_new, first_old) = (j, i);
        let (mut new_len, mut old_len) = (to[j], old.get(i)?.0);
        while new_len != old_len {
            if new_len < old_len {
                j += 1;
                new_len *= *to.get(j)?;
            } else {
                i += 1;
                old_len *= old.get(i)?.0;
            }
        }
        let packed = old[first_old..=i].windows(2).all(|w| w[0].1 == w[1].1 * w[1].0 as isize);
        if !packed {
            return None;
        }
        let mut step = old[i].1;
        for k in (first_new..=j).rev() {
            strides[k] = step;
            step *= to[k] as isize;
        }
        (i, j) = (i + 1, j + 1);
    }
    Some(strides)
}

#[cfg(test)]
mod tests {
    use super::{Layout, Shape};

    fn shape(dims: &[usize]) -> Shape {
        Shape::new(dims).unwrap()
    }

    #[test]
    fn views_through_parts_show_the_same_elements() {
        let whole = Layout::packed(shape(&[4, 30, 5]));
        let part = whole.slice(&[0, 7, 0], &[4, 6, 5], &[1, 1, 1]).unwrap();
        let own = Layout::packed(shape(&[4, 6, 5]));
        let views = [
            own.clone(),
            own.permute(&[2, 0, 1]).unwrap(),
            own.slice(&[1, 2, 3], &[3, 2, 1], &[1, 2, 1]).unwrap(),
            own.slice(&[1, 0, 0], &[1, 6, 5], &[1, 1, 1]).unwrap(),
            own.slice(&[0, 0, 4], &[4, 6, 1], &[1, 1, 1]).unwrap(),
            own.slice(&[0, 0, 0], &[2, 6, 5], &[1, 1, 1]).unwrap(),
            own.reshape(&shape(&[4, 30])).unwrap(),
            own.reshape(&shape(&[4, 1, 6, 5]))
                .unwrap()
                .broadcast(&shape(&[3, 4, 2, 6, 5]))
                .unwrap(),
        ];
        for view in views {
            let seen = part.through(&view).unwrap();
            assert_eq!(seen.shape(), view.shape());
            for i in 0..view.shape().len() {
                let coords = view.shape().coords(i);
                let element = own.shape().coords(view.at(&coords));
                assert_eq!(seen.at(&coords), part.at(&element), "{view:?}");
            }
        }
        // Rows that lie apart are not one axis.
        assert_eq!(part.through(&own.reshape(&shape(&[24, 5])).unwrap()), None);
        let rows = whole.slice(&[2, 0, 0], &[2, 30, 5], &[1, 1, 1]).unwrap();
        let moved = rows.through(&Layout::packed(shape(&[300]))).unwrap();
        assert_eq!((moved.offset(), moved.is_packed()), (300, true));
    }
}
