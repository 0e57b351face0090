//! The maximum flow against petgraph's, and the cut against brute force over its own objective.

use petgraph::algo::ford_fulkerson;
use petgraph::graph::{DiGraph, NodeIndex};

use super::*;
use crate::choose::all_on;
use crate::cut::Swap;
use crate::flow::{Network, UNBOUNDED};
use crate::legal::Classes;
use crate::price::home;
use crate::problem::HOST;

/// The objective of the cut for these places: no segments, no coalescing.
fn separable(problem: &Problem, classes: &Classes, places: &[usize]) -> u64 {
    let mut device = Vec::new();
    classes.spread(places, &mut device);
    let compute: u64 = (0..classes.len()).map(|class| classes.cost(class, places[class])).sum();
    let crossing = |tensor: &TensorEdge| -> u64 {
        let from = home(tensor, &device);
        let mut to: Vec<usize> = tensor.consumers.iter().map(|&item| device[item]).collect();
        to.extend(tensor.host_reads.then_some(HOST));
        to.sort_unstable();
        to.dedup();
        let needed = to.into_iter().filter(|&to| to != from);
        needed.map(|to| problem.link(from, to).cost(tensor.bytes)).sum()
    };
    compute + problem.tensors.iter().map(crossing).sum::<u64>()
}

/// The places of a cut between `a` and `b`, and its value.
fn swap(
    problem: &Problem,
    classes: &Classes,
    places: &[usize],
    a: usize,
    b: usize,
) -> (Vec<usize>, u64) {
    let swap = Swap { problem, classes, places, a, b, fixed: &[], penalty: &[], latency: true };
    swap.solve()
}

/// Every way to share out the classes, those on neither `a` nor `b` staying.
fn brute_force(problem: &Problem, classes: &Classes, start: &[usize], a: usize, b: usize) -> u64 {
    let ways = 0u32..1 << classes.len();
    let priced = ways.filter_map(|way| {
        let mut places = start.to_vec();
        for (class, place) in places.iter_mut().enumerate() {
            if *place != a && *place != b {
                if way >> class & 1 == 1 {
                    return None;
                }
                continue;
            }
            let wanted = if way >> class & 1 == 0 { a } else { b };
            if !classes.legal(class, wanted) {
                return None;
            }
            *place = wanted;
        }
        Some(separable(problem, classes, &places))
    });
    priced.min().unwrap()
}

#[test]
fn a_cut_is_the_best_of_all_ways_to_share_out_classes() {
    let mut rng = Rng(1);
    for case in 0..2000 {
        let problem = random_problem(&mut rng, 1, 10);
        let classes = Classes::new(&problem).unwrap();
        let start = all_on(&problem, &classes, 0);
        let (places, value) = swap(&problem, &classes, &start, 0, 1);
        let best = brute_force(&problem, &classes, &start, 0, 1);
        assert_eq!(separable(&problem, &classes, &places), best, "case {case}");
        assert_eq!(value, best, "case {case}: the value");
    }
}

#[test]
fn a_cut_between_two_of_three_devices_is_exact_too() {
    let mut rng = Rng(2);
    for case in 0..1000 {
        let problem = random_problem(&mut rng, 2, 9);
        let classes = Classes::new(&problem).unwrap();
        let places = |class| {
            let legal: Vec<usize> = classes.devices(class).collect();
            legal[rng.below(legal.len() as u64) as usize]
        };
        let start: Vec<usize> = (0..classes.len()).map(places).collect();
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let (places, _) = swap(&problem, &classes, &start, a, b);
            let best = brute_force(&problem, &classes, &start, a, b);
            assert_eq!(separable(&problem, &classes, &places), best, "case {case}, {a} and {b}");
        }
    }
}

#[test]
fn a_tensor_with_several_consumers_is_paid_once() {
    let mut problem = machine(1);
    problem.items = (0..4).map(|i| item(&format!("i{i}"), 30)).collect();
    // One upload of 15 + 60 us is worth what four items save, 4 x 26; four would not be.
    problem.tensors = vec![edge("x", 60_000, Producer::Host, &[0, 1, 2, 3])];
    let classes = Classes::new(&problem).unwrap();
    assert_eq!(swap(&problem, &classes, &[0; 4], 0, 1).0, [1; 4]);
    problem.tensors[0].bytes = 90_000;
    assert_eq!(swap(&problem, &classes, &[1; 4], 0, 1).0, [0; 4]);
}

/// A random network, and the same for petgraph with its source and sink.
fn random_networks(rng: &mut Rng) -> (Network, DiGraph<(), u64>, NodeIndex, NodeIndex) {
    let (mut network, mut graph) = (Network::default(), DiGraph::new());
    let n_nodes = 1 + rng.below(40);
    let nodes: Vec<NodeIndex> = (0..n_nodes).map(|_| graph.add_node(())).collect();
    let (source, sink) = (graph.add_node(()), graph.add_node(()));
    for &node in &nodes {
        let v = network.add_node();
        let (from_source, to_sink) = (rng.below(100), rng.below(100));
        network.add_from_source(v, from_source);
        network.add_to_sink(v, to_sink);
        graph.add_edge(source, node, from_source);
        graph.add_edge(node, sink, to_sink);
    }
    for _ in 0..rng.below(4 * n_nodes) {
        let (from, to) = (rng.below(n_nodes), rng.below(n_nodes));
        if from != to {
            let there = if rng.one_in(10) { UNBOUNDED } else { rng.below(50) };
            let back = rng.below(50);
            network.add_arc(from as u32, to as u32, there, back);
            graph.add_edge(nodes[from as usize], nodes[to as usize], there.min(1 << 40));
            graph.add_edge(nodes[to as usize], nodes[from as usize], back);
        }
    }
    (network, graph, source, sink)
}

#[test]
fn the_flow_equals_petgraphs() {
    let mut rng = Rng(3);
    for case in 0..500 {
        let (network, graph, source, sink) = random_networks(&mut rng);
        let (expected, _) = ford_fulkerson(&graph, source, sink);
        let cut = network.min_cut();
        assert_eq!(cut.value, expected, "case {case}");
        let in_sink = |node: NodeIndex| {
            node == sink || cut.sink_side.get(node.index()).copied().unwrap_or(false)
        };
        let crossing = graph.edge_indices().filter_map(|edge| {
            let (from, to) = graph.edge_endpoints(edge)?;
            (!in_sink(from) && in_sink(to)).then(|| graph[edge])
        });
        assert_eq!(crossing.sum::<u64>(), expected, "case {case}: the sides");
    }
}

#[test]
fn empty_and_tiny_networks_are_cut() {
    let mut network = Network::default();
    assert_eq!(network.min_cut().value, 0);
    let a = network.add_node();
    network.add_from_source(a, 3);
    assert_eq!(network.min_cut().sink_side, [false]);
    network.add_to_sink(a, 2);
    assert_eq!((network.min_cut().value, network.min_cut().sink_side), (2, vec![false]));
    network.add_to_sink(a, u64::MAX);
    assert_eq!(network.min_cut().sink_side, [true]);
}
