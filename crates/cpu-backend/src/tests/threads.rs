//! Threads: every part is done once, whoever calls, and what fails is told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use convoke_graph_core::Error;

use crate::Threads;

/// Shares `n_parts` and counts each.
fn counted(threads: &Threads, n_parts: usize) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..n_parts).map(|_| AtomicUsize::new(0)).collect();
    threads.share(n_parts, &|part| {
        counts[part].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_part_is_done_once() {
    for n in [0, 1, 2, 3, 8] {
        let threads = Threads::new(n).unwrap();
        for n_parts in (0..200).chain([100_000]) {
            assert!(counted(&threads, n_parts).iter().all(|&count| count == 1), "{n} threads");
        }
    }
}

#[test]
fn threads_that_sleep_are_woken() {
    let threads = Threads::new(2).unwrap();
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(2));
        // Neither part ends before the other has begun: both threads are at work.
        let begun = AtomicUsize::new(0);
        threads.share(2, &|_| {
            begun.fetch_add(1, Ordering::SeqCst);
            while begun.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
        });
    }
}

#[test]
fn callers_do_not_wait_for_each_other() {
    let threads = Threads::new(3).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    assert!(counted(&threads, 7).iter().all(|&count| count == 1));
                }
            });
        }
    });
}

#[test]
fn a_part_may_share_its_own_work() {
    let threads = Threads::new(2).unwrap();
    threads.share(4, &|_| assert_eq!(counted(&threads, 5), [1; 5]));
}

#[test]
fn a_panic_reaches_the_caller_and_the_threads_go_on() {
    let threads = Threads::new(2).unwrap();
    for bad in 0..8 {
        let shared = || threads.share(8, &|part| assert!(part != bad, "part {part}"));
        assert!(catch_unwind(AssertUnwindSafe(shared)).is_err());
    }
    assert_eq!(counted(&threads, 9), [1; 9]);
}

#[test]
fn the_error_of_the_first_part_is_told() {
    let threads = Threads::new(2).unwrap();
    let mut output = vec![0u8; 64];
    let mut outputs = [output.as_mut_slice()];
    let failed = threads.split(true, 1, (&mut outputs, &[1]), 64, &|range, out| {
        out[0].fill(1);
        match range.start {
            0..16 => Ok(()),
            start => Err(Error::invalid(format!("part at {start}"))),
        }
    });
    assert_eq!(failed.unwrap_err().message(), "part at 16");
    assert_eq!(output, [1; 64]);
}
