//! Models as files: one safetensors file, whose metadata have the graph as JSON.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use convoke_graph_core::ops::{Decode, decode};
use convoke_graph_core::{
    BodyId, Class, Collection, DType, Error, ErrorKind, Graph, GraphParts, HostTensor, NodeId,
    NodeParts, Op, Output, Result, RunnerParts, Shape, SharedParts, State,
};
use serde_json::{Map, Value, json};

use super::value::{self, brief, damaged};
use super::{DEFAULT_SIGNATURE, ModelForm, Stored, StoredSignature, tables};
use crate::checkpoint::{self, TensorFile, dtype_of};

/// The key of the graph in the metadata.
const KEY: &str = "convoke.model";
/// The version that is written, and the first that is read.
const VERSION: u64 = 1;
/// The version of models with tables that hold something.
const VERSION_WITH_TABLES: u64 = 2;
/// The version of models with queue runners or several signatures.
const VERSION_WITH_RUNNERS: u64 = 3;
/// The version of models with variables of strings, and the last that is read.
const VERSION_WITH_STRINGS: u64 = 4;
/// The longest text of a graph, in bytes.
const TEXT_MAX_BYTES: usize = 32 << 20;
/// Collections that are not named by users.
const COLLECTIONS: [(Collection, &str); 6] = [
    (Collection::Trainable, "trainable"),
    (Collection::Global, "global"),
    (Collection::Local, "local"),
    (Collection::LocalInitializers, "local_initializers"),
    (Collection::Initializers, "initializers"),
    (Collection::Updates, "updates"),
];

/// An error of the file at `path`.
pub(super) fn of_file(path: &Path, e: &Error) -> Error {
    let error = Error::new(e.kind(), format!("{}: {}", path.display(), e.message()));
    match e.node() {
        Some(node) => error.with_node(node),
        None => error,
    }
}

/// Writes a model.
///
/// # Errors
/// A node whose operation no file can keep, a graph that is too large, a file that cannot be written.
pub(super) fn write(path: &Path, stored: &Stored) -> Result<()> {
    let mut tensors = Tensors::default();
    let nodes = stored.parts.nodes.iter().map(|node| node_to_json(node, &mut tensors));
    let nodes: Vec<Value> = nodes.collect::<Result<_>>()?;
    let variables = stored.variables.iter().map(|(id, value)| {
        let node = stored.parts.nodes.get(id.0 as usize);
        let name = node.map_or("variable", |node| &*node.name);
        let mut put = |name: &str, tensor: &HostTensor| tensors.put(name, tensor);
        match value.dtype() {
            DType::String => json!([id.0, value::tensor_to_json(value, name, &mut put)]),
            _ => json!([id.0, put(name, value)]),
        }
    });
    let variables: Vec<Value> = variables.collect();
    let parts = &stored.parts;
    let mut put = |name: &str, tensor: &HostTensor| tensors.put(name, tensor);
    let tables: Vec<Value> =
        stored.tables.iter().map(|table| tables::to_json(table, &mut put)).collect();
    let mut model = json!({
        "version": version_of(stored),
        "form": match stored.form {
            ModelForm::Frozen => "frozen",
            ModelForm::Trainable => "trainable",
        },
        "seed": parts.seed,
        "symbols": parts.n_symbols,
        "bodies": parts.bodies.iter().map(|around| around.0).collect::<Vec<_>>(),
        "nodes": nodes,
        "collections": parts.collections.iter().filter_map(collection_to_json).collect::<Vec<_>>(),
        "shared": parts.shared.iter().map(shared_to_json).collect::<Vec<_>>(),
        "variables": variables,
        "draws": stored.draws.iter().map(|(id, count)| json!([id.0, count])).collect::<Vec<_>>(),
    });
    if let Value::Object(model) = &mut model {
        model.extend(signature_to_json(&stored.signature));
        add_later(model, stored, tables);
    }
    let text = model.to_string();
    if text.len() > TEXT_MAX_BYTES {
        let n = text.len();
        let message =
            format!("the graph takes {n} bytes of text, and a model at most {TEXT_MAX_BYTES}");
        return Err(Error::new(ErrorKind::ResourceExhausted, message));
    }
    checkpoint::write_tensors(path, tensors.list, Some(HashMap::from([(KEY.to_owned(), text)])))
}

