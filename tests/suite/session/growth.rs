//! A graph that grows after it has run: what is new costs by itself, however much is there.

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
