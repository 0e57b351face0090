//! Gradient clipping.

use crate::Tensor;

/// Every element of every gradient between `-limit` and `limit`.
#[track_caller]
pub fn clip_by_value(grads: &[Option<Tensor>], limit: f64) -> Vec<Option<Tensor>> {
    grads.iter().map(|g| g.as_ref().map(|g| g.clamp(-limit, limit))).collect()
}

/// All gradients scaled by one factor, so that the root of the sum of their squares is at most `limit`;
/// and that root before. With no gradient there is no norm.
///
/// Source: Pascanu, Mikolov and Bengio, 2013.
#[track_caller]
pub fn clip_by_global_norm(
    grads: &[Option<Tensor>],
    limit: f64,
) -> (Vec<Option<Tensor>>, Option<Tensor>) {
    let squares = grads.iter().flatten().map(|g| g.square().sum(()));
    let Some(norm) = squares.reduce(|a, b| a + b).map(|sum| sum.sqrt()) else {
        return (grads.to_vec(), None);
    };
    let factor = limit / norm.maximum(limit);
    let clipped = grads.iter().map(|g| g.as_ref().map(|g| g * &factor)).collect();
    (clipped, Some(norm))
}
