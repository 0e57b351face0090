//! Rows of tensors, and tensors of rows.

use crate::{AlignedBytes, DType, Error, ErrorKind, HostTensor, Result, Shape};

/// Memory for each row of a tensor of this dtype and shape, for [`row_in`].
///
/// # Errors
/// There is none, or the shape has no rows.
pub fn memory(dtype: DType, shape: &Shape) -> Result<Vec<AlignedBytes>> {
    let Some((&n, rest)) = shape.dims().split_first() else {
        return Err(Error::internal(format!("expected a tensor with rows, got {dtype}{shape}")));
    };
    let n_bytes =
        if dtype == DType::String { 0 } else { Shape::new(rest)?.len() * dtype.n_bytes() };
    let mut rows = Vec::new();
    rows.try_reserve_exact(n)
        .map_err(|_| Error::new(ErrorKind::ResourceExhausted, format!("no memory for {n} rows")))?;
    for _ in 0..n {
        rows.push(AlignedBytes::zeroed(n_bytes)?);
    }
    Ok(rows)
}

/// Row `at` of a tensor: its elements where the first coordinate is `at`.
///
/// # Errors
/// There is no such row; no memory.
pub fn row(tensor: &HostTensor, at: usize) -> Result<HostTensor> {
    let n = tensor.dims().first().copied().unwrap_or(0).max(1);
    let n_bytes = if tensor.dtype() == DType::String { 0 } else { tensor.bytes().len() / n };
    row_in(tensor, at, AlignedBytes::zeroed(n_bytes)?)
}

/// As [`row`]. The elements go into `memory`, which is of their size; strings have their own.
///
/// # Errors
/// There is no such row, or the memory is of another size.
pub fn row_in(tensor: &HostTensor, at: usize, mut memory: AlignedBytes) -> Result<HostTensor> {
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
    if memory.len() != n_bytes {
        let found = memory.len();
        return Err(Error::internal(format!("expected memory of {n_bytes} bytes, got {found}")));
    }
    memory.copy_from_slice(&tensor.bytes()[at * n_bytes..][..n_bytes]);
    HostTensor::from_bytes(tensor.dtype(), shape, memory)
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

/// The sum of tensors of one float dtype and shape, or their mean: added in f64, in order, and rounded once.
///
/// # Errors
/// Tensors of another dtype or shape; no memory.
pub fn total(
    dtype: DType,
    shape: &Shape,
    tensors: &[&HostTensor],
    mean: bool,
) -> Result<HostTensor> {
    let mut sums: Vec<f64> = Vec::new();
    sums.try_reserve_exact(shape.len()).map_err(|_| {
        let message = format!("no memory for a sum of {dtype}{shape}");
        Error::new(ErrorKind::ResourceExhausted, message)
    })?;
    sums.resize(shape.len(), 0.0);
    for tensor in tensors {
        if tensor.dtype() != dtype || tensor.shape() != shape {
            let (found, own) = (tensor.dtype(), tensor.shape());
            return Err(Error::invalid(format!(
                "expected {dtype}{shape} to sum, got {found}{own}"
            )));
        }
        sums.iter_mut().zip(tensor.to_f64s()?).for_each(|(sum, x)| *sum += x);
    }
    if mean {
        let n = tensors.len() as f64;
        sums.iter_mut().for_each(|sum| *sum /= n);
    }
    HostTensor::from_f64s(dtype, shape.clone(), &sums)
}

/// The sum of slices at indices, or for each index the mean of the gradients that have it: added in f64, in order, and
/// rounded once. A gradient is a vector of indices of integers, and a slice of these sizes for each. The indices that
/// come out ascend, each once, as i64; of one gradient, slices of the same index are added.
///
/// # Errors
/// Slices of another dtype or other sizes, or another number of them than of indices; no memory.
pub fn total_of_slices(
    dtype: DType,
    sizes: &[usize],
    gradients: &[(&HostTensor, &HostTensor)],
    mean: bool,
) -> Result<(HostTensor, HostTensor)> {
    let no_memory = |_| {
        let message = format!("no memory for a sum of slices {dtype}{sizes:?}");
        Error::new(ErrorKind::ResourceExhausted, message)
    };
    let slices = |n: usize| -> Result<Shape> {
        let all: Vec<usize> = std::iter::once(n).chain(sizes.iter().copied()).collect();
        Ok(Shape::new(&all)?)
    };
    let mut unique: Vec<i128> = Vec::new();
    for (indices, values) in gradients {
        let (found, own) = (values.dtype(), values.shape());
        if found != dtype || indices.dims().len() != 1 || *own != slices(indices.len())? {
            return Err(Error::invalid(format!(
                "expected slices {dtype}{sizes:?} for indices {}, got {found}{own}",
                indices.shape()
            )));
        }
        unique.try_reserve(indices.len()).map_err(no_memory)?;
        unique.extend(indices.to_i128s()?);
    }
    unique.sort_unstable();
    unique.dedup();
    let shape = slices(unique.len())?;
    let len = Shape::new(sizes)?.len();
    let mut sums: Vec<f64> = Vec::new();
    sums.try_reserve_exact(shape.len()).map_err(no_memory)?;
    sums.resize(shape.len(), 0.0);
    // For each index, how many gradients have it, and the last of those.
    let mut counts: Vec<(usize, usize)> = Vec::new();
    counts.try_reserve_exact(unique.len()).map_err(no_memory)?;
    counts.resize(unique.len(), (0, usize::MAX));
    for (g, (indices, values)) in gradients.iter().enumerate() {
        let values = values.to_f64s()?;
        for (i, index) in indices.to_i128s()?.into_iter().enumerate() {
            let Ok(at) = unique.binary_search(&index) else { continue };
            let to = sums[at * len..][..len].iter_mut();
            to.zip(&values[i * len..][..len]).for_each(|(sum, x)| *sum += x);
            if counts[at].1 != g {
                counts[at] = (counts[at].0 + 1, g);
            }
        }
    }
    if mean && len > 0 {
        for (slice, (n, _)) in sums.chunks_exact_mut(len).zip(&counts) {
            slice.iter_mut().for_each(|sum| *sum /= *n as f64);
        }
    }
    let indices = HostTensor::from_i128s(DType::I64, Shape::new(&[unique.len()])?, &unique)?;
    Ok((indices, HostTensor::from_f64s(dtype, shape, &sums)?))
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
