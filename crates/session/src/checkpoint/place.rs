//! Where a checkpoint has the elements of a tensor that may be of strings, and notes that say so.
//!
//! Strings are bytes one after the other, and the place where each ends.

use std::collections::BTreeSet;
use std::path::Path;

use convoke_graph_core::{AlignedBytes, DType, Error, ErrorKind, HostTensor, Result, Shape};
use serde_json::{Value, json};

use super::contents::{Contents, Named};
use super::file::{RESERVED, damaged, dtype_of};

/// The version of notes.
const VERSION: u64 = 1;

/// Puts tensors beside others, each under a name of its own.
pub(super) struct Put<'a> {
    tensors: &'a mut Vec<Named>,
    names: BTreeSet<String>,
}

impl<'a> Put<'a> {
    pub fn into(tensors: &'a mut Vec<Named>) -> Self {
        let names = tensors.iter().map(|(name, _)| name.clone()).collect();
        Self { tensors, names }
    }

    fn put(&mut self, mut name: String, tensor: HostTensor) -> String {
        while name == RESERVED || !self.names.insert(name.clone()) {
            name.push('_');
        }
        self.tensors.push((name.clone(), tensor));
        name
    }

    /// Adds a tensor under a name like this, and gives its [`Place`].
    ///
    /// # Errors
    /// No memory.
    pub fn tensor(&mut self, tensor: &HostTensor, name: &str) -> Result<Value> {
        let Ok(strings) = tensor.as_strings() else {
            return Ok(json!({ "tensor": self.put(name.to_owned(), tensor.clone()) }));
        };
        let n_bytes = strings.iter().map(Vec::len).fold(0usize, usize::saturating_add);
        let mut bytes = AlignedBytes::zeroed(n_bytes)?;
        let mut ends = AlignedBytes::zeroed(strings.len().saturating_mul(size_of::<u64>()))?;
        let mut end = 0;
        for (string, to) in strings.iter().zip(ends.chunks_exact_mut(size_of::<u64>())) {
            let begin = end;
            end += string.len();
            bytes[begin..end].copy_from_slice(string);
            to.copy_from_slice(&(end as u64).to_ne_bytes());
        }
        let bytes = HostTensor::from_bytes(DType::U8, Shape::new(&[n_bytes])?, bytes)?;
        let ends = HostTensor::from_bytes(DType::U64, tensor.shape().clone(), ends)?;
        let bytes = self.put(name.to_owned(), bytes);
        Ok(json!({ "bytes": bytes, "ends": self.put(format!("{name}/ends"), ends) }))
    }
}

/// Where the elements of a tensor are.
pub(super) enum Place {
    Numbers(String),
    Strings { bytes: String, ends: String },
}

impl Place {
    pub fn of(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        match (text("tensor"), text("bytes"), text("ends")) {
            (Some(tensor), None, None) => Some(Self::Numbers(tensor)),
            (None, Some(bytes), Some(ends)) => Some(Self::Strings { bytes, ends }),
            _ => None,
        }
    }

    /// The names of its tensors in the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (first, second) = match self {
            Self::Numbers(tensor) => (tensor, None),
            Self::Strings { bytes, ends } => (bytes, Some(ends)),
        };
        std::iter::once(first).chain(second).map(String::as_str)
    }

    pub fn dtype(&self, file: &Contents) -> Option<DType> {
        match self {
            Self::Numbers(tensor) => dtype_of(file.tensor(tensor)?.dtype),
            Self::Strings { .. } => Some(DType::String),
        }
    }

    /// The sizes.
    pub fn dims<'a>(&self, file: &'a Contents) -> Option<&'a [usize]> {
        let shaped = match self {
            Self::Numbers(tensor) => tensor,
            Self::Strings { ends, .. } => ends,
        };
        file.tensor(shaped).map(|info| info.shape.as_slice())
    }

    /// The elements, which are those of `what`.
    ///
    /// # Errors
    /// The file is damaged, or no memory.
    pub fn read(&self, file: &Contents, what: &str) -> Result<HostTensor> {
        let (bytes, ends) = match self {
            Self::Numbers(tensor) => return read(file, tensor, None, what),
            Self::Strings { bytes, ends } => (
                read(file, bytes, Some(DType::U8), what)?,
                read(file, ends, Some(DType::U64), what)?,
            ),
        };
        let wrong =
            || damaged(file.path(), &format!("the strings of {what} end where they do not"));
        let mut strings: Vec<Vec<u8>> = Vec::new();
        strings.try_reserve_exact(ends.len()).map_err(|_| {
            let message = format!("no memory for {} strings of {what}", ends.len());
            Error::new(ErrorKind::ResourceExhausted, message)
        })?;
        let mut begin = 0;
        for end in ends.bytes().chunks_exact(size_of::<u64>()) {
            let end = u64::from_ne_bytes(end.try_into().map_err(|_| wrong())?);
            let end = usize::try_from(end).map_err(|_| wrong())?;
            strings.push(bytes.bytes().get(begin..end).ok_or_else(wrong)?.to_vec());
            begin = end;
        }
        if begin != bytes.len() {
            return Err(wrong());
        }
        HostTensor::strings(ends.dims(), strings)
    }
}

/// A tensor of a checkpoint, of this dtype if one is named.
fn read(file: &Contents, name: &str, dtype: Option<DType>, what: &str) -> Result<HostTensor> {
    let wrong = |why: &str| damaged(file.path(), &format!("{name:?}, of {what}, {why}"));
    let info = file.tensor(name).ok_or_else(|| wrong("is not there"))?;
    let own = dtype_of(info.dtype).ok_or_else(|| wrong("has another dtype"))?;
    if dtype.is_some_and(|dtype| dtype != own) {
        return Err(wrong("has another dtype"));
    }
    let shape = Shape::new(&info.shape).map_err(|e| wrong(&e.to_string()))?;
    file.read_tensor(name, own, shape)
}

/// A note that lists `what`.
pub(super) fn note_of(what: &str, list: Vec<Value>) -> String {
    json!({ "version": VERSION, what: list }).to_string()
}

/// What a note lists, each read by `entry`.
///
/// # Errors
/// A later version, or what is no note.
pub(super) fn listed_in<T>(
    file: &Path,
    note: &str,
    what: &str,
    entry: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>> {
    let note: Value = serde_json::from_str(note)
        .map_err(|e| damaged(file, &format!("its note of {what} is no JSON: {e}")))?;
    match note.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(other) => {
            let message = format!(
                "unsupported: {} has version {other} of {what}; this reads {VERSION}",
                file.display()
            );
            return Err(Error::new(ErrorKind::Unimplemented, message));
        }
        None => return Err(damaged(file, &format!("its note of {what} has no version"))),
    }
    let all = note.get(what).and_then(Value::as_array);
    let all = all.and_then(|all| all.iter().map(entry).collect());
    all.ok_or_else(|| damaged(file, &format!("its note of {what} names none")))
}
