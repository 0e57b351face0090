//! Checkpoints: the variables of a graph in one safetensors file, or in shards with an index.
//!
//! A file is written beside its place, synced, renamed, and its folder synced: after `save` has returned,
//! the new checkpoint is there whatever happens; before, the old one is. Restoring checks everything
//! before it changes anything. `saver.rs` keeps many of them.

mod contents;
mod file;
mod place;
mod report;
mod restore;
mod strings;
mod tables;

use std::path::Path;

use convoke_graph_core::{Error, NodeId, Result, Variable};

use crate::core::Moment;
use crate::session::Session;
use contents::Contents;
pub(crate) use contents::{INDEX_SUFFIX, Named, Notes, write_sharded, write_single};
pub(crate) use file::{
    RESERVED, TensorFile, dtype_of, folder_of, io, read_text, write as write_tensors, write_whole,
};
pub use report::{KeptTable, KeptVariable, RestoreReport};
use restore::Matching;
pub use restore::{Mismatch, Missing, RestoreOptions, Unknown};

/// The greatest file of a checkpoint that is read, in bytes.
pub const CHECKPOINT_MAX_BYTES: u64 = 64 << 30;

impl Session {
    /// Writes all variables of the graph, what its mutable tables hold, and the state of its random operations, to
    /// `path`: as they are between two runs, whatever runs meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] for a variable without elements; [`ErrorKind::InvalidArgument`] if `path` is
    /// no file's or ends as an index of shards; [`ErrorKind::Unavailable`] with the path and the system's reason if
    /// the file cannot be written. The old file is whole then.
    ///
    /// [`ErrorKind::InvalidArgument`]: convoke_graph_core::ErrorKind::InvalidArgument
    /// [`ErrorKind::FailedPrecondition`]: convoke_graph_core::ErrorKind::FailedPrecondition
    /// [`ErrorKind::Unavailable`]: convoke_graph_core::ErrorKind::Unavailable
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let (values, notes) = self.kept(&self.graph().global_variables(), true)?;
        write_single(path.as_ref(), values, notes)
    }

    /// Gives every variable of the graph the elements that `path` has under its name, and every mutable table what it
    /// held, or changes nothing. The file is one that [`Self::save`] wrote, or the index of shards; if its graph had no
    /// tables, those of this one stay as they are.
    ///
    /// It happens between two runs, as far as these store: no run stores one thing before and another after. What a run
    /// that is under way has read before, it does not read again, and what it computes from that it stores later.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no file; [`ErrorKind::DataLoss`] if it is damaged or a shard is missing;
    /// [`ErrorKind::InvalidArgument`] if a name is missing or unknown, or a shape or dtype differs.
    ///
    /// [`ErrorKind::NotFound`]: convoke_graph_core::ErrorKind::NotFound
    /// [`ErrorKind::DataLoss`]: convoke_graph_core::ErrorKind::DataLoss
    /// [`ErrorKind::InvalidArgument`]: convoke_graph_core::ErrorKind::InvalidArgument
    pub fn restore(&self, path: impl AsRef<Path>) -> Result<()> {
        self.restore_with(path, &RestoreOptions::default()).map(|_| ())
    }

    /// As [`Self::restore`], of what `options` ask for: some variables, other names in the file, a changed graph.
    /// Says what was done; or changes nothing.
    ///
    /// # Errors
    /// As [`Self::restore`], for what the options do not allow; also [`ErrorKind::InvalidArgument`] if they map a
    /// name that is not to be restored or two variables to one name, or if nothing in the file fits.
    ///
    /// # Source
    /// TensorFlow 1.x, `tf.train.Saver(var_list).restore`, where a name that is missing is NotFound; here NotFound
    /// means that there is no file.
    ///
    /// [`ErrorKind::InvalidArgument`]: convoke_graph_core::ErrorKind::InvalidArgument
    pub fn restore_with(
        &self,
        path: impl AsRef<Path>,
        options: &RestoreOptions,
    ) -> Result<RestoreReport> {
        let file = Contents::open(path.as_ref())?;
        let mut matching = Matching::new(self.graph(), &file, options)?;
        let draws = match options.only[..] {
            [] => Some(matching.draws(self.graph(), &file, options.unknown)?),
            _ => None,
        };
        let graph = self.graph().snapshot();
        let tables = match options.only[..] {
            [] => matching.tables(&graph, &file, options)?,
            _ => Vec::new(),
        };
        let values = matching.read(&file)?;
        self.core.set(values, draws, tables)?;
        let state = self.state().lock();
        for (report, variable) in matching.report.kept.iter_mut().zip(&matching.kept) {
            report.is_initialized = state.is_initialized(variable.handle().node().id);
        }
        Ok(matching.report)
    }

    /// The elements of variables, by name; and, if `is_all` that is to be kept, what tables hold, and how often random
    /// nodes were drawn. All is of one moment.
    pub(crate) fn kept(&self, variables: &[Variable], is_all: bool) -> Result<(Vec<Named>, Notes)> {
        let graph = self.graph();
        if let Some(foreign) = variables.iter().find(|v| v.graph().id() != graph.id()) {
            let message = "the variable to save belongs to another graph than the session's";
            return Err(Error::invalid(message).with_node(foreign.name()));
        }
        let specs = if is_all { tables::tables_of(&graph.snapshot()) } else { Vec::new() };
        let Moment { variables: mut values, draws, tables } =
            self.core.moment(variables, &specs, |_| false)?;
        let named = variables.iter().filter_map(|variable| {
            let value = values.remove(&variable.handle().output().node)?;
            Some((variable.name(), value))
        });
        let mut named: Vec<Named> = named.collect();
        let strings = strings::replace(&mut named)?;
        if !is_all {
            return Ok((named, Notes { strings, ..Notes::default() }));
        }
        let tables = tables::add(&specs, &tables, &mut named)?;
        let line = |(node, count): &(NodeId, u32)| format!("{count} {}", graph.node(*node).name);
        let mut lines: Vec<String> = draws.iter().map(line).collect();
        lines.sort();
        Ok((named, Notes { draws: lines.join("\n"), tables, strings }))
    }
}
