//! What tables that runs change hold, as part of a model.

use std::collections::BTreeMap;
use std::sync::Arc;

use convoke_graph_core::{
    Class, DType, Dims, Flow, GraphSnapshot, HostTensor, Node, Result, Shape, TableContents,
    TableSpec, dims,
};
use serde_json::{Value, json};

use super::text::{optional_list, text_of};
use super::value::{self, damaged};

/// What a table holds.
pub(crate) struct StoredTable {
    /// Its name.
    pub name: String,
    /// `[n]`, each once.
    pub keys: HostTensor,
    /// `[n, v..]`, where `[v..]` are the sizes of one value.
    pub values: HostTensor,
}

/// The table that a node uses.
pub(crate) fn table_of(node: &Node) -> Option<&Arc<TableSpec>> {
    match node.op.class() {
        Class::Table(op) => Some(&op.table),
        Class::Flow(Flow::Find(op)) => Some(&op.table),
        _ => None,
    }
}

/// Tables as a model has them: those that hold something.
///
/// # Errors
/// No memory.
pub(super) fn stored(
    specs: &[Arc<TableSpec>],
    contents: &[Arc<TableContents>],
) -> Result<Vec<StoredTable>> {
    let held = specs.iter().zip(contents).filter(|(_, contents)| !contents.is_empty());
    let stored = held.map(|(spec, contents)| {
        let (keys, values) = contents.export()?;
        Ok(StoredTable { name: spec.name.clone(), keys, values })
    });
    stored.collect()
}

/// What is written of a table.
pub(super) fn to_json(table: &StoredTable, put: value::Put<'_>) -> Value {
    let StoredTable { name, keys, values } = table;
    json!({
        "name": name,
        "keys": value::tensor_to_json(keys, &format!("{name}/keys"), put),
        "values": value::tensor_to_json(values, &format!("{name}/values"), put),
    })
}

/// The tables of a model, which may have none.
///
/// # Errors
/// What is no table.
pub(super) fn from_json(model: &Value, take: value::Take<'_>) -> Result<Vec<StoredTable>> {
    let tables = optional_list(model, "tables")?;
    let table = |table: &Value| {
        let name = text_of(table, "name")?.to_owned();
        let mut tensor = |what: &str| {
            let lacks = || damaged(format!("table {name:?} has no {what}"));
            value::tensor_from_json(table.get(what).ok_or_else(lacks)?, take)
        };
        let (keys, values) = (tensor("keys")?, tensor("values")?);
        Ok(StoredTable { name, keys, values })
    };
    tables.iter().map(table).collect()
}

/// What the tables of a graph are to hold.
///
/// # Errors
/// A table that the graph does not have or that is there twice; keys and values that are not a table's.
pub(crate) fn contents(
    graph: &GraphSnapshot,
    stored: &[StoredTable],
) -> Result<Vec<(Arc<TableSpec>, TableContents)>> {
    let specs = graph.nodes.iter().filter_map(|node| table_of(node));
    let mut specs: BTreeMap<&str, &Arc<TableSpec>> =
        specs.map(|spec| (spec.name.as_str(), spec)).collect();
    let mut all: Vec<(Arc<TableSpec>, TableContents)> = Vec::with_capacity(stored.len());
    for StoredTable { name, keys, values } in stored {
        // Each once.
        let spec = specs.remove(name.as_str());
        let spec = spec.ok_or_else(|| damaged(format!("there is no table {name:?} to fill")))?;
        let is_like = |tensor: &HostTensor, dtype: DType, row: &Dims| {
            let fits = |rest: &[usize]| Shape::new(rest).is_ok_and(|shape| row.admits(&shape));
            let rows = tensor.dims().split_first();
            tensor.dtype() == dtype && rows.is_some_and(|(n, rest)| *n == keys.len() && fits(rest))
        };
        if !is_like(keys, spec.keys, &dims![]) || !is_like(values, spec.values, &spec.value_dims) {
            let message = format!(
                "table {name:?} of {} and {}{} has keys {}{} and values {}{}",
                spec.keys,
                spec.values,
                spec.value_dims,
                keys.dtype(),
                keys.shape(),
                values.dtype(),
                values.shape()
            );
            return Err(damaged(message));
        }
        let mut contents = TableContents::new(spec);
        contents.insert(keys, values)?;
        if contents.len() != keys.len() {
            return Err(damaged(format!("table {name:?} has a key twice")));
        }
        all.push((spec.clone(), contents));
    }
    Ok(all)
}
