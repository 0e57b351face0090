//! What a table holds at some moment.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::TableSpec;
use crate::{AlignedBytes, DType, Error, ErrorKind, HostTensor, Result, Shape};

/// An element's bytes, those of a value, or those of a string.
type Bytes = SmallVec<[u8; 16]>;

/// A value: its bytes, or of strings each.
type Value = SmallVec<[Bytes; 1]>;

/// Keys and values.
#[derive(Debug, Clone)]
pub struct TableContents {
    keys: DType,
    values: DType,
    /// Of one value.
    shape: Shape,
    entries: FxHashMap<Bytes, Value>,
}

impl TableContents {
    /// Those of an empty table.
    pub fn new(table: &TableSpec) -> Self {
        let (keys, values) = (table.keys, table.values);
        // Its operations are refused where the sizes are not specified.
        let shape = table.value_dims.shape().unwrap_or_else(Shape::scalar);
        Self { keys, values, shape, entries: FxHashMap::default() }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts values under keys.
    ///
    /// # Errors
    /// Other dtypes than the table's, or other numbers of keys than of values. Nothing has changed then.
    pub fn insert(&mut self, keys: &HostTensor, values: &HostTensor) -> Result<()> {
        let n = keys.len();
        let (keys, values) = (of_dtype(keys, self.keys)?, self.values_of(values, n)?);
        for (key, value) in keys.into_iter().zip(values) {
            self.entries.insert(key.into(), value.into_iter().map(Bytes::from).collect());
        }
        Ok(())
    }

    /// Takes keys out.
    ///
    /// # Errors
    /// Another dtype than the table's.
    pub fn remove(&mut self, keys: &HostTensor) -> Result<()> {
        for key in of_dtype(keys, self.keys)? {
            self.entries.remove(key);
        }
        Ok(())
    }

    /// The values of keys; `default`, one value, where there is no such key.
    ///
    /// # Errors
    /// Other dtypes than the table's, or no memory.
    pub fn find(&self, keys: &HostTensor, default: &HostTensor) -> Result<HostTensor> {
        let default = self.values_of(default, 1)?.into_iter().next();
        let default: Value = default.unwrap_or_default().into_iter().map(Bytes::from).collect();
        let found = of_dtype(keys, self.keys)?.into_iter();
        let found = found.map(|key| self.entries.get(key).unwrap_or(&default));
        tensor(self.values, &self.shape_of(keys.dims())?, found.flatten())
    }

    /// All keys and values, in the order of the keys.
    ///
    /// # Errors
    /// No memory.
    pub fn export(&self) -> Result<(HostTensor, HostTensor)> {
        let all = self.sorted();
        let (n, shape) = (Shape::new(&[all.len()])?, self.shape_of(&[all.len()])?);
        let keys = tensor(self.keys, &n, all.iter().map(|(key, _)| *key))?;
        let values = all.iter().flat_map(|(_, value)| *value);
        Ok((keys, tensor(self.values, &shape, values)?))
    }

    /// The shape of values for keys of these sizes.
    fn shape_of(&self, keys: &[usize]) -> Result<Shape> {
        let all: SmallVec<[usize; 6]> = keys.iter().chain(self.shape.dims()).copied().collect();
        Ok(Shape::new(&all)?)
    }

    /// `n` values of a tensor.
    fn values_of<'a>(
        &self,
        tensor: &'a HostTensor,
        n: usize,
    ) -> Result<Vec<SmallVec<[&'a [u8]; 1]>>> {
        let (dtype, len) = (self.values, self.shape.len());
        expect(tensor, dtype)?;
        if n.checked_mul(len) != Some(tensor.len()) {
            let message =
                format!("{n} keys, and {} elements of values {}", tensor.len(), self.shape);
            return Err(Error::invalid(message));
        }
        let mut values = Vec::new();
        values.try_reserve_exact(n).map_err(|_| {
            Error::new(ErrorKind::ResourceExhausted, format!("no memory for {n} values"))
        })?;
        if dtype == DType::String {
            let all = tensor.as_strings()?;
            let value = |i: usize| all[i * len..][..len].iter().map(|text| &text[..]).collect();
            values.extend((0..n).map(value));
        } else {
            let (all, n_bytes) = (tensor.bytes(), len * dtype.n_bytes());
            let value = |i: usize| std::iter::once(&all[i * n_bytes..][..n_bytes]).collect();
            values.extend((0..n).map(value));
        }
        Ok(values)
    }

    fn sorted(&self) -> Vec<(&[u8], &Value)> {
        let all = self.entries.iter();
        let mut all: Vec<(&[u8], &Value)> = all.map(|(key, value)| (&key[..], value)).collect();
        match self.keys {
            DType::String => all.sort_unstable_by_key(|(key, _)| *key),
            dtype => all.sort_unstable_by_key(|(key, _)| number(dtype, key)),
        }
        all
    }
}

impl Hash for TableContents {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.sorted().hash(hasher);
    }
}

fn expect(tensor: &HostTensor, dtype: DType) -> Result<()> {
    match tensor.dtype() == dtype {
        true => Ok(()),
        false => {
            let message = format!("a table of {dtype} is given {}", tensor.dtype());
            Err(Error::internal(message))
        }
    }
}

/// The elements of a tensor, which is to have this dtype.
fn of_dtype(tensor: &HostTensor, dtype: DType) -> Result<Vec<&[u8]>> {
    expect(tensor, dtype)?;
    Ok(match dtype {
        DType::String => tensor.as_strings()?.iter().map(|text| &text[..]).collect(),
        dtype => tensor.bytes().chunks_exact(dtype.n_bytes()).take(tensor.len()).collect(),
    })
}

/// A tensor of these bytes, one after the other, or of these strings.
fn tensor<'a, B: AsRef<[u8]> + ?Sized + 'a>(
    dtype: DType,
    shape: &Shape,
    all: impl Iterator<Item = &'a B>,
) -> Result<HostTensor> {
    if dtype == DType::String {
        return HostTensor::strings(shape.dims(), all.map(|text| text.as_ref().to_vec()));
    }
    let mut bytes = AlignedBytes::zeroed(shape.len().saturating_mul(dtype.n_bytes()))?;
    let mut left = &mut bytes[..];
    for own in all.map(AsRef::as_ref) {
        let split = std::mem::take(&mut left).split_at_mut_checked(own.len());
        let (to, rest) = split.ok_or_else(|| Error::internal("values of other sizes"))?;
        to.copy_from_slice(own);
        left = rest;
    }
    HostTensor::from_bytes(dtype, shape.clone(), bytes)
}

/// The integer of these bytes.
fn number(dtype: DType, bytes: &[u8]) -> i128 {
    let is_signed = dtype.int_range().is_some_and(|(least, _)| least < 0);
    let is_negative = is_signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut all = [if is_negative { 0xff } else { 0 }; 16];
    for (to, byte) in all.iter_mut().zip(bytes) {
        *to = *byte;
    }
    i128::from_le_bytes(all)
}
