//! Prefetching: order, ends, panics, dropping at every moment, overlap.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use convoke_graph_core::Error;

use crate::{InputExt, Prefetch};

/// An item that can't be cloned, as most can't be cheaply.
#[derive(Debug, PartialEq)]
struct Item(usize);

fn items(n: usize) -> impl Iterator<Item = Item> + Send + 'static {
    (0..n).map(Item)
}

/// Waits until threads have come so far.
fn until(reached: impl Fn() -> bool) {
    while !reached() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// The message of the panic with which `f` ends.
#[track_caller]
fn panic_of<T>(f: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).err().expect("it panics");
    panic.downcast_ref::<&str>().expect("a text").to_string()
}

#[test]
fn items_come_in_order_to_the_end() {
    for depth in [0, 1, 2, 7, 1000, usize::MAX] {
        let mut prefetch = items(200).prefetch(depth);
        assert!(prefetch.by_ref().eq(items(200)), "depth {depth}");
        assert_eq!((prefetch.next(), prefetch.next()), (None, None), "it stays at its end");
    }
    assert_eq!(items(0).prefetch(3).next(), None);
}

#[test]
fn what_can_be_iterated_is_a_source() {
    let prefetch = Prefetch::try_new(vec![Item(0), Item(1)], 0).expect("a thread");
    assert_eq!(prefetch.depth(), 1);
    assert!(prefetch.eq(items(2)));
}

#[test]
fn many_threads_keep_the_order() {
    for (threads, depth) in [(0, 1), (2, 1), (3, 8), (8, 3), (usize::MAX, 16)] {
        let prefetch = items(300).prefetch_map(threads, depth, |item| {
            if item.0.is_multiple_of(3) {
                thread::yield_now();
            }
            Item(item.0 * 2)
        });
        assert!(prefetch.eq((0..300).map(|n| Item(n * 2))), "{threads} threads, depth {depth}");
    }
    let prefetch = Prefetch::try_with_threads(0..3, 2, 2, |n| n + 1).expect("threads");
    assert!(prefetch.eq(1..4));
}

#[test]
fn threads_work_at_once() {
    let meeting = Barrier::new(4);
    let prefetch = items(8).prefetch_map(4, 4, move |item| {
        // Passed only by four threads together.
        meeting.wait();
        item
    });
    assert!(prefetch.eq(items(8)));
}

#[test]
fn no_more_than_depth_items_are_ahead() {
    for threads in [1, 3] {
        let depth = 5;
        let pulled = Arc::new(AtomicUsize::new(0));
        let count = pulled.clone();
        let source = items(100).inspect(move |_| _ = count.fetch_add(1, SeqCst));
        let mut prefetch = source.prefetch_map(threads, depth, |item| item);
        until(|| prefetch.buffered() == depth);
        assert_eq!(pulled.load(SeqCst), depth, "{threads} threads");
        for given in 1..=100 {
            assert_eq!(prefetch.next(), Some(Item(given - 1)));
            assert!(pulled.load(SeqCst) <= given + depth, "{given}");
        }
    }
}

#[test]
fn a_full_line_is_filled_again_when_half_of_it_is_taken() {
    let pulled = Arc::new(AtomicUsize::new(0));
    let counts = pulled.clone();
    let mut items = (0..).inspect(move |_| _ = counts.fetch_add(1, SeqCst)).prefetch(4);
    let n_pulled = || pulled.load(SeqCst);
    until(|| items.buffered() == 4);
    assert_eq!(items.next(), Some(0));
    thread::sleep(Duration::from_millis(20));
    assert_eq!(n_pulled(), 4);
    assert_eq!(items.next(), Some(1));
    until(|| n_pulled() == 6);
}

#[test]
fn sizes_are_those_of_the_source() {
    let mut prefetch = items(4).prefetch(1);
    assert_eq!(prefetch.size_hint(), (4, Some(4)));
    prefetch.next();
    assert_eq!(prefetch.size_hint(), (3, Some(3)));
    until(|| prefetch.buffered() == 1);
    assert_eq!(prefetch.by_ref().count(), 3);
    assert_eq!(prefetch.size_hint(), (0, Some(0)));
    assert_eq!(format!("{prefetch:?}"), "Prefetch { depth: 1, buffered: 0, threads: 1, .. }");
}

#[test]
fn dropped_while_full() {
    for threads in [1, 3] {
        let held = Arc::new(());
        let source = std::iter::repeat(held.clone());
        let prefetch = source.prefetch_map(threads, 4, |item| item);
        until(|| prefetch.buffered() == 4);
        drop(prefetch);
        assert_eq!(Arc::strong_count(&held), 1, "the source and all items are gone");
    }
}

