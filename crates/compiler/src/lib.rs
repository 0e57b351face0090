//! From graph to plan to program: what a session compiles before it runs.
//!
//! [`Plan::new`] prunes the graph to what the fetches need and orders reads and assignments. [`compile`]
//! makes a [`Program`] of a plan for one set of input shapes: shape arithmetic is folded, views become
//! layouts, elementwise work is grouped, groups get devices, and the schedule is cut into segments with
//! their transfers. Each stage is a pure function to a value that prints.
//!
//! Read next: `program.rs` (what backends are given), then `lower.rs`.
//!
//! Invariants
//! - A group's inputs are computed by earlier groups, or are sources.
//! - A program never changes; backends add their own compiled form beside it.
#![forbid(unsafe_code)]

pub mod alike;
mod apart;
mod asked;
mod donate;
mod elsewhere;
pub mod flow;
mod group;
mod head;
mod lower;
pub mod memory;
mod order;
mod plan;
mod program;
mod recompute;
mod rows;
mod schedule;
pub mod steps;
mod tail;
mod total;
mod work;

#[cfg(test)]
mod tests;

pub use apart::Apart;
pub use asked::Asked;
pub use group::GroupLimits;
pub use lower::InputFact;
pub use plan::{Plan, Signature};
pub use program::{
    Arg, Check, Commit, DeviceIndex, Donation, Fold, Fused, Group, Head, Instr, Kernel, Operand,
    PoolKind, Program, Reduction, Rows, Segment, Source, Tail, Value, ValueId,
};
pub use recompute::{live_bytes, recompute};
pub use rows::{Needs, ROW_MAX, Stage, by_columns};
pub use schedule::{CompileOptions, HOST, Placer, Places, Unplaced, compile};
pub use total::{TOTAL_INNER, TOTAL_ROWS};
pub use work::{DEEP_SIDE, shares_sums};
