//! The operations, one room each; elementwise ones are rows of `unary.rs` and `binary.rs`.

pub(crate) mod accumulator;
pub(crate) mod assert;
pub(crate) mod barrier;
pub(crate) mod batch_norm;
pub(crate) mod binary;
pub(crate) mod bodies;
pub(crate) mod body;
pub(crate) mod branch;
pub(crate) mod call;
pub(crate) mod cast;
pub(crate) mod concat;
pub(crate) mod control;
pub(crate) mod conv;
pub(crate) mod count;
pub(crate) mod flow;
pub(crate) mod gather;
pub(crate) mod host;
pub mod init;
pub(crate) mod loops;
pub(crate) mod loss;
pub(crate) mod map_staging;
pub(crate) mod matmul;
pub(crate) mod mutable_table;
pub(crate) mod nn;
pub(crate) mod pad;
pub(crate) mod pick;
pub(crate) mod pool;
pub(crate) mod producer;
pub(crate) mod queue;
pub(crate) mod random;
pub(crate) mod reader;
pub(crate) mod reduce;
mod registry;
pub(crate) mod row;
pub(crate) mod scatter;
pub(crate) mod select;
pub(crate) mod sparse;
pub(crate) mod sparse_accumulator;
pub(crate) mod staging;
pub(crate) mod state;
pub(crate) mod table;
pub(crate) mod tensor_array;
pub mod text;
pub(crate) mod unary;
pub(crate) mod view;
pub(crate) mod window;

pub use accumulator::{AccumulatorOptions, ConditionalAccumulator};
pub use assert::AssertOp;
pub use barrier::{Barrier, TakenElements};
pub use batch_norm::{BatchNorm, Normalized};
pub use body::Body;
pub use branch::{BranchOp, index_of};
pub use call::{HostCall, HostFunction};
pub use conv::Conv2d;
pub use count::Counting;
pub use flow::{Build, LoopOptions, Structure};
pub use loops::{LoopBlock, LoopOp, operations};
pub use map_staging::{MapStagingArea, MapStagingOptions, StagedElement};
pub use mutable_table::{
    FindOp, MutableTable, TableAction, TableContents, TableOp, TableOptions, TableSpec,
};
pub use pool::Pool;
pub use producer::ProducerOptions;
pub use queue::{
    Amount, Queue, QueueAction, QueueKind, QueueOp, QueueOptions, QueueRole, QueueSpec, Reduction,
};
pub use reader::{NameList, Reader, ReaderAction, ReaderOp, ReaderSource, ReaderSpec};
pub use registry::{Decode, decode, saved_names};
pub use row::{Block, BoolFns, FloatFns, IntFns, Row};
pub use scatter::Scatter;
pub use sparse::{IndexedSlices, SparseTensor};
pub use sparse_accumulator::SparseConditionalAccumulator;
pub use staging::{StagingArea, StagingOptions};
pub use table::LookupTable;
pub use tensor_array::TensorArray;
pub use text::TextOp;
pub use window::{ConvGeometry, ImageLayout, Padding, PoolGeometry};

/// Every row of the elementwise tables.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    unary::UNARY.iter().chain(binary::BINARY)
}
