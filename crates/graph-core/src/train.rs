//! Optimizers, gradient clipping and learning-rate schedules, as nodes of the graph.

mod clip;
mod global_step;
mod optimizer;
mod schedule;

pub use clip::{clip_by_global_norm, clip_by_value};
pub use optimizer::{Adagrad, Adam, AdamW, Momentum, Optimizer, RmsProp, Sgd};
pub use schedule::{Rate, cosine_decay, exponential_decay, piecewise};
