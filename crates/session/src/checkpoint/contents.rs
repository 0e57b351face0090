//! What a checkpoint has: the tensors of one file, or of the shards that an index names.
//!
//! An index is as Hugging Face's `model.safetensors.index.json`: `weight_map` gives the shard of each tensor. It
//! is written after its shards, so that shards without an index are no checkpoint.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use convoke_graph_core::{DType, Error, ErrorKind, HostTensor, Result, Shape};
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value, json};

use super::file::{self, TensorFile, damaged, folder_of, read_text, write_whole};
use super::tables::{self, Entry};

/// How the names of indexes end.
pub(crate) const INDEX_SUFFIX: &str = ".safetensors.index.json";
/// The greatest index that is read.
const INDEX_MAX_BYTES: u64 = 64 << 20;
/// The key under which how often random nodes were drawn is kept.
const DRAWS: &str = "convoke.draws";
/// The key under which it is kept what tables hold.
const TABLES: &str = "convoke.tables";

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
    /// The tensors of tables.
    of_tables: BTreeSet<String>,
}

/// What a checkpoint says beside its tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes {
    /// How often random nodes were drawn, a line for each.
    pub draws: String,
    /// Which tensors are what tables hold, if there are tables.
    pub tables: Option<String>,
}

impl Contents {
    pub(super) fn open(path: &Path) -> Result<Self> {
        if is_index(path) { Self::sharded(path) } else { Self::single(path) }
    }

    fn single(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let places = file.names().into_iter().map(|name| (name, 0)).collect();
        let draws = file.note(DRAWS).unwrap_or_default().to_owned();
        let tables = file.note(TABLES).map(str::to_owned);
        Self::of(path, vec![file], places, Notes { draws, tables })
    }

    fn of(
        path: &Path,
        files: Vec<TensorFile>,
        places: BTreeMap<String, usize>,
        Notes { draws, tables }: Notes,
    ) -> Result<Self> {
        let tables = tables::from_note(path, tables.as_deref())?;
        let of_tables = tables.iter().flatten().flat_map(Entry::tensors).map(str::to_owned);
        let of_tables: BTreeSet<String> = of_tables.collect();
        if let Some(name) = of_tables.iter().find(|name| !places.contains_key(*name)) {
            return Err(damaged(path, &format!("{name:?}, of a table, is not there")));
        }
        Ok(Self { path: path.to_owned(), files, places, draws, tables, of_tables })
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

    /// The names of its tensors but those of tables, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let own = self.places.keys().filter(|name| !self.of_tables.contains(*name));
        own.map(String::as_str)
    }

    /// A tensor that is not of a table.
    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor(name).filter(|_| !self.of_tables.contains(name))
    }

    /// Any tensor.
    pub(super) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.file(name)?.info(name)
    }

    pub(super) fn read(&self, name: &str, dtype: DType, shape: Shape) -> Result<HostTensor> {
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
    if let Some(tables) = &notes.tables {
        text["metadata"][TABLES] = json!(tables);
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
        let notes = Notes { draws: note(DRAWS)?.unwrap_or_default(), tables: note(TABLES)? };
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
