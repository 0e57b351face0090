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

use crate::Picoseconds;
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

/// A question to a cut: where classes go that may be on `a` or on `b`.
#[derive(Clone, Copy)]
pub(crate) struct Swap<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) classes: &'a Classes,
    /// Where classes are that stay; the others are on `a` or `b`.
    pub(crate) places: &'a [usize],
    pub(crate) a: usize,
    pub(crate) b: usize,
    /// Classes that stay although they are on `a` or `b`; empty for none.
    pub(crate) fixed: &'a [bool],
    /// What each class costs on top on `a` and on `b`; empty for nothing.
    pub(crate) penalty: &'a [[Picoseconds; 2]],
    /// Whether each tensor pays the latency of its crossing. Without it, and without submissions, the value
    /// is a lower bound of the price.
    pub(crate) latency: bool,
}

impl Swap<'_> {
    /// The best places, and what they cost in the objective of the cut, the tensors between classes that stay
    /// left out.
    pub(crate) fn solve(&self) -> (Vec<usize>, u64) {
        let mut cutting = Cutting::new(*self);
        for tensor in 0..self.problem.tensors.len() {
            cutting.add_tensor(self.classes, tensor);
        }
        let cut = cutting.network.min_cut();
        let place = |(class, &end): (usize, &End)| match end {
            End::Fixed(_) => self.places[class],
            End::Free(node) if cut.sink_side[node as usize] => self.b,
            End::Free(_) => self.a,
        };
        let places = cutting.ends.iter().enumerate().map(place).collect();
        (places, cut.value.saturating_add(cutting.paid))
    }

    fn is_free(&self, class: usize) -> bool {
        let at = self.places[class];
        (at == self.a || at == self.b)
            && !self.fixed.get(class).is_some_and(|&fixed| fixed)
            && self.classes.legal(class, self.a)
            && self.classes.legal(class, self.b)
    }

    /// What a class costs on `a` or `b`.
    fn costs(&self, class: usize) -> [Picoseconds; 2] {
        let [on_a, on_b] = self.penalty.get(class).copied().unwrap_or_default();
        let own = |d: usize| self.classes.cost(class, d);
        [own(self.a).saturating_add(on_a), own(self.b).saturating_add(on_b)]
    }

    /// What a crossing of so many bytes takes by itself.
    fn price(&self, from: usize, to: usize, n_bytes: u64) -> u64 {
        let link = self.problem.link(from, to);
        let time = if self.latency { link.cost(n_bytes) } else { link.bytes_time(n_bytes) };
        time.min(UNBOUNDED - 1)
    }
}

/// The network of a [`Swap`], tensor by tensor.
struct Cutting<'a> {
    swap: Swap<'a>,
    network: Network,
    ends: Vec<End>,
    /// What classes that stay cost, and the crossings of tensors from and to such classes.
    paid: u64,
    /// The free consumers of the tensor at hand, and whether there are fixed ones on `a` and `b`.
    nodes: Vec<u32>,
    needed: [bool; 2],
}

impl<'a> Cutting<'a> {
    fn new(swap: Swap<'a>) -> Self {
        let (mut network, mut paid) = (Network::default(), 0u64);
        let mut end = |(class, &at): (usize, &usize)| {
            if !swap.is_free(class) {
                paid = paid.saturating_add(swap.classes.cost(class, at));
                return End::Fixed(at);
            }
            let node = network.add_node();
            let [on_a, on_b] = swap.costs(class);
            network.add_to_sink(node, on_a);
            network.add_from_source(node, on_b);
            End::Free(node)
        };
        let ends = swap.places.iter().enumerate().map(&mut end).collect();
        Self { swap, network, ends, paid, nodes: Vec::new(), needed: [false; 2] }
    }

    fn add_tensor(&mut self, classes: &Classes, tensor: usize) {
        let Swap { a, b, .. } = self.swap;
        let edge = &self.swap.problem.tensors[tensor];
        let producer = match edge.producer {
            Producer::Item(item) => self.ends[classes.of(item)],
            Producer::Host => End::Fixed(HOST),
        };
        self.nodes.clear();
        self.needed = [edge.host_reads && a == HOST, edge.host_reads && b == HOST];
        let mut elsewhere = Vec::new();
        if edge.host_reads && a != HOST && b != HOST {
            elsewhere.push(HOST);
        }
        for &item in &edge.consumers {
            match self.ends[classes.of(item)] {
                end if end == producer => {}
                End::Free(node) => self.nodes.push(node),
                End::Fixed(at) if at == a => self.needed[0] = true,
                End::Fixed(at) if at == b => self.needed[1] = true,
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
                    self.network.add_to_sink(node, self.swap.price(a, to, edge.bytes));
                    self.network.add_from_source(node, self.swap.price(b, to, edge.bytes));
                }
                self.add_from_free(node, edge.bytes);
            }
        }
    }

    /// A tensor that is on one device whatever happens.
    fn add_from_fixed(&mut self, at: usize, n_bytes: u64) {
        let Swap { a, b, .. } = self.swap;
        for (to, is_needed, is_b) in [(b, self.needed[1], true), (a, self.needed[0], false)] {
            let price = if at == to { 0 } else { self.swap.price(at, to, n_bytes) };
            if is_needed {
                self.paid = self.paid.saturating_add(price);
            } else if price > 0 && !self.nodes.is_empty() {
                let some = self.gather(is_b);
                if is_b {
                    self.network.add_from_source(some, price);
                } else {
                    self.network.add_to_sink(some, price);
                }
            }
        }
    }

    /// A tensor that a free class makes.
    fn add_from_free(&mut self, producer: u32, n_bytes: u64) {
        let Swap { a, b, .. } = self.swap;
        let there = self.swap.price(a, b, n_bytes);
        let back = self.swap.price(b, a, n_bytes);
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
