//! Readers: records of the files that a queue names, for runs. What a run reads, it reads before it begins; where a
//! reader stands is a session's, and stays as it was if the run fails.
//!
//! Source: TensorFlow's `python/ops/io_ops.py` and `core/framework/reader_base.cc`. There, what a step has read is
//! lost if it fails later, and a file that cannot be opened is passed over.

mod saved;

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

pub(crate) use saved::SAVED;

use crate::op::one;
use crate::{
    Attributes, Backward, Class, Compression, DType, Dims, Fact, FixedOptions, Graph, HostTensor,
    LineOptions, Op, OpError, Operation, Output, Queue, QueueSpec, RecordFormat, Shape, Tensor,
    TfRecordOptions, dims,
};

/// A reader: its name, and what it reads.
#[derive(Debug, Clone, PartialEq)]
pub struct ReaderSpec {
    /// The name of the reader's node.
    pub name: String,
    /// The container that it is in; none is the default one.
    pub container: Option<Arc<str>>,
    /// Where records come from.
    pub source: ReaderSource,
}

/// Where a reader's records come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ReaderSource {
    /// Files, which a queue names.
    Files(RecordFormat),
    /// A list of names, again and again: see [`Graph::string_input_producer`].
    Names(NameList),
}

/// Names that are given epoch by epoch.
#[derive(Clone, PartialEq)]
pub struct NameList {
    /// The names.
    pub names: Arc<[Vec<u8>]>,
    /// How often they are given; `None` is without end.
    pub epochs: Option<u64>,
    /// The seed by which each epoch has an order of its own; `None` is the order of the list.
    pub shuffle: Option<u64>,
}

/// A list may be long, and dumps show its operation.
impl fmt::Debug for NameList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { names, epochs, shuffle } = self;
        write!(f, "{} names, epochs {epochs:?}, shuffle {shuffle:?}", names.len())
    }
}

/// What an operation does with a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReaderAction {
    /// The reader itself.
    Make,
    /// Reads a record: a key and a value.
    Read,
    /// Reads up to so many records of one file: keys and values.
    ReadUpTo(usize),
    /// Leaves the file that the next record would come from.
    SkipFile,
    /// Gives the number of records that were read.
    RecordsProduced,
    /// Gives the number of files that the reader is done with.
    WorkUnitsCompleted,
    /// Gives the state as bytes.
    SerializeState,
    /// Takes a state from bytes.
    RestoreState,
    /// Begins anew, without a file.
    Reset,
    /// Gives all names of a list, for one epoch.
    NextEpoch,
}

/// An operation on a reader.
#[derive(Debug, Clone)]
pub struct ReaderOp {
    /// The reader.
    pub reader: Arc<ReaderSpec>,
    /// What it does.
    pub action: ReaderAction,
    /// The queue of file names, if it takes from one of the same graph.
    pub queue: Option<Arc<QueueSpec>>,
}

/// A reader of a graph. Each session has it stand at a place of its own.
///
/// It takes the name of its next file from a queue when the file at hand is at its end: a run waits for one as for
/// any element of a queue, and ends with `OutOfRange` when the queue is closed and empty. Reads of one run are served
/// in the order in which they were built. Runs that read with one reader are made one after the other: several
/// readers on one queue read side by side.
///
/// Files are opened and read on the thread that makes the run, before it begins, one buffer at a time; paths are
/// those of the process. If the run fails, also because of a file, the reader stands where it stood, and file names
/// are in the queue again: the next run tries the same record once more. To go on behind a file that is missing or
/// damaged, run [`Self::skip_file`].
#[derive(Debug, Clone)]
pub struct Reader {
    graph: Graph,
    spec: Arc<ReaderSpec>,
}

impl Graph {
    /// A reader of files of any format. See [`RecordFormat`] for what the keys are.
    ///
    /// # Errors
    /// Recorded: records of no bytes.
    #[track_caller]
    pub fn reader(&self, name: &str, format: RecordFormat) -> Reader {
        self.reader_of(name, ReaderSource::Files(format))
    }

    /// A reader that gives each file as one record: the key is the name, the value all bytes.
    #[track_caller]
    pub fn whole_file_reader(&self, name: &str) -> Reader {
        self.reader(name, RecordFormat::whole_file())
    }

    /// A reader of the lines of text files, without the first `skip_header_lines` of each. Keys are `file:line`, from
    /// 1; header lines count.
    #[track_caller]
    pub fn text_line_reader(&self, name: &str, skip_header_lines: u64) -> Reader {
        let options = LineOptions { skip_header_lines, ..LineOptions::default() };
        self.reader(name, RecordFormat::Lines(options))
    }

    /// A reader of records of one length. Keys are `file:index`, from 0.
    ///
    /// # Errors
    /// Recorded: `record_bytes` is 0.
    #[track_caller]
    pub fn fixed_length_record_reader(&self, name: &str, options: FixedOptions) -> Reader {
        self.reader(name, RecordFormat::Fixed(options))
    }

