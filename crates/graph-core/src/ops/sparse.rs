//! Tensors of which only some elements are there, as composites of dense ones.
//!
//! Source: TensorFlow's `tf.SparseTensor`, `tf.sparse_placeholder` and `tf.IndexedSlices`.

use crate::ops::control::Refused;
use crate::ops::gather::ScatterAdd;
use crate::{
    Class, DType, Dims, Error, Feed, Graph, Host, HostTensor, OpError, Shape, Structure, Tensor,
};

/// The elements of a tensor that are not zero, and where they stand.
///
/// Of a graph it holds tensors, of a run's result host tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseTensor<T = Tensor> {
    /// `[n, rank]` of i64: the coordinates of each element.
    pub indices: T,
    /// `[n]`: the elements.
    pub values: T,
    /// `[rank]` of i64: the sizes of the whole.
    pub dense_shape: T,
}

/// Slices of a tensor along axis 0, and where they stand: the gradient of a look-up, for example.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexedSlices<T = Tensor> {
    /// `[n, ..]`: the slices.
    pub values: T,
    /// `[n]` of integers: the index of each slice.
    pub indices: T,
    /// The sizes of the whole, if they are given.
    pub dense_shape: Option<T>,
}

impl Graph {
    /// A sparse tensor that every run is fed. If all of `dims` are known, its dense shape is a constant, and is not
    /// fed.
    #[track_caller]
    pub fn sparse_placeholder(
        &self,
        name: &str,
        dtype: DType,
        dims: impl Into<Dims>,
    ) -> SparseTensor {
        let dims = dims.into();
        self.scope(name, || {
            let (rank, known) = (dims.rank(), dims.shape());
            let indices = self.placeholder("indices", DType::I64, crate::dims![None, rank]);
            let values = self.placeholder("values", dtype, crate::dims![None]);
            let dense_shape = match known {
                Some(shape) => {
                    let sizes: Vec<i64> = shape.dims().iter().map(|&n| n as i64).collect();
                    self.constant(sizes)
                }
                None => self.placeholder("shape", DType::I64, crate::dims![rank]),
            };
            SparseTensor { indices, values, dense_shape }
        })
    }
}

impl SparseTensor {
    /// Gives it a value in a run: two feeds, or three if its dense shape is not a constant. A run that is fed another
    /// dense shape than the constant one is refused.
    pub fn feed<'a>(&self, value: &SparseTensor<HostTensor>) -> Vec<Feed<'a>> {
        let values = self.values.feed(&value.values);
        let (values, shape) = with_shape(values, &self.dense_shape, &value.dense_shape);
        [self.indices.feed(&value.indices), values].into_iter().chain(shape).collect()
    }

    /// All elements, zeros where there are none. Elements at one place are added.
    ///
    /// # Errors
    /// Recorded: a dense shape that is not known before the run. A run fails where an element stands outside.
    #[track_caller]
    pub fn to_dense(&self) -> Tensor {
        let Some(sizes) = self.dense_shape.fact().integers() else {
            let reason =
                OpError::Unsupported("a dense tensor whose sizes are known in the run only".into());
            return self.values.apply(Refused(reason), &[&self.values, &self.dense_shape]);
        };
        let usizes: Result<Vec<usize>, _> = sizes.iter().map(|&n| usize::try_from(n)).collect();
        let shape = usizes.map_err(|e| OpError::Invalid(e.to_string()));
        let shape = match shape.and_then(|sizes| Shape::new(&sizes)) {
            Ok(shape) => shape,
            Err(reason) => return self.values.apply(Refused(reason), &[&self.values]),
        };
        let columns = Dims::from([sizes.len()]);
        let own: Dims = self.indices.dims().dims().map_or(Dims::UnknownRank, |dims| {
            dims.get(1..).unwrap_or(&[]).iter().copied().collect()
        });
        if let Err(reason) = columns.unify(&own) {
            return self.values.apply(Refused(reason), &[&self.values, &self.indices]);
        }
        let mut strides: Vec<i64> = Vec::with_capacity(sizes.len());
        let mut stride = 1i64;
        for &size in sizes.iter().rev() {
            strides.push(stride);
            stride = stride.saturating_mul(size);
        }
        strides.reverse();
        let graph = self.values.graph();
        // An index outside along one axis would be a place elsewhere: it is sent outside of the whole.
        let limits = graph.constant(sizes.clone());
        let zero = graph.constant(0i64);
        let inside = self.indices.less(&limits) & self.indices.greater_equal(&zero);
        let place = (&self.indices * graph.constant(strides)).sum(-1);
        let place = inside.all(-1).select(place, graph.constant(stride));
        let len = graph.constant(vec![shape.len() as i64]);
        let flat = self
            .values
            .apply(ScatterAdd { axis: 0 }, &[&len, &place.cast(DType::I32), &self.values]);
        flat.reshape(&sizes)
    }
}

