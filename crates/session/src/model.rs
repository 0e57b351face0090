//! Models: a graph and its variables in one file, frozen for inference or whole to be trained on.
//!
//! `select.rs` says what of a graph a model keeps, `text.rs` how that is written; `docs/model-format.md` is the format.
//! A file is written as checkpoints are, so that its path always has a whole one. Nothing in a file is trusted.

mod select;
mod signature;
mod spec;
mod tables;
mod text;
mod value;

use std::collections::BTreeMap;
use std::path::Path;

use convoke_graph_core::ops::Decode;
use convoke_graph_core::{
    Error, Graph, GraphParts, HostTensor, NodeId, Operation, Output, Result, Tensor, Variable,
};
pub use signature::ModelSignature;
use signature::find;
pub use spec::{ModelForm, ModelSpec, SignatureSpec};
pub(crate) use tables::{StoredTable, contents as table_contents, table_of};

use crate::devices::Devices;
use crate::session::{Session, SessionOptions};

/// The name of the signature that every model has: [`ModelSpec::signature`].
pub const DEFAULT_SIGNATURE: &str = "serving_default";

/// A model in parts, as it is written and read.
struct Stored {
    form: ModelForm,
    parts: GraphParts,
    signature: StoredSignature,
    signatures: Vec<(String, StoredSignature)>,
    variables: Vec<(NodeId, HostTensor)>,
    tables: Vec<StoredTable>,
    draws: Vec<(NodeId, u32)>,
}

/// A signature as it is written and read.
#[derive(Default)]
struct StoredSignature {
    inputs: Vec<(String, Output)>,
    outputs: Vec<(String, Output)>,
    operations: Vec<(String, NodeId)>,
}

