//! The folder of a saver: what its files are called, which are there, and which go.
//!
//! Only names that a saver of this name gives are ever deleted, whatever a file says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use convoke_graph_core::{Error, ErrorKind, Result};

use super::list::{Entry, List, to_ms};
use crate::checkpoint::{self, INDEX_SUFFIX, Named, Notes, folder_of, read_text, write_whole};

/// How the names of files with tensors end.
const SUFFIX: &str = ".safetensors";
/// The greatest list that is read.
const LIST_MAX_BYTES: u64 = 16 << 20;

pub(super) struct Folder {
    dir: PathBuf,
    /// What the names of its files begin with.
    name: String,
}

/// The files of one checkpoint.
pub(super) struct Files {
    /// What is restored: the one file, or the index.
    pub(super) first: String,
    shards: Vec<String>,
}

/// What a file is of its checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Single,
    Index,
    /// Of the attempt with this number.
    Shard(u64),
}

impl Folder {
    pub(super) fn of(prefix: &Path) -> Result<Self> {
        let is_folder = prefix.as_os_str().to_string_lossy().ends_with(std::path::is_separator);
        let name = prefix.file_name().and_then(|name| name.to_str()).filter(|_| !is_folder);
        let name = name.ok_or_else(|| {
            let message = format!(
                "expected a folder and a name in UTF-8 for checkpoints, as runs/a/model, got {}",
                prefix.display()
            );
            Error::invalid(message)
        })?;
        Ok(Self { dir: folder_of(prefix).to_owned(), name: name.to_owned() })
    }

    pub(super) fn check_exists(&self) -> Result<()> {
        if self.dir.exists() {
            return Ok(());
        }
        let message =
            format!("there is no folder {} for checkpoints; create it", self.dir.display());
        Err(Error::new(ErrorKind::NotFound, message))
    }

