//! A graph that grows after it has run: what is new costs by itself, however much is there.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use convoke::prelude::*;

/// `n` operations on a matrix, one after the other, of which none becomes one kernel with the next.
fn chain(x: &Tensor, n: usize) -> Tensor {
    let mut y = x.clone();
    for i in 0..n {
        y = if i % 2 == 0 { y.matmul(x) } else { &y.transpose() * (0.5 + (i % 3) as f64) };
    }
    y
}

#[test]
fn ten_more_nodes_cost_what_ten_nodes_cost() {
    let new_nodes = |before: usize| -> Duration {
        let g = Graph::new();
        let x = g.placeholder("x", F32, [2, 2]);
        let all = chain(&x, before);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let feeds = [x.feed([[0.5f32, 0.0], [0.0, 0.5]])];
        session.run(&feeds, &all).unwrap();
        let times = (0..7).map(|_| {
            let more = chain(&x, 10);
            let (_, run) = session.run_with(&feeds, &more, Default::default()).unwrap();
            assert!(run.graph_nodes < 40, "{}", run.graph_nodes);
            run.planning + run.preparing
        });
        times.min().unwrap()
    };
    let (small, large) = (new_nodes(10), new_nodes(10_000));
    println!("ten more nodes: {small:?} after ten, {large:?} after ten thousand");
    assert!(large < small * 4 + Duration::from_micros(500), "{small:?}, then {large:?}");
}

/// Keeps what is written.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What this thread logs in `f`.
fn logged(f: impl FnOnce()) -> String {
    let log = Log::default();
    let own = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || own.clone());
    tracing::subscriber::with_default(subscriber.finish(), f);
    let bytes = log.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

/// What TensorFlow's users find out from a training that becomes slower and slower.
#[test]
fn a_graph_that_grows_run_after_run_is_told_of_once() {
    let run_and_grow = |warn_of_growth: bool, grows: bool| {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let options = SessionOptions { warn_of_growth, ..SessionOptions::default() };
        let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
        let fixed = &x + 1.0;
        logged(|| {
            for i in 0..40 {
                let y = if grows { &x + f64::from(i) } else { fixed.clone() };
                session.run(&[x.feed(1.0)], &y).unwrap();
            }
        })
    };
    let told = run_and_grow(true, true);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("the graph has grown before each of the last 16 runs"), "{told}");
    assert!(told.contains("growth.rs:") && told.contains("feed what differs"), "{told}");
    assert_eq!(run_and_grow(true, false), "");
    assert_eq!(run_and_grow(false, true), "");
}
