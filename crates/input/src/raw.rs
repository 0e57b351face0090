//! Bytes as elements of a dtype, as TensorFlow's `DecodeRaw` reads them.

use convoke_graph_core::{AlignedBytes, DType, Error, HostTensor, Result, Shape};

/// The order of an element's bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Endian {
    /// The least significant byte first.
    #[default]
    Little,
    /// The most significant byte first.
    Big,
}

impl Endian {
    const NATIVE: Self = if cfg!(target_endian = "little") { Self::Little } else { Self::Big };
}

/// The elements that `bytes` hold one after the other, as a tensor of one axis.
///
/// # Errors
/// The length is not a multiple of an element's, a bool is neither 0 nor 1, the dtype is string, or
/// there is no memory.
pub fn decode_raw(bytes: &[u8], dtype: DType, endian: Endian) -> Result<HostTensor> {
    decode(&[], &[bytes], dtype, endian)
}

/// As [`decode_raw`] for each string of a tensor, all of one length: its shape with one axis more.
///
/// # Errors
/// As [`decode_raw`], or `records` are no strings, or their lengths differ.
pub fn decode_raw_batch(records: &HostTensor, dtype: DType, endian: Endian) -> Result<HostTensor> {
    decode(records.dims(), records.as_strings()?, dtype, endian)
}

fn decode(
    dims: &[usize],
    records: &[impl AsRef<[u8]>],
    dtype: DType,
    endian: Endian,
) -> Result<HostTensor> {
    let len = common_len(records)?;
    let n_bytes = dtype.n_bytes();
    if n_bytes == 0 {
        return Err(Error::invalid(format!("expected a dtype of fixed size, got {dtype}")));
    }
    if !len.is_multiple_of(n_bytes) {
        return Err(Error::invalid(format!(
            "expected a multiple of {n_bytes} bytes, the size of {dtype}, got {len}, which leaves {}",
            len % n_bytes
        )));
    }
    let shape = Shape::new(&[dims, &[len / n_bytes]].concat())?;
    let mut elements = AlignedBytes::zeroed(shape.len() * n_bytes)?;
    for (to, record) in elements.chunks_exact_mut(len.max(1)).zip(records) {
        to.copy_from_slice(record.as_ref());
    }
    if endian != Endian::NATIVE {
        elements.chunks_exact_mut(n_bytes).for_each(<[u8]>::reverse);
    }
    HostTensor::from_bytes(dtype, shape, elements)
}

fn common_len(records: &[impl AsRef<[u8]>]) -> Result<usize> {
    let mut lens = records.iter().map(|record| record.as_ref().len()).enumerate();
    let expected = records.first().map_or(0, |record| record.as_ref().len());
    match lens.find(|&(_, found)| found != expected) {
        None => Ok(expected),
        Some((idx, found)) => Err(Error::invalid(format!(
            "expected strings of one length, got {expected} bytes in string 0 and {found} in string \
             {idx}"
        ))),
    }
}
