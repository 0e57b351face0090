//! Examples put together into batches: one axis more, in front.

use std::iter::FusedIterator;

use convoke_graph_core::{AlignedBytes, DType, Element, Error, HostTensor, Result, Shape};

/// What can be put together into a batch.
///
/// Examples are tensors, rows (vectors) or scalars, pairs of them (an image and its label), or results
/// of these, of which the first error takes the place of the batch.
pub trait Example: Sized {
    /// What a batch of them is; a tensor, or a pair.
    type Batch;

    /// Puts examples together along a new first axis.
    ///
    /// # Errors
    /// There are none, their dtypes or shapes differ, the batch is too large for a tensor, or there is
    /// no memory.
    fn batch(examples: Vec<Self>) -> Result<Self::Batch>;
}

/// Each `[..]` → `[n, ..]`.
impl Example for HostTensor {
    type Batch = Self;

    fn batch(examples: Vec<Self>) -> Result<Self> {
        let (dtype, shape) = common(&examples)?;
        if dtype == DType::String {
            let mut strings = Vec::new();
            for example in &examples {
                strings.extend_from_slice(example.as_strings()?);
            }
            return Self::strings(shape.dims(), strings);
        }
        let n_bytes = shape.len().saturating_mul(dtype.n_bytes());
        let mut bytes = AlignedBytes::zeroed(n_bytes)?;
        let share = n_bytes.checked_div(examples.len()).unwrap_or(0);
        for (to, example) in bytes.chunks_exact_mut(share.max(1)).zip(&examples) {
            to.copy_from_slice(example.bytes());
        }
        Self::from_bytes(dtype, shape, bytes)
    }
}

/// The dtype of all, and the shape of their batch.
fn common(examples: &[HostTensor]) -> Result<(DType, Shape)> {
    let [first, others @ ..] = examples else { return Err(empty()) };
    let expected = (first.dtype(), first.shape());
    for (idx, other) in (1..).zip(others) {
        if (other.dtype(), other.shape()) != expected {
            return Err(Error::invalid(format!(
                "expected examples of one dtype and shape, got {}{} in example 0 of the batch and \
                 {}{} in example {idx}",
                first.dtype(),
                first.shape(),
                other.dtype(),
                other.shape()
            )));
        }
    }
    Ok((first.dtype(), Shape::new(&[&[examples.len()], first.dims()].concat())?))
}

fn empty() -> Error {
    Error::invalid("expected at least one example for a batch, got none")
}

macro_rules! scalars {
    ($($t:ty),*) => {$(
        /// Each a scalar → `[n]`.
        impl Example for $t {
            type Batch = HostTensor;

            fn batch(examples: Vec<Self>) -> Result<HostTensor> {
                match examples.len() {
                    0 => Err(empty()),
                    n => HostTensor::new(&[n], examples),
                }
            }
        }
    )*};
}

scalars!(bool, u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// Each `[len]` → `[n, len]`.
impl<T: Element> Example for Vec<T> {
    type Batch = HostTensor;

    fn batch(examples: Vec<Self>) -> Result<HostTensor> {
        HostTensor::batch(examples.into_iter().map(HostTensor::from).collect())
    }
}

impl<A: Example, B: Example> Example for (A, B) {
    type Batch = (A::Batch, B::Batch);

    fn batch(examples: Vec<Self>) -> Result<Self::Batch> {
        let (first, second) = examples.into_iter().unzip();
        Ok((A::batch(first)?, B::batch(second)?))
    }
}

impl<E: Example> Example for Result<E> {
    type Batch = E::Batch;

    fn batch(examples: Vec<Self>) -> Result<E::Batch> {
        E::batch(examples.into_iter().collect::<Result<_>>()?)
    }
}

/// The examples of an iterator, `n` at a time; the last batch has what is left.
///
/// # Errors
/// `n` is 0, an example is an error, or [`Example::batch`] refuses. The iterator ends after one; what
/// the batch had before an error is dropped with it.
///
/// # Source
/// `tf.train.batch`, with one thread.
#[derive(Debug)]
pub struct Batches<I> {
    /// `None` at the end.
    source: Option<I>,
    n: usize,
    drop_remainder: bool,
}

impl<I: Iterator<Item: Example>> Batches<I> {
    /// Batches of `n` examples.
    pub fn new(source: impl IntoIterator<IntoIter = I>, n: usize) -> Self {
        Self { source: Some(source.into_iter()), n, drop_remainder: false }
    }

    /// Leaves out a last batch of fewer than `n`, so that all have one shape.
    #[must_use]
    pub fn drop_remainder(mut self) -> Self {
        self.drop_remainder = true;
        self
    }

    /// Up to `n` examples. The source is dropped at its end, and not asked again.
    fn pull(&mut self) -> Vec<I::Item> {
        let mut examples = Vec::new();
        while examples.len() < self.n {
            match self.source.as_mut().and_then(Iterator::next) {
                Some(example) => examples.push(example),
                None => {
                    self.source = None;
                    break;
                }
            }
        }
        examples
    }
}

impl<I: Iterator<Item: Example>> Iterator for Batches<I> {
    type Item = Result<<I::Item as Example>::Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.source.as_ref()?;
        if self.n == 0 {
            self.source = None;
            let message = "expected batches of at least one example, got a size of 0";
            return Some(Err(Error::invalid(message)));
        }
        let examples = self.pull();
        let unwanted = self.drop_remainder && examples.len() < self.n;
        if examples.is_empty() || unwanted {
            return None;
        }
        let batch = I::Item::batch(examples);
        if batch.is_err() {
            self.source = None;
        }
        Some(batch)
    }
}

impl<I: Iterator<Item: Example>> FusedIterator for Batches<I> {}
