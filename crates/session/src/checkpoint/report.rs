//! What a restore did, for programs and for people.

use std::fmt;
use std::path::PathBuf;

/// How many lines a report has at most.
const MAX_LINES: usize = 15;
/// How many names a message lists at most.
const MAX_NAMES: usize = 10;

/// What [`Session::restore_with`](crate::Session::restore_with) did. Printed, it has at most 15 lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// The checkpoint.
    pub path: PathBuf,
    /// The variables that have the checkpoint's elements now.
    pub restored: Vec<String>,
    /// Those of them that have another name in the file, with that name.
    pub mapped: Vec<(String, String)>,
    /// The variables that stayed as they were.
    pub kept: Vec<KeptVariable>,
    /// The mutable tables that hold what the checkpoint has now.
    pub tables: Vec<String>,
    /// The mutable tables that stayed as they were.
    pub kept_tables: Vec<KeptTable>,
    /// What the file has and nothing was done with: variables, and tables and random operations that the graph does not
    /// have.
    pub ignored: Vec<String>,
}

/// A variable that a restore left as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptVariable {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
    /// Whether it has elements; if not, its initialiser has yet to run.
    pub is_initialized: bool,
}

/// A mutable table that a restore left as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptTable {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for RestoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, all) = (self.restored.len(), self.restored.len() + self.kept.len());
        write!(f, "restored {n} of {all} variables")?;
        match (self.tables.len(), self.tables.len() + self.kept_tables.len()) {
            (_, 0) => {}
            (n, all) => write!(f, " and {n} of {all} tables")?,
        }
        write!(f, " from {}", self.path.display())?;
        let kept = self.kept.iter().map(|kept| format!("  kept {kept}"));
        let kept = kept.chain(self.kept_tables.iter().map(|kept| format!("  kept table {kept}")));
        let mapped = self.mapped.iter().map(|(name, stored)| format!("  {name} from {stored}"));
        let ignored = self.ignored.iter().map(|name| format!("  ignored {name}"));
        let lines: Vec<String> = kept.chain(mapped).chain(ignored).collect();
        let room = MAX_LINES - 1;
        let shown = if lines.len() > room { room - 1 } else { lines.len() };
        for line in &lines[..shown] {
            write!(f, "\n{line}")?;
        }
        match lines.len() - shown {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

impl fmt::Display for KeptVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let without =
            if self.is_initialized { "" } else { ", without elements; run its initializer" };
        write!(f, "{}{without}: {}", self.name, self.reason)
    }
}

impl fmt::Display for KeptTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// Names with commas between them, and how many more there are.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.len().min(MAX_NAMES);
    let text = names[..shown].join(", ");
    match names.len() - shown {
        0 if names.is_empty() => "none".to_owned(),
        0 => text,
        more => format!("{text} and {more} more"),
    }
}
