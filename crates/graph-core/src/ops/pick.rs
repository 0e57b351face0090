//! Elements taken from places of other tensors, whatever their dtype: what moves are defined by.

use smallvec::SmallVec;

use crate::op::value;
use crate::{AlignedBytes, DType, HostTensor, OpError, Shape};

/// A tensor whose elements are those of `from` at `places`, each which tensor and where in it; without a place, zero,
/// false or the empty string.
///
/// # Errors
/// No memory.
pub(crate) fn picked(
    dtype: DType,
    shape: Shape,
    from: &[HostTensor],
    places: impl IntoIterator<Item = Option<(usize, usize)>>,
) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
    if dtype == DType::String {
        let all: Vec<&[Vec<u8>]> =
            from.iter().map(HostTensor::as_strings).collect::<Result<_, _>>()?;
        let string = |place: Option<(usize, usize)>| {
            place.map_or_else(Vec::new, |(tensor, at)| all[tensor][at].clone())
        };
        return value(HostTensor::strings(shape.dims(), places.into_iter().map(string)));
    }
    let n = dtype.n_bytes();
    let mut bytes = AlignedBytes::zeroed(shape.len() * n)?;
    for (element, place) in bytes.chunks_exact_mut(n).zip(places) {
        if let Some((tensor, at)) = place {
            element.copy_from_slice(&from[tensor].bytes()[at * n..][..n]);
        }
    }
    value(HostTensor::from_bytes(dtype, shape, bytes))
}
