//! Facts: what is known of a value before it is computed.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::{DType, HostTensor, OpError, Shape};

/// One dimension's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dim {
    /// This many.
    Known(usize),
    /// Not known yet, but the same wherever the symbol stands.
    Symbol(u32),
    /// Not known.
    Unknown,
}

impl Dim {
    /// The size, if known.
    pub fn known(self) -> Option<usize> {
        match self {
            Self::Known(n) => Some(n),
            _ => None,
        }
    }

    /// True if the two may turn out equal.
    pub fn fits(self, other: Self) -> bool {
        match (self, other) {
            (Self::Known(a), Self::Known(b)) => a == b,
            _ => true,
        }
    }

    /// The better known of two sizes that must be equal; `None` if they differ.
    pub fn unify(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Known(a), Self::Known(b)) => (a == b).then_some(self),
            (Self::Known(_), _) | (Self::Symbol(_), Self::Unknown) => Some(self),
            (_, Self::Known(_)) | (Self::Unknown, _) => Some(other),
            (Self::Symbol(_), Self::Symbol(_)) => Some(self),
        }
    }

    fn broadcast(self, other: Self) -> Option<Self> {
        match (self, other) {
            (a, b) if a == b => Some(a),
            (Self::Known(1), d) | (d, Self::Known(1)) => Some(d),
            (Self::Known(_), Self::Known(_)) => None,
            (Self::Known(n), _) | (_, Self::Known(n)) => Some(Self::Known(n)),
            _ => Some(Self::Unknown),
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Self::Known(n)
    }
}

impl From<Option<usize>> for Dim {
    fn from(n: Option<usize>) -> Self {
        n.map_or(Self::Unknown, Self::Known)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::Symbol(s) => write!(f, "s{s}"),
            Self::Unknown => f.write_str("?"),
        }
    }
}

/// What is known of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dims {
    /// Not even the rank.
    UnknownRank,
    /// The rank, and each size as far as it is known.
    Known(SmallVec<[Dim; 6]>),
}

impl Dims {
    /// The dimensions, if the rank is known.
    pub fn dims(&self) -> Option<&[Dim]> {
        match self {
            Self::UnknownRank => None,
            Self::Known(dims) => Some(dims),
        }
    }

    /// The rank, if known.
    pub fn rank(&self) -> Option<usize> {
        self.dims().map(<[Dim]>::len)
    }

    /// The shape, if every size is known and their product is in range.
    pub fn shape(&self) -> Option<Shape> {
        let dims: Option<SmallVec<[usize; 6]>> = self.dims()?.iter().map(|d| d.known()).collect();
        Shape::new(&dims?).ok()
    }

    /// What two shapes broadcast to, by NumPy's rule.
    ///
    /// # Errors
    /// Two aligned known sizes differ and neither is 1, or the result is too large.
    pub fn broadcast(&self, other: &Self) -> Result<Self, OpError> {
        let (Self::Known(a), Self::Known(b)) = (self, other) else {
            return Ok(Self::UnknownRank);
        };
        let rank = a.len().max(b.len());
        let at = |dims: &[Dim], i: usize| {
            (i + dims.len()).checked_sub(rank).map_or(Dim::Known(1), |i| dims[i])
        };
        let dims: Option<SmallVec<[Dim; 6]>> =
            (0..rank).map(|i| at(a, i).broadcast(at(b, i))).collect();
        dims.ok_or_else(|| OpError::Broadcast { lhs: self.clone(), rhs: other.clone() })
            .map(Self::Known)?
            .checked()
    }

    /// Itself, once what is known of its size was found to be in range.
    ///
    /// # Errors
    /// As [`Shape::new`].
    pub fn checked(self) -> Result<Self, OpError> {
        if let Some(dims) = self.dims() {
            let known: SmallVec<[usize; 6]> = dims.iter().map(|d| d.known().unwrap_or(1)).collect();
            Shape::new(&known)?;
        }
        Ok(self)
    }

    /// The better known of two shapes that must be equal.
    ///
    /// # Errors
    /// The ranks or two known sizes differ.
    pub fn unify(&self, other: &Self) -> Result<Self, OpError> {
        let (Self::Known(a), Self::Known(b)) = (self, other) else {
            return Ok(if self.rank().is_some() { self.clone() } else { other.clone() });
        };
        let differ = || OpError::Shape { expected: self.clone(), found: other.clone() };
        if a.len() != b.len() {
            return Err(differ());
        }
        let dims: Option<_> = a.iter().zip(b).map(|(a, b)| a.unify(*b)).collect();
        dims.map(Self::Known).ok_or_else(differ)
    }

    /// True if a tensor of `shape` may stand here.
    pub fn admits(&self, shape: &Shape) -> bool {
        self.dims().is_none_or(|dims| {
            dims.len() == shape.rank()
                && dims.iter().zip(shape.dims()).all(|(d, &n)| d.fits(Dim::Known(n)))
        })
    }