    /// A reader of TFRecord files. Keys are `file:offset`, in bytes after decompression.
    #[track_caller]
    pub fn tf_record_reader(&self, name: &str, compression: Compression) -> Reader {
        let options = TfRecordOptions { compression, ..TfRecordOptions::default() };
        self.reader(name, RecordFormat::TfRecord(options))
    }

    /// A reader that opens no file: key and value are what the queue gives.
    #[track_caller]
    pub fn identity_reader(&self, name: &str) -> Reader {
        self.reader(name, RecordFormat::Identity)
    }

    #[track_caller]
    pub(crate) fn reader_of(&self, name: &str, source: ReaderSource) -> Reader {
        let container = self.container_now();
        let mut spec = ReaderSpec { name: name.to_owned(), container, source };
        let (reader, action) = (Arc::new(spec.clone()), ReaderAction::Make);
        let node = self.apply_named(ReaderOp { reader, action, queue: None }, &[], name).node();
        spec.name = node.name.to_string();
        Reader { graph: self.clone(), spec: Arc::new(spec) }
    }
}

impl Reader {
    /// What it reads.
    pub fn spec(&self) -> &ReaderSpec {
        &self.spec
    }

    #[track_caller]
    pub(crate) fn apply(
        &self,
        action: ReaderAction,
        queue: Option<&Queue>,
        inputs: &[&Tensor],
    ) -> Operation {
        let own =
            queue.filter(|queue| queue.graph().id() == self.graph.id() && !queue.is_selected());
        let queue = own.map(Queue::shared_spec);
        let op = ReaderOp { reader: self.spec.clone(), action, queue };
        let name =
            format!("{}_{}", self.spec.name.rsplit('/').next().unwrap_or("reader"), op.name());
        self.graph.apply_named(op, inputs, &name).operation()
    }

    /// The next record of the files that `queue` names, a queue of scalar strings: its key and its value, two scalar
    /// strings.
    ///
    /// # Errors
    /// Recorded: a queue of anything else, or of another graph. In a run: `OutOfRange` if the queue is closed and
    /// empty; with the file's name, `NotFound` and whatever else the file system reports, `DataLoss` for damage,
    /// `ResourceExhausted` for a record above the format's limit. The reader stands where it stood then.
    #[track_caller]
    pub fn read(&self, queue: &Queue) -> (Tensor, Tensor) {
        self.two(self.apply(ReaderAction::Read, Some(queue), &[]))
    }

    /// The next records, at least one and at most `n`, all of one file: keys `[k]` and values `[k]`. No record for an
    /// `n` of 0, which does not wait.
    ///
    /// # Errors
    /// As [`Self::read`], for any of the `n` records: those before a damaged one come only if they are asked for
    /// alone.
    #[track_caller]
    pub fn read_up_to(&self, queue: &Queue, n: usize) -> (Tensor, Tensor) {
        self.two(self.apply(ReaderAction::ReadUpTo(n), Some(queue), &[]))
    }

    fn two(&self, read: Operation) -> (Tensor, Tensor) {
        // One that was refused has one output.
        let last = (read.node().facts.len() as u32).saturating_sub(1);
        let output = |index| Tensor::new(self.graph.clone(), Output { node: read.id(), index });
        (output(0), output(last.min(1)))
    }

    /// Leaves the file that the next record would come from, and counts it as completed: the rest of the file at
    /// hand, or the next file of the queue that has a record or that cannot be read. After a read has failed because
    /// of a file, it is that one.
    ///
    /// # Errors
    /// Recorded: as [`Self::read`]. In a run: `OutOfRange` if there is no such file any more.
    #[track_caller]
    pub fn skip_file(&self, queue: &Queue) -> Operation {
        self.apply(ReaderAction::SkipFile, Some(queue), &[])
    }

    /// How many records were read when the run begins: a scalar of i64.
    #[track_caller]
    pub fn num_records_produced(&self) -> Tensor {
        self.first(ReaderAction::RecordsProduced)
    }

    /// How many files the reader was done with when the run begins: a scalar of i64. It finds the end of a file of
    /// many records when it looks for one more.
    #[track_caller]
    pub fn num_work_units_completed(&self) -> Tensor {
        self.first(ReaderAction::WorkUnitsCompleted)
    }

    /// The state when the run begins: a scalar string, for [`Self::restore_state`].
    ///
    /// # Errors
    /// Recorded: unsupported but for [`Graph::identity_reader`], as in TensorFlow.
    #[track_caller]
    pub fn serialize_state(&self) -> Tensor {
        self.first(ReaderAction::SerializeState)
    }

    #[track_caller]
    fn first(&self, action: ReaderAction) -> Tensor {
        let node = self.apply(action, None, &[]).id();
        Tensor::new(self.graph.clone(), Output { node, index: 0 })
    }

    /// Goes back to the state that [`Self::serialize_state`] gave, before what the run reads with operations that
    /// were built later. `state` is fed or constant.
    ///
    /// # Errors
    /// Recorded: unsupported but for [`Graph::identity_reader`]; a state that is no scalar string. In a run:
    /// `InvalidArgument` for other bytes, `Unimplemented` for a state that is computed.
    #[track_caller]
    pub fn restore_state(&self, state: &Tensor) -> Operation {
        self.apply(ReaderAction::RestoreState, None, &[state])
    }

