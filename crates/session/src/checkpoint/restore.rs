//! Which variables a checkpoint gives elements to: by name, by mapped name, all or some.
//!
//! Everything is decided before anything is read, and everything is read before anything changes.
//! Semantics: TensorFlow 1.x, `python/training/saver.py`, whose `var_list` may map names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use convoke_graph_core::{
    Error, Graph, GraphSnapshot, HostTensor, NodeId, Result, Shape, TableContents, TableSpec,
    Variable,
};

use super::contents::Contents;
use super::file::damaged;
use super::report::{KeptTable, KeptVariable, RestoreReport, listed};
use super::tables::{Entry, tables_of};
use crate::model;

/// What of a checkpoint to restore, and what may differ. The default is strict: every variable of the graph, under
/// its own name, and nothing else in the file. What is said of variables here is so of mutable tables too, if the file
/// has any; they have no shape.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// The variables to restore; all of the graph if there are none. If there are some, tables and the state of random
    /// operations stay, and what else the file has does not matter.
    pub only: Vec<Variable>,
    /// Pairs of a variable's name and its name in the file.
    pub names: Vec<(String, String)>,
    /// Pairs of how variables' names begin and how these begin in the file, for variables that [`Self::names`] does
    /// not name. The longest that fits counts.
    pub prefixes: Vec<(String, String)>,
    /// What to do with a variable that the file does not have.
    pub missing: Missing,
    /// What to do with a name in the file that the graph does not have.
    pub unknown: Unknown,
    /// What to do with a variable of another shape or dtype than in the file.
    pub mismatch: Mismatch,
}

/// What to do with a variable that a checkpoint does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Missing {
    /// Refuse the checkpoint.
    #[default]
    Refuse,
    /// Leave the variable as it is. One without elements stays so; the report says it.
    Keep,
}

/// What to do with a name in a checkpoint that the graph does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unknown {
    /// Refuse the checkpoint.
    #[default]
    Refuse,
    /// Leave it; the report names it.
    Ignore,
}

/// What to do with a variable whose shape or dtype is another than in a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mismatch {
    /// Refuse the checkpoint.
    #[default]
    Refuse,
    /// Leave the variable as it is. One without elements stays so; the report says it.
    Keep,
    /// Take the elements in order if the dtype is the same and there are as many; refuse otherwise.
    Reshape,
}

/// What to read for each variable, and what else there is to say.
pub(super) struct Matching {
    chosen: Vec<Chosen>,
    pub(super) report: RestoreReport,
    /// Variables that stay, in the order of the report's.
    pub(super) kept: Vec<Variable>,
}

struct Chosen {
    variable: Variable,
    stored: String,
    shape: Shape,
}

impl Matching {
    pub(super) fn new(graph: &Graph, file: &Contents, options: &RestoreOptions) -> Result<Self> {
        let stored = stored_names(graph, options)?;
        let mut report = RestoreReport { path: file.path().to_owned(), ..Default::default() };
        let taken: BTreeSet<&str> = stored.iter().map(|(_, name)| name.as_str()).collect();
        report.ignored =
            file.names().filter(|name| !taken.contains(name)).map(str::to_owned).collect();
        if options.only.is_empty() && options.unknown == Unknown::Refuse {
            refuse_unknown(file, &report.ignored)?;
        }
        if options.missing == Missing::Refuse {
            refuse_missing(file, &stored)?;
        }
        let mut matching = Self { chosen: Vec::new(), report, kept: Vec::new() };
        for (variable, stored) in stored {
            matching.add(file, variable, stored, options.mismatch)?;
        }
        matching.refuse_nothing(file)?;
        Ok(matching)
    }

    fn add(
        &mut self,
        file: &Contents,
        variable: Variable,
        stored: String,
        mismatch: Mismatch,
    ) -> Result<()> {
        let name = variable.name();
        match fit(file, &variable, &stored, mismatch)? {
            Ok(shape) => {
                if name != stored {
                    self.report.mapped.push((name.clone(), stored.clone()));
                }
                self.report.restored.push(name);
                self.chosen.push(Chosen { variable, stored, shape });
            }
            Err(reason) => {
                self.report.kept.push(KeptVariable { name, reason, is_initialized: false });
                self.kept.push(variable);
            }
        }
        Ok(())
    }

    /// A checkpoint of which nothing fits is the wrong one, however much may differ.
    fn refuse_nothing(&self, file: &Contents) -> Result<()> {
        if self.chosen.is_empty() && !self.kept.is_empty() {
            return Err(Error::invalid(format!(
                "nothing in {} fits: the variables are {}, and it has {}",
                file.path().display(),
                listed(self.report.kept.iter().map(|kept| kept.name.as_str())),
                listed(file.names()),
            )));
        }
        Ok(())
    }

