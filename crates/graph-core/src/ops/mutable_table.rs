//! Tables that runs change: what stands for keys, kept by a session on the host. What a run inserts and removes is in
//! the table when the run has succeeded; what it looks up, it looks up in the table as it was when it began.
//!
//! Source: TensorFlow's `MutableHashTable` of `python/ops/lookup_ops.py`, where each operation happens as it comes.

mod contents;

use std::sync::Arc;

use smallvec::SmallVec;

pub use contents::TableContents;

use crate::op::{SharedOp, arity, one};
use crate::ops::control::Refused;
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, DType, Error, Fact, Flow, Graph, HostTensor, Op, OpError,
    Operation, Output, Result, Shape, Tensor, dims,
};

/// A table: its name, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// The name of the table's node.
    pub name: String,
    /// The container that it is in; none is the default one.
    pub container: Option<Arc<str>>,
    /// The dtype of the keys: integers or strings.
    pub keys: DType,
    /// The dtype of the values.
    pub values: DType,
}

/// What an operation does with a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableAction {
    /// The table itself.
    Make,
    /// Puts values under keys, in place of those that are there.
    Insert,
    /// Takes keys out, as far as they are there.
    Remove,
    /// Gives the number of keys.
    Size,
    /// Gives all keys and values.
    Export,
}

/// An operation on a table.
#[derive(Debug, Clone)]
pub struct TableOp {
    /// The table.
    pub table: Arc<TableSpec>,
    /// What it does.
    pub action: TableAction,
}

/// Looks keys up in a table.
#[derive(Debug, Clone)]
pub struct FindOp {
    /// The table.
    pub table: Arc<TableSpec>,
    /// What stands for keys that it does not have.
    pub default: HostTensor,
}

/// A table of a graph that runs change. Each session has it with contents of its own, at first none.
///
/// Everything that a run looks up, counts and exports is as it was when the run began, whatever the run inserts; what
/// it inserts and removes is done in the order in which the operations were built, when the run has succeeded. A run
/// that looks at a table and changes it fails with [`ErrorKind::Aborted`](crate::ErrorKind::Aborted) if another run has
/// changed it meanwhile: run again. Models and checkpoints have what the table holds.
#[derive(Debug, Clone)]
pub struct MutableTable {
    graph: Graph,
    spec: Arc<TableSpec>,
}

impl Graph {
    /// An empty table of keys, integers or strings, and one value of any dtype for each.
    ///
    /// # Errors
    /// Recorded: keys of another dtype.
    #[track_caller]
    pub fn mutable_table(&self, name: &str, keys: DType, values: DType) -> MutableTable {
        let container = self.container_now();
        let mut spec = TableSpec { name: name.to_owned(), container, keys, values };
        let op = TableOp { table: Arc::new(spec.clone()), action: TableAction::Make };
        spec.name = self.apply_named(op, &[], name).node().name.to_string();
        MutableTable { graph: self.clone(), spec: Arc::new(spec) }
    }
}

impl MutableTable {
    /// What it holds.
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    #[track_caller]
    fn apply(&self, action: TableAction, inputs: &[&Tensor]) -> Operation {
        let op = TableOp { table: self.spec.clone(), action };
        let name = self.name_of(op.name());
        self.graph.apply_named(op, inputs, &name).operation()
    }

    fn name_of(&self, action: &str) -> String {
        let own = self.spec.name.rsplit('/').next().unwrap_or("table");
        format!("{own}_{}", action.trim_start_matches("table_"))
    }

    /// Puts each of `values` under the key at its place, in place of the value that is there. Of equal keys the last
    /// counts.
    ///
    /// # Errors
    /// Recorded: other dtypes than the table's, or shapes that differ. In a run: `InvalidArgument` for shapes that
    /// differ.
    #[track_caller]
    pub fn insert(&self, keys: &Tensor, values: &Tensor) -> Operation {
        self.apply(TableAction::Insert, &[keys, values])
    }

    /// Takes `keys` out, as far as they are there.
    ///
    /// # Errors
    /// Recorded: keys of another dtype than the table's.
    #[track_caller]
    pub fn remove(&self, keys: &Tensor) -> Operation {
        self.apply(TableAction::Remove, &[keys])
    }

    /// The values of `keys`, a tensor of any shape, with `default` where there is no such key when the run begins.
    ///
    /// # Errors
    /// Recorded: keys or a default of other dtypes than the table's, or a default of more than one element.
    #[track_caller]
    pub fn find(&self, keys: &Tensor, default: impl Into<HostTensor>) -> Tensor {
        let default = default.into();
        match check_default(&self.spec, &default) {
            Ok(()) => {
                let op = FindOp { table: self.spec.clone(), default };
                self.graph.apply_named(op, &[keys], &self.name_of("find"))
            }
            Err(reason) => self.graph.apply(Refused(reason), &[keys]),
        }
    }

    /// How many keys there are when the run begins: a scalar of i64.
    #[track_caller]
    pub fn size(&self) -> Tensor {
        let node = self.apply(TableAction::Size, &[]).id();
        Tensor::new(self.graph.clone(), Output { node, index: 0 })
    }

    /// All keys when the run begins and their values, `[n]` both, in the order of the keys.
    #[track_caller]
    pub fn export(&self) -> (Tensor, Tensor) {
        let export = self.apply(TableAction::Export, &[]);
        // One that was refused has one output.
        let last = (export.node().facts.len() as u32).saturating_sub(1);
        let output = |index| Tensor::new(self.graph.clone(), Output { node: export.id(), index });
        (output(0), output(last.min(1)))
    }
}

