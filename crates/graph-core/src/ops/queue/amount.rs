//! How many elements: a number, or a tensor whose value is known before a run.

use crate::{Contents, DType, Error, Fact, HostTensor, OpError, Result, Shape, Tensor};

/// How many elements an operation takes.
///
/// A tensor is a scalar of i32 or i64. What a run takes it takes before it begins, all at once: so the number must be
/// known by then. It is constant, fed, or computed from such tensors alone; a number that depends on a variable, on a
/// random operation or on what the run takes itself is refused with `Unimplemented`: fetch it, and feed it to a later
/// run. Inside of a branch or loop, where a run takes when it comes to it, anything may compute it.
#[derive(Debug, Clone)]
pub enum Amount {
    /// This many.
    Fixed(usize),
    /// As many as the tensor says.
    Computed(Tensor),
}

impl From<usize> for Amount {
    fn from(n: usize) -> Self {
        Self::Fixed(n)
    }
}

impl From<Tensor> for Amount {
    fn from(n: Tensor) -> Self {
        Self::Computed(n)
    }
}

impl From<&Tensor> for Amount {
    fn from(n: &Tensor) -> Self {
        Self::Computed(n.clone())
    }
}

impl Amount {
    /// The number that a value of the tensor is.
    ///
    /// # Errors
    /// It is below 0, or no scalar.
    pub fn value(value: &HostTensor) -> Result<usize> {
        let n = match value.to_i128s()?[..] {
            [n] => n,
            _ => {
                let message = format!("expected a scalar, got {}{}", value.dtype(), value.shape());
                return Err(Error::invalid(message));
            }
        };
        usize::try_from(n).map_err(|_| {
            Error::invalid(format!("expected a number of elements of at least 0, got {n}"))
        })
    }
}

/// # Errors
/// No scalar of i32 or i64.
pub(super) fn expect(fact: &Fact) -> Result<(), OpError> {
    let fits = matches!(fact.dtype, DType::I32 | DType::I64) && fact.dims.admits(&Shape::scalar());
    if fits {
        return Ok(());
    }
    let Fact { dtype, dims, .. } = fact;
    Err(OpError::Invalid(format!("expected a scalar of i32 or i64, got {dtype}{dims}")))
}

/// The number, if it is known by now.
///
/// # Errors
/// It is below 0.
pub(super) fn known(fact: &Fact) -> Result<Option<usize>, OpError> {
    match &fact.contents {
        Contents::Known(value) => {
            let n = Amount::value(value).map_err(|e| OpError::Invalid(e.message().to_owned()))?;
            Ok(Some(n))
        }
        _ => Ok(None),
    }
}
