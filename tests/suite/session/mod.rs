//! Sessions by behaviour. Semantics: TensorFlow 1.x, `python/client/session_test.py` and
//! `core/common_runtime/direct_session_test.cc`, by meaning.

mod autotune;
mod budgets;
mod callables;
mod cancelling;
mod checkpoints;
mod counts;
mod determinism;
mod devices;
mod errors;
mod explain;
mod failures;
mod feeds;
mod fetches;
mod growth;
mod lifecycle;
mod optimizers;
mod options;
mod overlap;
mod pipeline;
mod queues;
mod restore;
mod saver;
mod scale;
mod small_devices;
mod splits;
mod submitted;
mod threads;
mod variables;
mod virtual_devices;
mod warm;
