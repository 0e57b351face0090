//! The tables of a session. A run has those that it looks up as they were when it began; what it puts into tables is
//! there when it has succeeded. A table that other runs look at meanwhile is copied first.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use convoke_graph_core::{
    Error, ErrorKind, FindOp, HostTensor, Result, TableAction, TableContents, TableSpec,
};
use smallvec::SmallVec;

use super::uses::Uses;
use super::{Inner, Queues};
use crate::cancel::Stop;

/// Tables as they were when a run began.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    found: SmallVec<[(Arc<TableSpec>, Arc<TableContents>); 1]>,
    /// The versions of those that the run both looks at and changes.
    versions: SmallVec<[(Arc<TableSpec>, u64); 1]>,
}

impl Tables {
    /// What the run looks up.
    ///
    /// # Errors
    /// No memory.
    pub fn find(&self, op: &FindOp, keys: &HostTensor) -> Result<HostTensor> {
        let own = self.found.iter().find(|(spec, _)| spec.name == op.table.name);
        let (_, contents) = own.ok_or_else(|| Error::internal("a table was not taken"))?;
        contents.find(keys, &op.default)
    }

    fn version(&self, table: &TableSpec) -> Option<u64> {
        let own = self.versions.iter().find(|(spec, _)| spec.name == table.name);
        own.map(|(_, version)| *version)
    }
}

/// One table.
#[derive(Debug)]
pub(super) struct KeptTable {
    spec: Arc<TableSpec>,
    contents: Arc<TableContents>,
    /// Another one after each change.
    version: u64,
    /// How many runs that do not look at it are about to change it.
    writers: usize,
    /// Whether one that looks at it is, so that no other may.
    is_alone: bool,
}

/// The tables that a run is about to change, until this is dropped. Nobody changes those in between that it has looked
/// at.
pub(crate) struct Claimed {
    queues: Arc<Queues>,
    tables: Claims,
}

/// Tables, with whether the run has looked at them.
type Claims = SmallVec<[(Arc<TableSpec>, bool); 1]>;

impl Drop for Claimed {
    fn drop(&mut self) {
        let mut inner = self.queues.lock();
        for (spec, looks) in &self.tables {
            let Some(kept) = inner.tables.get_mut(&spec.name) else { continue };
            match looks {
                true => kept.is_alone = false,
                false => kept.writers = kept.writers.saturating_sub(1),
            }
        }
        self.queues.free_tables.notify_all();
    }
}

