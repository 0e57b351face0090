//! Rows of tensors, and tensors of rows.

use crate::{AlignedBytes, DType, Error, ErrorKind, HostTensor, Result, Shape};

/// Row `at` of a tensor: its elements where the first coordinate is `at`.
///
/// # Errors
/// There is no such row.
pub fn row(tensor: &HostTensor, at: usize) -> Result<HostTensor> {
    let Some((&n, rest)) = tensor.dims().split_first().filter(|(n, _)| at < **n) else {
        let message = format!("expected a row {at} of {}{}", tensor.dtype(), tensor.shape());
        return Err(Error::internal(message));
    };
    let (shape, len) = (Shape::new(rest)?, tensor.len() / n);
    if tensor.dtype() == DType::String {
        let strings = &tensor.as_strings()?[at * len..][..len];
        return HostTensor::strings(rest, strings.iter().cloned());
    }
    let n_bytes = tensor.bytes().len() / n;
    let bytes = AlignedBytes::copy_of(&tensor.bytes()[at * n_bytes..][..n_bytes])?;
    HostTensor::from_bytes(tensor.dtype(), shape, bytes)
}

/// The tensors as rows of one. If it `pads`, smaller ones are filled up to the largest, which has at least the sizes
/// `least`; without tensors, `least` are the sizes of a row.
///
/// # Errors
/// Tensors of several dtypes or ranks, or sizes if it does not pad; no memory.
pub fn stacked(
    dtype: DType,
    least: &[usize],
    tensors: &[&HostTensor],
    pads: bool,
) -> Result<HostTensor> {
    let mut sizes = tensors.first().map_or(least, |first| first.dims()).to_vec();
    for tensor in tensors {
        let fits = tensor.dtype() == dtype && tensor.dims().len() == sizes.len();
        if !fits || (!pads && tensor.dims() != sizes) {
            let (found, dims) = (tensor.dtype(), tensor.dims());
            let message =
                format!("expected rows of {dtype}{sizes:?} in one batch, got {found}{dims:?}");
            return Err(Error::invalid(message));
        }
        for (size, &own) in sizes.iter_mut().zip(tensor.dims()) {
            *size = (*size).max(own);
        }
    }
    let row = Shape::new(&sizes)?;
    let mut all = vec![tensors.len()];
    all.extend(&sizes);
    let shape = Shape::new(&all)?;
    if dtype == DType::String {
        let mut strings: Vec<Vec<u8>> = Vec::new();
        strings.try_reserve_exact(shape.len()).map_err(|_| {
            let message = format!("no memory for a batch of {} strings", shape.len());
            Error::new(ErrorKind::ResourceExhausted, message)
        })?;
        strings.resize(shape.len(), Vec::new());
        for (i, tensor) in tensors.iter().enumerate() {
            let own = tensor.as_strings()?;
            copy_runs(tensor.dims(), &sizes, |from, to, len| {
                strings[i * row.len() + to..][..len].clone_from_slice(&own[from..][..len]);
            });
        }
        return HostTensor::strings(&all, strings);
    }
    let width = dtype.n_bytes();
    let mut bytes = AlignedBytes::zeroed(shape.len() * width)?;
    for (i, tensor) in tensors.iter().enumerate() {
        let own = tensor.bytes();
        copy_runs(tensor.dims(), &sizes, |from, to, len| {
            let to = &mut bytes[(i * row.len() + to) * width..][..len * width];
            to.copy_from_slice(&own[from * width..][..len * width]);
        });
    }
    HostTensor::from_bytes(dtype, shape, bytes)
}

/// Calls `copy` with the places and the length of each run of elements of a tensor in a larger one.
fn copy_runs(small: &[usize], large: &[usize], mut copy: impl FnMut(usize, usize, usize)) {
    let len: usize = small.iter().product();
    let run = small.last().copied().unwrap_or(1);
    if len == 0 {
        return;
    }
    for from in (0..len).step_by(run) {
        let (mut rest, mut to, mut stride) = (from, 0, 1);
        for (&own, &size) in small.iter().zip(large).rev() {
            to += rest % own * stride;
            rest /= own;
            stride *= size;
        }
        copy(from, to, run);
    }
}