/// The first version that has what a model has.
fn version_of(stored: &Stored) -> u64 {
    let has_strings = stored.variables.iter().any(|(_, value)| value.dtype() == DType::String);
    let has_runners = !stored.parts.queue_runners.is_empty() || !stored.signatures.is_empty();
    match (has_strings, has_runners, stored.tables.is_empty()) {
        (true, ..) => VERSION_WITH_STRINGS,
        (_, true, _) => VERSION_WITH_RUNNERS,
        (.., false) => VERSION_WITH_TABLES,
        _ => VERSION,
    }
}

/// Adds what later versions have, where there is any.
fn add_later(model: &mut Map<String, Value>, stored: &Stored, tables: Vec<Value>) {
    let runners: Vec<Value> = stored.parts.queue_runners.iter().map(runner_to_json).collect();
    for (name, list) in [("tables", tables), ("queue_runners", runners)] {
        if !list.is_empty() {
            model.insert(name.to_owned(), Value::Array(list));
        }
    }
    if !stored.signatures.is_empty() {
        let signatures = stored.signatures.iter();
        let signatures = signatures
            .map(|(name, signature)| (name.clone(), Value::Object(signature_to_json(signature))));
        model.insert("signatures".to_owned(), Value::Object(signatures.collect()));
    }
}

/// Reads a model.
///
/// # Errors
/// As `SavedModel::load`, for what is found before the graph is made.
pub(super) fn read(path: &Path, own: &[(String, Decode)]) -> Result<Stored> {
    let file = TensorFile::open(path)?;
    let text = file.note(KEY).ok_or_else(|| {
        let message =
            "it has no model; if it is a checkpoint, restore it in a session of its graph";
        of_file(path, &Error::invalid(message))
    })?;
    let mut read: HashMap<String, HostTensor> = HashMap::new();
    let mut take = |name: &str| {
        if let Some(tensor) = read.get(name) {
            return Ok(tensor.clone());
        }
        let info = file.info(name).ok_or_else(|| damaged(format!("it has no tensor {name:?}")))?;
        let dtype = dtype_of(info.dtype)
            .ok_or_else(|| damaged(format!("{name:?} is of {:?}", info.dtype)))?;
        let shape = Shape::new(&info.shape).map_err(|e| damaged(e.to_string()))?;
        let tensor = file.read(name, dtype, shape)?;
        read.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    };
    parse(text, own, &mut take).map_err(|e| of_file(path, &e))
}