    /// The rank.
    ///
    /// # Errors
    /// `None` if the rank is not `expected`; an unknown rank passes as the dimensions `?`.
    pub fn expect_rank(&self, expected: usize) -> Result<SmallVec<[Dim; 6]>, OpError> {
        match self {
            Self::UnknownRank => Ok(SmallVec::from_elem(Dim::Unknown, expected)),
            Self::Known(dims) if dims.len() == expected => Ok(dims.clone()),
            _ => Err(OpError::Rank { expected, found: self.clone() }),
        }
    }
}

impl fmt::Display for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Known(dims) = self else {
            return f.write_str("[...]");
        };
        f.write_str("[")?;
        for (i, dim) in dims.iter().enumerate() {
            write!(f, "{}{dim}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

impl<D: Into<Dim>> FromIterator<D> for Dims {
    fn from_iter<I: IntoIterator<Item = D>>(dims: I) -> Self {
        Self::Known(dims.into_iter().map(Into::into).collect())
    }
}

impl<D: Into<Dim> + Copy, const N: usize> From<[D; N]> for Dims {
    fn from(dims: [D; N]) -> Self {
        dims.into_iter().collect()
    }
}

impl From<&[usize]> for Dims {
    fn from(dims: &[usize]) -> Self {
        dims.iter().copied().collect()
    }
}

impl From<Vec<usize>> for Dims {
    fn from(dims: Vec<usize>) -> Self {
        dims.into_iter().collect()
    }
}

/// Sizes of a placeholder, where `None` is not known before the run: `dims![None, 64]`.
#[macro_export]
macro_rules! dims {
    ($($dim:expr),* $(,)?) => {
        $crate::Dims::Known([$($crate::Dim::from($dim)),*].into_iter().collect())
    };
}

/// What is known of the elements themselves.
#[derive(Debug, Clone, PartialEq)]
pub enum Contents {
    /// Nothing.
    Unknown,
    /// Everything: a small integer tensor, from which shapes are computed.
    Known(HostTensor),
    /// It is no tensor but a variable's handle: its elements are read and assigned.
    Variable,
    /// Nothing can be known: the operation was refused.
    Invalid(Arc<str>),
}

/// What is known of a value before it is computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// The element type.
    pub dtype: DType,
    /// The shape.
    pub dims: Dims,
    /// The elements.
    pub contents: Contents,
}

impl Fact {
    /// A tensor of which the elements are not known.
    pub fn new(dtype: DType, dims: impl Into<Dims>) -> Self {
        Self { dtype, dims: dims.into(), contents: Contents::Unknown }
    }

    /// All that is known of a tensor at hand; the elements are kept if shapes may be computed from
    /// them: at most [`Self::CONTENTS_MAX`] integers.
    pub fn of(tensor: &HostTensor) -> Self {
        let keep = tensor.dtype().is_int() && tensor.shape().len() <= Self::CONTENTS_MAX;
        let contents = if keep { Contents::Known(tensor.clone()) } else { Contents::Unknown };
        Self { dtype: tensor.dtype(), dims: tensor.shape().into(), contents }
    }

    /// The greatest number of integers that are kept as contents.
    pub const CONTENTS_MAX: usize = 64;

    /// A fact that has `dims` and is otherwise this one, with nothing known of the elements.
    #[must_use]
    pub fn with_dims(&self, dims: impl Into<Dims>) -> Self {
        Self::new(self.dtype, dims)
    }

    /// The shape, if every size is known.
    pub fn shape(&self) -> Option<Shape> {
        self.dims.shape()
    }

    /// The elements, where they are known, as 64-bit integers.
    pub fn integers(&self) -> Option<Vec<i64>> {
        match &self.contents {
            Contents::Known(tensor) => tensor.to_i64s().ok(),
            _ => None,
        }
    }

    /// True if this is a variable's handle.
    pub fn is_variable(&self) -> bool {
        self.contents == Contents::Variable
    }

    /// Refuses a dtype that `test` does not pass.
    ///
    /// # Errors
    /// [`OpError::DType`].
    pub fn expect(
        &self,
        what: &'static str,
        expected: &'static str,
        test: fn(DType) -> bool,
    ) -> Result<(), OpError> {
        if test(self.dtype) {
            Ok(())
        } else {
            Err(OpError::DType { what, expected, found: self.dtype })
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.dims)?;
        match &self.contents {
            Contents::Unknown => Ok(()),
            Contents::Known(tensor) => write!(f, " = {tensor}"),
            Contents::Variable => f.write_str(" variable"),
            Contents::Invalid(_) => f.write_str(" invalid"),
        }
    }
}
