//! Values in host memory: cheap to clone, viewed with their own element type, converted from and to
//! `ndarray` arrays, slices, vectors and scalars. A vector or array that is given away is adopted
//! without a copy.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};
use ndarray::{ArrayBase, ArrayD, ArrayViewD, Data, Dimension, IxDyn};

use crate::{DType, Element, Error, ErrorKind, OpError, Result, Shape};

/// A tensor in host memory: a dtype, a shape, and row-major elements that never change.
///
/// Clones share the elements.
#[derive(Clone)]
pub struct HostTensor {
    dtype: DType,
    shape: Shape,
    data: Elements,
}

#[derive(Clone)]
enum Elements {
    Bytes { owner: Arc<dyn Owner>, range: Range<usize> },
    Strings(Arc<[Vec<u8>]>),
}

/// Something that keeps bytes alive and in place.
trait Owner: Send + Sync {
    fn bytes(&self) -> &[u8];
}

impl<T: Element> Owner for Vec<T> {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }
}

impl Owner for AlignedBytes {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Owner for Arc<AlignedBytes> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// The bytes of a small tensor, which need no memory of their own.
struct Few([u64; 2]);

impl Owner for Few {
    fn bytes(&self) -> &[u8] {
        bytemuck::bytes_of(&self.0)
    }
}

/// Bytes that begin on a 64-byte line, so that elements of every dtype can be seen in them.
#[derive(Debug, Clone, Default)]
pub struct AlignedBytes {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl AlignedBytes {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// [`ErrorKind::ResourceExhausted`] if the allocator has no memory of that size.
    pub fn zeroed(len: usize) -> Result<Self> {
        let lines = bytemuck::allocation::try_zeroed_vec(len.div_ceil(64)).map_err(|()| {
            Error::new(
                ErrorKind::ResourceExhausted,
                format!("no host memory for {len} bytes; use smaller tensors or batches"),
            )
        })?;
        Ok(Self { lines, len })
    }

