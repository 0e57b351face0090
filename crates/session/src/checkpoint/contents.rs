//! What a checkpoint has: the tensors of one file, or of the shards that an index names.
//!
//! An index is as Hugging Face's `model.safetensors.index.json`: `weight_map` gives the shard of each tensor. It
//! is written after its shards, so that shards without an index are no checkpoint.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use convoke_graph_core::{DType, Error, ErrorKind, HostTensor, Result, Shape};
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value, json};

use super::file::{self, TensorFile, damaged, dtype_of, folder_of, read_text, write_whole};
use super::place::Place;
use super::strings;
use super::tables::{self, Entry};

/// How the names of indexes end.
pub(crate) const INDEX_SUFFIX: &str = ".safetensors.index.json";
/// The greatest index that is read.
const INDEX_MAX_BYTES: u64 = 64 << 20;
/// The key under which how often random nodes were drawn is kept.
const DRAWS: &str = "convoke.draws";
/// The key under which it is kept what tables hold.
const TABLES: &str = "convoke.tables";
/// The key under which it is kept which variables are of strings.
const STRINGS: &str = "convoke.strings";

/// Tensors by name.
pub(crate) type Named = (String, HostTensor);

/// A checkpoint whose headers are read and whose files are whole.
pub(super) struct Contents {
    path: PathBuf,
    files: Vec<TensorFile>,
    /// The file of each tensor.
    places: BTreeMap<String, usize>,
    /// How often random nodes were drawn, a line for each.
    pub(super) draws: String,
    /// What tables hold, if it says so.
    pub(super) tables: Option<Vec<Entry>>,
    /// Where the variables of strings are.
    strings: BTreeMap<String, Place>,
    /// The names of all variables.
    variables: BTreeSet<String>,
}

/// What a checkpoint has of a variable.
pub(super) struct Found<'a> {
    /// The dtype, if it is one of ours.
    pub dtype: Option<DType>,
    pub dims: &'a [usize],
    text: String,
}

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.text, self.dims)
    }
}

/// What a checkpoint says beside its tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes {
    /// How often random nodes were drawn, a line for each.
    pub draws: String,
    /// Which tensors are what tables hold, if there are tables.
    pub tables: Option<String>,
    /// Which tensors are variables of strings, if there are such.
    pub strings: Option<String>,
}

impl Contents {
    pub(super) fn open(path: &Path) -> Result<Self> {
        if is_index(path) { Self::sharded(path) } else { Self::single(path) }
    }

    fn single(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let places = file.names().into_iter().map(|name| (name, 0)).collect();
        let draws = file.note(DRAWS).unwrap_or_default().to_owned();
        let note = |key: &str| file.note(key).map(str::to_owned);
        let notes = Notes { draws, tables: note(TABLES), strings: note(STRINGS) };
        Self::of(path, vec![file], places, notes)
    }

    fn of(
        path: &Path,
        files: Vec<TensorFile>,
        places: BTreeMap<String, usize>,
        Notes { draws, tables, strings }: Notes,
    ) -> Result<Self> {
        let tables = tables::from_note(path, tables.as_deref())?;
        let strings = strings::from_note(path, strings.as_deref())?;
        let of_tables = tables.iter().flatten().flat_map(Entry::tensors);
        let of_strings = strings.values().flat_map(Place::names);
        let parts = of_tables.map(|name| (name, "a table"));
        let parts: Vec<(&str, &str)> =
            parts.chain(of_strings.map(|name| (name, "a variable"))).collect();
        if let Some((name, what)) = parts.iter().find(|(name, _)| !places.contains_key(*name)) {
            return Err(damaged(path, &format!("{name:?}, of {what}, is not there")));
        }
        let parts: BTreeSet<&str> = parts.into_iter().map(|(name, _)| name).collect();
        let own = places.keys().filter(|name| !parts.contains(name.as_str()));
        let mut variables: BTreeSet<String> = own.cloned().collect();
        for name in strings.keys() {
            if !variables.insert(name.clone()) {
                return Err(damaged(path, &format!("it has {name:?} of strings and of numbers")));
            }
        }
        Ok(Self { path: path.to_owned(), files, places, draws, tables, strings, variables })
    }

    fn sharded(path: &Path) -> Result<Self> {
        let Index { shards, notes } = Index::read(path)?;
        let names: BTreeSet<&str> = shards.values().map(String::as_str).collect();
        let folder = folder_of(path);
        let open = |name: &&str| {
            TensorFile::open(&folder.join(name)).map_err(|e| match e.kind() {
                ErrorKind::NotFound => damaged(path, &format!("its shard {name} is missing")),
                _ => e,
            })
        };
        let files: Vec<TensorFile> = names.iter().map(open).collect::<Result<_>>()?;
        let mut places = BTreeMap::new();
        for (shard, (name, file)) in names.iter().zip(&files).enumerate() {
            for tensor in file.names() {
                if shards.get(&tensor).map(String::as_str) != Some(*name) {
                    let why =
                        format!("{name} has {tensor:?}, which the index does not place there");
                    return Err(damaged(path, &why));
                }
                places.insert(tensor, shard);
            }
        }
        if let Some((tensor, shard)) = shards.iter().find(|(name, _)| !places.contains_key(*name)) {
            return Err(damaged(path, &format!("its shard {shard} does not have {tensor:?}")));
        }
        Self::of(path, files, places, notes)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its variables, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(String::as_str)
    }

