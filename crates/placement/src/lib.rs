//! Where each part of a graph runs: device specs, constraints, cost, cut, explanation.
//!
//! A [`Problem`] is plain data: devices with their speeds, items of work with what they may run on, and
//! the tensors between them. [`solve`] gives a [`Solution`]: a device for each item, what the run is
//! predicted to cost, and a [`Reason`] for each item. Three steps, a file each: `legal.rs` (which devices
//! a colocation class may use, by TensorFlow's rules), `choose.rs` (which of them is cheapest), and
//! `explain.rs` (why).
//!
//! Read next: `problem.rs`, then `choose.rs`, which states what is minimised and how far.
//! `docs/placement.md` goes through TensorFlow's rules one by one.
//!
//! Invariants
//! - Device 0 is the host, a CPU; feeds come from it and fetches go to it.
//! - Times are integers in picoseconds, and sums saturate: the same problem gives the same solution on
//!   every machine.
//! - Nothing recurses over the input, does I/O or looks at a clock.
//! - A solution's predicted time is never above that of the best single legal device, unless that has too little
//!   memory. Its [`Solution::bound`] says how far it may be from the best there is.
//! - What shares a device is worked out here, from pairs: an item that asks in vain can be left out, and the
//!   solution says so.
#![forbid(unsafe_code)]

mod choose;
mod curve;
mod cut;
mod decide;
mod early;
mod ends;
mod exact;
mod explain;
mod flow;
mod grow;
mod legal;
mod memory;
mod model;
mod order;
mod overlap;
mod price;
mod problem;
mod queues;
mod refuse;
mod request;
mod tight;
mod unite;

#[cfg(test)]
mod tests;

pub use choose::solve;
pub use convoke_graph_core::{DeviceSpec, FieldConflict};
pub use curve::Curve;
pub use explain::{
    Bytes, Candidate, Decision, DroppedColocation, ItemReport, NextBest, Reason, Signed, Solution,
    Table, Time,
};
pub use grow::{Growth, Standing, Use};
pub use memory::{SHARED_CHUNK, STATUS_BYTES, Staged, chunk_bytes};
pub use model::{DeviceKind, DeviceModel, Family, Link, Picoseconds, Rates, Work};
pub use order::SegmentOrder;
pub use price::{DeviceTotal, Prediction, Transfer, price};
pub use problem::{Constant, Item, Objective, Problem, Producer, TensorEdge};
pub use queues::Queues;