fn parse(text: &str, own: &[(String, Decode)], take: value::Take<'_>) -> Result<Stored> {
    if text.len() > TEXT_MAX_BYTES {
        return Err(damaged(format!("its graph has {} bytes of text", text.len())));
    }
    let model: Value =
        serde_json::from_str(text).map_err(|e| damaged(format!("its graph is no JSON: {e}")))?;
    let form = form_of(&model)?;
    let nodes = list_of(&model, "nodes")?.iter().enumerate();
    let nodes = nodes.map(|(at, node)| {
        let name = node.get("name").and_then(Value::as_str);
        let name = name.map_or_else(|| format!("node {at}"), str::to_owned);
        node_from_json(node, own, take).map_err(|e| e.with_node(name))
    });
    let nodes = nodes.collect::<Result<_>>()?;
    let variables = list_of(&model, "variables")?.iter().map(|pair| match pair_of(pair)? {
        (id, tensor @ (Value::String(_) | Value::Object(_))) => {
            Ok((NodeId(index(id)?), value::tensor_from_json(tensor, take)?))
        }
        _ => Err(damaged("a variable is no node with a tensor")),
    });
    let variables = variables.collect::<Result<_>>()?;
    let draws = list_of(&model, "draws")?.iter().map(|pair| {
        let (id, count) = pair_of(pair)?;
        Ok((NodeId(index(id)?), index(count)?))
    });
    let bodies = list_of(&model, "bodies")?.iter().map(|around| Ok(BodyId(index(around)?)));
    let collections = list_of(&model, "collections")?.iter().map(collection_from_json);
    let shared = list_of(&model, "shared")?.iter().map(shared_from_json);
    let runners = optional_list(&model, "queue_runners")?.iter().map(runner_from_json);
    let parts = GraphParts {
        seed: number_of(&model, "seed")?,
        n_symbols: index(&model["symbols"])?,
        bodies: bodies.collect::<Result<_>>()?,
        nodes,
        collections: collections.collect::<Result<_>>()?,
        shared: shared.collect::<Result<_>>()?,
        queue_runners: runners.collect::<Result<_>>()?,
    };
    Ok(Stored {
        form,
        parts,
        signature: signature_from_json(&model)?,
        signatures: signatures_of(&model)?,
        variables,
        tables: tables::from_json(&model, take)?,
        draws: draws.collect::<Result<_>>()?,
    })
}

/// The form of a model of a version that can be read.
fn form_of(model: &Value) -> Result<ModelForm> {
    let version = model.get("version").and_then(Value::as_u64);
    match version.ok_or_else(|| damaged("it has no version"))? {
        VERSION..=VERSION_WITH_STRINGS => {}
        other => {
            let message = format!(
                "unsupported: version {other} of the format; this reads {VERSION} to {VERSION_WITH_STRINGS}"
            );
            return Err(Error::new(ErrorKind::Unimplemented, message));
        }
    }
    match text_of(model, "form")? {
        "frozen" => Ok(ModelForm::Frozen),
        "trainable" => Ok(ModelForm::Trainable),
        other => Err(damaged(format!("there is no form {other:?}"))),
    }
}

/// All signatures but the default one.
fn signatures_of(model: &Value) -> Result<Vec<(String, StoredSignature)>> {
    if model.get("signatures").is_none() {
        return Ok(Vec::new());
    }
    let named = object_of(model, "signatures")?.iter().map(|(name, signature)| {
        if name == DEFAULT_SIGNATURE {
            return Err(damaged(format!("it has two signatures {DEFAULT_SIGNATURE:?}")));
        }
        Ok((name.clone(), signature_from_json(signature)?))
    });
    named.collect()
}

/// Checks what a model says of its graph.
///
/// # Errors
/// A node or output that is not there or lies in a branch or loop, elements that are not a variable's, draws of what is
/// not random.
pub(super) fn check(graph: &Graph, stored: &Stored) -> Result<()> {
    let graph = graph.snapshot();
    let node = |id: NodeId| {
        let n = graph.nodes.len();
        let is_there = (id.0 as usize) < n;
        let lacks = || damaged(format!("it has {n} nodes, and none {}", id.0));
        is_there.then(|| graph.node(id)).ok_or_else(lacks)
    };
    let others = stored.signatures.iter().map(|(_, signature)| signature);
    let signatures: Vec<&StoredSignature> = others.chain([&stored.signature]).collect();
    let tensors = signatures.iter().flat_map(|own| own.inputs.iter().chain(&own.outputs));
    for (name, output) in tensors {
        let node = node(output.node)?;
        let facts = if node.body == BodyId::GRAPH { &node.facts[..] } else { &[] };
        if facts.get(output.index as usize).is_none_or(|fact| fact.is_variable()) {
            return Err(damaged(format!("{name:?} is no tensor of the graph")));
        }
    }
    for (name, id) in signatures.iter().flat_map(|own| &own.operations) {
        if node(*id)?.body != BodyId::GRAPH {
            return Err(damaged(format!("{name:?} is no operation of the graph")));
        }
    }
    for (id, value) in &stored.variables {
        let node = node(*id)?;
        let is_variable = matches!(node.op.class(), Class::State(State::Variable));
        let fits = |fact: &convoke_graph_core::Fact| {
            fact.dtype == value.dtype() && fact.shape().as_ref() == Some(value.shape())
        };
        if !is_variable || !node.facts.first().is_some_and(fits) {
            let (dtype, shape) = (value.dtype(), value.shape());
            let message =
                format!("this is no variable of {dtype}{shape}, of which it has elements");
            return Err(damaged(message).with_node(&*node.name));
        }
    }
    for &(id, _) in &stored.draws {
        let node = node(id)?;
        if !matches!(node.op.class(), Class::Random(_)) {
            return Err(damaged("this is not random, and was drawn").with_node(&*node.name));
        }
    }
    Ok(())
}

