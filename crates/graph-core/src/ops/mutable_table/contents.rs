//! What a table holds at some moment.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::TableSpec;
use crate::{AlignedBytes, DType, Error, HostTensor, Result, Shape};

/// An element's bytes, or those of a string.
type Bytes = SmallVec<[u8; 16]>;

/// Keys and values.
#[derive(Debug, Clone)]
pub struct TableContents {
    keys: DType,
    values: DType,
    entries: FxHashMap<Bytes, Bytes>,
}

impl TableContents {
    /// Those of an empty table.
    pub fn new(table: &TableSpec) -> Self {
        let (keys, values) = (table.keys, table.values);
        Self { keys, values, entries: FxHashMap::default() }
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
        let (keys, values) = (of_dtype(keys, self.keys)?, of_dtype(values, self.values)?);
        if keys.len() != values.len() {
            let (keys, values) = (keys.len(), values.len());
            return Err(Error::invalid(format!("{keys} keys and {values} values")));
        }
        for (key, value) in keys.into_iter().zip(values) {
            self.entries.insert(key.into(), value.into());
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

    /// The values of keys; `default`, one element, where there is no such key.
    ///
    /// # Errors
    /// Other dtypes than the table's, or no memory.
    pub fn find(&self, keys: &HostTensor, default: &HostTensor) -> Result<HostTensor> {
        let defaults = of_dtype(default, self.values)?;
        let default = *defaults.first().ok_or_else(|| Error::internal("no default"))?;
        let found = of_dtype(keys, self.keys)?.into_iter();
        let found = found.map(|key| self.entries.get(key).map_or(default, |value| &value[..]));
        tensor(self.values, keys.shape(), found)
    }

    /// All keys and values, in the order of the keys.
    ///
    /// # Errors
    /// No memory.
    pub fn export(&self) -> Result<(HostTensor, HostTensor)> {
        let all = self.sorted();
        let shape = Shape::new(&[all.len()])?;
        let keys = tensor(self.keys, &shape, all.iter().map(|(key, _)| *key))?;
        Ok((keys, tensor(self.values, &shape, all.iter().map(|(_, value)| *value))?))
    }

    fn sorted(&self) -> Vec<(&[u8], &[u8])> {
        let all = self.entries.iter();
        let mut all: Vec<(&[u8], &[u8])> = all.map(|(key, value)| (&key[..], &value[..])).collect();
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

/// The elements of a tensor, which is to have this dtype.
fn of_dtype(tensor: &HostTensor, dtype: DType) -> Result<Vec<&[u8]>> {
    if tensor.dtype() != dtype {
        return Err(Error::internal(format!("a table of {dtype} is given {}", tensor.dtype())));
    }
    Ok(match dtype {
        DType::String => tensor.as_strings()?.iter().map(|text| &text[..]).collect(),
        dtype => tensor.bytes().chunks_exact(dtype.n_bytes()).take(tensor.len()).collect(),
    })
}

fn tensor<'a>(
    dtype: DType,
    shape: &Shape,
    elements: impl Iterator<Item = &'a [u8]>,
) -> Result<HostTensor> {
    if dtype == DType::String {
        return HostTensor::strings(shape.dims(), elements.map(<[u8]>::to_vec));
    }
    let n = dtype.n_bytes();
    let mut bytes = AlignedBytes::zeroed(shape.len().saturating_mul(n))?;
    for (to, element) in bytes.chunks_exact_mut(n).zip(elements) {
        to.copy_from_slice(element);
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
