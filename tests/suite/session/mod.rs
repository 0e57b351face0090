//! Sessions by behaviour. Semantics: TensorFlow 1.x, `python/client/session_test.py` and
//! `core/common_runtime/direct_session_test.cc`, by meaning.

mod autotune;
mod budgets;
mod callables;
mod cancelling;
mod checkpoints;
mod containers;
mod counting;
mod counts;
mod determinism;
mod devices;
mod explain;
mod failures;
mod feeds;
mod fetches;
mod growth;
mod initial;
mod models;
mod optimizers;
mod overlap;
mod pipeline;
mod queues;
mod restore;
mod saver;
mod scatter;
mod small_devices;
mod splits;
mod submitted;
mod variables;
mod virtual_devices;
mod warm;