    /// A copy of `bytes`.
    ///
    /// # Errors
    /// As [`Self::zeroed`].
    pub fn copy_of(bytes: &[u8]) -> Result<Self> {
        let mut copy = Self::zeroed(bytes.len())?;
        copy.copy_from_slice(bytes);
        Ok(copy)
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl HostTensor {
    /// A tensor of `shape` from its row-major elements, which are adopted.
    ///
    /// # Errors
    /// The count of the elements is not the shape's, or the shape is out of range.
    pub fn new<T: Element>(shape: &[usize], elements: Vec<T>) -> Result<Self> {
        Ok(Self::with_shape(Shape::new(shape)?, elements)?)
    }

    /// As [`Self::new`], of a shape that was checked before.
    ///
    /// # Errors
    /// The count of the elements is not the shape's.
    pub fn with_shape<T: Element>(shape: Shape, elements: Vec<T>) -> Result<Self, OpError> {
        if elements.len() != shape.len() {
            return Err(OpError::Length { expected: shape.len(), found: elements.len(), shape });
        }
        let range = 0..size_of::<T>() * elements.len();
        Ok(Self {
            dtype: T::DTYPE,
            shape,
            data: Elements::Bytes { owner: Arc::new(elements), range },
        })
    }

    /// A tensor of `dtype` from its row-major bytes in this machine's order, which are adopted.
    ///
    /// # Errors
    /// A length that is not the shape's, a bool byte that is neither 0 nor 1, or a string dtype.
    pub fn from_bytes(dtype: DType, shape: Shape, bytes: AlignedBytes) -> Result<Self> {
        let len = bytes.len();
        Self::adopt(dtype, shape, Arc::new(bytes), len)
    }

    /// As [`Self::from_bytes`], with a copy of the bytes.
    ///
    /// # Errors
    /// As [`Self::from_bytes`] and [`AlignedBytes::zeroed`].
    pub fn copy_of(dtype: DType, shape: Shape, bytes: &[u8]) -> Result<Self> {
        let mut few = Few([0; 2]);
        match bytemuck::bytes_of_mut(&mut few.0).get_mut(..bytes.len()) {
            Some(copy) => {
                copy.copy_from_slice(bytes);
                Self::adopt(dtype, shape, Arc::new(few), bytes.len())
            }
            None => Self::from_bytes(dtype, shape, AlignedBytes::copy_of(bytes)?),
        }
    }

    /// As [`Self::from_bytes`], sharing bytes that others hold too.
    ///
    /// # Errors
    /// As [`Self::from_bytes`]; the bytes may be longer than the elements.
    pub fn from_shared(dtype: DType, shape: Shape, bytes: Arc<AlignedBytes>) -> Result<Self> {
        let len = (shape.len() * dtype.n_bytes()).min(bytes.len());
        Self::adopt(dtype, shape, Arc::new(bytes), len)
    }

    fn adopt(dtype: DType, shape: Shape, owner: Arc<dyn Owner>, len: usize) -> Result<Self> {
        if dtype == DType::String {
            return Err(Error::invalid(
                "strings have no bytes of one size; use HostTensor::strings",
            ));
        }
        let expected = shape.len() * dtype.n_bytes();
        if len != expected {
            return Err(Error::invalid(format!(
                "expected {expected} bytes for {dtype}{shape}, got {len}"
            )));
        }
        if dtype == DType::Bool && owner.bytes()[..len].iter().any(|&b| b > 1) {
            return Err(Error::invalid("a bool is the byte 0 or 1, and another byte came"));
        }
        Ok(Self { dtype, shape, data: Elements::Bytes { owner, range: 0..len } })
    }

    /// A tensor of byte strings.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn strings<S: Into<Vec<u8>>>(
        shape: &[usize],
        strings: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let shape = Shape::new(shape)?;
        let strings: Arc<[Vec<u8>]> = strings.into_iter().map(Into::into).collect();
        if strings.len() != shape.len() {
            let (expected, found) = (shape.len(), strings.len());
            return Err(OpError::Length { expected, found, shape }.into());
        }
        Ok(Self { dtype: DType::String, shape, data: Elements::Strings(strings) })
    }

    /// All elements zero, false or the empty string.
    ///
    /// # Errors
    /// [`ErrorKind::ResourceExhausted`] if there is no memory of that size.
    pub fn zeros(dtype: DType, shape: Shape) -> Result<Self> {
        if dtype == DType::String {
            let mut strings: Vec<Vec<u8>> = Vec::new();
            strings.try_reserve_exact(shape.len()).map_err(|_| {
                let message = format!("no memory for {} strings", shape.len());
                Error::new(ErrorKind::ResourceExhausted, message)
            })?;
            strings.resize(shape.len(), Vec::new());
            return Ok(Self { dtype, shape, data: Elements::Strings(strings.into()) });
        }
        let bytes = AlignedBytes::zeroed(shape.len() * dtype.n_bytes())?;
        Self::from_bytes(dtype, shape, bytes)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The sizes.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// The elements' bytes, row-major; empty for strings.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Elements::Bytes { owner, range } => &owner.bytes()[range.clone()],
            Elements::Strings(_) => &[],
        }
    }

    /// The elements, row-major.
    ///
    /// # Errors
    /// The dtype is not `T`'s.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        if T::DTYPE != self.dtype {
            return Err(Error::invalid(format!(
                "expected a tensor of {}, got {}{}; cast it in the graph or ask for {}",
                T::DTYPE,
                self.dtype,
                self.shape,
                self.dtype
            )));
        }
        bytemuck::checked::try_cast_slice(self.bytes()).map_err(|e| {
            Error::internal(format!("elements of {} are not aligned: {e}", self.dtype))
        })
    }

    /// The byte strings, row-major.
    ///
    /// # Errors
    /// The dtype is not string.
    pub fn as_strings(&self) -> Result<&[Vec<u8>]> {
        match &self.data {
            Elements::Strings(strings) => Ok(strings),
            Elements::Bytes { .. } => {
                Err(Error::invalid(format!("expected a tensor of string, got {}", self.dtype)))
            }
        }
    }

    /// The elements as an `ndarray` view, without a copy.
    ///
    /// # Errors
    /// The dtype is not `T`'s.
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>> {
        ArrayViewD::from_shape(IxDyn(self.dims()), self.as_slice()?)
            .map_err(|e| Error::internal(format!("shape {} does not fit: {e}", self.shape)))
    }

    /// The elements as an owned `ndarray` array.
    ///
    /// # Errors
    /// The dtype is not `T`'s.
    pub fn to_array<T: Element>(&self) -> Result<ArrayD<T>> {
        self.view().map(|view| view.to_owned())
    }

