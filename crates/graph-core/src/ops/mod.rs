//! The operations, one room each; elementwise ones are rows of `unary.rs` and `binary.rs`.

pub(crate) mod batch_norm;
pub(crate) mod binary;
pub(crate) mod cast;
pub(crate) mod concat;
pub(crate) mod control;
pub(crate) mod conv;
pub(crate) mod count;
pub(crate) mod gather;
pub(crate) mod host;
pub mod init;
pub(crate) mod loss;
pub(crate) mod matmul;
pub(crate) mod nn;
pub(crate) mod pad;
pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod random;
pub(crate) mod reduce;
mod registry;
pub(crate) mod row;
pub(crate) mod scatter;
pub(crate) mod select;
pub(crate) mod state;
pub(crate) mod unary;
pub(crate) mod view;
pub(crate) mod window;

pub use batch_norm::{BatchNorm, Normalized};
pub use conv::Conv2d;
pub use count::Counting;
pub use pool::Pool;
pub use queue::{Queue, QueueAction, QueueKind, QueueOp, QueueOptions, QueueSpec};
pub use registry::{Decode, decode, saved_names};
pub use row::{Block, BoolFns, FloatFns, IntFns, Row};
pub use scatter::Scatter;
pub use window::{ConvGeometry, ImageLayout, Padding, PoolGeometry};

/// Every row of the elementwise tables.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    unary::UNARY.iter().chain(binary::BINARY)
}