    pub(super) fn read(&self, file: &Contents) -> Result<Vec<(NodeId, HostTensor)>> {
        let read = |Chosen { variable, stored, shape }: &Chosen| {
            let value = file.read(stored, variable.dtype(), shape.clone());
            let value = value.map_err(|e| e.with_node(variable.name()))?;
            Ok((variable.handle().output().node, value))
        };
        self.chosen.iter().map(read).collect()
    }

    /// What tables are to hold. If the file tells of no tables, all stay as they are.
    pub(super) fn tables(
        &mut self,
        graph: &GraphSnapshot,
        file: &Contents,
        options: &RestoreOptions,
    ) -> Result<Vec<(Arc<TableSpec>, TableContents)>> {
        let specs = tables_of(graph);
        let Some(entries) = &file.tables else {
            let kept = |spec: &Arc<TableSpec>| KeptTable {
                name: spec.name.clone(),
                reason: "the file tells of no tables".to_owned(),
            };
            self.report.kept_tables = specs.iter().map(kept).collect();
            return Ok(Vec::new());
        };
        let mut left: BTreeMap<&str, &Entry> =
            entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
        let mut stored = Vec::new();
        for spec in specs {
            let name = stored_name(&spec.name, options);
            let entry = left.remove(name.as_str());
            let reason = match entry {
                None => Some((
                    format!("the file has no table {name:?}"),
                    options.missing == Missing::Keep,
                )),
                Some(entry) => entry
                    .differs(file, &spec)
                    .map(|reason| (reason, options.mismatch == Mismatch::Keep)),
            };
            match (entry, reason) {
                (Some(entry), None) => stored.push(entry.read(file, &spec.name)?),
                (_, Some((reason, true))) => {
                    self.report.kept_tables.push(KeptTable { name: spec.name.clone(), reason });
                }
                (_, reason) => {
                    let reason = reason.map(|(reason, _)| reason).unwrap_or_default();
                    return Err(Error::invalid(reason).with_node(&*spec.name));
                }
            }
        }
        if let Some(name) = left.keys().next().filter(|_| options.unknown == Unknown::Refuse) {
            return Err(Error::invalid(format!(
                "{} has a table {name:?} that the graph does not have; leave it with Unknown::Ignore",
                file.path().display()
            )));
        }
        self.report.ignored.extend(left.keys().map(|name| (*name).to_owned()));
        let contents =
            model::table_contents(graph, &stored).map_err(|e| damaged(file.path(), e.message()))?;
        self.report.tables = stored.into_iter().map(|table| table.name).collect();
        Ok(contents)
    }

    /// How often random nodes were drawn.
    pub(super) fn draws(
        &mut self,
        graph: &Graph,
        file: &Contents,
        unknown: Unknown,
    ) -> Result<Vec<(NodeId, u32)>> {
        let mut draws = Vec::new();
        for line in file.draws.lines() {
            let entry = line.split_once(' ').and_then(|(n, name)| Some((n.parse().ok()?, name)));
            let (count, name): (u32, &str) = entry
                .ok_or_else(|| damaged(file.path(), &format!("its random state has {line:?}")))?;
            match (graph.operation(name), unknown) {
                (Ok(node), _) => draws.push((node.id(), count)),
                (Err(_), Unknown::Ignore) => self.report.ignored.push(name.to_owned()),
                (Err(_), Unknown::Refuse) => {
                    return Err(Error::invalid(format!(
                        "{} has the state of the random operation {name:?}, which the graph does not have; \
                         ignore it with Unknown::Ignore",
                        file.path().display()
                    )));
                }
            }
        }
        Ok(draws)
    }
}

/// The variables to restore and their names in the file.
fn stored_names(graph: &Graph, options: &RestoreOptions) -> Result<Vec<(Variable, String)>> {
    if let Some(foreign) = options.only.iter().find(|v| v.graph().id() != graph.id()) {
        let message = "the variable to restore belongs to another graph than the session's";
        return Err(Error::invalid(message).with_node(foreign.name()));
    }
    let variables =
        if options.only.is_empty() { graph.global_variables() } else { options.only.clone() };
    let map = |variable: Variable| {
        let stored = stored_name(&variable.name(), options);
        (variable, stored)
    };
    let stored: Vec<(Variable, String)> = variables.into_iter().map(map).collect();
    let mut names: Vec<String> = stored.iter().map(|(variable, _)| variable.name()).collect();
    let mut tables = Vec::new();
    if options.only.is_empty() {
        tables = tables_of(&graph.snapshot()).iter().map(|table| table.name.clone()).collect();
        names.extend_from_slice(&tables);
    }
    refuse_unused(&names, options)?;
    let own = stored.iter().map(|(variable, stored)| (variable.name(), stored.clone()));
    refuse_twice(own, "restore them one after the other with RestoreOptions::only")?;
    let own = tables.into_iter().map(|table| {
        let stored = stored_name(&table, options);
        (table, stored)
    });
    refuse_twice(own, "give one of them a name that the file lacks, and Missing::Keep")?;
    Ok(stored)
}

