//! From graph to plan to program: what a session compiles before it runs.
#![forbid(unsafe_code)]
mod program;
pub use program::{
    Arg, Commit, DeviceIndex, Fused, Group, Instr, Kernel, Operand, Program, Reduction, Segment,
    Source, Value, ValueId,
};
