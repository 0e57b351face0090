//! The tables of a session. A run has those that it looks up as they were when it began; what it puts into tables is
//! there when it has succeeded. A table that other runs look at meanwhile is copied first.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use convoke_graph_core::{
    Error, FindOp, HostTensor, Result, TableAction, TableContents, TableSpec,
};
use smallvec::SmallVec;

use super::Inner;
use super::uses::Uses;

/// Tables as they were when a run began.
#[derive(Debug, Default)]
pub(crate) struct Tables(SmallVec<[(Arc<TableSpec>, Arc<TableContents>); 1]>);

impl Tables {
    /// What the run looks up.
    ///
    /// # Errors
    /// No memory.
    pub fn find(&self, op: &FindOp, keys: &HostTensor) -> Result<HostTensor> {
        let own = self.0.iter().find(|(spec, _)| spec.name == op.table.name);
        let (_, contents) = own.ok_or_else(|| Error::internal("a table was not taken"))?;
        contents.find(keys, &op.default)
    }
}

/// One table.
#[derive(Debug)]
pub(super) struct KeptTable {
    spec: Arc<TableSpec>,
    contents: Arc<TableContents>,
}

impl Inner {
    fn table(&mut self, spec: &Arc<TableSpec>) -> &mut KeptTable {
        self.tables.entry(spec.name.clone()).or_insert_with(|| KeptTable {
            spec: spec.clone(),
            contents: Arc::new(TableContents::new(spec)),
        })
    }

    /// What a run sees of tables: the values that are fed, in the order of the uses, and what it looks keys up in.
    ///
    /// # Errors
    /// No memory for what is exported.
    pub fn look_at_tables(&mut self, uses: &Uses) -> Result<(Vec<HostTensor>, Tables)> {
        let mut fed = Vec::new();
        for used in &uses.tables {
            let contents = &self.table(&used.table).contents;
            let values = match used.action {
                TableAction::Size => {
                    vec![HostTensor::from(i64::try_from(contents.len()).unwrap_or(i64::MAX))]
                }
                TableAction::Export => {
                    let exported = contents.export();
                    let (keys, values) = exported.map_err(|e| e.with_node(&*used.node))?;
                    vec![keys, values]
                }
                _ => continue,
            };
            fed.extend(used.places.iter().filter_map(|&place| values.get(place).cloned()));
        }
        let found = uses.finds.iter();
        let tables = found.map(|spec| (spec.clone(), self.table(spec).contents.clone())).collect();
        Ok((fed, Tables(tables)))
    }

    /// Puts into tables and takes from them what a run has done. `fetched` are the plan's fetches.
    pub fn put_into_tables(&mut self, uses: &Uses, fetched: &[HostTensor]) {
        for used in &uses.tables {
            let inputs: SmallVec<[&HostTensor; 2]> =
                used.places.iter().filter_map(|&place| fetched.get(place)).collect();
            let contents = &mut self.table(&used.table).contents;
            let put = match (used.action, &inputs[..]) {
                (TableAction::Insert, [keys, values]) => {
                    Arc::make_mut(contents).insert(keys, values)
                }
                (TableAction::Remove, [keys]) => Arc::make_mut(contents).remove(keys),
                _ => continue,
            };
            if let Err(error) = put {
                tracing::error!("{}: {error}", used.node);
            }
        }
    }

    /// Empties the tables of containers that are named.
    pub fn reset_tables(&mut self, is_named: impl Fn(Option<&str>) -> bool) {
        self.tables.retain(|_, kept| !is_named(kept.spec.container.as_deref()));
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
