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
use crate::ops::queue::name_of_shared;
use crate::ops::registry::Decode;
use crate::{
    Attributes, Backward, Class, DType, Dims, Error, Fact, Flow, Graph, HostTensor, Op, OpError,
    Operation, Output, Result, Shape, Tensor, dims,
};

/// A table: its name, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// The name of the table's node, or the shared one.
    pub name: String,
    /// The container that it is in; none is the default one.
    pub container: Option<Arc<str>>,
    /// The dtype of the keys: integers or strings.
    pub keys: DType,
    /// The dtype of the values.
    pub values: DType,
    /// The sizes of one value, all of them specified.
    pub value_dims: Dims,
}

/// What a table has for a key, and who shares it.
#[derive(Debug, Clone)]
pub struct TableOptions {
    /// The sizes of one value, all of them specified.
    pub value_dims: Dims,
    /// Tables of the same shared name and container are one table in a session. They must be alike.
    pub shared_name: Option<String>,
}

impl Default for TableOptions {
    /// One element for each key, of its own.
    fn default() -> Self {
        Self { value_dims: dims![], shared_name: None }
    }
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
    /// What stands for keys that it does not have: one value.
    pub default: HostTensor,
}

/// A table of a graph that runs change. Each session has it with contents of its own, at first none.
///
/// Everything that a run looks up, counts and exports is as it was when the run began, whatever the run inserts; in a
/// run that is made in steps, as it was when the first step that needs anything of queues, readers or tables did. What
/// it inserts and removes is done in the order in which the operations were built, when the run has succeeded. If
/// another run has changed a table meanwhile that a run has looked at which changes some, that run is made again as a
/// whole, functions of the host too, with what it took from queues; after 16 times, and if it is made in steps, it fails
/// with [`ErrorKind::Aborted`](crate::ErrorKind::Aborted): run again. What a run puts into a table that is reset
/// meanwhile is lost. Models and checkpoints have what the table holds.
#[derive(Debug, Clone)]
pub struct MutableTable {
    graph: Graph,
    spec: Arc<TableSpec>,
    /// What its operations' names begin with.
    label: Arc<str>,
}

impl Graph {
    /// An empty table of keys, integers or strings, and one value of any dtype for each.
    ///
    /// # Errors
    /// Recorded: keys of another dtype.
    #[track_caller]
    pub fn mutable_table(&self, name: &str, keys: DType, values: DType) -> MutableTable {
        self.mutable_table_with(name, keys, values, TableOptions::default())
    }

    /// An empty table of keys, integers or strings, and for each a value of any dtype and of specified sizes.
    ///
    /// # Errors
    /// Recorded: keys of another dtype, or sizes of values that are not specified.
    #[track_caller]
    pub fn mutable_table_with(
        &self,
        name: &str,
        keys: DType,
        values: DType,
        options: TableOptions,
    ) -> MutableTable {
        let TableOptions { value_dims, shared_name } = options;
        let container = self.container_now();
        let mut spec = TableSpec { name: name.to_owned(), container, keys, values, value_dims };
        let op = TableOp { table: Arc::new(spec.clone()), action: TableAction::Make };
        let node = self.apply_named(op, &[], name).node();
        spec.name = match shared_name {
            Some(shared) => name_of_shared(spec.container.as_deref(), &shared),
            None => node.name.to_string(),
        };
        let label = node.name.rsplit('/').next().unwrap_or("table").into();
        MutableTable { graph: self.clone(), spec: Arc::new(spec), label }
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
        format!("{}_{}", self.label, action.trim_start_matches("table_"))
    }

