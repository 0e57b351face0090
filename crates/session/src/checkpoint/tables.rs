//! What tables that runs change hold, in a checkpoint: tensors beside those of variables, and a note that names them.
//!
//! Strings are bytes one after the other, and the place where each ends. A checkpoint of a graph without tables has no
//! note, and neither has one that was written before there were any; restoring it leaves tables as they are.
//!
//! Source: TensorFlow's `MutableHashTable`, whose `_Saveable` puts keys and values into checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use convoke_graph_core::{
    AlignedBytes, DType, Error, ErrorKind, GraphSnapshot, HostTensor, Result, Shape, TableContents,
    TableSpec,
};
use serde_json::{Value, json};

use super::contents::{Contents, Named};
use super::file::{RESERVED, damaged, dtype_of};
use crate::model::{StoredTable, table_of};

/// The version of the note.
const VERSION: u64 = 1;

/// The tables of a graph, each once, by name.
pub(super) fn tables_of(graph: &GraphSnapshot) -> Vec<Arc<TableSpec>> {
    let sound = graph.nodes.iter().filter(|node| node.error().is_none());
    let specs = sound.filter_map(|node| table_of(node));
    let specs: BTreeMap<&str, &Arc<TableSpec>> =
        specs.map(|spec| (spec.name.as_str(), spec)).collect();
    specs.into_values().cloned().collect()
}

/// Adds what tables hold to the tensors of variables, and gives the note; nothing if there are no tables.
///
/// # Errors
/// No memory.
pub(super) fn add(
    specs: &[Arc<TableSpec>],
    contents: &[Arc<TableContents>],
    tensors: &mut Vec<Named>,
) -> Result<Option<String>> {
    if specs.is_empty() {
        return Ok(None);
    }
    let mut names: BTreeSet<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
    let mut put = |mut name: String, tensor: HostTensor| {
        while name == RESERVED || !names.insert(name.clone()) {
            name.push('_');
        }
        tensors.push((name.clone(), tensor));
        name
    };
    let mut tables = Vec::with_capacity(specs.len());
    for (spec, contents) in specs.iter().zip(contents) {
        let (keys, values) = contents.export()?;
        tables.push(json!({
            "name": spec.name,
            "keys": to_json(&keys, &format!("{}/keys", spec.name), &mut put)?,
            "values": to_json(&values, &format!("{}/values", spec.name), &mut put)?,
        }));
    }
    Ok(Some(json!({ "version": VERSION, "tables": tables }).to_string()))
}

