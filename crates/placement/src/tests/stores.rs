//! What goes into resources and comes from them: which segments that takes, and when they may begin.

use super::*;
use crate::price;

/// The submissions and transfers of an assignment.
fn crossed(problem: &Problem, device: &[usize]) -> (usize, usize) {
    let prediction = price(problem, device).unwrap();
    let times = prediction.transfers.iter().map(|transfer| transfer.time);
    let parts = prediction.devices.iter().map(|total| total.compute + total.submission);
    assert_eq!(prediction.total, times.chain(parts).sum::<u64>());
    (prediction.submissions, prediction.transfers.len())
}

#[test]
fn nothing_is_stored_before_what_can_fail() {
    let mut problem = machine(1);
    problem.items = vec![variable("w"), item("step", 100), item("check", 10), item("more", 10)];
    problem.tensors = vec![
        edge("new", 1000, Producer::Item(1), &[0, 2]),
        edge("seen", 1000, Producer::Item(2), &[3]),
    ];
    assert_eq!(crossed(&problem, &[1, 1, 0, 0]), (1, 1));
    problem.fallible = vec![2];
    assert_eq!(crossed(&problem, &[1, 1, 0, 0]), (2, 1));
    // In the last segment of its device, or before it, what can fail keeps nothing from being stored.
    assert_eq!(crossed(&problem, &[1, 1, 1, 0]), (1, 1));
    assert_eq!(crossed(&problem, &[1, 1, 0, 1]), (2, 2));
    problem.fallible = vec![3];
    assert_eq!(crossed(&problem, &[1, 1, 0, 1]), (2, 2));
    assert_eq!(crossed(&problem, &[0, 1, 0, 0]), (1, 1));
    problem.fallible = vec![4];
    assert_eq!(
        price(&problem, &[0; 4]).unwrap_err().to_string(),
        "an item that is not there can fail"
    );
}

#[test]
fn a_device_without_work_takes_a_submission_to_store() {
    let mut problem = machine(1);
    problem.items = vec![variable("a"), variable("b"), variable("c")];
    problem.tensors = vec![edge("a:0", 1000, Producer::Item(0), &[1])];
    assert_eq!(crossed(&problem, &[1, 1, 0]), (1, 0));
    problem.tensors.clear();
    problem.constants = vec![Constant { bytes: 4, consumers: vec![2] }];
    assert_eq!(crossed(&problem, &[0, 0, 1]), (1, 0));
    assert_eq!(crossed(&problem, &[0, 0, 0]), (0, 0));
    // All that is stored so late shares it.
    problem.tensors = vec![
        edge("x", 1000, Producer::Host, &[0]),
        fetched(edge("c:0", 1000, Producer::Item(2), &[1])),
    ];
    assert_eq!(crossed(&problem, &[1, 1, 1]), (1, 2));
    // With work there it takes none.
    problem.items.push(item("work", 100));
    assert_eq!(crossed(&problem, &[1, 1, 1, 1]), (1, 2));
}

#[test]
fn what_is_read_before_its_device_works_takes_a_submission_in_front() {
    let mut problem = machine(1);
    problem.items = vec![variable("v"), item("look", 10), item("work", 100)];
    problem.tensors = vec![
        edge("v:0", 1000, Producer::Item(0), &[1]),
        edge("look:0", 1000, Producer::Item(1), &[2]),
    ];
    assert_eq!(crossed(&problem, &[1, 0, 1]), (2, 2));
    // The front, and what it sends; the host's work; the other segment with what it takes.
    let makespan = (40 + 16 + 10 + 40 + 16 + 11) * US;
    assert_eq!(price(&problem, &[1, 0, 1]).unwrap().makespan, makespan);
    // If the device works first anyway, it sends the variable as well.
    problem.tensors[1] = edge("work:0", 1000, Producer::Item(2), &[1]);
    assert_eq!(crossed(&problem, &[1, 0, 1]), (1, 2));
}

#[test]
fn what_another_device_makes_later_is_stored_at_the_end() {
    let mut problem = machine(2);
    problem.items = vec![variable("v"), item("first", 10), item("second", 10)];
    problem.tensors = vec![
        edge("first:0", 1000, Producer::Item(1), &[2]),
        edge("second:0", 1000, Producer::Item(2), &[0]),
    ];
    // Once where it was made, once to store it: through the host where that is another GPU.
    assert_eq!(crossed(&problem, &[1, 1, 0]), (2, 2));
    assert_eq!(crossed(&problem, &[1, 1, 2]), (3, 4));
    assert_eq!(crossed(&problem, &[2, 1, 2]), (2, 2));
    assert_eq!(crossed(&problem, &[2, 1, 0]), (2, 2));
    assert_eq!(crossed(&problem, &[0, 1, 2]), (2, 3));
}

#[test]
fn variables_of_two_devices_that_are_exchanged_are_read_first() {
    let mut problem = machine(2);
    problem.items = vec![variable("a"), variable("b")];
    problem.tensors = vec![
        edge("a:0", 1000, Producer::Item(0), &[1]),
        edge("b:0", 1000, Producer::Item(1), &[0]),
    ];
    assert_eq!(crossed(&problem, &[1, 2]), (4, 4));
    assert_eq!(crossed(&problem, &[1, 1]), (1, 0));
    // To the host, each goes once, and comes from it.
    assert_eq!(crossed(&problem, &[1, 0]), (1, 2));
}

#[test]
fn what_stores_begins_when_all_others_are_done() {
    let mut problem = machine(2);
    problem.items = vec![variable("v"), item("long", 1000), item("step", 100)];
    let makespan = |problem: &Problem| price(problem, &[2, 1, 2]).unwrap().makespan;
    // Two submissions; the first device takes 101 us, and the second 11 meanwhile.
    assert_eq!(makespan(&problem), (40 + 101) * US);
    problem.tensors = vec![edge("step:0", 0, Producer::Item(2), &[0])];
    assert_eq!(makespan(&problem), (40 + 101 + 40 + 11) * US);
    assert_eq!(price(&problem, &[2, 1, 2]).unwrap().total, (80 + 101 + 11) * US);
}

/// Parts of one GPU copy what they need of each other, and from where resources lie.
#[test]
fn parts_of_one_gpu_take_no_submission_to_send() {
    let mut problem = machine(3);
    problem.items = vec![variable("a"), variable("b"), item("work", 100), item("more", 10)];
    problem.tensors = vec![
        edge("a:0", 1000, Producer::Item(0), &[1, 2]),
        edge("b:0", 1000, Producer::Item(1), &[0]),
        fetched(edge("work:0", 1000, Producer::Item(2), &[3])),
    ];
    problem.join(1, 2);
    // Both are exchanged by copies; the work's result is copied, and sent to the host.
    assert_eq!(crossed(&problem, &[1, 2, 2, 1]), (2, 4));
    // A third GPU gets all through the host: the variable from a segment in front.
    assert_eq!(crossed(&problem, &[1, 2, 3, 1]), (4, 6));
    problem.join(2, 3);
    assert_eq!(crossed(&problem, &[1, 2, 3, 1]), (3, 5));
    assert_eq!(problem.queues.of(3), 1);
}
