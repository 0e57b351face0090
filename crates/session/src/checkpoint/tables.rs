//! What tables that runs change hold, in a checkpoint: tensors beside those of variables, and a note that names them.
//!
//! A checkpoint of a graph without tables has no
//! note, and neither has one that was written before there were any; restoring it leaves tables as they are.
//!
//! Source: TensorFlow's `MutableHashTable`, whose `_Saveable` puts keys and values into checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use convoke_graph_core::{DType, GraphSnapshot, Result, Shape, TableContents, TableSpec};
use serde_json::{Value, json};

use super::contents::{Contents, Named};
use super::file::damaged;
use super::place::{Place, Put, listed_in, note_of};
use crate::model::{StoredTable, table_of};

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
    let mut put = Put::into(tensors);
    let mut tables = Vec::with_capacity(specs.len());
    for (spec, contents) in specs.iter().zip(contents) {
        let (keys, values) = contents.export()?;
        tables.push(json!({
            "name": spec.name,
            "keys": put.tensor(&keys, &format!("{}/keys", spec.name))?,
            "values": put.tensor(&values, &format!("{}/values", spec.name))?,
        }));
    }
    Ok(Some(note_of("tables", tables)))
}

/// A table of a checkpoint, whose elements are not read yet.
pub(super) struct Entry {
    pub name: String,
    keys: Place,
    values: Place,
}

impl Entry {
    /// The names of its tensors in the file.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.keys.names().chain(self.values.names())
    }

    /// Why it is not what `spec` holds, if that is so.
    pub fn differs(&self, file: &Contents, spec: &TableSpec) -> Option<String> {
        let own = [&self.keys, &self.values].map(|place| place.dtype(file));
        let dims = self.values.dims(file).and_then(|dims| dims.get(1..)).unwrap_or(&[]);
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
        let (keys, values) = (self.keys.read(file, "a table")?, self.values.read(file, "a table")?);
        Ok(StoredTable { name: name.to_owned(), keys, values })
    }
}

/// The tables that a note tells of; nothing if there is no note.
///
/// # Errors
/// A later version, or what is no note.
pub(super) fn from_note(file: &std::path::Path, note: Option<&str>) -> Result<Option<Vec<Entry>>> {
    let Some(note) = note else { return Ok(None) };
    let entry = |table: &Value| {
        let place = |what: &str| table.get(what).and_then(Place::of);
        let name = table.get("name")?.as_str()?.to_owned();
        Some(Entry { name, keys: place("keys")?, values: place("values")? })
    };
    let tables = listed_in(file, note, "tables", entry)?;
    let names: BTreeSet<&str> = tables.iter().map(|entry| entry.name.as_str()).collect();
    if names.len() != tables.len() {
        return Err(damaged(file, "it has a table twice"));
    }
    Ok(Some(tables))
}