impl IndexedSlices {
    /// Gives it a value in a run.
    pub fn feed<'a>(&self, value: &IndexedSlices<HostTensor>) -> Vec<Feed<'a>> {
        let values = self.values.feed(&value.values);
        let (values, shape) = match (&self.dense_shape, &value.dense_shape) {
            (Some(shape), Some(value)) => with_shape(values, shape, value),
            _ => (values, None),
        };
        [values, self.indices.feed(&value.indices)].into_iter().chain(shape).collect()
    }

    /// Zeros of the dense shape, to which the slices are added.
    ///
    /// # Errors
    /// Recorded: no dense shape. A run fails at an index that is out of range.
    #[track_caller]
    pub fn to_dense(&self) -> Tensor {
        match &self.dense_shape {
            Some(shape) => {
                self.values.apply(ScatterAdd { axis: 0 }, &[shape, &self.indices, &self.values])
            }
            None => {
                let reason = OpError::Invalid("slices without a dense shape".into());
                self.values.apply(Refused(reason), &[&self.values])
            }
        }
    }
}

/// The feed of a composite's values, and of its dense shape unless that is a constant: then the values are refused if
/// the shape is another.
fn with_shape<'a>(
    values: Feed<'a>,
    shape: &Tensor,
    fed: &HostTensor,
) -> (Feed<'a>, Option<Feed<'a>>) {
    if !is_constant(shape) {
        return (values, Some(shape.feed(fed)));
    }
    let (own, fed) = (shape.fact().integers(), fed.to_vec::<i64>());
    match (own, fed) {
        (_, Err(error)) => (Feed { value: Err(error), ..values }, None),
        (Some(own), Ok(fed)) if *own != *fed => {
            let message = format!("expected a value of the dense shape {own:?}, got {fed:?}");
            (Feed { value: Err(Error::invalid(message)), ..values }, None)
        }
        _ => (values, None),
    }
}

fn is_constant(tensor: &Tensor) -> bool {
    matches!(tensor.node().op.class(), Class::Host(Host::Constant(_)))
}

impl Structure for SparseTensor {
    fn flatten(&self, parts: &mut Vec<Tensor>) {
        parts.extend([&self.indices, &self.values, &self.dense_shape].map(Clone::clone));
    }

    fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
        Self {
            indices: self.indices.rebuild(parts),
            values: self.values.rebuild(parts),
            dense_shape: self.dense_shape.rebuild(parts),
        }
    }

    fn is_like(&self, _: &Self) -> bool {
        true
    }
}

impl Structure for IndexedSlices {
    fn flatten(&self, parts: &mut Vec<Tensor>) {
        parts.extend([&self.values, &self.indices].map(Clone::clone));
        self.dense_shape.flatten(parts);
    }

    fn rebuild(&self, parts: &mut dyn Iterator<Item = Tensor>) -> Self {
        Self {
            values: self.values.rebuild(parts),
            indices: self.indices.rebuild(parts),
            dense_shape: self.dense_shape.rebuild(parts),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        self.dense_shape.is_like(&other.dense_shape)
    }
}
