//! Batches: remainders, what an example may be, what is refused.

use std::cell::Cell;

use convoke_graph_core::{DType, Error, ErrorKind, HostTensor, Shape};

use super::{all, check_refused, drain};
use crate::{Example, InputExt};

fn rows(n: usize) -> impl Iterator<Item = Vec<f32>> {
    (0..n).map(|n| vec![n as f32, 0.5])
}

/// The number of examples in each batch of `n` of 7.
fn lens(n: usize, drop_remainder: bool) -> Vec<usize> {
    let batches = rows(7).batches(n);
    let batches = if drop_remainder { batches.drop_remainder() } else { batches };
    all(batches).iter().map(|batch| batch.dims()[0]).collect()
}

#[test]
fn an_odd_remainder_is_a_smaller_batch_or_none() {
    assert_eq!(lens(3, false), [3, 3, 1]);
    assert_eq!(lens(3, true), [3, 3]);
    assert_eq!(lens(7, false), [7]);
    assert_eq!(lens(7, true), [7]);
    assert_eq!(lens(usize::MAX, false), [7]);
    assert_eq!(lens(usize::MAX, true), [0; 0]);
    assert!(all(rows(0).batches(2)).is_empty());
}

#[test]
fn examples_come_in_order() {
    let batches = all(rows(3).batches(2));
    assert_eq!(batches, [HostTensor::from([[0f32, 0.5], [1.0, 0.5]]), [[2f32, 0.5]].into()]);
}

#[test]
fn every_dtype() {
    for dtype in DType::NUMERIC.into_iter().chain([DType::String]) {
        for dims in [&[][..], &[3], &[2, 0], &[2, 3]] {
            let example =
                HostTensor::zeros(dtype, Shape::new(dims).expect("small")).expect("zeros");
            let batch = HostTensor::batch(vec![example; 4]).expect("equal examples");
            assert_eq!((batch.dtype(), batch.dims()), (dtype, &[&[4], dims].concat()[..]));
        }
    }
}

#[test]
fn strings() {
    let examples = ["a", "", "bc"].map(HostTensor::from).to_vec();
    let expected = HostTensor::strings(&[3], ["a", "", "bc"]).expect("strings");
    assert_eq!(HostTensor::batch(examples).expect("scalars"), expected);
}

#[test]
fn pairs_and_scalars() {
    let labelled = [(vec![1u8, 2], 7i32), (vec![3, 4], 8), (vec![5, 6], 9)];
    let batches = all(labelled.into_iter().batches(2));
    let expected = [
        (HostTensor::from([[1u8, 2], [3, 4]]), HostTensor::from([7, 8])),
        ([[5u8, 6]].into(), [9].into()),
    ];
    assert_eq!(batches, expected);
}

#[test]
fn mixed_examples_are_refused() {
    let message = |other: &HostTensor| {
        let (dtype, shape) = (other.dtype(), other.shape());
        format!(
            "expected examples of one dtype and shape, got f32[2] in example 0 of the batch and \
             {dtype}{shape} in example 2"
        )
    };
    for other in [HostTensor::from([1f32]), [[1f32, 2.0]].into(), [1, 2].into(), 1f32.into()] {
        let message = message(&other);
        let examples = [HostTensor::from([1f32, 2.0]), [3f32, 4.0].into(), other];
        let refused = drain(examples.into_iter().batches(3));
        assert_eq!(refused, (vec![], Some((ErrorKind::InvalidArgument, message))));
    }
    let ragged = [vec![1f32], vec![2.0], vec![], vec![3.0]];
    let (whole, refused) = drain(ragged.into_iter().batches(2));
    assert_eq!((whole.len(), refused.map(|e| e.0)), (1, Some(ErrorKind::InvalidArgument)));
}

#[test]
fn an_error_takes_the_place_of_its_batch() {
    let bad = || Error::new(ErrorKind::DataLoss, "record 3 is damaged");
    let asked = Cell::new(0);
    let examples = (0..9).inspect(|_| asked.set(asked.get() + 1));
    let examples = examples.map(|n| if n == 3 { Err(bad()) } else { Ok(n) });
    let (whole, fault) = drain(examples.batches(2));
    assert_eq!(whole, [HostTensor::from([0, 1])]);
    assert_eq!(fault, Some((ErrorKind::DataLoss, "record 3 is damaged".to_owned())));
    assert_eq!(asked.get(), 4, "nothing is pulled after it");
}

#[test]
fn nothing_makes_no_batch() {
    let none = "expected at least one example for a batch, got none";
    check_refused(HostTensor::batch(vec![]), ErrorKind::InvalidArgument, none);
    check_refused(f32::batch(vec![]), ErrorKind::InvalidArgument, none);
    check_refused(Vec::<f32>::batch(vec![]), ErrorKind::InvalidArgument, none);
    let message = "expected batches of at least one example, got a size of 0".to_owned();
    let refused = drain(rows(3).batches(0));
    assert_eq!(refused, (vec![], Some((ErrorKind::InvalidArgument, message))));
}

#[test]
fn a_batch_too_large_for_a_tensor_is_refused() {
    let zeros = |dims: &[usize]| {
        let shape = Shape::new(dims).expect("within the limits");
        HostTensor::zeros(DType::U8, shape).expect("few bytes")
    };
    let deep = HostTensor::batch(vec![zeros(&[1; 8])]).expect_err("one axis too many");
    assert_eq!(deep.message(), "rank 9 is above the limit of 8");
    let long = vec![zeros(&[0, usize::MAX / 32]); 3];
    let long = HostTensor::batch(long).expect_err("more elements than can be counted");
    assert!(long.message().contains("overflow"), "{long}");
}
