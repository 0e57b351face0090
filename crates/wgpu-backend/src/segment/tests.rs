//! Segments of hand-built programs on every adapter that `CONVOKE_TEST_ADAPTERS` names, compared with plain
//! loops; and all kernels through naga, for which no adapter is needed.

mod commits;
mod elementwise;
mod fused;
mod golden;
mod harness;
mod images;
mod matmul;
mod memory;
mod moves;
mod reduce;
mod together;
mod translate;
mod warm;