/// What is stored under one name is for one variable or table only.
fn refuse_twice(all: impl Iterator<Item = (String, String)>, help: &str) -> Result<()> {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for (own, stored) in all {
        if let Some(other) = owners.insert(stored.clone(), own.clone()).filter(|o| *o != own) {
            return Err(Error::invalid(format!(
                "{other} and {own} would both be restored from {stored:?}; {help}"
            )));
        }
    }
    Ok(())
}

fn stored_name(name: &str, options: &RestoreOptions) -> String {
    if let Some((_, stored)) = options.names.iter().find(|(variable, _)| variable == name) {
        return stored.clone();
    }
    let fitting = options.prefixes.iter().filter_map(|(prefix, stored)| {
        let rest = name.strip_prefix(prefix.as_str())?;
        Some((prefix.len(), format!("{stored}{rest}")))
    });
    fitting.max_by_key(|(len, _)| *len).map_or_else(|| name.to_owned(), |(_, stored)| stored)
}

/// A mapping that concerns no variable and no table is a slip of the pen.
fn refuse_unused(all: &[String], options: &RestoreOptions) -> Result<()> {
    let has = |fits: &dyn Fn(&str) -> bool| all.iter().any(|name| fits(name));
    let name = options.names.iter().find(|(name, _)| !has(&|own| own == name));
    let prefix = options.prefixes.iter().find(|(prefix, _)| !has(&|own| own.starts_with(prefix)));
    let message = match (name, prefix) {
        (None, None) => return Ok(()),
        (Some((name, _)), _) => format!("the map names {name:?}, which is not to be restored"),
        (_, Some((prefix, _))) => {
            format!("the map has the prefix {prefix:?}, with which nothing to be restored begins")
        }
    };
    let all = listed(all.iter().map(String::as_str));
    Err(Error::invalid(format!("{message}; to be restored are {all}")))
}

fn refuse_unknown(file: &Contents, unknown: &[String]) -> Result<()> {
    let Some(first) = unknown.first() else { return Ok(()) };
    let others = match unknown.len() - 1 {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    Err(Error::invalid(format!(
        "{} has a variable {first:?}{others} that the graph does not have; was it written by another model or \
         optimizer? Leave it with Unknown::Ignore",
        file.path().display()
    )))
}

fn refuse_missing(file: &Contents, stored: &[(Variable, String)]) -> Result<()> {
    let missing: Vec<&(Variable, String)> =
        stored.iter().filter(|(_, name)| file.variable(name).is_none()).collect();
    let Some((variable, name)) = missing.first() else { return Ok(()) };
    let others = match missing.len() - 1 {
        0 => String::new(),
        n => format!(" (and {n} more are missing)"),
    };
    let message = format!(
        "{} has no variable {name:?}{others}; it has {}. Map the name with RestoreOptions::names, or leave the \
         variable as it is with Missing::Keep",
        file.path().display(),
        listed(file.names()),
    );
    Err(Error::invalid(message).with_node(variable.name()))
}

/// The shape to read `variable` with, or why it stays as it is.
fn fit(
    file: &Contents,
    variable: &Variable,
    name: &str,
    mismatch: Mismatch,
) -> Result<Result<Shape, String>> {
    let Some(found) = file.variable(name) else {
        return Ok(Err(format!("the file has no {name:?}")));
    };
    let dims = variable.dims();
    let is_dtype = found.dtype == Some(variable.dtype());
    let shape = Shape::new(found.dims).ok();
    if let Some(shape) = shape.filter(|shape| is_dtype && dims.admits(shape)) {
        return Ok(Ok(shape));
    }
    let own = dims.shape();
    let len = found.dims.iter().try_fold(1usize, |len, &n| len.checked_mul(n));
    let differs =
        format!("expected {}{dims}, and {} has {found}", variable.dtype(), file.path().display(),);
    match (mismatch, own) {
        (Mismatch::Keep, _) => Ok(Err(format!("the file has {found}"))),
        (Mismatch::Reshape, Some(own)) if is_dtype && len == Some(own.len()) => Ok(Ok(own)),
        _ => Err(Error::invalid(differs).with_node(variable.name())),
    }
}