#[test]
fn dropped_while_empty() {
    let (send, items) = mpsc::channel::<Item>();
    let (pulled, is_pulled) = mpsc::channel();
    let (dropped, is_dropped) = mpsc::channel();
    let source = std::iter::from_fn(move || {
        pulled.send(()).ok()?;
        items.recv().ok()
    });
    let prefetch = source.prefetch(2);
    is_pulled.recv().expect("it waits for its source");
    let dropping = thread::spawn(move || {
        drop(prefetch);
        dropped.send(()).expect("somebody listens");
    });
    // The next item lets it go, or, if the drop had not begun then, one of the next.
    let given = (0..).take_while(|&n| {
        thread::sleep(Duration::from_millis(1));
        send.send(Item(n)).is_ok()
    });
    assert!(given.count() > 0);
    is_dropped.recv().expect("the drop ends");
    dropping.join().expect("no panic");
}

#[test]
fn dropped_at_any_moment() {
    for round in 0..200 {
        let mut prefetch = items(round % 7).prefetch_map(1 + round % 3, 1 + round % 4, |item| item);
        for _ in 0..round % 5 {
            prefetch.next();
        }
    }
}

#[test]
fn a_panic_of_the_source_comes_in_its_place() {
    for threads in [1, 3] {
        let source = items(10).inspect(|item| assert!(item.0 != 6, "six"));
        let mut prefetch = source.prefetch_map(threads, 4, |item| item);
        assert!(prefetch.by_ref().take(6).eq(items(6)));
        assert_eq!(panic_of(|| prefetch.next()), "six");
        assert_eq!(prefetch.next(), None);
    }
}

#[test]
fn a_panic_of_the_function_comes_in_its_place() {
    for threads in [1, 3] {
        let mut prefetch = items(10).prefetch_map(threads, 4, |item| {
            assert!(item.0 != 6, "six");
            item
        });
        assert!(prefetch.by_ref().take(6).eq(items(6)));
        assert_eq!(panic_of(|| prefetch.next()), "six");
        assert_eq!((prefetch.next(), prefetch.size_hint()), (None, (0, Some(0))));
    }
}

#[test]
fn nothing_is_pulled_after_a_panic() {
    // What other threads have pulled when the function panics can't be known.
    for (of_source, threads) in [(true, 1), (true, 3), (false, 1)] {
        let pulled = Arc::new(AtomicUsize::new(0));
        let count = pulled.clone();
        let two = |item: &Item, panics: bool| assert!(!panics || item.0 != 2, "two");
        let source = items(20).inspect(move |item| {
            count.fetch_add(1, SeqCst);
            two(item, of_source);
        });
        let prefetch = source.prefetch_map(threads, 8, move |item| {
            two(&item, !of_source);
            item
        });
        until(|| prefetch.buffered() >= 3);
        thread::sleep(Duration::from_millis(2));
        drop(prefetch);
        assert_eq!(pulled.load(SeqCst), 3, "of the source: {of_source}, {threads} threads");
    }
}

#[test]
fn a_panic_that_nobody_asks_for_is_dropped() {
    let source = items(10).inspect(|item| assert!(item.0 != 1, "one"));
    let prefetch = source.prefetch(4);
    until(|| prefetch.buffered() == 2);
}

#[test]
fn errors_are_items() {
    let source = (0..6).map(|n| if n == 2 { Err(Error::invalid("two")) } else { Ok(n) });
    let given: Vec<_> = source.prefetch(3).map(|item| item.ok()).collect();
    assert_eq!(given, [Some(0), Some(1), None, Some(3), Some(4), Some(5)]);
}

#[test]
fn without_a_thread_items_are_made_when_asked_for() {
    let source = items(4).inspect(|item| assert!(item.0 != 2, "two"));
    let (prefetch, work) = Prefetch::idle(source, 2, |item| item);
    let mut prefetch = prefetch.by_hand(work);
    assert_eq!(prefetch.buffered(), 0);
    assert!(prefetch.by_ref().take(2).eq(items(2)));
    assert_eq!(panic_of(|| prefetch.next()), "two");
    assert_eq!(prefetch.next(), None);
}

#[test]
fn many_at_once() {
    let mut inputs: Vec<_> = (0..24).map(|_| items(50).prefetch(2)).collect();
    for n in 0..50 {
        for input in &mut inputs {
            assert_eq!(input.next(), Some(Item(n)));
        }
    }
    assert!(inputs.iter_mut().all(|input| input.next().is_none()));
    let nested = items(50).prefetch(2).prefetch(2).prefetch_map(2, 2, |item| item);
    assert!(nested.eq(items(50)));
}

#[test]
fn making_overlaps_with_using() {
    let work = || thread::sleep(Duration::from_millis(4));
    let consume = |source: &mut dyn Iterator<Item = Item>| {
        let since = Instant::now();
        assert_eq!(source.inspect(|_| work()).count(), 20);
        since.elapsed()
    };
    let produce = move || items(20).inspect(move |_| work());
    // A machine may be busy just then, but hardly three times.
    let mut figures = Vec::new();
    for _ in 0..3 {
        let one_by_one = consume(&mut produce());
        let mut prefetch = produce().prefetch(2);
        let overlapped = consume(&mut prefetch);
        assert!(prefetch.waited() < overlapped);
        if overlapped <= one_by_one.mul_f64(0.8) {
            return;
        }
        figures.push((one_by_one, overlapped));
    }
    panic!("it does not overlap: {figures:?}");
}
