//! Runs segments of programs on a device.
//!
//! A [`GpuSegment`] is compiled once: groups become steps (`lower/`), steps an order (`schedule.rs`), values
//! places in a few buffers (`memory.rs`). It never changes. A [`GpuInstance`] has the buffers, bind groups and
//! the recording of one run; instances are leased from a pool (`pool.rs`), so that several threads can run one
//! segment. Variables (`variables.rs`) belong to the session and are shared by all its segments.
//!
//! Invariants
//! - A warm run makes no buffer, bind group or pipeline, and exactly one submission.
//! - Bytes on the device are the host's bytes: a bool is a byte, four to a word.
//! - No value becomes shader text; the text depends on kernels, dtypes, ranks and stride patterns.
//! - A run that fails has stored nothing into a variable.

mod address;
mod beside;
mod compile;
mod error;
mod instance;
mod lower;
mod memory;
mod parts;
mod pool;
mod resident;
mod schedule;
mod step;
#[cfg(test)]
mod tests;
mod variables;

pub use compile::GpuSegment;
pub use error::{CompileError, to_error};
pub use instance::{Carried, GpuInstance, GpuRun, Lease, RunOptions, Running, Sent, Work};
pub use lower::supports;
pub use resident::{GpuTensor, GpuTensors};
pub use step::Origin;
pub use variables::{GpuVariables, Loading};
