//! Sessions: a graph, devices, and what is kept from run to run.
//!
//! [`Session::run`] finds or makes the plan of what is asked for, compiles it for the shapes that are fed,
//! leases memory, runs the segments, and commits. Read `session.rs` for the way of a run, then
//! `executor.rs`.
//!
//! Invariants
//! - A run that fails changes nothing.
//! - A warm run allocates no device memory and builds no pipeline and no bind group.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

mod autotune;
mod budget;
mod cache;
mod calibrate;
mod callable;
mod cancel;
mod checkpoint;
mod core;
mod device_tensor;
mod devices;
mod donation;
mod drawing;
mod executor;
mod explain;
mod feeds;
mod fetch;
mod flow;
mod growth;
mod holding;
mod identity;
mod instance;
mod metadata;
mod model;
mod moment;
mod monitored;
mod partial;
mod place;
mod pool;
mod prepared;
mod queue_runner;
mod queues;
mod recent;
mod saver;
mod session;
mod state;
mod submit;
mod sums;
mod sync;
mod trace;
mod turn;
mod variables;

pub use calibrate::{
    CalibrateOptions, Calibrating, Calibration, Calibrations, MeasuredDevice, Progress, Report,
};
pub use callable::{Arguments, Callable, CallableOptions};
pub use cancel::CancelToken;
pub use checkpoint::{
    CHECKPOINT_MAX_BYTES, KeptTable, KeptVariable, Mismatch, Missing, RestoreOptions,
    RestoreReport, Unknown,
};
pub use convoke_placement::{
    Candidate, Curve, Decision, DeviceKind as ModelKind, DeviceModel, DeviceTotal, Family, Link,
    NextBest, Objective, Prediction, Reason, Transfer, Work,
};
#[cfg(feature = "gpu")]
pub use convoke_wgpu_backend::gpu::{Counters, InternalCounters, LimitOverrides};
pub use device_tensor::{DeviceTensor, OnDevice};
pub use devices::{DeviceInfo, DeviceKind, DeviceOptions, Devices, PipelineDir};
pub use donation::Donation;
pub use explain::{
    AbsentNode, Crossing, ExplainedPart, ExplainedParts, ExplainedProgram, ExplainedStep,
    Explanation, Gap, ItemKind, Measured, MeasuredCrossing, MemoryUse, NodeName, NodeReport,
    Origin, PartValue, PlacedItem, PlacedSegment, PlacedTensor, Staying, StepNode, StepWork, Trips,
};
pub use fetch::{Fetch, FetchList, FetchResults};
pub use identity::SessionMetadata;
pub use metadata::{NodeTime, Phase, PhaseKind, RunMetadata, TransferTime};
pub use model::{
    DEFAULT_SIGNATURE, LoadOptions, ModelForm, ModelSignature, ModelSpec, SavedModel, SignatureSpec,
};
pub use monitored::{
    AfterRun, BeforeRun, CheckpointSaver, FeedFn, FinalOps, Hook, LoggingTensor, Monitor,
    MonitoredSession, NanTensor, Profiler, Saved, StepCounter, StopAtStep, Wanted,
};
pub use partial::PartialRun;
pub use queues::{Lack, WaitingOperation, WaitingRun};
pub use saver::{Checkpoint, Saver};
pub use session::{DevicePolicy, RunOptions, Session, SessionOptions, Timings};
pub use state::VariableInfo;
pub use submit::RunHandle;
pub use trace::Trace;
