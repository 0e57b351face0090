//! The tables of a session. A run has those that it looks up as they were when it began; what it puts into tables is
//! there when it has succeeded. A table that other runs look at meanwhile is copied first.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use convoke_graph_core::{
    Error, ErrorKind, FindOp, HostTensor, Result, TableAction, TableContents, TableSpec,
};
use smallvec::SmallVec;

use super::uses::{TableUse, Uses};
use super::{Inner, Queues};
use crate::cancel::{Bell, Stop};

/// Tables as they were when a run began.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    found: SmallVec<[(Arc<TableSpec>, Arc<TableContents>); 1]>,
    /// The versions of those that a run looks at which changes some.
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
    /// When it was made or reset last.
    made: u64,
    /// Another one after each change.
    version: u64,
    /// How many runs that do not look at it are about to change it.
    writers: usize,
    /// How many runs that have looked at it are about to change others, so that none may change it.
    lookers: usize,
    /// Whether one that looks at it is about to change it, so that no other may.
    is_alone: bool,
}

/// How a run that is about to change tables uses one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// Changes it, and has not looked at it.
    Changes,
    /// Has looked at it.
    Looks,
    Both,
}

impl KeptTable {
    /// Whether it can be had so beside those that have it.
    fn is_free(&self, claim: Claim) -> bool {
        match claim {
            Claim::Changes => !self.is_alone && self.lookers == 0,
            Claim::Looks => !self.is_alone && self.writers == 0,
            Claim::Both => !self.is_alone && self.lookers == 0 && self.writers == 0,
        }
    }

    fn is_claimed(&self) -> bool {
        !self.is_free(Claim::Both)
    }
}

/// The tables that a run is about to change or has looked at, until this is dropped. Nobody changes those in between
/// that it has looked at.
pub(crate) struct Claimed {
    queues: Arc<Queues>,
    tables: Claims,
}

impl Claimed {
    /// When a table was made or reset last as it was claimed.
    fn made(&self, table: &TableSpec) -> Option<u64> {
        let own = self.tables.iter().find(|own| own.spec.name == table.name);
        own.map(|own| own.made)
    }
}

/// Tables, each once.
type Claims = SmallVec<[ClaimedTable; 1]>;

struct ClaimedTable {
    spec: Arc<TableSpec>,
    claim: Claim,
    /// When it was made or reset last.
    made: u64,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let mut inner = self.queues.lock();
        for own in &self.tables {
            let Some(kept) = inner.tables.get_mut(&own.spec.name) else { continue };
            match own.claim {
                Claim::Changes => kept.writers = kept.writers.saturating_sub(1),
                Claim::Looks => kept.lookers = kept.lookers.saturating_sub(1),
                Claim::Both => kept.is_alone = false,
            }
        }
        self.queues.free_tables.notify_all();
    }
}

impl Queues {
    /// Waits until nobody is about to change the tables that a run has looked at, or has looked at those that it will
    /// change, and then has that for the run. `changed` is what it does with them, `seen` are the tables as it saw them.
    ///
    /// # Errors
    /// `Aborted` if another run has changed a table meanwhile that this one has looked at; what `stop` says.
    pub fn claim_tables<'u>(
        self: &Arc<Self>,
        changed: impl Iterator<Item = &'u TableUse> + Clone,
        seen: &Tables,
        stop: &Stop<'_>,
    ) -> Result<Claimed> {
        let bell: Arc<dyn Bell> = self.clone();
        stop.ring(&bell);
        let mut inner = self.lock();
        loop {
            stop.check()?;
            if let Some(tables) = inner.try_claim(changed.clone(), seen)? {
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
        let (changes, made) = (&mut self.n_table_changes, self.n_resets);
        self.tables.entry(spec.name.clone()).or_insert_with(|| {
            *changes += 1;
            KeptTable {
                spec: spec.clone(),
                made,
                contents: Arc::new(TableContents::new(spec)),
                version: *changes,
                writers: 0,
                lookers: 0,
                is_alone: false,
            }
        })
    }

    /// # Errors
    /// Two tables of one name that are not alike, in the run or in the session.
    pub fn check_tables(&mut self, uses: &Uses) -> Result<()> {
        self.check_specs(uses.tables.iter().map(|used| &used.table).chain(&uses.finds))
    }

    /// # Errors
    /// As [`Self::check_tables`].
    fn check_specs<'u>(&mut self, specs: impl Iterator<Item = &'u Arc<TableSpec>>) -> Result<()> {
        for spec in specs {
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
        if uses.changed_tables().next().is_some() {
            for spec in uses.looked_at() {
                if tables.version(spec).is_none() {
                    tables.versions.push((spec.clone(), self.table(spec).version));
                }
            }
        }
        (seen, tables)
    }

    /// Has the tables that a run changes or has looked at for it; nothing, if another run has one in its way.
    fn try_claim<'u>(
        &mut self,
        changed: impl Iterator<Item = &'u TableUse> + Clone,
        seen: &Tables,
    ) -> Result<Option<Claims>> {
        // They may be others since a reset.
        let looked_at = seen.versions.iter().map(|(spec, _)| spec);
        self.check_specs(looked_at.chain(changed.clone().map(|used| &used.table)))?;
        let mut claimed = Claims::new();
        for (spec, version) in &seen.versions {
            let mut changing = changed.clone();
            let own = changing.find(|used| used.table.name == spec.name);
            if *version != self.table(spec).version {
                let message = format!(
                    "another run has changed table '{}' meanwhile, which this one has looked at; run again",
                    spec.name
                );
                let error = Error::new(ErrorKind::Aborted, message);
                let node = own.or_else(|| changed.clone().next()).map(|used| &*used.node);
                return Err(node.map_or(error.clone(), |node| error.with_node(node)));
            }
            let claim = if own.is_some() { Claim::Both } else { Claim::Looks };
            let (spec, made) = (spec.clone(), self.table(spec).made);
            claimed.push(ClaimedTable { spec, claim, made });
        }
        for used in changed {
            if !claimed.iter().any(|own| own.spec.name == used.table.name) {
                let (spec, made) = (used.table.clone(), self.table(&used.table).made);
                claimed.push(ClaimedTable { spec, claim: Claim::Changes, made });
            }
        }
        if !claimed.iter().all(|own| self.table(&own.spec).is_free(own.claim)) {
            return Ok(None);
        }
        for own in &claimed {
            let kept = self.table(&own.spec);
            match own.claim {
                Claim::Changes => kept.writers += 1,
                Claim::Looks => kept.lookers += 1,
                Claim::Both => kept.is_alone = true,
            }
        }
        Ok(Some(claimed))
    }

    /// Puts into tables and takes from them what a run has done. `fetched` are the plan's fetches, `claimed` are the
    /// tables. Of one that was reset since it was claimed, what the run has done is lost.
    pub fn put_into_tables<'u>(
        &mut self,
        changed: impl Iterator<Item = &'u TableUse>,
        fetched: &[HostTensor],
        claimed: Option<&Claimed>,
    ) {
        for used in changed {
            let made = claimed.and_then(|claimed| claimed.made(&used.table));
            if made.is_some_and(|made| made != self.table(&used.table).made) {
                continue;
            }
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
        let (changes, made) = (&mut self.n_table_changes, self.n_resets);
        self.tables.retain(|_, kept| {
            if !is_named(kept.spec.container.as_deref()) {
                return true;
            }
            *changes += 1;
            (kept.contents, kept.version) = (Arc::new(TableContents::new(&kept.spec)), *changes);
            kept.made = made;
            kept.is_claimed()
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
