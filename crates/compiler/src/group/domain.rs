//! What a cluster works on: one shape, or rows, and at which level each operation and operand stands.

use convoke_graph_core::{Layout, Shape};
use smallvec::{SmallVec, smallvec};

use super::is_joinable;
use crate::{Apart, Group, Kernel, Value};

/// What a cluster works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Domain {
    /// Something that is its own kernel.
    Alone,
    /// The elements of one shape.
    Elements(Shape),
    /// The rows of a shape: its axes from `n_outer` on.
    Rows {
        /// The shape.
        shape: Shape,
        /// How many axes come before those of a row.
        n_outer: usize,
    },
}

/// Whether there is one result for each element or for each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// For each element.
    Element,
    /// For each row.
    Row,
}

impl Domain {
    /// What a group works on.
    pub fn of(group: &Group, values: &[Value]) -> Self {
        if group.has_strings(values) {
            return Self::Alone;
        }
        match (&group.kernel, group.inputs.first()) {
            (Kernel::Elementwise(fused), _) => Self::Elements(fused.shape.clone()),
            (Kernel::Reduce(reduction), Some(x)) => {
                let (shape, n_outer) = (x.layout.shape().clone(), reduction.n_outer);
                let inner: usize = shape.dims()[n_outer..].iter().product();
                let dtype = values[x.value.0 as usize].dtype;
                let fits = is_joinable(*reduction, dtype) && !shape.is_empty() && inner > 1;
                if fits { Self::Rows { shape, n_outer } } else { Self::Alone }
            }
            _ => Self::Alone,
        }
    }

    /// What the work on two domains may be on together: one of them.
    pub fn with<'a>(&'a self, other: &'a Self) -> Result<SmallVec<[&'a Self; 2]>, Apart> {
        match (self, other) {
            (Self::Alone, _) | (_, Self::Alone) => Err(Apart::Reader),
            (Self::Rows { shape: own, .. }, Self::Elements(shape))
                if shape.len() == own.len() || shape.len() == self.n_rows() =>
            {
                Ok(smallvec![self])
            }
            (Self::Elements(_), Self::Rows { .. }) => other.with(self),
            _ if self == other => Ok(smallvec![self]),
            (Self::Elements(one), Self::Elements(two)) if one.len() == two.len() => {
                Ok(smallvec![other, self])
            }
            (
                Self::Elements(one) | Self::Rows { shape: one, .. },
                Self::Elements(other) | Self::Rows { shape: other, .. },
            ) => Err(Apart::Shapes(one.clone(), other.clone())),
        }
    }

    fn n_rows(&self) -> usize {
        match self {
            Self::Rows { shape, n_outer } => shape.dims()[..*n_outer].iter().product(),
            _ => 0,
        }
    }

    /// Where the results of a group stand.
    pub fn level(&self, group: &Group) -> Level {
        match (self, &group.kernel) {
            (Self::Rows { .. }, Kernel::Reduce(_)) => Level::Row,
            (Self::Rows { shape, .. }, Kernel::Elementwise(fused))
                if fused.shape.len() != shape.len() =>
            {
                Level::Row
            }
            _ => Level::Element,
        }
    }

    /// Whether a reader at level `to` sees what stands at level `from` at its own place, through `layout`.
    pub fn sees(&self, from: Level, to: Level, layout: &Layout) -> bool {
        let packed = layout.is_packed() && layout.offset() == 0;
        match (self, from, to) {
            (Self::Alone, ..) | (_, Level::Element, Level::Row) => false,
            (Self::Rows { shape, .. } | Self::Elements(shape), Level::Element, _) => {
                packed && layout.shape().len() == shape.len()
            }
            (_, Level::Row, Level::Row) => packed && layout.shape().len() == self.n_rows(),
            (Self::Rows { shape, n_outer }, Level::Row, Level::Element) => {
                layout.shape() == shape && layout.offset() == 0 && repeats(layout, *n_outer)
            }
            (Self::Elements(_), Level::Row, _) => false,
        }
    }

    /// A layout of some member's input as one of the whole domain.
    pub fn seen(&self, layout: &Layout) -> Option<Layout> {
        match self {
            Self::Rows { shape, .. } | Self::Elements(shape) if layout.shape() == shape => {
                Some(layout.clone())
            }
            Self::Rows { shape, .. } | Self::Elements(shape)
                if layout.shape().len() == shape.len() =>
            {
                layout.reshape(shape)
            }
            Self::Rows { shape, n_outer } => {
                let mut dims = shape.dims().to_vec();
                dims[*n_outer..].fill(1);
                layout.reshape(&Shape::new(&dims).ok()?)?.broadcast(shape)
            }
            Self::Elements(_) => None,
            Self::Alone => Some(layout.clone()),
        }
    }
}

/// Whether a layout has one element for each row, the rows one after the other.
fn repeats(layout: &Layout, n_outer: usize) -> bool {
    let (dims, strides) = (layout.shape().dims(), layout.strides());
    let mut step = 1;
    for axis in (0..dims.len()).rev().filter(|&axis| dims[axis] != 1) {
        let wanted = if axis < n_outer { step } else { 0 };
        if strides[axis] != wanted {
            return false;
        }
        if axis < n_outer {
            step *= dims[axis] as isize;
        }
    }
    true
}
