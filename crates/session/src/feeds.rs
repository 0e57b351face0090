//! Feeds, checked and converted before any work.
//!
//! A dtype that always fits is converted; integers that may not fit are checked one by one; a Rust number
//! takes a float placeholder's type by rounding; all else is refused.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use convoke_graph_core::{
    DType, Error, Fact, Feed, FeedValue, HostTensor, Number, Resident, Result, Shape, Tensor,
};

use crate::device_tensor::DeviceTensor;
use crate::donation::{Donation, Given};

/// A feed's elements, in the dtype of the tensor that is fed.
#[derive(Debug, Clone)]
pub(crate) enum FeedData<'a> {
    /// Shared or converted.
    Tensor(HostTensor),
    /// Kept by the caller.
    Borrowed(DType, Shape, &'a [u8]),
    /// A number, and the shape of one.
    Number(Number, Shape),
    /// On a GPU, and on the host as well once that is needed.
    Device(DeviceTensor, Option<HostTensor>),
    /// As `Device`, and the run's alone.
    Given(Arc<Given>, Option<HostTensor>),
    /// Donated. Runs see it as one of the others.
    Offered(Donation),
}

impl FeedData<'_> {
    pub(crate) fn shape(&self) -> &Shape {
        match self {
            Self::Tensor(tensor) => tensor.shape(),
            Self::Borrowed(_, shape, _) | Self::Number(_, shape) => shape,
            Self::Device(tensor, _) => tensor.shape(),
            Self::Given(given, _) => given.tensor.shape(),
            Self::Offered(donation) => donation.shape(),
        }
    }

    /// The elements, if they are on the host.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Device(_, host) | Self::Given(_, host) => {
                host.as_ref().map_or(&[], HostTensor::bytes)
            }
            Self::Offered(_) => &[],
            Self::Tensor(tensor) => tensor.bytes(),
            Self::Borrowed(_, _, bytes) => bytes,
            Self::Number(number, _) => number.bytes(),
        }
    }

    /// The tensor, if it is one on the host.
    pub(crate) fn tensor(&self) -> Option<&HostTensor> {
        match self {
            Self::Tensor(tensor) | Self::Device(_, Some(tensor)) | Self::Given(_, Some(tensor)) => {
                Some(tensor)
            }
            _ => None,
        }
    }

    /// A tensor that stays where it is.
    pub(crate) fn of_tensor(tensor: DeviceTensor) -> Self {
        match tensor.host() {
            Some(host) => Self::Tensor(host.clone()),
            None => Self::Device(tensor, None),
        }
    }

    /// As it is for a program that only reads it.
    ///
    /// # Errors
    /// It is donated, and another run has it.
    pub(crate) fn only_read(&self) -> Result<Self> {
        match self {
            Self::Offered(donation) => donation.tensor().map(Self::of_tensor),
            data => Ok(data.clone()),
        }
    }

    /// The tensor, if it is on a GPU.
    pub(crate) fn resident(&self) -> Option<&DeviceTensor> {
        match self {
            Self::Device(tensor, _) => Some(tensor),
            Self::Given(given, _) => Some(&given.tensor),
            _ => None,
        }
    }

    /// The same with elements of its own.
    ///
    /// # Errors
    /// There is no memory for a copy.
    pub(crate) fn into_owned(self) -> Result<FeedData<'static>> {
        Ok(match self {
            Self::Tensor(tensor) => FeedData::Tensor(tensor),
            Self::Number(number, shape) => FeedData::Number(number, shape),
            Self::Device(tensor, host) => FeedData::Device(tensor, host),
            Self::Given(given, host) => FeedData::Given(given, host),
            Self::Offered(donation) => FeedData::Offered(donation),
            borrowed @ Self::Borrowed(..) => FeedData::Tensor(borrowed.to_tensor()?),
        })
    }

    /// As a tensor that lives on its own.
    pub(crate) fn to_tensor(&self) -> Result<HostTensor> {
        match self {
            Self::Tensor(tensor) | Self::Device(_, Some(tensor)) | Self::Given(_, Some(tensor)) => {
                Ok(tensor.clone())
            }
            Self::Device(tensor, None) => tensor.to_host(),
            Self::Given(given, None) => given.tensor.to_host(),
            Self::Offered(donation) => donation.to_host(),
            Self::Number(number, _) => number.to_tensor(),
            Self::Borrowed(dtype, shape, bytes) => {
                HostTensor::copy_of(*dtype, shape.clone(), bytes)
            }
        }
    }
}