    /// The elements, row-major.
    ///
    /// # Errors
    /// The dtype is not `T`'s.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.as_slice().map(<[T]>::to_vec)
    }

    /// The one element.
    ///
    /// # Errors
    /// The dtype is not `T`'s, or there is not exactly one element.
    pub fn scalar<T: Element>(&self) -> Result<T> {
        match self.as_slice()? {
            [x] => Ok(*x),
            _ => Err(Error::invalid(format!("expected one element, got shape {}", self.shape))),
        }
    }

    /// The same elements in another shape of the same count; no copy.
    ///
    /// # Errors
    /// The counts differ.
    pub fn reshaped(&self, shape: Shape) -> Result<Self> {
        if shape.len() != self.len() {
            let (expected, found) = (shape.len(), self.len());
            return Err(OpError::Length { expected, found, shape }.into());
        }
        Ok(Self { shape, ..self.clone() })
    }

    /// Every element as an `f64`: exact for all but the largest 64-bit integers.
    ///
    /// # Errors
    /// The elements are strings.
    pub fn to_f64s(&self) -> Result<Vec<f64>> {
        macro_rules! convert {
            ($($dtype:ident: $t:ty, $f:expr;)*) => {
                match self.dtype {
                    $(DType::$dtype => Ok(self.as_slice::<$t>()?.iter().map($f).collect()),)*
                    DType::String => Err(Error::invalid("strings are no numbers")),
                }
            };
        }
        convert! {
            Bool: bool, |&x| f64::from(u8::from(x)); I8: i8, |&x| x.into(); U8: u8, |&x| x.into();
            I16: i16, |&x| x.into(); U16: u16, |&x| x.into(); I32: i32, |&x| x.into();
            U32: u32, |&x| x.into(); I64: i64, |&x| x as f64; U64: u64, |&x| x as f64;
            F16: f16, |x| x.to_f64(); BF16: bf16, |x| x.to_f64(); F32: f32, |&x| x.into();
            F64: f64, |&x| x;
        }
    }

    /// Every element as an integer that holds it exactly.
    ///
    /// # Errors
    /// The dtype is neither an integer nor bool.
    pub fn to_i128s(&self) -> Result<Vec<i128>> {
        macro_rules! convert {
            ($($dtype:ident: $t:ty;)*) => {
                match self.dtype {
                    $(DType::$dtype => {
                        Ok(self.as_slice::<$t>()?.iter().map(|&x| i128::from(x)).collect())
                    })*
                    other => Err(Error::invalid(format!("expected integers, got {other}"))),
                }
            };
        }
        convert! { Bool: bool; I8: i8; U8: u8; I16: i16; U16: u16; I32: i32; U32: u32; I64: i64; U64: u64; }
    }

    /// Every element as an `i64`.
    ///
    /// # Errors
    /// The dtype is no integer, or an element is above `i64::MAX`.
    pub fn to_i64s(&self) -> Result<Vec<i64>> {
        self.to_i128s()?
            .into_iter()
            .map(|x| {
                i64::try_from(x).map_err(|_| Error::invalid(format!("{x} does not fit an i64")))
            })
            .collect()
    }

    /// Elements of `dtype` from `f64`s, each rounded once; for bool, whether it is not zero.
    ///
    /// # Errors
    /// The dtype is no float, or the count is not the shape's.
    pub fn from_f64s(dtype: DType, shape: Shape, xs: &[f64]) -> Result<Self> {
        Ok(match dtype {
            DType::F16 => Self::with_shape(shape, xs.iter().map(|&x| f16::from_f64(x)).collect()),
            DType::BF16 => Self::with_shape(shape, xs.iter().map(|&x| bf16::from_f64(x)).collect()),
            DType::F32 => Self::with_shape(shape, xs.iter().map(|&x| x as f32).collect()),
            DType::F64 => Self::with_shape(shape, xs.to_vec()),
            other => return Err(Error::invalid(format!("expected a float dtype, got {other}"))),
        }?)
    }

    /// Elements of an integer dtype or bool from integers, wrapped.
    ///
    /// # Errors
    /// The dtype is no integer, or the count is not the shape's.
    pub fn from_i128s(dtype: DType, shape: Shape, xs: &[i128]) -> Result<Self> {
        macro_rules! convert {
            ($($dtype:ident: $t:ty;)*) => {
                match dtype {
                    DType::Bool => Self::with_shape(shape, xs.iter().map(|&x| x != 0).collect()),
                    $(DType::$dtype => {
                        Self::with_shape(shape, xs.iter().map(|&x| x as $t).collect())
                    })*
                    other => return Err(Error::invalid(format!("expected an integer dtype, got {other}"))),
                }
            };
        }
        Ok(
            convert! { I8: i8; U8: u8; I16: i16; U16: u16; I32: i32; U32: u32; I64: i64; U64: u64; }?,
        )
    }
}