impl Session {
    /// Writes a model to `path`: of this session's graph what `spec` says, with the elements of variables and the
    /// contents of tables as they are between two runs, whatever runs meanwhile. See [`SavedModel`].
    ///
    /// Names, devices that were asked for, containers, control edges, colocations, collections and seeds are kept.
    /// What is in queues is not: a loaded model's are empty, and readers begin anew. Queue runners are kept whose queue
    /// the model uses, so that [`Session::start_queue_runners`] fills it; but not, with a warning, one that no model
    /// can have: what it runs needs an input that a frozen model has as a placeholder, or a variable without elements
    /// that nothing else needs; changes a variable of a frozen model, was refused, puts nothing into the queue, or is
    /// an operation that no file can keep; or runs choose its queue. Local variables that have no elements stay so.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for handles of another graph or of a branch's or loop's inside, names that are
    /// given twice, another signature of the name [`DEFAULT_SIGNATURE`], an operation that was refused, a frozen model
    /// that would change a variable, or queue runners of more than 4096 threads in all; [`ErrorKind::Unimplemented`]
    /// with the name of a node whose operation no file can keep; [`ErrorKind::FailedPrecondition`] for a variable
    /// without elements; [`ErrorKind::Unavailable`] if the file cannot be written. The old file is whole then.
    ///
    /// [`ErrorKind::InvalidArgument`]: convoke_graph_core::ErrorKind::InvalidArgument
    /// [`ErrorKind::Unimplemented`]: convoke_graph_core::ErrorKind::Unimplemented
    /// [`ErrorKind::FailedPrecondition`]: convoke_graph_core::ErrorKind::FailedPrecondition
    /// [`ErrorKind::Unavailable`]: convoke_graph_core::ErrorKind::Unavailable
    pub fn save_model(&self, path: impl AsRef<Path>, spec: &ModelSpec) -> Result<()> {
        self.core.check_open()?;
        spec.check(self.graph())?;
        let whole = self.graph().parts();
        let graph = self.graph().snapshot();
        let is_initialized = |id| self.state().lock().is_initialized(id);
        let selected = select::Selected::new(&graph, &whole, spec, is_initialized)?;
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
    signature: ModelSignature,
    signatures: BTreeMap<String, ModelSignature>,
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
    ///
    /// [`ErrorKind::NotFound`]: convoke_graph_core::ErrorKind::NotFound
    /// [`ErrorKind::DataLoss`]: convoke_graph_core::ErrorKind::DataLoss
    /// [`ErrorKind::InvalidArgument`]: convoke_graph_core::ErrorKind::InvalidArgument
    /// [`ErrorKind::Unimplemented`]: convoke_graph_core::ErrorKind::Unimplemented
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
        session.core.set(stored.variables, Some(stored.draws), tables)?;
        let others = stored.signatures.into_iter();
        let others = others.map(|(name, stored)| Ok((name, ModelSignature::of(&graph, stored)?)));
        Ok(Self {
            form: stored.form,
            signature: ModelSignature::of(&graph, stored.signature)?,
            signatures: others.collect::<Result<_>>()?,
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

    /// All signatures by name, [`DEFAULT_SIGNATURE`] first.
    pub fn signatures(&self) -> impl Iterator<Item = (&str, &ModelSignature)> {
        let others = self.signatures.iter().map(|(name, signature)| (name.as_str(), signature));
        std::iter::once((DEFAULT_SIGNATURE, &self.signature)).chain(others)
    }

    /// The signature of this name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such signature, with the names that there are.
    ///
    /// [`ErrorKind::NotFound`]: convoke_graph_core::ErrorKind::NotFound
    pub fn signature(&self, name: &str) -> Result<&ModelSignature> {
        find(self.signatures(), "signature", name)
    }

    /// Feeds what is given by the names of a signature's inputs, and gives all of its outputs by their names. Its
    /// operations are not run.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a signature or an input that there is not; [`ErrorKind::InvalidArgument`] for a
    /// signature without outputs, whose operations are for [`Session::run`]; as that.
    ///
    /// # Source
    /// TensorFlow's `tf.contrib.predictor.from_saved_model`.
    ///
    /// [`ErrorKind::InvalidArgument`]: convoke_graph_core::ErrorKind::InvalidArgument
    /// [`ErrorKind::NotFound`]: convoke_graph_core::ErrorKind::NotFound
    pub fn run(
        &self,
        signature: &str,
        feeds: &[(&str, HostTensor)],
    ) -> Result<BTreeMap<String, HostTensor>> {
        let (name, signature) = (signature, self.signature(signature)?);
        if signature.outputs().is_empty() {
            let operations: Vec<&String> = signature.operations().keys().collect();
            return Err(Error::invalid(format!(
                "signature {name:?} has no outputs to give; run its operations {operations:?} by the model's session"
            )));
        }
        let feeds = feeds.iter().map(|(name, value)| Ok(signature.input(name)?.feed(value)));
        let feeds: Vec<_> = feeds.collect::<Result<_>>()?;
        self.session.run(&feeds, signature.outputs())
    }

    /// What is fed under this name, in the default signature.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such input, with the names that there are.
    ///
    /// [`ErrorKind::NotFound`]: convoke_graph_core::ErrorKind::NotFound
    pub fn input(&self, name: &str) -> Result<&Tensor> {
        self.signature.input(name)
    }

    /// What is fetched under this name, in the default signature.
    ///
    /// # Errors
    /// As [`Self::input`].
    pub fn output(&self, name: &str) -> Result<&Tensor> {
        self.signature.output(name)
    }

    /// What is run under this name, in the default signature.
    ///
    /// # Errors
    /// As [`Self::input`].
    pub fn operation(&self, name: &str) -> Result<&Operation> {
        self.signature.operation(name)
    }

    /// All inputs of the default signature, by name.
    pub fn inputs(&self) -> &BTreeMap<String, Tensor> {
        self.signature.inputs()
    }

    /// All outputs of the default signature, by name.
    pub fn outputs(&self) -> &BTreeMap<String, Tensor> {
        self.signature.outputs()
    }

    /// All operations of the default signature, by name.
    pub fn operations(&self) -> &BTreeMap<String, Operation> {
        self.signature.operations()
    }
}