/// Tensors under names of their own; the same elements only once.
#[derive(Default)]
struct Tensors {
    list: Vec<(String, HostTensor)>,
    names: BTreeSet<String>,
    /// By where the elements lie.
    places: BTreeMap<(usize, String), String>,
}

impl Tensors {
    /// The name under which `tensor` is kept: `wanted`, or one like it.
    fn put(&mut self, wanted: &str, tensor: &HostTensor) -> String {
        let what = format!("{}{}", tensor.dtype(), tensor.shape());
        let place = (tensor.bytes().as_ptr() as usize, what);
        if let Some(name) = self.places.get(&place) {
            return name.clone();
        }
        let mut name = wanted.to_owned();
        // The format has another use for this name.
        while name == checkpoint::RESERVED || self.names.contains(&name) {
            name.push('_');
        }
        self.names.insert(name.clone());
        self.places.insert(place, name.clone());
        self.list.push((name.clone(), tensor.clone()));
        name
    }
}

fn node_to_json(node: &NodeParts, tensors: &mut Tensors) -> Result<Value> {
    let attributes = node.op.encode().ok_or_else(|| {
        let message = format!(
            "unsupported: no file can keep the operation {}; its encode() gives nothing",
            node.op.name()
        );
        Error::new(ErrorKind::Unimplemented, message).with_node(&*node.name)
    })?;
    let mut put = |name: &str, tensor: &HostTensor| tensors.put(name, tensor);
    let values = value::to_json(&attributes, &node.name, &mut put);
    let values = values.map_err(|e| e.with_node(&*node.name))?;
    let ids = |ids: &[NodeId]| ids.iter().map(|id| json!(id.0)).collect::<Vec<_>>();
    let mut fields = Map::from_iter([
        ("name".to_owned(), json!(&*node.name)),
        ("op".to_owned(), json!(attributes.operation())),
    ]);
    let mut add = |name: &str, value: Value, is_default: bool| {
        if !is_default {
            fields.insert(name.to_owned(), value);
        }
    };
    let inputs: Vec<Value> = node.inputs.iter().map(output_to_json).collect();
    add("attributes", json!(values), values.is_empty());
    add("inputs", json!(inputs), inputs.is_empty());
    add("controls", json!(ids(&node.controls)), node.controls.is_empty());
    add("colocated", json!(ids(&node.colocated)), node.colocated.is_empty());
    add("body", json!(node.body.0), node.body == BodyId::GRAPH);
    add("device", json!(node.device.as_deref()), node.device.is_none());
    add("container", json!(node.container.as_deref()), node.container.is_none());
    Ok(Value::Object(fields))
}

