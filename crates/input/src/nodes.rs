//! Decoding as operations of a graph, on the host.

use convoke_graph_core::{DType, Dim, Dims, Tensor};

use crate::{CsvDecoder, Endian, decode_raw_batch};

/// Decoding of tensors of strings. Neither has a gradient, and models with them cannot be saved.
pub trait DecodeExt {
    /// The elements that each string holds, all of one length, along a new last axis.
    ///
    /// # Shapes
    /// `[..]` → `[.., n]`.
    ///
    /// # Errors
    /// A run fails as [`decode_raw_batch`] does.
    #[track_caller]
    fn decode_raw(&self, dtype: DType, endian: Endian) -> Tensor;

    /// The fields of each string, a CSV record: a tensor for each column, shaped like this one.
    ///
    /// # Errors
    /// A run fails as [`CsvDecoder::decode_tensor`] does.
    #[track_caller]
    fn decode_csv(&self, decoder: CsvDecoder) -> Vec<Tensor>;
}

impl DecodeExt for Tensor {
    #[track_caller]
    fn decode_raw(&self, dtype: DType, endian: Endian) -> Tensor {
        let dims = match self.dims() {
            Dims::Known(mut dims) => {
                dims.push(Dim::Unknown);
                Dims::Known(dims)
            }
            Dims::UnknownRank => Dims::UnknownRank,
        };
        let decode = move |inputs: &[convoke_graph_core::HostTensor]| {
            inputs.iter().map(|records| decode_raw_batch(records, dtype, endian)).collect()
        };
        self.graph().host_function("decode_raw", &[self], [(dtype, dims)], decode).remove(0)
    }

    #[track_caller]
    fn decode_csv(&self, decoder: CsvDecoder) -> Vec<Tensor> {
        let dims = self.dims();
        let gives: Vec<(DType, Dims)> =
            decoder.dtypes().map(|dtype| (dtype, dims.clone())).collect();
        let decode = move |inputs: &[convoke_graph_core::HostTensor]| match inputs {
            [records] => decoder.decode_tensor(records),
            _ => Ok(Vec::new()),
        };
        self.graph().host_function("decode_csv", &[self], gives, decode)
    }
}