/// Checks a feed against what is known of its tensor.
pub(crate) fn check<'a>(feed: &'a Feed<'_>, fact: &Fact) -> Result<FeedData<'a>> {
    check_value(&feed.value, fact, &feed.tensor)
}

/// Checks a value against what is known of the tensor that it is fed to.
pub(crate) fn check_value<'a>(
    value: &'a Result<FeedValue<'_>>,
    fact: &Fact,
    tensor: &Tensor,
) -> Result<FeedData<'a>> {
    let named = |e: Error| e.with_node(tensor.name()).with_location(tensor.node().location);
    let value = value.as_ref().map_err(|e| named(e.clone()))?;
    let data = convert(value, fact.dtype).map_err(named)?;
    if !fact.dims.admits(data.shape()) {
        let message = format!("expected a feed of shape {}, got {}", fact.dims, data.shape());
        return Err(named(Error::invalid(message)));
    }
    Ok(data)
}

fn convert<'a>(value: &'a FeedValue<'_>, to: DType) -> Result<FeedData<'a>> {
    let tensor = match value {
        FeedValue::Resident(resident) => {
            let any: &dyn Any = &**resident;
            match any.downcast_ref::<DeviceTensor>() {
                Some(tensor) if tensor.dtype() == to => {
                    return Ok(FeedData::of_tensor(tensor.clone()));
                }
                _ => {}
            }
            if let Some(donation) = any.downcast_ref::<Donation>() {
                donation.tensor()?;
                if donation.dtype() == to {
                    return Ok(FeedData::Offered(donation.clone()));
                }
            }
            let tensor = resident.to_host()?;
            if tensor.dtype() == to {
                return Ok(FeedData::Tensor(tensor));
            }
            Cow::Owned(tensor)
        }
        FeedValue::Borrowed(dtype, shape, bytes) if *dtype == to => {
            return Ok(FeedData::Borrowed(to, shape.clone(), bytes));
        }
        FeedValue::Tensor(tensor) if tensor.dtype() == to => {
            return Ok(FeedData::Tensor(tensor.clone()));
        }
        FeedValue::Borrowed(dtype, shape, bytes) => {
            let borrowed = FeedData::Borrowed(*dtype, shape.clone(), bytes);
            Cow::Owned(borrowed.to_tensor()?)
        }
        FeedValue::Tensor(tensor) => Cow::Borrowed(tensor),
        FeedValue::Number(number) => match number.as_dtype(to) {
            Some(number) => return Ok(FeedData::Number(number, Shape::scalar())),
            None => Cow::Owned(number.to_tensor()?),
        },
    };
    let from = tensor.dtype();
    let shape = tensor.shape().clone();
    if from.is_int() && to.is_int() {
        return Ok(FeedData::Tensor(narrow(&tensor, to)?));
    }
    if always_fits(from, to) {
        let elements = tensor.to_f64s()?;
        return Ok(FeedData::Tensor(HostTensor::from_f64s(to, shape, &elements)?));
    }
    Err(Error::invalid(format!(
        "expected a feed of {to}, got {from}{shape}; convert it first, or cast in the graph"
    )))
}

/// Integers as another integer dtype, if all fit.
fn narrow(tensor: &HostTensor, to: DType) -> Result<HostTensor> {
    let elements = tensor.to_i128s()?;
    let (min, max) = to.int_range().unwrap_or((0, 0));
    if let Some(at) = elements.iter().position(|&x| x < min || x > max) {
        return Err(Error::invalid(format!(
            "expected a feed of {to}, from {min} to {max}; element {at} is {}",
            elements[at]
        )));
    }
    HostTensor::from_i128s(to, tensor.shape().clone(), &elements)
}

/// True if every element of `from` is an element of the float dtype `to`.
fn always_fits(from: DType, to: DType) -> bool {
    let mantissa = match to {
        DType::BF16 => 8,
        DType::F16 => 11,
        DType::F32 => 24,
        DType::F64 => 53,
        _ => return false,
    };
    match from {
        DType::F16 | DType::BF16 => matches!(to, DType::F32 | DType::F64),
        DType::F32 => to == DType::F64,
        from if from.is_int() => from.n_bytes() * 8 <= mantissa,
        _ => false,
    }
}