    /// Puts each of `values` under the key at its place, in place of the value that is there. Of equal keys the last
    /// counts.
    ///
    /// # Shapes
    /// `keys [k..]`, `values [k.., v..]`, where `[v..]` are the sizes of one value.
    ///
    /// # Errors
    /// Recorded: other dtypes than the table's, or shapes that do not go together. In a run: `InvalidArgument` for
    /// shapes that do not.
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
    /// # Shapes
    /// `keys [k..]`, `default [v..]` → `[k.., v..]`, where `[v..]` are the sizes of one value.
    ///
    /// # Errors
    /// Recorded: keys or a default of other dtypes than the table's, or a default that is no value of it.
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

    /// All keys when the run begins, `[n]`, and their values, `[n, v..]`, in the order of the keys.
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
    let TableSpec { values, value_dims, .. } = table;
    let is_one = value_dims.rank() == Some(0) && default.len() == 1;
    if default.dtype() == *values && (is_one || value_dims.admits(default.shape())) {
        return Ok(());
    }
    let (dtype, shape) = (default.dtype(), default.shape());
    let message = format!(
        "expected a default of one {values}{value_dims}, as the table has, got {dtype}{shape}"
    );
    Err(OpError::Invalid(message))
}

impl TableSpec {
    fn check(&self) -> Result<(), OpError> {
        if self.value_dims.shape().is_none() {
            let (values, dims) = (self.values, &self.value_dims);
            let message = format!("expected values of specified sizes, got {values}{dims}");
            return Err(OpError::Invalid(message));
        }
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
        self.with_value(&keys.dims)
            .unify(&values.dims)
            .map(|_| ())
            .map_err(|_| OpError::Invalid(self.apart(&keys.dims, &values.dims)))
    }

    /// The sizes of values for keys of these.
    fn with_value(&self, keys: &Dims) -> Dims {
        match (keys.dims(), self.value_dims.dims()) {
            (Some(keys), Some(value)) => Dims::Known(keys.iter().chain(value).copied().collect()),
            _ => Dims::UnknownRank,
        }
    }

    /// What is said of keys and values that do not go together.
    fn apart(&self, keys: &Dims, values: &Dims) -> String {
        let value = match self.value_dims.rank() {
            Some(0) => "a value".to_owned(),
            _ => format!("a value {}", self.value_dims),
        };
        format!("expected {value} for each key, got {keys} and {values}")
    }

    /// Whether keys and values of these shapes go together.
    ///
    /// # Errors
    /// They do not.
    pub fn check_shapes(&self, keys: &Shape, values: &Shape) -> Result<()> {
        let known = |shape: &Shape| Dims::Known(shape.dims().iter().map(|&n| n.into()).collect());
        let (keys, values): (Dims, Dims) = (known(keys), known(values));
        match self.with_value(&keys) == values {
            true => Ok(()),
            false => Err(Error::invalid(self.apart(&keys, &values))),
        }
    }

    fn encoded(&self, attributes: Attributes) -> Attributes {
        attributes
            .with("name", self.name.as_str())
            .with_some("container", self.container.as_deref())
            .with("keys", self.keys)
            .with("values", self.values)
            // Files from before values had sizes have none of one element.
            .with_some("value_dims", self.value_dims_unless_one())
    }

    fn value_dims_unless_one(&self) -> Option<Dims> {
        Some(self.value_dims.clone()).filter(|dims| dims.rank() != Some(0))
    }

    fn decode(a: &Attributes) -> Result<Arc<Self>, OpError> {
        let container = a.get("container").map(|_| a.text("container")).transpose()?;
        let spec = Self {
            name: a.text("name")?.to_owned(),
            container: container.map(Arc::from),
            keys: a.dtype("keys")?,
            values: a.dtype("values")?,
            value_dims: match a.get("value_dims") {
                Some(_) => a.dims("value_dims")?,
                None => dims![],
            },
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
        let TableSpec { keys, values, .. } = &*self.table;
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
                let n = dims![None];
                let all = self.table.with_value(&n).checked()?;
                Ok([Fact::new(*keys, n), Fact::new(*values, all)].into_iter().collect())
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
        one(Fact::new(self.table.values, self.table.with_value(&keys.dims).checked()?))
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
