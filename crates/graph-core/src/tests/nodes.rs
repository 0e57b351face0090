//! Evaluates a graph node by node, by the operations' references, and compares gradients with central
//! differences.

use crate::{DType, ErrorKind, Graph, HostTensor, OpError, Shape, Tensor};

/// An `f64` tensor.
pub fn floats(dims: &[usize], xs: &[f64]) -> HostTensor {
    HostTensor::from_f64s(DType::F64, Shape::new(dims).unwrap(), xs).unwrap()
}

/// An `f64` tensor of numbers in -2..2 without a pattern, all different.
pub fn noise(dims: &[usize]) -> HostTensor {
    let n: usize = dims.iter().product();
    let xs: Vec<f64> = (0..n).map(|i| ((i * 37 + 11) % 101) as f64 / 25.0 - 2.0).collect();
    floats(dims, &xs)
}

/// The value of `y`, where these tensors are fed.
pub fn try_eval(y: &Tensor, feeds: &[(&Tensor, &HostTensor)]) -> Result<HostTensor, OpError> {
    let mut values: Vec<Vec<HostTensor>> = Vec::new();
    let snapshot = y.graph().snapshot();
    let mut needed = vec![false; y.output().node.0 as usize + 1];
    needed[y.output().node.0 as usize] = true;
    for id in (0..needed.len()).rev() {
        if needed[id] {
            snapshot.nodes[id].inputs.iter().for_each(|i| needed[i.node.0 as usize] = true);
        }
    }
    for (node, needed) in snapshot.nodes.iter().zip(needed) {
        let fed = feeds.iter().find(|(tensor, _)| tensor.output().node == node.id);
        let of = |i: &crate::Output| values[i.node.0 as usize][i.index as usize].clone();
        values.push(match fed {
            _ if !needed => Vec::new(),
            Some((_, value)) => vec![(*value).clone()],
            None => node.op.eval(&node.inputs.iter().map(of).collect::<Vec<_>>())?.into_vec(),
        });
    }
    Ok(values[y.output().node.0 as usize][y.output().index as usize].clone())
}

/// As [`try_eval`], of a graph without refusals; what was inferred must admit what comes.
#[track_caller]
pub fn eval(y: &Tensor, feeds: &[(&Tensor, &HostTensor)]) -> HostTensor {
    let refused = y.graph().check();
    assert!(refused.is_empty(), "{refused:?}");
    let value = try_eval(y, feeds).unwrap();
    let fact = y.fact();
    assert_eq!(fact.dtype, value.dtype());
    assert!(fact.dims.admits(value.shape()), "inferred {}, got {}", fact.dims, value.shape());
    value
}

/// The elements of `y`, which must have this shape.
#[track_caller]
pub fn assert_value(y: &Tensor, feeds: &[(&Tensor, &HostTensor)], dims: &[usize], xs: &[f64]) {
    let value = eval(y, feeds);
    assert_eq!(value.dims(), dims);
    let found = value.to_f64s().unwrap();
    let close = found.iter().zip(xs).all(|(a, b)| (a - b).abs() < 1e-12);
    assert!(found.len() == xs.len() && close, "got {found:?}, expected {xs:?}");
}

/// The gradient of the sum of `y` times fixed weights, and the gradient of the sum of squares of that
/// gradient, for each of the `f64` tensors `xs`.
#[track_caller]
pub fn assert_gradients(y: &Tensor, xs: &[&Tensor], feeds: &[(&Tensor, &HostTensor)]) {
    let weights = noise(eval(y, feeds).dims());
    let loss = (y * y.graph().constant(weights)).sum(());
    let grads: Vec<Option<Tensor>> = loss.gradients(xs);
    compare(&loss, xs, &grads, feeds);
    let squares = grads.iter().flatten().map(|grad| grad.square().sum(()));
    let Some(second) = squares.reduce(|a, b| a + b) else { return };
    let grads = second.gradients(xs);
    compare(&second, xs, &grads, feeds);
}

/// Gradients of a scalar against central differences.
#[track_caller]
fn compare(
    loss: &Tensor,
    xs: &[&Tensor],
    grads: &[Option<Tensor>],
    feeds: &[(&Tensor, &HostTensor)],
) {
    let step = 1e-4;
    for (x, grad) in xs.iter().zip(grads) {
        let value = feeds.iter().find(|(tensor, _)| tensor.is(x)).unwrap().1;
        let elements = value.to_f64s().unwrap();
        let grad = match grad {
            Some(grad) => eval(grad, feeds).to_f64s().unwrap(),
            None => vec![0.0; elements.len()],
        };
        for i in 0..elements.len() {
            let at = |delta: f64| {
                let mut moved = elements.clone();
                moved[i] += delta;
                let moved = floats(value.dims(), &moved);
                let mut feeds = feeds.to_vec();
                feeds.retain(|(tensor, _)| !tensor.is(x));
                feeds.push((x, &moved));
                eval(loss, &feeds).scalar::<f64>().unwrap()
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            let error = (slope - grad[i]).abs();
            let name = x.name();
            assert!(error <= 1e-5 * (1.0 + slope.abs()), "{name}[{i}]: {} not {slope}", grad[i]);
        }
    }
}

/// The refusal of a graph, with its whole message.
#[track_caller]
pub fn assert_refused(g: &Graph, expected: &str) {
    let errors = g.check();
    assert_eq!(errors.first().map(|e| e.message()), Some(expected));
    assert_ne!(errors[0].kind(), ErrorKind::Internal);
}
