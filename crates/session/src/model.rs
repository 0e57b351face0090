//! Models: a graph and its variables in one file, frozen for inference or whole to be trained on.
//!
//! `select.rs` says what of a graph a model keeps, `text.rs` how that is written; `docs/model-format.md` is the format.
//! A file is written as checkpoints are, so that its path always has a whole one. Nothing in a file is trusted.

mod select;
mod tables;
mod text;
mod value;

use std::collections::BTreeMap;
use std::path::Path;

use convoke_graph_core::ops::Decode;
use convoke_graph_core::{
    BodyId, Error, ErrorKind, Graph, GraphParts, HostTensor, NodeId, Operation, Output, Result,
    Tensor, Variable,
};

use crate::devices::Devices;
use crate::session::{Session, SessionOptions};

/// What of a graph a model keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelForm {
    /// What the outputs and operations need, with the elements of variables as constants.
    Frozen,
    /// What inputs, outputs, operations and collections need, with variables, their initializers, and how often random
    /// operations were drawn.
    Trainable,
}

/// What a model is to give and take, by names of its own.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// What is fed. In a frozen model, what is no placeholder becomes one, and what only it needed is left out.
    pub inputs: Vec<(String, Tensor)>,
    /// What is fetched.
    pub outputs: Vec<(String, Tensor)>,
    /// What is run for its effect, such as a training step.
    pub operations: Vec<(String, Operation)>,
    /// What is kept.
    pub form: ModelForm,
}

impl ModelSpec {
    /// A frozen model.
    pub fn frozen(inputs: &[(&str, &Tensor)], outputs: &[(&str, &Tensor)]) -> Self {
        let (inputs, outputs) = (owned(inputs), owned(outputs));
        Self { inputs, outputs, operations: Vec::new(), form: ModelForm::Frozen }
    }

    /// A model to be trained on.
    pub fn trainable(
        inputs: &[(&str, &Tensor)],
        outputs: &[(&str, &Tensor)],
        operations: &[(&str, &Operation)],
    ) -> Self {
        let (inputs, outputs, operations) = (owned(inputs), owned(outputs), owned(operations));
        Self { inputs, outputs, operations, form: ModelForm::Trainable }
    }

    fn check(&self, graph: &Graph) -> Result<()> {
        let tensors = self.inputs.iter().chain(&self.outputs);
        let own = tensors.map(|(name, tensor)| {
            (name, tensor.graph(), tensor.output().node, tensor.fact().is_variable())
        });
        let operations =
            self.operations.iter().map(|(name, op)| (name, op.graph(), op.id(), false));
        for (name, other, node, is_variable) in own.chain(operations) {
            if other.id() != graph.id() {
                let message = format!("{name:?} belongs to another graph than the session's");
                return Err(Error::invalid(message));
            }
            if graph.node(node).body != BodyId::GRAPH {
                let message = format!(
                    "{name:?} lies inside of a branch or loop; return it from the closure that builds it"
                );
                return Err(Error::invalid(message));
            }
            if is_variable {
                let message = format!("{name:?} is a variable's handle; give its value");
                return Err(Error::invalid(message));
            }
        }
        let names = |list: Vec<&String>| {
            let all: BTreeMap<&String, ()> = list.iter().map(|&name| (name, ())).collect();
            all.len() == list.len()
        };
        let unique = names(self.inputs.iter().map(|(name, _)| name).collect())
            && names(self.outputs.iter().map(|(name, _)| name).collect())
            && names(self.operations.iter().map(|(name, _)| name).collect());
        if !unique {
            return Err(Error::invalid("two inputs, outputs or operations have the same name"));
        }
        Ok(())
    }
}

fn owned<T: Clone>(named: &[(&str, &T)]) -> Vec<(String, T)> {
    named.iter().map(|&(name, what)| (name.to_owned(), what.clone())).collect()
}

/// A model in parts, as it is written and read.
struct Stored {
    form: ModelForm,
    parts: GraphParts,
    inputs: Vec<(String, Output)>,
    outputs: Vec<(String, Output)>,
    operations: Vec<(String, NodeId)>,
    variables: Vec<(NodeId, HostTensor)>,
    tables: Vec<tables::StoredTable>,
    draws: Vec<(NodeId, u32)>,
}

impl Session {
    /// Writes a model to `path`: of this session's graph what `spec` says, with the elements of variables and the contents
    /// of tables as they are between two runs, whatever runs meanwhile. See [`SavedModel`].
    ///
    /// Names, devices that were asked for, containers, control edges, colocations, collections and seeds are kept.
    /// What is in queues is not: a loaded model's are empty, and readers begin anew. Queue runners are not kept; an
    /// operation of one is, if it is named. Local variables that have no elements stay without.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for handles of another graph or of a branch's or loop's inside, names that are given twice, an operation that was
    /// refused, or a frozen model that would change a variable; [`ErrorKind::Unimplemented`] with the name of a node
    /// whose operation no file can keep; [`ErrorKind::FailedPrecondition`] for a variable without elements;
    /// [`ErrorKind::Unavailable`] if the file cannot be written. The old file is whole then.
    pub fn save_model(&self, path: impl AsRef<Path>, spec: &ModelSpec) -> Result<()> {
        self.core.check_open()?;
        spec.check(self.graph())?;
        let whole = self.graph().parts();
        let graph = self.graph().snapshot();
        let selected = select::Selected::new(&graph, &whole, spec)?;
        let graph = self.graph();
        let all = graph.global_variables().into_iter().chain(graph.local_variables());
        let kept: Vec<Variable> =
            all.filter(|variable| selected.has(variable.handle().output().node)).collect();
        let specs = selected.tables();
        let moment = self.core.moment(&kept, &specs, |id| selected.may_lack(id))?;
        let values: BTreeMap<NodeId, HostTensor> = moment.variables.into_iter().collect();
        let tables = tables::stored(&specs, &moment.tables)?;
        let stored = Stored { tables, ..selected.stored(whole, spec, &values, &moment.draws)? };
        // What is written can be read.
        Graph::from_parts(stored.parts.clone())?;
        text::write(path.as_ref(), &stored)
    }
}

