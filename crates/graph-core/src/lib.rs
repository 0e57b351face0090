//! The graph: what is to be computed, and nothing about where or when.
//!
//! A [`Graph`] is an append-only list of nodes. A node is an [`Op`] applied to earlier values; every
//! value has a [`Fact`]: what is known of it before it is computed. [`Tensor`], [`Variable`] and
//! [`Operation`] are handles to it, and operators on them append nodes. [`HostTensor`] is a value in
//! host memory.
//!
//! Read next: `op.rs` (what an operation must answer), then `ops/reduce.rs` (one operation, whole) and
//! `ops/binary.rs` (a family as a table).
//!
//! Invariants
//! - A node's inputs and controls have smaller ids than the node, so there are no cycles to look for.
//! - A node never changes after it was added.
//! - Building never fails: a refused operation becomes an invalid node, listed by [`Graph::check`].
//! - This crate does no I/O and knows no device.
#![forbid(unsafe_code)]

mod attributes;
pub mod batches;
mod custom;
mod device_spec;
mod dtype;
mod error;
mod fact;
mod feed;
mod gradient;
mod graph;
mod handles;
mod host_tensor;
mod node_list;
mod number;
mod op;
pub mod ops;
pub mod philox;
mod print;
mod queue_runner;
mod records;
mod shape;
pub mod train;

#[cfg(test)]
mod tests;

pub use attributes::{Attribute, Attributes};
pub use custom::{CustomKernel, KernelShapes, TensorView, TensorViewMut, Wgsl, WgslParam};
pub use device_spec::{DeviceSpec, FieldConflict};
pub use dtype::{Compute, DType, Element, Float};
pub use error::{Error, ErrorKind, OpError, Result};
pub use fact::{Contents, Dim, Dims, Fact};
pub use feed::{Feed, FeedValue, IntoFeed, Resident};
pub use gradient::Backward;
pub use graph::{
    BodyId, Collection, Frozen, Graph, GraphLimits, GraphParts, GraphSnapshot, Node, NodeId,
    NodeParts, Output, SharedParts,
};
pub use handles::{IntoTensor, Operation, Tensor, Variable};
pub use host_tensor::{AlignedBytes, HostTensor};
pub use node_list::NodeList;
pub use number::Number;
pub use op::{
    Class, Contract, Control, Distribution, Elementwise, Facts, Flow, Host, Move, Op, Random,
    Reduce, ReduceAxes, ReduceKind, State, Values, View, Window,
};
pub use ops::{
    AccumulatorOptions, Amount, AssertOp, Barrier, BatchNorm, Body, BranchOp, Build,
    ConditionalAccumulator, Conv2d, ConvGeometry, Counting, FindOp, HostCall, HostFunction,
    ImageLayout, IndexedSlices, LookupTable, LoopBlock, LoopOp, LoopOptions, MapStagingArea,
    MapStagingOptions, MutableTable, NameList, Normalized, Padding, Pool, PoolGeometry,
    ProducerOptions, Queue, QueueAction, QueueKind, QueueOp, QueueOptions, QueueRole, QueueSpec,
    Reader, ReaderAction, ReaderOp, ReaderSource, ReaderSpec, Reduction, Row, Scatter,
    SparseConditionalAccumulator, SparseTensor, StagedElement, StagingArea, StagingOptions,
    Structure, TableAction, TableContents, TableOp, TableOptions, TableSpec, TakenElements,
    TensorArray, TextOp, index_of, init::Init, operations,
};
pub use queue_runner::{QueueRunner, RunnerParts};
pub use records::{
    Compression, DEFAULT_LIMIT, FixedOptions, LineOptions, RecordFormat, TfRecordOptions,
};
pub use shape::{Layout, MAX_RANK, Shape};