impl<T: Element> From<T> for HostTensor {
    fn from(x: T) -> Self {
        let (shape, owner) = (Shape::scalar(), Arc::new(vec![x]));
        Self { dtype: T::DTYPE, shape, data: Elements::Bytes { owner, range: 0..size_of::<T>() } }
    }
}

impl<T: Element> From<Vec<T>> for HostTensor {
    fn from(xs: Vec<T>) -> Self {
        let shape = Shape::new(&[xs.len()]).expect("one size cannot overflow: the vector exists");
        let range = 0..size_of_val(xs.as_slice());
        Self { dtype: T::DTYPE, shape, data: Elements::Bytes { owner: Arc::new(xs), range } }
    }
}

impl<T: Element> From<&[T]> for HostTensor {
    fn from(xs: &[T]) -> Self {
        xs.to_vec().into()
    }
}

impl<T: Element, const N: usize> From<[T; N]> for HostTensor {
    fn from(xs: [T; N]) -> Self {
        xs.to_vec().into()
    }
}

impl<T: Element, const N: usize, const M: usize> From<[[T; N]; M]> for HostTensor {
    fn from(rows: [[T; N]; M]) -> Self {
        const { assert!(M <= isize::MAX as usize / 8, "an array of more rows than a tensor can have") };
        Self::with_shape(
            Shape::new(&[M, N]).expect("the array exists"),
            rows.into_iter().flatten().collect(),
        )
        .expect("M rows of N elements")
    }
}

impl From<&str> for HostTensor {
    fn from(s: &str) -> Self {
        let data = Elements::Strings(Arc::new([s.as_bytes().to_vec()]));
        Self { dtype: DType::String, shape: Shape::scalar(), data }
    }
}

impl From<String> for HostTensor {
    fn from(s: String) -> Self {
        s.as_str().into()
    }
}

impl<T: Element, D: Dimension> TryFrom<ndarray::Array<T, D>> for HostTensor {
    type Error = Error;

    fn try_from(array: ndarray::Array<T, D>) -> Result<Self> {
        let shape = Shape::new(array.shape())?;
        if !array.is_standard_layout() {
            return Self::try_from(&array);
        }
        let (mut elements, offset) = array.into_raw_vec_and_offset();
        let start = offset.unwrap_or(0);
        if start > 0 || elements.len() != shape.len() {
            elements = elements[start..start + shape.len()].to_vec();
        }
        Ok(Self::with_shape(shape, elements)?)
    }
}

impl<T: Element, S: Data<Elem = T>, D: Dimension> TryFrom<&ArrayBase<S, D>> for HostTensor {
    type Error = Error;

    fn try_from(array: &ArrayBase<S, D>) -> Result<Self> {
        let elements = array.iter().copied().collect();
        Ok(Self::with_shape(Shape::new(array.shape())?, elements)?)
    }
}

impl PartialEq for HostTensor {
    /// The same dtype, shape and bytes: a NaN equals itself, and 0 is not -0.
    fn eq(&self, other: &Self) -> bool {
        let strings = |t: &Self| match &t.data {
            Elements::Strings(strings) => Some(strings.clone()),
            Elements::Bytes { .. } => None,
        };
        self.dtype == other.dtype
            && self.shape == other.shape
            && self.bytes() == other.bytes()
            && strings(self) == strings(other)
    }
}

/// Up to 16 elements: `f32[2, 2] [1, 2, 3, 4]`.
impl fmt::Display for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        let texts: Vec<String> = if let Elements::Strings(strings) = &self.data {
            // Of two that differ, so do their texts: equal operations are told by them.
            let text = |s: &Vec<u8>| match std::str::from_utf8(s) {
                Ok(text) => format!("{text:?}"),
                Err(_) => format!("b\"{}\"", s.escape_ascii()),
            };
            strings.iter().take(SHOWN).map(text).collect()
        } else if let Ok(ints) = self.to_i128s() {
            ints.iter().take(SHOWN).map(i128::to_string).collect()
        } else {
            let floats = self.to_f64s().map_err(|_| fmt::Error)?;
            // An f32 prints with its own digits, not with those of the f64 next to it.
            let text = |&x: &f64| {
                if self.dtype == DType::F64 { x.to_string() } else { (x as f32).to_string() }
            };
            floats.iter().take(SHOWN).map(text).collect()
        };
        write!(f, "{}{} [{}", self.dtype, self.shape, texts.join(", "))?;
        f.write_str(if self.len() > SHOWN { ", ...]" } else { "]" })
    }
}

impl fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
