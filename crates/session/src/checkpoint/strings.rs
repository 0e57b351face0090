//! Variables of strings in a checkpoint: two tensors each, and a note that names them. A checkpoint without such
//! variables has no note.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use convoke_graph_core::{DType, Result};
use serde_json::{Value, json};

use super::contents::Named;
use super::file::damaged;
use super::place::{Place, Put, listed_in, note_of};

/// What the note lists.
const WHAT: &str = "strings";

/// Puts in place of variables of strings what is written of them, and gives the note; nothing if there are none.
///
/// # Errors
/// No memory.
pub(super) fn replace(values: &mut Vec<Named>) -> Result<Option<String>> {
    let (strings, numbers): (Vec<Named>, Vec<Named>) =
        std::mem::take(values).into_iter().partition(|(_, value)| value.dtype() == DType::String);
    *values = numbers;
    if strings.is_empty() {
        return Ok(None);
    }
    let mut put = Put::into(values);
    let mut list = Vec::with_capacity(strings.len());
    for (name, value) in &strings {
        list.push(json!({ "name": name, "place": put.tensor(value, name)? }));
    }
    Ok(Some(note_of(WHAT, list)))
}

/// The variables of strings that a note tells of, by name.
///
/// # Errors
/// A later version, or what is no note.
pub(super) fn from_note(file: &Path, note: Option<&str>) -> Result<BTreeMap<String, Place>> {
    let Some(note) = note else { return Ok(BTreeMap::new()) };
    let entry = |variable: &Value| {
        let name = variable.get("name")?.as_str()?.to_owned();
        match Place::of(variable.get("place")?)? {
            Place::Numbers(_) => None,
            strings => Some((name, strings)),
        }
    };
    let list = listed_in(file, note, WHAT, entry)?;
    let names: BTreeSet<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
    if names.len() != list.len() {
        return Err(damaged(file, "it has a variable of strings twice"));
    }
    Ok(list.into_iter().collect())
}
