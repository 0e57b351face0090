//! Savers: checkpoints by step in one folder, how many of them stay, and which is the latest.
//!
//! A checkpoint is written first, then the list of checkpoints beside it, and then what is no longer kept is
//! deleted: whenever that ends, the list names whole checkpoints only. Read `saver/folder.rs` for the files.

mod folder;
mod list;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use convoke_graph_core::{Error, ErrorKind, Result, Variable};

use crate::checkpoint::{Named, RestoreOptions, RestoreReport};
use crate::session::Session;
use folder::Folder;
use list::now_ms;

/// A checkpoint that a [`Saver`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The step that it was saved at.
    pub step: u64,
    /// What [`Session::restore`] takes: its file, or the index of its shards.
    pub path: PathBuf,
}

/// Saves checkpoints of a training by step, and finds the latest.
///
/// With the prefix `runs/a/model`, step 100 is in `runs/a/model-100.safetensors`; or, in shards, in
/// `runs/a/model-100-00001-of-00002.safetensors` and so on, with the index `runs/a/model-100.safetensors.index.json`
/// written last. `runs/a/model.checkpoints.json` lists them in the order of saving. Savers of several names may share
/// a folder; a saver goes on with the list that an earlier one of its name left. Those that save under one prefix at
/// the same time, in one process or in several, wait for one another: `runs/a/model.checkpoints.lock` is locked by who
/// saves. Where a file system has no locks, there must be one at a time.
///
/// # Source
/// TensorFlow 1.x, `tf.train.Saver`.
#[derive(Debug, Clone)]
pub struct Saver {
    prefix: PathBuf,
    max_to_keep: usize,
    keep_every: Option<Duration>,
    sharding: Sharding,
    variables: Vec<Variable>,
}

/// How a checkpoint is divided among files.
#[derive(Debug, Clone, Copy)]
enum Sharding {
    Single,
    Count(usize),
    Bytes(u64),
}

impl Saver {
    /// A saver of all variables and of tables that runs change, of which the five newest checkpoints stay, each in one
    /// file. The folder must exist when it saves.
    pub fn new(prefix: impl Into<PathBuf>) -> Self {
        Self {
            prefix: prefix.into(),
            max_to_keep: 5,
            keep_every: None,
            sharding: Sharding::Single,
            variables: Vec::new(),
        }
    }

    /// How many of the newest checkpoints stay; 0 is all.
    #[must_use]
    pub fn max_to_keep(self, n: usize) -> Self {
        Self { max_to_keep: n, ..self }
    }

    /// Of the checkpoints that [`Self::max_to_keep`] would delete, the first stays, and each that was saved at least
    /// `interval` after the last that stayed.
    #[must_use]
    pub fn keep_every(self, interval: Duration) -> Self {
        Self { keep_every: Some(interval), ..self }
    }

    /// Divides each checkpoint among `n` files of about one size, at least one, or fewer if there are fewer
    /// variables.
    #[must_use]
    pub fn shards(self, n: usize) -> Self {
        Self { sharding: Sharding::Count(n), ..self }
    }

    /// Divides each checkpoint among files of at most `max` bytes of elements; a larger variable has its own.
    #[must_use]
    pub fn shard_bytes(self, max: u64) -> Self {
        Self { sharding: Sharding::Bytes(max), ..self }
    }

    /// Saves and restores only these variables, and neither tables nor the state of random operations.
    #[must_use]
    pub fn variables(self, variables: impl IntoIterator<Item = Variable>) -> Self {
        Self { variables: variables.into_iter().collect(), ..self }
    }

    /// Writes the checkpoint of `step`, in place of one of the same step, as [`Session::save`] does, and deletes what
    /// is no longer kept. What cannot be deleted is left, with a warning.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if there is neither a variable nor a table to save, a variable is given twice or
    /// of another graph, or the prefix has no name; [`ErrorKind::FailedPrecondition`] for a variable without elements;
    /// [`ErrorKind::NotFound`] if there is no folder; [`ErrorKind::Unavailable`] or [`ErrorKind::ResourceExhausted`]
    /// with the system's reason if it cannot be written. No earlier checkpoint is lost then.
    pub fn save(&self, session: &Session, step: u64) -> Result<PathBuf> {
        let folder = Folder::of(&self.prefix)?;
        folder.check_exists()?;
        let is_all = self.variables.is_empty();
        let all = session.graph().global_variables();
        let variables = if is_all { &all } else { &self.variables };
        check_names(variables)?;
        let (values, notes) = session.kept(variables, is_all)?;
        if values.is_empty() {
            return Err(Error::invalid("the graph has no variables and no tables to save"));
        }
        let _saving = folder.lock()?;
        let mut list = folder.list_to_extend()?;
        let files = match divide(&values, self.sharding) {
            None => folder.write_single(step, values, notes)?,
            Some(shards) => folder.write_sharded(step, values, &shards, &notes)?,
        };
        list.add(step, files.first.clone(), now_ms());
        let dropped = list.drop_old(self.max_to_keep, self.keep_every);
        folder.write_list(&list)?;
        folder.sweep(step, &files, &dropped);
        Ok(folder.path(&files.first))
    }

