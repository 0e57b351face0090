//! The operations, one room each; elementwise ones are rows of `unary.rs` and `binary.rs`.

pub(crate) mod binary;
pub(crate) mod cast;
pub(crate) mod control;
pub(crate) mod host;
pub mod init;
pub(crate) mod loss;
pub(crate) mod matmul;
pub(crate) mod nn;
pub(crate) mod pad;
pub(crate) mod random;
pub(crate) mod reduce;
mod row;
pub(crate) mod select;
pub(crate) mod state;
pub(crate) mod unary;
pub(crate) mod view;

pub use row::{Block, BoolFns, FloatFns, IntFns, Row};

/// Every row of the elementwise tables.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    unary::UNARY.iter().chain(binary::BINARY)
}