    /// Leaves the file at hand, and begins to count anew. The next record is that of the queue's next file.
    #[track_caller]
    pub fn reset(&self) -> Operation {
        self.apply(ReaderAction::Reset, None, &[])
    }
}

impl ReaderSpec {
    fn check(&self) -> Result<(), OpError> {
        match &self.source {
            ReaderSource::Files(RecordFormat::Fixed(FixedOptions { record_bytes: 0, .. })) => {
                Err(OpError::Invalid("expected record_bytes of at least 1, got 0".into()))
            }
            ReaderSource::Names(list) if list.names.is_empty() => {
                Err(OpError::Invalid("expected at least one name, got none".into()))
            }
            ReaderSource::Names(NameList { epochs: Some(0), .. }) => {
                let message = "expected at least 1 epoch, or None, got 0";
                Err(OpError::Invalid(message.into()))
            }
            _ => Ok(()),
        }
    }

    fn expect_state(&self) -> Result<(), OpError> {
        match self.source {
            ReaderSource::Files(RecordFormat::Identity) => Ok(()),
            _ => Err(OpError::Unsupported(
                "the state of a reader as bytes, but of an identity reader".into(),
            )),
        }
    }
}

impl Op for ReaderOp {
    fn name(&self) -> &str {
        match self.action {
            ReaderAction::Make => "reader",
            ReaderAction::Read => "read",
            ReaderAction::ReadUpTo(_) => "read_up_to",
            ReaderAction::SkipFile => "skip_file",
            ReaderAction::RecordsProduced => "records_produced",
            ReaderAction::WorkUnitsCompleted => "work_units_completed",
            ReaderAction::SerializeState => "serialize_state",
            ReaderAction::RestoreState => "restore_state",
            ReaderAction::Reset => "reset",
            ReaderAction::NextEpoch => "next_epoch",
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        self.reader.check()?;
        self.expect_source()?;
        let strings = |dims: Dims| Fact::new(DType::String, dims);
        match self.action {
            ReaderAction::Read | ReaderAction::ReadUpTo(_) | ReaderAction::SkipFile => {
                self.expect_names()?;
            }
            ReaderAction::SerializeState | ReaderAction::RestoreState => {
                self.reader.expect_state()?;
            }
            _ => {}
        }
        match (self.action, inputs) {
            (ReaderAction::RestoreState, [state])
                if state.dtype == DType::String && state.dims.admits(&Shape::scalar()) =>
            {
                Ok(SmallVec::new())
            }
            (ReaderAction::RestoreState, _) => {
                Err(OpError::Invalid("expected a state that is a scalar string".into()))
            }
            (ReaderAction::Read, _) => {
                Ok([strings(dims![]), strings(dims![])].into_iter().collect())
            }
            (ReaderAction::ReadUpTo(_), _) => {
                Ok([strings(dims![None]), strings(dims![None])].into_iter().collect())
            }
            (ReaderAction::RecordsProduced | ReaderAction::WorkUnitsCompleted, _) => {
                one(Fact::new(DType::I64, Vec::new()))
            }
            (ReaderAction::SerializeState, _) => one(strings(dims![])),
            (ReaderAction::NextEpoch, _) => match &self.reader.source {
                ReaderSource::Names(list) => one(strings(dims![list.names.len()])),
                ReaderSource::Files(_) => {
                    Err(OpError::Invalid("a reader of files has no list of names".into()))
                }
            },
            _ => Ok(SmallVec::new()),
        }
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(OpError::Invalid("a reader has no records outside of a session".into()))
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None; backward.n_inputs()]
    }

    fn class(&self) -> Class<'_> {
        Class::Reader(self)
    }

    fn encode(&self) -> Option<Attributes> {
        saved::encoded(self)
    }
}

impl ReaderOp {
    /// Whether its outputs are there before a run begins.
    pub fn is_source(&self) -> bool {
        use ReaderAction::{Make, Reset, RestoreState, SkipFile};
        !matches!(self.action, Make | SkipFile | RestoreState | Reset)
    }

    /// Names are only given, epoch by epoch.
    fn expect_source(&self) -> Result<(), OpError> {
        use ReaderAction::{Make, NextEpoch, RecordsProduced, WorkUnitsCompleted};
        let is_given =
            matches!(self.action, Make | NextEpoch | RecordsProduced | WorkUnitsCompleted);
        match self.reader.source {
            ReaderSource::Names(_) if !is_given => {
                let message = format!("{} of a list of names, which is no reader", self.name());
                Err(OpError::Invalid(message))
            }
            _ => Ok(()),
        }
    }

    fn expect_names(&self) -> Result<(), OpError> {
        let Some(queue) = &self.queue else {
            let message = "the queue belongs to another graph, or is chosen in the run: unsupported for names";
            return Err(OpError::Invalid(message.into()));
        };
        match &queue.components[..] {
            [(DType::String, dims)] if dims.rank() == Some(0) => Ok(()),
            components => Err(OpError::Invalid(format!(
                "expected a queue of file names, scalar strings, and the elements of '{}' are {components:?}",
                queue.name
            ))),
        }
    }
}
