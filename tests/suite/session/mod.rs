//! Sessions by behaviour. Semantics: TensorFlow 1.x, `python/client/session_test.py` and
//! `core/common_runtime/direct_session_test.cc`, by meaning.

mod autotune;
mod bad_inputs;
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
mod fifo_queue;
mod growth;
mod lifecycle;
mod optimizers;
mod options;
mod overlap;
mod padding_queue;
mod pipeline;
mod priority_queue;
mod queues;
mod restore;
mod saver;
mod scale;
mod shuffle_queue;
mod small_devices;
mod splits;
mod submitted;
mod threads;
mod variables;
mod virtual_devices;
mod warm;
