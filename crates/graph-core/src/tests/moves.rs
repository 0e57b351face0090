//! Gather, scatter and concat.

use super::nodes::{assert_gradients, assert_refused, assert_value, floats, noise, try_eval};
use crate::{DType, Graph, HostTensor, OpError, dims};

#[test]
fn gather_takes_slices_along_an_axis() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F64, dims![2, 3]);
    let value = floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let feeds = [(&x, &value)];
    let columns = x.gather(HostTensor::from([[2i32, 0], [1, 2]]), 1);
    assert_value(&columns, &feeds, &[2, 2, 2], &[3.0, 1.0, 2.0, 3.0, 6.0, 4.0, 5.0, 6.0]);
    assert_value(&x.gather(HostTensor::from(1i64), -1), &feeds, &[2], &[2.0, 5.0]);
    let rows = x.embedding(HostTensor::from([1u8, 1]));
    assert_value(&rows, &feeds, &[2, 3], &[4.0, 5.0, 6.0, 4.0, 5.0, 6.0]);
    assert_gradients(&columns.square(), &[&x], &feeds);
    assert_gradients(&rows.square(), &[&x], &feeds);
}

#[test]
fn gather_of_nothing() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F64, dims![None, 3]);
    let none = g.constant(HostTensor::new::<i32>(&[0], vec![]).unwrap());
    let value = noise(&[2, 3]);
    let y = x.gather(&none, 0);
    assert_value(&y, &[(&x, &value)], &[0, 3], &[]);
    let dx = y.gradients(&[&x])[0].clone().unwrap();
    assert_value(&dx, &[(&x, &value)], &[2, 3], &[0.0; 6]);
}

#[test]
fn an_index_out_of_range_is_named() {
    let g = Graph::new();
    let (x, i) =
        (g.placeholder("x", DType::F64, dims![2, 3]), g.placeholder("i", DType::I32, dims![2]));
    let (value, indices) = (noise(&[2, 3]), HostTensor::from([1i32, -1]));
    let error = try_eval(&x.gather(&i, 0), &[(&x, &value), (&i, &indices)]);
    assert_eq!(error, Err(OpError::Index { index: -1, position: 1, size: 2 }));
}

#[test]
fn gather_refuses() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F64, dims![2, 3]);
    let _ = x.gather(HostTensor::from([0.5f32]), 0);
    assert_refused(&g, "the indices of gather needs a tensor of integers, got f32; cast it first");
    let g = Graph::new();
    let x = g.placeholder("x", DType::F64, dims![2, 3]);
    let _ = x.gather(HostTensor::from([0i32]), 2);
    assert_refused(&g, "axis 2 is out of range for rank 2");
}

#[test]
fn concat_and_stack() {
    let g = Graph::new();
    let a = g.placeholder("a", DType::F64, dims![2, 1]);
    let b = g.placeholder("b", DType::F64, dims![2, 2]);
    let (va, vb) = (floats(&[2, 1], &[1.0, 2.0]), floats(&[2, 2], &[3.0, 4.0, 5.0, 6.0]));
    let feeds = [(&a, &va), (&b, &vb)];
    let y = g.concat(&[&a, &b, &a], -1);
    assert_value(&y, &feeds, &[2, 4], &[1.0, 3.0, 4.0, 1.0, 2.0, 5.0, 6.0, 2.0]);
    assert_gradients(&y.square(), &[&a, &b], &feeds);
    let z = g.stack(&[&a, &a], 0);
    assert_value(&z, &feeds, &[2, 2, 1], &[1.0, 2.0, 1.0, 2.0]);
    assert_value(&g.stack(&[&a, &a], -1), &feeds, &[2, 1, 2], &[1.0, 1.0, 2.0, 2.0]);
    assert_gradients(&z.square(), &[&a], &feeds);
}

#[test]
fn concat_along_sizes_that_a_run_decides() {
    let g = Graph::new();
    let a = g.placeholder("a", DType::F64, dims![None, 2]);
    let b = g.placeholder("b", DType::F64, dims![None, 2]);
    let (va, vb) = (noise(&[1, 2]), noise(&[3, 2]));
    let y = g.concat(&[&a, &b], 0);
    assert_gradients(&y.square(), &[&a, &b], &[(&a, &va), (&b, &vb)]);
}

#[test]
fn concat_refuses() {
    let g = Graph::new();
    let _ = g.concat(&[], 0);
    assert_refused(&g, "concat needs at least one tensor");
    let g = Graph::new();
    let a = g.placeholder("a", DType::F64, dims![2, 1]);
    let b = g.placeholder("b", DType::F64, dims![3, 1]);
    let _ = g.concat(&[&a, &b], 1);
    assert_refused(&g, "expected shape [2, ?], got [3, ?]");
}
