//! Arrays of tensors that loops carry, and read and write at places that they compute.
//!
//! Source: TensorFlow's `tf.TensorArray`. What a loop only collects, [`Graph::scan`] and [`Graph::map`] collect at no such
//! cost.

use crate::ops::control::Refused;
use crate::ops::host::Range;
use crate::{DType, Dims, Graph, OpError, Structure, Tensor};

/// Tensors of one shape and dtype, read and written one at a time.
///
/// It is one tensor, of which a write makes a new one: it costs as much as all elements.
#[derive(Debug, Clone)]
pub struct TensorArray {
    elements: Tensor,
}

impl Graph {
    /// `n` tensors of `sizes`, all zeros or empty strings.
    ///
    /// # Errors
    /// Recorded: sizes that overflow.
    #[track_caller]
    pub fn tensor_array(&self, n: usize, dtype: DType, sizes: &[usize]) -> TensorArray {
        let all: Result<Vec<i64>, _> =
            std::iter::once(n).chain(sizes.iter().copied()).map(i64::try_from).collect();
        let zero = self.number(dtype, 0.0);
        let elements = match all {
            Ok(all) => zero.broadcast_to(&all),
            Err(_) => {
                let reason = OpError::Invalid(format!("{n} tensors of {sizes:?} are too many"));
                zero.apply(Refused(reason), &[])
            }
        };
        TensorArray { elements }
    }
}

impl TensorArray {
    /// The slices of a tensor along axis 0.
    pub fn unstack(tensor: &Tensor) -> Self {
        Self { elements: tensor.clone() }
    }

    /// All tensors, along a new axis 0.
    pub fn stack(&self) -> Tensor {
        self.elements.clone()
    }

    /// The tensor at `index`, a scalar i32.
    ///
    /// # Errors
    /// A run fails if there is no such tensor.
    #[track_caller]
    pub fn read(&self, index: &Tensor) -> Tensor {
        self.elements.gather(index, 0)
    }

    /// The tensors at `indices`, stacked.
    ///
    /// # Errors
    /// A run fails if there is no such tensor.
    #[track_caller]
    pub fn gather(&self, indices: &Tensor) -> Tensor {
        self.elements.gather(indices, 0)
    }

    /// The array with `value` at `index`, a scalar i32.
    ///
    /// # Errors
    /// Recorded: a value of another shape or dtype, an array of unknown rank. A run fails if there is no such place.
    #[track_caller]
    pub fn write(&self, index: &Tensor, value: &Tensor) -> Self {
        let elements = &self.elements;
        let row = match elements.dims().dims() {
            Some([_, row @ ..]) => row.to_vec(),
            _ => {
                let reason = OpError::Invalid("an array of tensors has at least one axis".into());
                return Self { elements: elements.apply(Refused(reason), &[elements]) };
            }
        };
        if let Err(reason) = Dims::Known(row.iter().copied().collect()).unify(&value.dims()) {
            return Self { elements: elements.apply(Refused(reason), &[elements, value]) };
        }
        if let Err(reason) = Dims::from([0usize; 0]).unify(&index.dims()) {
            return Self { elements: elements.apply(Refused(reason), &[elements, index]) };
        }
        let places = self.places();
        // Taken from the places, the index fails the run where there is none.
        let here = places.equal(places.gather(index, 0));
        let column: Vec<i64> = std::iter::once(-1).chain(row.iter().map(|_| 1)).collect();
        Self { elements: here.reshape(&column).select(value, elements) }
    }

    /// 0 to the number of tensors.
    #[track_caller]
    fn places(&self) -> Tensor {
        let graph = self.elements.graph();
        let known = self.elements.dims().dims().and_then(|dims| dims.first()?.known());
        match known.and_then(|n| i32::try_from(n).ok()) {
            Some(n) => graph.range(0, n),
            None => {
                let n = self.elements.shape().gather(graph.constant(0i32), 0).cast(DType::I32);
                graph.apply(Range, &[&graph.constant(0i32), &n])
            }
        }
    }
}

impl Structure for TensorArray {
    fn flatten(&self, parts: &mut Vec<Tensor>) {
        self.elements.flatten(parts);
    }

    fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
        Self { elements: self.elements.rebuild(parts) }
    }

    fn is_like(&self, _: &Self) -> bool {
        true
    }
}
