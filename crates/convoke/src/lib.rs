//! Convoke is a session engine for tensor graphs: TensorFlow 1's `tf.Session` model on any GPU that wgpu
//! reaches and on the CPU.
//!
//! You declare a [`Graph`]; a [`Session`] decides where each part runs, compiles the part that you ask for,
//! keeps variables resident, and runs it again and again.
//!
//! ```
//! use convoke::prelude::*;
//!
//! # fn main() -> convoke::Result<()> {
//! let g = Graph::new();
//! let x = g.placeholder("x", F32, dims![None, 3]);
//! let w = g.variable("w", Init::Constant(2.0), F32, [3, 1]);
//! let y = x.matmul(&w).relu();
//! let session = Session::new(&g, &Devices::cpu())?;
//! session.run(&[], g.initializers())?;
//! let y = session.run(&[x.feed([[1.0f32, 2.0, 3.0]])], &y)?;
//! assert_eq!(y.to_vec::<f32>()?, [12.0]);
//! # Ok(())
//! # }
//! ```
//!
//! Building a graph never fails: a refused operation is reported with your line by [`Graph::check`] and by
//! the first run that needs it.

#[cfg(feature = "command")]
pub mod cases;
#[cfg(feature = "command")]
pub mod data;
#[cfg(feature = "command")]
pub mod models;

pub use convoke_compiler::{Apart, Program};
pub use convoke_derive::Fetch;
pub use convoke_graph_core::{
    AccumulatorOptions, Amount, AssertOp, Attribute, Attributes, Backward, Barrier, BatchNorm,
    Body, BodyId, BranchOp, Build, Class, Collection, ConditionalAccumulator, Conv2d, CustomKernel,
    DType, Dim, Dims, Element, Error, ErrorKind, Fact, Facts, Feed, FindOp, Flow, Frozen, Graph,
    GraphLimits, GraphParts, GraphSnapshot, HostCall, HostFunction, HostTensor, ImageLayout,
    IndexedSlices, Init, IntoFeed, IntoTensor, KernelShapes, Layout, LookupTable, LoopOp,
    LoopOptions, MapStagingArea, MapStagingOptions, MutableTable, NameList, Node, NodeId, NodeList,
    NodeParts, Op, OpError, Operation, Output, Padding, Pool, ProducerOptions, Queue, QueueAction,
    QueueKind, QueueOp, QueueOptions, QueueRole, QueueRunner, QueueSpec, Reader, ReaderAction,
    ReaderOp, ReaderSource, ReaderSpec, Reduction, Result, RunnerParts, Shape, SharedParts,
    SparseConditionalAccumulator, SparseTensor, StagedElement, StagingArea, StagingOptions,
    Structure, TableAction, TableContents, TableOp, TableOptions, TableSpec, TakenElements, Tensor,
    TensorArray, TensorView, TensorViewMut, TextOp, Values, Variable, Wgsl, WgslParam, dims, ops,
    philox, train,
};
/// Records from files, and tensors from records, without a session.
pub use convoke_input as input;
pub use convoke_session::{
    AbsentNode, AfterRun, Arguments, BeforeRun, CalibrateOptions, Calibrating, Calibration,
    Calibrations, Callable, CallableOptions, CancelToken, Candidate, Checkpoint, CheckpointSaver,
    Crossing, Curve, DEFAULT_SIGNATURE, Decision, DeviceInfo, DeviceKind, DeviceModel,
    DeviceOptions, DevicePolicy, DeviceTensor, DeviceTotal, Devices, Donation, ExplainedPart,
    ExplainedParts, ExplainedProgram, ExplainedStep, Explanation, Family, FeedFn, Fetch, FetchList,
    FetchResults, FinalOps, Gap, Hook, ItemKind, KeptTable, KeptVariable, Lack, Link, LoadOptions,
    LoggingTensor, Measured, MeasuredCrossing, MeasuredDevice, MemoryUse, Mismatch, Missing,
    ModelForm, ModelKind, ModelSignature, ModelSpec, Monitor, MonitoredSession, NanTensor,
    NextBest, NodeName, NodeReport, NodeTime, Objective, OnDevice, Origin, PartValue, PartialRun,
    Phase, PhaseKind, PipelineDir, PlacedItem, PlacedSegment, PlacedTensor, Prediction, Profiler,
    Progress, Reason, Report, RestoreOptions, RestoreReport, RunHandle, RunMetadata, RunOptions,
    Saved, SavedModel, Saver, Session, SessionMetadata, SessionOptions, SignatureSpec, Staying,
    StepCounter, StepNode, StepWork, StopAtStep, Timings, Trace, Transfer, TransferTime, Trips,
    Unknown, VariableInfo, WaitingOperation, WaitingRun, Wanted, Work,
};
pub use half;
pub use ndarray;

/// The README's code, run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;

/// What does not compile, of the list of TensorFlow's tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/tensorflow-tests.md")]
pub struct TensorFlowTests;

#[cfg(feature = "gpu")]
pub use convoke_session::{Counters, InternalCounters, LimitOverrides};
/// wgpu, of the version that Convoke uses.
#[cfg(feature = "gpu")]
pub use convoke_wgpu_backend::wgpu;

/// What most programs need.
pub mod prelude {
    pub use crate::train::{
        Adagrad, Adam, AdamW, Momentum, Optimizer, RmsProp, Sgd, clip_by_global_norm, clip_by_value,
    };
    pub use crate::{
        Collection, DType, Devices, ErrorKind, Feed, Fetch, Graph, HostTensor, Init, ModelSpec,
        Operation, SavedModel, Saver, Session, SessionOptions, Tensor, Variable, dims,
    };
    pub use convoke_graph_core::DType::{
        BF16, Bool, F16, F32, F64, I8, I16, I32, I64, String as Strings, U8, U16, U32, U64,
    };
}