fn check_default(table: &TableSpec, default: &HostTensor) -> Result<(), OpError> {
    if default.dtype() == table.values && default.len() == 1 {
        return Ok(());
    }
    let (values, dtype, shape) = (table.values, default.dtype(), default.shape());
    let message =
        format!("expected a default of one {values}, as the table has, got {dtype}{shape}");
    Err(OpError::Invalid(message))
}

impl TableSpec {
    fn check(&self) -> Result<(), OpError> {
        match self.keys {
            DType::String => Ok(()),
            dtype if dtype.is_int() => Ok(()),
            dtype => {
                Err(OpError::Invalid(format!("expected keys of integers or strings, got {dtype}")))
            }
        }
    }

    fn check_keys(&self, keys: &Fact) -> Result<(), OpError> {
        let (expected, found) = (self.keys, keys.dtype);
        match expected == found && !keys.is_variable() {
            true => Ok(()),
            false => Err(OpError::Invalid(format!(
                "expected keys of {expected}, as the table has, got {found}"
            ))),
        }
    }

    fn check_values(&self, keys: &Fact, values: &Fact) -> Result<(), OpError> {
        let (expected, found) = (self.values, values.dtype);
        if expected != found || values.is_variable() {
            let message = format!("expected values of {expected}, as the table has, got {found}");
            return Err(OpError::Invalid(message));
        }
        keys.dims.unify(&values.dims).map(|_| ()).map_err(|_| {
            let (keys, values) = (&keys.dims, &values.dims);
            OpError::Invalid(format!("expected a value for each key, got {keys} and {values}"))
        })
    }

    /// Whether keys and values of these shapes go together.
    ///
    /// # Errors
    /// They do not.
    pub fn check_shapes(&self, keys: &Shape, values: &Shape) -> Result<()> {
        match keys == values {
            true => Ok(()),
            false => {
                let message = format!("expected a value for each key, got {keys} and {values}");
                Err(Error::invalid(message))
            }
        }
    }

    fn encoded(&self, attributes: Attributes) -> Attributes {
        attributes
            .with("name", self.name.as_str())
            .with_some("container", self.container.as_deref())
            .with("keys", self.keys)
            .with("values", self.values)
    }

    fn decode(a: &Attributes) -> Result<Arc<Self>, OpError> {
        let container = a.get("container").map(|_| a.text("container")).transpose()?;
        let spec = Self {
            name: a.text("name")?.to_owned(),
            container: container.map(Arc::from),
            keys: a.dtype("keys")?,
            values: a.dtype("values")?,
        };
        spec.check()?;
        Ok(Arc::new(spec))
    }
}

impl TableOp {
    /// Whether its outputs are there before a run begins.
    pub fn is_source(&self) -> bool {
        matches!(self.action, TableAction::Size | TableAction::Export)
    }
}

impl Op for TableOp {
    fn name(&self) -> &str {
        match self.action {
            TableAction::Make => "mutable_table",
            TableAction::Insert => "table_insert",
            TableAction::Remove => "table_remove",
            TableAction::Size => "table_size",
            TableAction::Export => "table_export",
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let TableSpec { keys, values, .. } = *self.table;
        self.table.check()?;
        match self.action {
            TableAction::Make => {
                let [] = arity(inputs)?;
                Ok(SmallVec::new())
            }
            TableAction::Insert => {
                let [keys, values] = arity(inputs)?;
                self.table.check_keys(keys)?;
                self.table.check_values(keys, values)?;
                Ok(SmallVec::new())
            }
            TableAction::Remove => {
                let [keys] = arity(inputs)?;
                self.table.check_keys(keys)?;
                Ok(SmallVec::new())
            }
            TableAction::Size => {
                let [] = arity(inputs)?;
                one(Fact::new(DType::I64, dims![]))
            }
            TableAction::Export => {
                let [] = arity(inputs)?;
                Ok([keys, values].into_iter().map(|d| Fact::new(d, dims![None])).collect())
            }
        }
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(outside())
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None; backward.n_inputs()]
    }

    fn class(&self) -> Class<'_> {
        Class::Table(self)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(self.table.encoded(Attributes::of("mutable_table").with("action", self.name())))
    }
}

impl Op for FindOp {
    fn name(&self) -> &str {
        "table_find"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [keys] = arity(inputs)?;
        self.table.check()?;
        self.table.check_keys(keys)?;
        one(Fact::new(self.table.values, keys.dims.clone()))
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(outside())
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::Flow(Flow::Find(self))
    }

    fn encode(&self) -> Option<Attributes> {
        let attributes = Attributes::of("table_find").with("default", self.default.clone());
        Some(self.table.encoded(attributes))
    }
}

fn outside() -> OpError {
    OpError::Invalid("a table has no contents outside of a session".into())
}

/// How a file's operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[
    ("mutable_table", |a| {
        let action = match a.text("action")? {
            "mutable_table" => TableAction::Make,
            "table_insert" => TableAction::Insert,
            "table_remove" => TableAction::Remove,
            "table_size" => TableAction::Size,
            "table_export" => TableAction::Export,
            other => return Err(OpError::Invalid(format!("a table does not {other:?}"))),
        };
        let op: SharedOp = Arc::new(TableOp { table: TableSpec::decode(a)?, action });
        Ok(op)
    }),
    ("table_find", |a| {
        let (table, default) = (TableSpec::decode(a)?, a.tensor("default")?);
        check_default(&table, &default)?;
        let op: SharedOp = Arc::new(FindOp { table, default });
        Ok(op)
    }),
];