fn node_from_json(
    node: &Value,
    own: &[(String, Decode)],
    take: value::Take<'_>,
) -> Result<NodeParts> {
    let none = Map::new();
    let attributes = match node.get("attributes") {
        None => &none,
        Some(value) => value.as_object().ok_or_else(|| damaged("`attributes` is no object"))?,
    };
    let attributes = value::from_json(text_of(node, "op")?, attributes, take)?;
    let ids = |name: &str| ids_of(optional_list(node, name)?);
    Ok(NodeParts {
        name: text_of(node, "name")?.into(),
        op: operation(&attributes, own)?,
        inputs: optional_list(node, "inputs")?
            .iter()
            .map(output_from_json)
            .collect::<Result<_>>()?,
        controls: ids("controls")?,
        device: optional_text(node, "device")?,
        colocated: ids("colocated")?,
        body: BodyId(node.get("body").map_or(Ok(0), index)?),
        container: optional_text(node, "container")?,
    })
}

fn operation(
    attributes: &convoke_graph_core::Attributes,
    own: &[(String, Decode)],
) -> Result<Arc<dyn Op>> {
    if let Some(op) = decode(attributes)? {
        return Ok(op);
    }
    let name = attributes.operation();
    let (_, decode) = own.iter().find(|(own, _)| own == name).ok_or_else(|| {
        let message = format!(
            "unsupported: no operation is kept as {name:?}; if it is yours, say in LoadOptions::operations how it is \
             made, and else this is an older Convoke than the one that wrote it"
        );
        Error::new(ErrorKind::Unimplemented, message)
    })?;
    Ok(decode(attributes)?)
}

fn collection_to_json((collection, outputs): &(Collection, Vec<Output>)) -> Option<Value> {
    let outputs: Vec<Value> = outputs.iter().map(output_to_json).collect();
    if let Collection::Named(name) = collection {
        return Some(json!({ "named": name, "tensors": outputs }));
    }
    let (_, name) = COLLECTIONS.iter().find(|(own, _)| own == collection)?;
    Some(json!({ "collection": name, "tensors": outputs }))
}

fn collection_from_json(value: &Value) -> Result<(Collection, Vec<Output>)> {
    let outputs = list_of(value, "tensors")?.iter().map(output_from_json).collect::<Result<_>>()?;
    if value.get("named").is_some() {
        return Ok((Collection::Named(text_of(value, "named")?.to_owned()), outputs));
    }
    let name = text_of(value, "collection")?;
    let found = COLLECTIONS.iter().find(|(_, own)| *own == name);
    let (collection, _) =
        found.ok_or_else(|| damaged(format!("there is no collection {name:?}")))?;
    Ok((collection.clone(), outputs))
}

fn shared_to_json(shared: &SharedParts) -> Value {
    json!({
        "container": shared.container.as_deref(),
        "name": shared.name,
        "handle": shared.handle.0,
        "read": shared.read.0,
        "initializer": shared.initializer.0,
    })
}

fn shared_from_json(value: &Value) -> Result<SharedParts> {
    Ok(SharedParts {
        container: optional_text(value, "container")?,
        name: text_of(value, "name")?.to_owned(),
        handle: NodeId(index(&value["handle"])?),
        read: NodeId(index(&value["read"])?),
        initializer: NodeId(index(&value["initializer"])?),
    })
}

fn runner_to_json(runner: &RunnerParts) -> Value {
    let mut value = json!({
        "enqueues": runner.enqueues.iter().map(|id| id.0).collect::<Vec<_>>(),
        "close": runner.close.0,
        "cancel": runner.cancel.0,
    });
    if runner.ends != [ErrorKind::OutOfRange] {
        value["ends"] = runner.ends.iter().map(|kind| json!(format!("{kind:?}"))).collect();
    }
    value
}

