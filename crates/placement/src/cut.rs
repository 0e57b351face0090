//! The best of all ways to share out classes between two devices, exactly, by a minimum cut.
//!
//! What is minimised: the cost of each class on its device, and for each tensor and each other device
//! that needs it one latency and the time of its bytes, once. A device that is not one of the two keeps
//! what it has. The source's side is device `a`, the sink's side `b`:
//!
//! - a class on `a` pays the arc to the sink, on `b` the arc from the source;
//! - a tensor that several classes need on `b` goes through one node: from its producer with the price of
//!   the transfer, to each consumer unbounded; and the other way round for `a`;
//! - the host is pinned: an arc from source or sink stands for it.
//!
//! Source: Stone, "Multiprocessor scheduling with the aid of network flow algorithms" (1977); Boykov,
//! Veksler and Zabih, "Fast approximate energy minimization via graph cuts" (2001), for the swap.

use crate::flow::{Network, UNBOUNDED};
use crate::legal::Classes;
use crate::problem::{HOST, Problem, Producer};

/// Where a class is, as the cut between two devices sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// On a device, and stays.
    Fixed(usize),
    /// A node of the network: free to be on either of the two.
    Free(u32),
}

/// A cut between devices `a` and `b` that starts from where classes are.
struct Swap<'a> {
    problem: &'a Problem,
    network: Network,
    ends: Vec<End>,
    a: usize,
    b: usize,
    /// The free consumers of the tensor at hand, and whether there are fixed ones on `a` and `b`.
    nodes: Vec<u32>,
    needed: [bool; 2],
}

/// The best places of classes if those on `a` and `b` may change between the two and all else stays.
pub(crate) fn swap(
    problem: &Problem,
    classes: &Classes,
    places: &[usize],
    a: usize,
    b: usize,
) -> Vec<usize> {
    let mut swap = Swap::new(problem, classes, places, a, b);
    for tensor in 0..problem.tensors.len() {
        swap.add_tensor(classes, tensor);
    }
    let cut = swap.network.min_cut();
    let place = |(class, &end): (usize, &End)| match end {
        End::Fixed(_) => places[class],
        End::Free(node) if cut.sink_side[node as usize] => b,
        End::Free(_) => a,
    };
    swap.ends.iter().enumerate().map(place).collect()
}

impl<'a> Swap<'a> {
    fn new(problem: &'a Problem, classes: &Classes, places: &[usize], a: usize, b: usize) -> Self {
        let mut network = Network::default();
        let mut end = |(class, &at): (usize, &usize)| {
            let free = (at == a || at == b) && classes.legal(class, a) && classes.legal(class, b);
            if !free {
                return End::Fixed(at);
            }
            let node = network.add_node();
            network.add_to_sink(node, classes.cost(class, a));
            network.add_from_source(node, classes.cost(class, b));
            End::Free(node)
        };
        let ends = places.iter().enumerate().map(&mut end).collect();
        Self { problem, network, ends, a, b, nodes: Vec::new(), needed: [false; 2] }
    }

    fn add_tensor(&mut self, classes: &Classes, tensor: usize) {
        let edge = &self.problem.tensors[tensor];
        let producer = match edge.producer {
            Producer::Item(item) => self.ends[classes.of(item)],
            Producer::Host => End::Fixed(HOST),
        };
        self.nodes.clear();
        self.needed = [edge.host_reads && self.a == HOST, edge.host_reads && self.b == HOST];
        let mut elsewhere = Vec::new();
        if edge.host_reads && self.a != HOST && self.b != HOST {
            elsewhere.push(HOST);
        }
        for &item in &edge.consumers {
            match self.ends[classes.of(item)] {
                end if end == producer => {}
                End::Free(node) => self.nodes.push(node),
                End::Fixed(at) if at == self.a => self.needed[0] = true,
                End::Fixed(at) if at == self.b => self.needed[1] = true,
                End::Fixed(at) => elsewhere.push(at),
            }
        }
        self.nodes.sort_unstable();
        self.nodes.dedup();
        match producer {
            End::Fixed(at) => self.add_from_fixed(at, edge.bytes),
            End::Free(node) => {
                elsewhere.sort_unstable();
                elsewhere.dedup();
                for to in elsewhere {
                    let (from_a, from_b) =
                        (self.price(self.a, to, edge.bytes), self.price(self.b, to, edge.bytes));
                    self.network.add_to_sink(node, from_a);
                    self.network.add_from_source(node, from_b);
                }
                self.add_from_free(node, edge.bytes);
            }
        }
    }

    /// What a crossing of so many bytes takes by itself.
    fn price(&self, from: usize, to: usize, n_bytes: u64) -> u64 {
        self.problem.link(from, to).cost(n_bytes).min(UNBOUNDED - 1)
    }

    /// A tensor that is on one device whatever happens.
    fn add_from_fixed(&mut self, at: usize, n_bytes: u64) {
        if self.nodes.is_empty() {
            return;
        }
        if at != self.b && !self.needed[1] {
            let price = self.price(at, self.b, n_bytes);
            let entry = self.gather(true);
            self.network.add_from_source(entry, price);
        }
        if at != self.a && !self.needed[0] {
            let price = self.price(at, self.a, n_bytes);
            let exit = self.gather(false);
            self.network.add_to_sink(exit, price);
        }
    }

    /// A tensor that a free class makes.
    fn add_from_free(&mut self, producer: u32, n_bytes: u64) {
        let there = self.price(self.a, self.b, n_bytes);
        let back = self.price(self.b, self.a, n_bytes);
        if self.needed[1] {
            self.network.add_to_sink(producer, there);
        }
        if self.needed[0] {
            self.network.add_from_source(producer, back);
        }
        match self.nodes[..] {
            [] => {}
            [consumer] => {
                let there = if self.needed[1] { 0 } else { there };
                let back = if self.needed[0] { 0 } else { back };
                self.network.add_arc(producer, consumer, there, back);
            }
            _ => {
                if !self.needed[1] {
                    let entry = self.gather(true);
                    self.network.add_arc(producer, entry, there, 0);
                }
                if !self.needed[0] {
                    let exit = self.gather(false);
                    self.network.add_arc(exit, producer, back, 0);
                }
            }
        }
    }

    /// The node that stands for "some consumer is on `b`" (`forward`) or "on `a`": the consumer itself
    /// where there is one, else a new node with unbounded arcs.
    fn gather(&mut self, forward: bool) -> u32 {
        if let [consumer] = self.nodes[..] {
            return consumer;
        }
        let node = self.network.add_node();
        for &consumer in &self.nodes {
            let (from, to) = if forward { (node, consumer) } else { (consumer, node) };
            self.network.add_arc(from, to, UNBOUNDED, 0);
        }
        node
    }
}