    /// Waits until nobody else changes checkpoints of this name. They may again when what it gives is dropped.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.path(&format!("{}.checkpoints.lock", self.name));
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(|e| checkpoint::io(&path, "open", &e))?;
        loop {
            match file.lock() {
                Ok(()) => return Ok(file),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    tracing::warn!("{} is not locked: {e}", path.display());
                    return Ok(file);
                }
            }
        }
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// The list that was written, or what is in the folder.
    pub(super) fn list(&self) -> Result<List> {
        let path = self.list_path();
        let parse = |text: String| {
            List::parse(&text, |step, file| {
                matches!(self.part(file), Some((s, Part::Single | Part::Index)) if s == step)
            })
            .map_err(|why| {
                Error::new(
                    ErrorKind::DataLoss,
                    format!("{} is no list of checkpoints: {why}", path.display()),
                )
            })
        };
        let error = match read_text(&path, LIST_MAX_BYTES).and_then(parse) {
            Ok(list) => return Ok(list),
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(error) => error,
        };
        let found = self.found()?;
        match (error.kind(), found.entries.last()) {
            (ErrorKind::NotFound, None) => return Ok(found),
            (_, None) => {
                let message = format!(
                    "{}, and the folder has no checkpoint {}-STEP{SUFFIX}; if none is wanted, remove the list",
                    error.message(),
                    self.name
                );
                return Err(Error::new(ErrorKind::DataLoss, message));
            }
            (_, Some(last)) => tracing::warn!(
                "{}; the folder has {} checkpoints, and the one of the last step, {}, counts as the latest",
                error.message(),
                found.entries.len(),
                last.step
            ),
        }
        Ok(found)
    }

    /// As [`Self::list`], for a saver that is about to write: a damaged list is replaced.
    pub(super) fn list_to_extend(&self) -> Result<List> {
        self.list().or_else(|error| match error.kind() {
            ErrorKind::DataLoss => {
                tracing::warn!("{}; it is replaced", error.message());
                Ok(List::default())
            }
            _ => Err(error),
        })
    }

    pub(super) fn write_list(&self, list: &List) -> Result<()> {
        write_whole(&self.list_path(), list.to_json().as_bytes())
    }

    pub(super) fn write_single(
        &self,
        step: u64,
        values: Vec<Named>,
        notes: Notes,
    ) -> Result<Files> {
        let first = format!("{}-{step}{SUFFIX}", self.name);
        checkpoint::write_single(&self.path(&first), values, notes)?;
        Ok(Files { first, shards: Vec::new() })
    }

    /// Writes the values of each shard to a file of a new name, so that shards of the same step stay whole until
    /// their index is replaced.
    pub(super) fn write_sharded(
        &self,
        step: u64,
        values: Vec<Named>,
        shards: &[Vec<usize>],
        notes: &Notes,
    ) -> Result<Files> {
        let attempt = self.next_attempt(step)?;
        let attempt = if attempt == 0 { String::new() } else { format!(".{attempt}") };
        let n = shards.len();
        let name =
            |i: usize| format!("{}-{step}{attempt}-{:05}-of-{n:05}{SUFFIX}", self.name, i + 1);
        let names: Vec<String> = (0..n).map(name).collect();
        let first = format!("{}-{step}{INDEX_SUFFIX}", self.name);
        let tensors = |shard: &Vec<usize>| shard.iter().map(|&i| values[i].clone()).collect();
        let shards = names.iter().cloned().zip(shards.iter().map(tensors)).collect();
        checkpoint::write_sharded(&self.path(&first), shards, notes).inspect_err(|_| {
            // Shards that were not written cannot be removed.
            names.iter().for_each(|name| drop(fs::remove_file(self.path(name))));
        })?;
        Ok(Files { first, shards: names })
    }

    /// Deletes the files of `dropped` steps, and those of `step` that are not its own.
    pub(super) fn sweep(&self, step: u64, own: &Files, dropped: &[u64]) {
        let is_own = |file: &String| *file == own.first || own.shards.contains(file);
        let files = match self.files() {
            Ok(files) => files,
            Err(e) => return tracing::warn!("old checkpoints stay: {e}"),
        };
        let mut old: Vec<(String, u64, Part)> = files
            .into_iter()
            .filter(|(file, s, _)| dropped.contains(s) || (*s == step && !is_own(file)))
            .collect();
        // A checkpoint without its index is none; one without a shard would be damaged.
        old.sort_by_key(|(_, _, part)| matches!(part, Part::Shard(_)));
        for (file, ..) in old {
            let path = self.path(&file);
            if let Err(e) = fs::remove_file(&path) {
                tracing::warn!("the old checkpoint {} stays: {e}", path.display());
            }
        }
    }

    /// The checkpoints that are in the folder, by step.
    fn found(&self) -> Result<List> {
        let mut newest = BTreeMap::new();
        for (file, step, part) in self.files()? {
            if matches!(part, Part::Shard(_)) {
                continue;
            }
            let modified = fs::metadata(self.path(&file)).and_then(|about| about.modified());
            let saved_ms = modified.map_or(0, to_ms);
            let entry = Entry { step, file, saved_ms, stays: false };
            let kept = newest.entry(step).or_insert_with(|| entry.clone());
            if kept.saved_ms < saved_ms {
                *kept = entry;
            }
        }
        Ok(List { entries: newest.into_values().collect() })
    }

    /// The saver's files, with the step and part of each; none if there is no folder.
    fn files(&self) -> Result<Vec<(String, u64, Part)>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(checkpoint::io(&self.dir, "read", &e)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| checkpoint::io(&self.dir, "read", &e))?;
            if let Ok(file) = entry.file_name().into_string()
                && let Some((step, part)) = self.part(&file)
            {
                files.push((file, step, part));
            }
        }
        Ok(files)
    }

    /// The step and part of a file of this name, if it is the saver's.
    fn part(&self, file: &str) -> Option<(u64, Part)> {
        let (step, rest) = number(file.strip_prefix(&self.name)?.strip_prefix('-')?)?;
        let part = match rest {
            SUFFIX => Part::Single,
            INDEX_SUFFIX => Part::Index,
            _ => Part::Shard(attempt(rest)?),
        };
        Some((step, part))
    }

    fn next_attempt(&self, step: u64) -> Result<u64> {
        let attempts = self.files()?.into_iter().filter_map(|(_, s, part)| match part {
            Part::Shard(attempt) if s == step => Some(attempt),
            _ => None,
        });
        Ok(attempts.max().map_or(0, |last| last.saturating_add(1)))
    }

    fn list_path(&self) -> PathBuf {
        self.path(&format!("{}.checkpoints.json", self.name))
    }
}

/// The number that a text begins with, written as Rust writes it, and the rest.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some((number, rest))
}

/// The number of the attempt in `.1-00001-of-00002.safetensors`, and 0 in `-00001-of-00002.safetensors`.
fn attempt(text: &str) -> Option<u64> {
    let (attempt, rest) = match text.strip_prefix('.') {
        Some(rest) => number(rest)?,
        None => (0, text),
    };
    let (i, n) = rest.strip_prefix('-')?.strip_suffix(SUFFIX)?.split_once("-of-")?;
    let is_count = |text: &str| text.len() >= 5 && text.bytes().all(|b| b.is_ascii_digit());
    (is_count(i) && is_count(n)).then_some(attempt)
}