impl Queues {
    /// Waits until nobody is about to change the tables that a run will change, if it must, and then has that for the
    /// run. `seen` are the tables as it saw them.
    ///
    /// # Errors
    /// `Aborted` if another run has changed a table meanwhile that this one has looked at; what `stop` says.
    pub fn claim_tables(
        self: &Arc<Self>,
        uses: &Uses,
        seen: &Tables,
        stop: &Stop<'_>,
    ) -> Result<Claimed> {
        let mut inner = self.lock();
        loop {
            stop.check()?;
            if let Some(tables) = inner.try_claim(uses, seen)? {
                return Ok(Claimed { queues: self.clone(), tables });
            }
            inner = match stop.deadline {
                None => self.free_tables.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some((until, _)) => {
                    let left = until.saturating_duration_since(Instant::now());
                    let waited = self.free_tables.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Inner {
    fn table(&mut self, spec: &Arc<TableSpec>) -> &mut KeptTable {
        let changes = &mut self.n_table_changes;
        self.tables.entry(spec.name.clone()).or_insert_with(|| {
            *changes += 1;
            KeptTable {
                spec: spec.clone(),
                contents: Arc::new(TableContents::new(spec)),
                version: *changes,
                writers: 0,
                is_alone: false,
            }
        })
    }

    /// # Errors
    /// Two tables of one name that are not alike, in the run or in the session.
    pub fn check_tables(&mut self, uses: &Uses) -> Result<()> {
        for spec in uses.tables.iter().map(|used| &used.table).chain(&uses.finds) {
            let kept = &self.table(spec).spec;
            if **kept != **spec {
                let message = format!(
                    "another table of the name '{}' differs: {kept:?}, and here {spec:?}",
                    spec.name
                );
                return Err(Error::invalid(message));
            }
        }
        Ok(())
    }

    /// What a run sees of tables: for each use, the contents that are fed; and what it looks keys up in.
    pub fn look_at_tables(&mut self, uses: &Uses) -> (Vec<Option<Arc<TableContents>>>, Tables) {
        let mut tables = Tables::default();
        let mut seen = Vec::with_capacity(uses.tables.len());
        for used in &uses.tables {
            let is_source = matches!(used.action, TableAction::Size | TableAction::Export);
            seen.push(is_source.then(|| self.table(&used.table).contents.clone()));
        }
        for spec in &uses.finds {
            tables.found.push((spec.clone(), self.table(spec).contents.clone()));
        }
        for used in uses.changed_tables().filter(|used| uses.looks_at(&used.table)) {
            if tables.version(&used.table).is_none() {
                tables.versions.push((used.table.clone(), self.table(&used.table).version));
            }
        }
        (seen, tables)
    }

    /// Has the tables that a run changes for it; nothing, if another run is about to change one.
    fn try_claim(&mut self, uses: &Uses, seen: &Tables) -> Result<Option<Claims>> {
        let mut claimed = Claims::new();
        let mut is_free = true;
        for used in uses.changed_tables() {
            let (version, kept) = (seen.version(&used.table), self.table(&used.table));
            if version.is_some_and(|version| version != kept.version) {
                let message = "another run has changed the table meanwhile; run again";
                return Err(Error::new(ErrorKind::Aborted, message).with_node(&*used.node));
            }
            let looks = version.is_some();
            is_free &= !(kept.is_alone || looks && kept.writers > 0);
            if !claimed.iter().any(|(spec, _)| spec.name == used.table.name) {
                claimed.push((used.table.clone(), looks));
            }
        }
        if !is_free {
            return Ok(None);
        }
        for (spec, looks) in &claimed {
            let kept = self.table(spec);
            match looks {
                true => kept.is_alone = true,
                false => kept.writers += 1,
            }
        }
        Ok(Some(claimed))
    }

    /// Puts into tables and takes from them what a run has done. `fetched` are the plan's fetches.
    pub fn put_into_tables(&mut self, uses: &Uses, fetched: &[HostTensor]) {
        for used in uses.changed_tables() {
            let inputs: SmallVec<[&HostTensor; 2]> =
                used.places.iter().filter_map(|&place| fetched.get(place)).collect();
            self.n_table_changes += 1;
            let version = self.n_table_changes;
            let kept = self.table(&used.table);
            kept.version = version;
            let put = match (used.action, &inputs[..]) {
                (TableAction::Insert, [keys, values]) => {
                    Arc::make_mut(&mut kept.contents).insert(keys, values)
                }
                (TableAction::Remove, [keys]) => Arc::make_mut(&mut kept.contents).remove(keys),
                _ => continue,
            };
            if let Err(error) = put {
                tracing::error!("{}: {error}", used.node);
            }
        }
    }

    /// What tables hold, in the order of the specs.
    pub fn table_contents(&mut self, specs: &[Arc<TableSpec>]) -> Result<Vec<Arc<TableContents>>> {
        let uses = Uses { finds: specs.to_vec(), ..Uses::default() };
        self.check_tables(&uses)?;
        Ok(specs.iter().map(|spec| self.table(spec).contents.clone()).collect())
    }

    /// Has tables hold what is given.
    pub fn set_tables(&mut self, tables: Vec<(Arc<TableSpec>, TableContents)>) {
        for (spec, contents) in tables {
            self.n_table_changes += 1;
            let version = self.n_table_changes;
            let kept = self.table(&spec);
            (kept.contents, kept.version) = (Arc::new(contents), version);
        }
    }

    /// Empties the tables of containers that are named.
    pub fn reset_tables(&mut self, is_named: impl Fn(Option<&str>) -> bool) {
        let changes = &mut self.n_table_changes;
        self.tables.retain(|_, kept| {
            if !is_named(kept.spec.container.as_deref()) {
                return true;
            }
            *changes += 1;
            (kept.contents, kept.version) = (Arc::new(TableContents::new(&kept.spec)), *changes);
            // Somebody is about to change it.
            kept.writers > 0 || kept.is_alone
        });
    }

    /// Adds the tables to a digest; an empty one adds nothing.
    pub fn hash_tables(&self, hasher: &mut impl Hasher) {
        let mut tables: Vec<_> =
            self.tables.iter().filter(|(_, kept)| !kept.contents.is_empty()).collect();
        tables.sort_unstable_by_key(|(name, _)| *name);
        for (name, kept) in tables {
            name.hash(hasher);
            kept.contents.hash(hasher);
        }
    }
}