fn runner_from_json(value: &Value) -> Result<RunnerParts> {
    let kind = |name: &Value| {
        let kind = name.as_str().and_then(ErrorKind::named);
        kind.ok_or_else(|| damaged(format!("{name} is no kind of errors")))
    };
    let ends = match value.get("ends") {
        None => vec![ErrorKind::OutOfRange],
        Some(_) => list_of(value, "ends")?.iter().map(kind).collect::<Result<_>>()?,
    };
    Ok(RunnerParts {
        enqueues: ids_of(list_of(value, "enqueues")?)?,
        close: NodeId(index(&value["close"])?),
        cancel: NodeId(index(&value["cancel"])?),
        ends,
    })
}

fn signature_to_json(signature: &StoredSignature) -> Map<String, Value> {
    let outputs = |named: &[(String, Output)]| -> Value {
        named.iter().map(|(name, output)| (name.clone(), output_to_json(output))).collect()
    };
    let operations = signature.operations.iter().map(|(name, id)| (name.clone(), json!(id.0)));
    Map::from_iter([
        ("inputs".to_owned(), outputs(&signature.inputs)),
        ("outputs".to_owned(), outputs(&signature.outputs)),
        ("operations".to_owned(), operations.collect()),
    ])
}

fn signature_from_json(value: &Value) -> Result<StoredSignature> {
    let operations = object_of(value, "operations")?.iter();
    let operations = operations.map(|(name, id)| Ok((name.clone(), NodeId(index(id)?))));
    Ok(StoredSignature {
        inputs: outputs_of(value, "inputs")?,
        outputs: outputs_of(value, "outputs")?,
        operations: operations.collect::<Result<_>>()?,
    })
}

fn output_to_json(output: &Output) -> Value {
    json!([output.node.0, output.index])
}

fn output_from_json(value: &Value) -> Result<Output> {
    let (node, output) = pair_of(value)?;
    Ok(Output { node: NodeId(index(node)?), index: index(output)? })
}

fn outputs_of(model: &Value, name: &str) -> Result<Vec<(String, Output)>> {
    let named = object_of(model, name)?.iter();
    named.map(|(name, output)| Ok((name.clone(), output_from_json(output)?))).collect()
}

fn ids_of(list: &[Value]) -> Result<Vec<NodeId>> {
    list.iter().map(|id| Ok(NodeId(index(id)?))).collect()
}

fn pair_of(value: &Value) -> Result<(&Value, &Value)> {
    match value.as_array().map(Vec::as_slice) {
        Some([first, second]) => Ok((first, second)),
        _ => Err(damaged(format!("expected a pair, got {}", brief(value)))),
    }
}

fn index(value: &Value) -> Result<u32> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| damaged(format!("expected a number, got {}", brief(value))))
}

fn number_of(value: &Value, name: &str) -> Result<u64> {
    value
        .get(name)
        .and_then(Value::as_u64)
        .ok_or_else(|| damaged(format!("it has no number {name:?}")))
}

pub(super) fn text_of<'v>(value: &'v Value, name: &str) -> Result<&'v str> {
    value
        .get(name)
        .and_then(Value::as_str)
        .ok_or_else(|| damaged(format!("it has no text {name:?}")))
}

fn optional_text(value: &Value, name: &str) -> Result<Option<Arc<str>>> {
    match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => Ok(Some(text_of(value, name)?.into())),
    }
}

pub(super) fn list_of<'v>(value: &'v Value, name: &str) -> Result<&'v Vec<Value>> {
    value
        .get(name)
        .and_then(Value::as_array)
        .ok_or_else(|| damaged(format!("it has no list {name:?}")))
}

/// A list, which is empty where it is left out.
pub(super) fn optional_list<'v>(value: &'v Value, name: &str) -> Result<&'v [Value]> {
    match value.get(name) {
        None => Ok(&[]),
        Some(_) => list_of(value, name).map(Vec::as_slice),
    }
}

fn object_of<'v>(value: &'v Value, name: &str) -> Result<&'v Map<String, Value>> {
    let object = value.get(name).and_then(Value::as_object);
    object.ok_or_else(|| damaged(format!("it has no object {name:?}")))
}