fn to_json(
    tensor: &HostTensor,
    name: &str,
    put: &mut dyn FnMut(String, HostTensor) -> String,
) -> Result<Value> {
    let Ok(strings) = tensor.as_strings() else {
        return Ok(json!({ "tensor": put(name.to_owned(), tensor.clone()) }));
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
    Ok(json!({ "bytes": put(name.to_owned(), bytes), "ends": put(format!("{name}/ends"), ends) }))
}

/// A table of a checkpoint, whose elements are not read yet.
pub(super) struct Entry {
    pub name: String,
    keys: Place,
    values: Place,
}

/// Where the elements of a tensor are.
enum Place {
    Numbers(String),
    Strings { bytes: String, ends: String },
}

impl Place {
    fn of(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        match (text("tensor"), text("bytes"), text("ends")) {
            (Some(tensor), None, None) => Some(Self::Numbers(tensor)),
            (None, Some(bytes), Some(ends)) => Some(Self::Strings { bytes, ends }),
            _ => None,
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let (first, second) = match self {
            Self::Numbers(tensor) => (tensor, None),
            Self::Strings { bytes, ends } => (bytes, Some(ends)),
        };
        std::iter::once(first).chain(second).map(String::as_str)
    }

    fn dtype(&self, file: &Contents) -> Option<DType> {
        match self {
            Self::Numbers(tensor) => dtype_of(file.tensor(tensor)?.dtype),
            Self::Strings { .. } => Some(DType::String),
        }
    }

    /// The sizes of what a row has.
    fn row_dims<'a>(&self, file: &'a Contents) -> Option<&'a [usize]> {
        let shaped = match self {
            Self::Numbers(tensor) => tensor,
            Self::Strings { ends, .. } => ends,
        };
        file.tensor(shaped)?.shape.get(1..)
    }

    fn read(&self, file: &Contents) -> Result<HostTensor> {
        let (bytes, ends) = match self {
            Self::Numbers(tensor) => return read(file, tensor, None),
            Self::Strings { bytes, ends } => {
                (read(file, bytes, Some(DType::U8))?, read(file, ends, Some(DType::U64))?)
            }
        };
        let wrong = || damaged(file.path(), "the strings of a table end where they do not");
        let mut strings: Vec<Vec<u8>> = Vec::new();
        strings.try_reserve_exact(ends.len()).map_err(|_| {
            let message = format!("no memory for a table of {} strings", ends.len());
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
fn read(file: &Contents, name: &str, dtype: Option<DType>) -> Result<HostTensor> {
    let wrong = |why: &str| damaged(file.path(), &format!("{name:?}, of a table, {why}"));
    let info = file.tensor(name).ok_or_else(|| wrong("is not there"))?;
    let own = dtype_of(info.dtype).ok_or_else(|| wrong("has another dtype"))?;
    if dtype.is_some_and(|dtype| dtype != own) {
        return Err(wrong("has another dtype"));
    }
    let shape = Shape::new(&info.shape).map_err(|e| wrong(&e.to_string()))?;
    file.read(name, own, shape)
}

impl Entry {
    /// The names of its tensors in the file.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.keys.names().chain(self.values.names())
    }

    /// Why it is not what `spec` holds, if that is so.
    pub fn differs(&self, file: &Contents, spec: &TableSpec) -> Option<String> {
        let own = [&self.keys, &self.values].map(|place| place.dtype(file));
        let dims = self.values.row_dims(file).unwrap_or(&[]);
        let fits = Shape::new(dims).is_ok_and(|shape| spec.value_dims.admits(&shape));
        if own == [Some(spec.keys), Some(spec.values)] && fits {
            return None;
        }
        let [keys, values] = own.map(|dtype| dtype.map_or("another dtype", DType::name));
        Some(format!(
            "expected a table of {} and {}{}, and the file has one of {keys} and {values}{dims:?}",
            spec.keys, spec.values, spec.value_dims
        ))
    }

    /// Its elements, for the table `name` of a graph.
    ///
    /// # Errors
    /// The file is damaged, or no memory.
    pub fn read(&self, file: &Contents, name: &str) -> Result<StoredTable> {
        let (keys, values) = (self.keys.read(file)?, self.values.read(file)?);
        Ok(StoredTable { name: name.to_owned(), keys, values })
    }
}

/// The tables that a note tells of; nothing if there is no note.
///
/// # Errors
/// A later version, or what is no note.
pub(super) fn from_note(file: &std::path::Path, note: Option<&str>) -> Result<Option<Vec<Entry>>> {
    let Some(note) = note else { return Ok(None) };
    let note: Value = serde_json::from_str(note)
        .map_err(|e| damaged(file, &format!("its note of tables is no JSON: {e}")))?;
    match note.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(other) => {
            let message = format!(
                "unsupported: {} has version {other} of tables; this reads {VERSION}",
                file.display()
            );
            return Err(Error::new(ErrorKind::Unimplemented, message));
        }
        None => return Err(damaged(file, "its note of tables has no version")),
    }
    let entry = |table: &Value| {
        let place = |what: &str| table.get(what).and_then(Place::of);
        let name = table.get("name")?.as_str()?.to_owned();
        Some(Entry { name, keys: place("keys")?, values: place("values")? })
    };
    let tables = note.get("tables").and_then(Value::as_array);
    let tables = tables.and_then(|all| all.iter().map(entry).collect::<Option<Vec<_>>>());
    let tables = tables.ok_or_else(|| damaged(file, "its note of tables names none"))?;
    let names: BTreeSet<&str> = tables.iter().map(|entry| entry.name.as_str()).collect();
    if names.len() != tables.len() {
        return Err(damaged(file, "it has a table twice"));
    }
    Ok(Some(tables))
}