    /// The checkpoints that are kept, in the order of saving. Where the list is missing or damaged, they are those
    /// that the folder has, by step, with a warning.
    ///
    /// # Errors
    /// [`ErrorKind::DataLoss`] if the list is damaged and the folder has no checkpoint;
    /// [`ErrorKind::Unavailable`] if the folder cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        let folder = Folder::of(&self.prefix)?;
        let entries = folder.list()?.entries.into_iter();
        Ok(entries.map(|e| Checkpoint { step: e.step, path: folder.path(&e.file) }).collect())
    }

    /// The checkpoint that was saved last, whether or not its files are still there; none if nothing was saved.
    ///
    /// # Errors
    /// As [`Self::checkpoints`].
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        Ok(self.checkpoints()?.pop())
    }

    /// Restores the checkpoint that was saved last, and says its step.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if nothing was saved; [`ErrorKind::DataLoss`] if the checkpoint is damaged or gone,
    /// naming an older one; as [`Session::restore`] otherwise. Nothing has changed then.
    pub fn restore_latest(&self, session: &Session) -> Result<u64> {
        let (checkpoint, _) = self.restore_latest_with(session, &RestoreOptions::default())?;
        Ok(checkpoint.step)
    }

    /// As [`Self::restore_latest`], of what `options` ask for; of the saver's variables if these name none.
    ///
    /// # Errors
    /// As [`Self::restore_latest`] and [`Session::restore_with`].
    pub fn restore_latest_with(
        &self,
        session: &Session,
        options: &RestoreOptions,
    ) -> Result<(Checkpoint, RestoreReport)> {
        let mut checkpoints = self.checkpoints()?;
        let Some(latest) = checkpoints.pop() else {
            let message = format!(
                "there is no checkpoint {}-STEP.safetensors; to begin anew, run graph.initializers()",
                self.prefix.display()
            );
            return Err(Error::new(ErrorKind::NotFound, message));
        };
        let mut options = options.clone();
        if options.only.is_empty() {
            options.only.clone_from(&self.variables);
        }
        match session.restore_with(&latest.path, &options) {
            Ok(report) => Ok((latest, report)),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DataLoss) => {
                Err(lost(&e, &latest, &checkpoints))
            }
            Err(e) => Err(e),
        }
    }
}

/// The error for a latest checkpoint that is damaged or gone, with what would help.
fn lost(error: &Error, latest: &Checkpoint, older: &[Checkpoint]) -> Error {
    let help = match older.iter().rev().find(|checkpoint| checkpoint.path.exists()) {
        Some(Checkpoint { step, path }) => {
            format!("the next older one is {}, of step {step}; restore it by name", path.display())
        }
        None => "there is no older one".to_owned(),
    };
    let message =
        format!("the checkpoint of step {} is lost: {}; {help}", latest.step, error.message());
    Error::new(ErrorKind::DataLoss, message)
}

/// A file has each name once.
fn check_names(variables: &[Variable]) -> Result<()> {
    let mut names = BTreeSet::new();
    match variables.iter().map(Variable::name).find(|name| !names.insert(name.clone())) {
        Some(name) => Err(Error::invalid("the variable to save is given twice").with_node(name)),
        None => Ok(()),
    }
}

/// Which values go to which shard; none for one file without an index.
fn divide(values: &[Named], sharding: Sharding) -> Option<Vec<Vec<usize>>> {
    let sizes: Vec<u64> = values.iter().map(|(_, value)| value.bytes().len() as u64).collect();
    match sharding {
        Sharding::Single => None,
        Sharding::Count(n) => Some(divide_evenly(&sizes, n)),
        Sharding::Bytes(max) => Some(divide_by_size(&sizes, max)),
    }
}

/// The largest first, each to the shard that has least.
fn divide_evenly(sizes: &[u64], n: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(sizes[i]));
    let mut shards = vec![(0u64, Vec::new()); n.clamp(1, sizes.len().max(1))];
    for i in order {
        if let Some(least) = shards.iter_mut().min_by_key(|(size, all)| (*size, all.len())) {
            least.0 = least.0.saturating_add(sizes[i]);
            least.1.push(i);
        }
    }
    shards.into_iter().map(|(_, shard)| shard).collect()
}

/// In order, as many to a shard as fit.
fn divide_by_size(sizes: &[u64], max: u64) -> Vec<Vec<usize>> {
    let mut shards: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for (i, &size) in sizes.iter().enumerate() {
        match shards.last_mut() {
            Some(shard) if size <= room => {
                room -= size;
                shard.push(i);
            }
            _ => {
                room = max.saturating_sub(size);
                shards.push(vec![i]);
            }
        }
    }
    shards
}