/// A model as [`Session::save_model`] wrote it: a graph of its own, and a session with the variables' elements and what
/// tables held.
///
/// It gives the same bits as the original on the same devices, and a trainable one goes on as the original would;
/// constants may be folded where variables were read, which can change the last bits (see
/// [`SessionOptions::simplify`]).
#[derive(Debug)]
pub struct SavedModel {
    session: Session,
    form: ModelForm,
    inputs: BTreeMap<String, Tensor>,
    outputs: BTreeMap<String, Tensor>,
    operations: BTreeMap<String, Operation>,
}

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// How its session works.
    pub session: SessionOptions,
    /// How operations that Convoke does not have are made, by the names that their
    /// [`encode`](convoke_graph_core::Op::encode) gives.
    pub operations: Vec<(String, Decode)>,
}

impl SavedModel {
    /// Reads a model, for a session on `devices`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no file; [`ErrorKind::DataLoss`] if it is damaged;
    /// [`ErrorKind::InvalidArgument`] if it has no model, or one whose operations do not fit each other, with the name
    /// of the node; [`ErrorKind::Unimplemented`] for a later version or an operation that is not known.
    #[track_caller]
    pub fn load(path: impl AsRef<Path>, devices: &Devices) -> Result<Self> {
        Self::load_with(path, devices, LoadOptions::default())
    }

    /// As [`Self::load`], with options.
    ///
    /// # Errors
    /// As [`Self::load`], and as [`Session::with_options`].
    #[track_caller]
    pub fn load_with(
        path: impl AsRef<Path>,
        devices: &Devices,
        options: LoadOptions,
    ) -> Result<Self> {
        let path = path.as_ref();
        let mut stored = text::read(path, &options.operations)?;
        let of_file = |e| text::of_file(path, &e);
        let graph = Graph::from_parts(std::mem::take(&mut stored.parts)).map_err(of_file)?;
        text::check(&graph, &stored).map_err(of_file)?;
        let tables = tables::contents(&graph.snapshot(), &stored.tables).map_err(of_file)?;
        let session = Session::with_options(&graph, devices, options.session)?;
        session.core.set_variables(stored.variables, Some(stored.draws))?;
        for (table, contents) in tables {
            session.core.queues.set_table(&table, contents);
        }
        let operation = |id| graph.operation(&graph.node(id).name);
        let tensors = |named: Vec<(String, Output)>| -> Result<BTreeMap<String, Tensor>> {
            let tensor = |(name, at): (String, Output)| {
                let node = graph.node(at.node);
                Ok((name, graph.tensor(&format!("{}:{}", node.name, at.index))?))
            };
            named.into_iter().map(tensor).collect()
        };
        let operations = stored.operations.into_iter();
        let operations = operations.map(|(name, id)| Ok((name, operation(id)?)));
        Ok(Self {
            form: stored.form,
            inputs: tensors(stored.inputs)?,
            outputs: tensors(stored.outputs)?,
            operations: operations.collect::<Result<_>>()?,
            session,
        })
    }

    /// What was kept of the original.
    pub fn form(&self) -> ModelForm {
        self.form
    }

    /// The session, in which variables have their elements.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        self.session.graph()
    }

    /// What is fed under this name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such input, with the names that there are.
    pub fn input(&self, name: &str) -> Result<&Tensor> {
        find(&self.inputs, "input", name)
    }

    /// What is fetched under this name.
    ///
    /// # Errors
    /// As [`Self::input`].
    pub fn output(&self, name: &str) -> Result<&Tensor> {
        find(&self.outputs, "output", name)
    }

    /// What is run under this name.
    ///
    /// # Errors
    /// As [`Self::input`].
    pub fn operation(&self, name: &str) -> Result<&Operation> {
        find(&self.operations, "operation", name)
    }

    /// All inputs, by name.
    pub fn inputs(&self) -> &BTreeMap<String, Tensor> {
        &self.inputs
    }

    /// All outputs, by name.
    pub fn outputs(&self) -> &BTreeMap<String, Tensor> {
        &self.outputs
    }

    /// All operations, by name.
    pub fn operations(&self) -> &BTreeMap<String, Operation> {
        &self.operations
    }
}

fn find<'a, T>(named: &'a BTreeMap<String, T>, what: &str, name: &str) -> Result<&'a T> {
    named.get(name).ok_or_else(|| {
        let names: Vec<&str> = named.keys().map(String::as_str).collect();
        let message = format!("no {what} is named {name:?}; there are {names:?}");
        Error::new(ErrorKind::NotFound, message)
    })
}
