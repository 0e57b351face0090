//! One test binary: operations on every device, then sessions by behaviour.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

mod allocations;
mod killed;
mod ops;
mod random_graphs;
mod reports;
mod session;
mod tensorflow_tests;
mod training;