    /// What it has of a variable.
    pub(super) fn variable(&self, name: &str) -> Option<Found<'_>> {
        if let Some(strings) = self.strings.get(name) {
            let (dtype, dims) = (DType::String, strings.dims(self)?);
            return Some(Found { dtype: Some(dtype), dims, text: dtype.to_string() });
        }
        let info = self.tensor(name).filter(|_| self.variables.contains(name))?;
        let (dtype, text) = (dtype_of(info.dtype), format!("{:?}", info.dtype));
        Some(Found { dtype, dims: &info.shape, text })
    }

    /// Any tensor.
    pub(super) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.file(name)?.info(name)
    }

    /// The elements of a variable, which was found to be of this dtype and as many as `shape` has.
    pub(super) fn read(&self, name: &str, dtype: DType, shape: Shape) -> Result<HostTensor> {
        match self.strings.get(name) {
            Some(strings) => strings.read(self, "a variable")?.reshaped(shape),
            None => self.read_tensor(name, dtype, shape),
        }
    }

    /// The elements of any tensor.
    pub(super) fn read_tensor(&self, name: &str, dtype: DType, shape: Shape) -> Result<HostTensor> {
        let file = self.file(name).ok_or_else(|| damaged(&self.path, "a tensor is gone"))?;
        file.read(name, dtype, shape)
    }

    fn file(&self, name: &str) -> Option<&TensorFile> {
        self.files.get(*self.places.get(name)?)
    }
}

/// Writes all tensors and notes to one file.
pub(crate) fn write_single(path: &Path, tensors: Vec<Named>, notes: Notes) -> Result<()> {
    if is_index(path) {
        return Err(Error::invalid(format!(
            "{} would be read as the index of shards; end the name otherwise than in {INDEX_SUFFIX}",
            path.display()
        )));
    }
    let mut all = HashMap::from([(DRAWS.to_owned(), notes.draws)]);
    all.extend(notes.tables.map(|tables| (TABLES.to_owned(), tables)));
    all.extend(notes.strings.map(|strings| (STRINGS.to_owned(), strings)));
    file::write(path, tensors, Some(all))
}

/// Writes each shard to the file of its name beside the index, then the index.
pub(crate) fn write_sharded(
    index: &Path,
    shards: Vec<(String, Vec<Named>)>,
    notes: &Notes,
) -> Result<()> {
    let folder = folder_of(index);
    let (mut map, mut n_bytes) = (Map::new(), 0u64);
    for (name, tensors) in shards {
        for (tensor, value) in &tensors {
            map.insert(tensor.clone(), json!(name));
            n_bytes = n_bytes.saturating_add(value.bytes().len() as u64);
        }
        file::write(&folder.join(name), tensors, None)?;
    }
    let mut text = json!({
        "metadata": { "total_size": n_bytes, DRAWS: notes.draws },
        "weight_map": map,
    });
    for (key, note) in [(TABLES, &notes.tables), (STRINGS, &notes.strings)] {
        if let Some(note) = note {
            text["metadata"][key] = json!(note);
        }
    }
    write_whole(index, format!("{text:#}\n").as_bytes())
}

/// An index as read: the shard of each tensor.
struct Index {
    shards: BTreeMap<String, String>,
    notes: Notes,
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        let index: Value = serde_json::from_str(&read_text(path, INDEX_MAX_BYTES)?)
            .map_err(|e| damaged(path, &e.to_string()))?;
        let map = index.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| damaged(path, "it has no object `weight_map`"))?;
        let entry = |(tensor, shard): (&String, &Value)| match shard.as_str() {
            Some(shard) if is_plain(shard) => Ok((tensor.clone(), shard.to_owned())),
            _ => Err(Error::invalid(format!(
                "{} places {tensor:?} in {shard}, which is no file's name in the same folder",
                path.display()
            ))),
        };
        let shards = map.iter().map(entry).collect::<Result<_>>()?;
        let note = |key: &str| match index.get("metadata").and_then(|notes| notes.get(key)) {
            None => Ok(None),
            Some(Value::String(note)) => Ok(Some(note.clone())),
            Some(_) => Err(damaged(path, &format!("its note {key:?} is no text"))),
        };
        let notes = Notes {
            draws: note(DRAWS)?.unwrap_or_default(),
            tables: note(TABLES)?,
            strings: note(STRINGS)?,
        };
        Ok(Self { shards, notes })
    }
}

fn is_index(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.ends_with(INDEX_SUFFIX))
}

/// True for the name of a file without a folder.
fn is_plain(name: &str) -> bool {
    !name.contains(['/', '\\', '\0']) && Path::new(name).file_name().is_some_and(|n| n == name)
}
