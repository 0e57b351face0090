//! A minimum s-t cut by push-relabel, on flat arrays.
//!
//! Source and sink are not nodes: each node has a capacity from the source and one to the sink. Only the
//! first phase runs (a maximum preflow), which is all that a cut needs. Nodes are discharged first in,
//! first out, with heights made exact by a breadth-first search from time to time.
//!
//! Source: Goldberg and Tarjan, "A new approach to the maximum-flow problem" (1988); Cherkassky and
//! Goldberg, "On implementing the push-relabel method" (1997), for the global relabelling.

use std::collections::VecDeque;

/// A capacity that no cut crosses while another exists.
pub(crate) const UNBOUNDED: u64 = u64::MAX;
/// All finite capacities together stay below this, so that no sum of flows overflows.
const LIMIT: u64 = 1 << 62;

/// A network under construction.
#[derive(Debug, Default)]
pub(crate) struct Network {
    from_source: Vec<u64>,
    to_sink: Vec<u64>,
    arcs: Vec<(u32, u32, u64, u64)>,
}

/// The value of a minimum cut and its sides.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The capacity that is cut.
    pub(crate) value: u64,
    /// Whether each node is on the sink's side. Of all minimum cuts, the one with the fewest there.
    pub(crate) sink_side: Vec<bool>,
}

impl Network {
    /// Adds a node, without arcs.
    pub(crate) fn add_node(&mut self) -> u32 {
        self.from_source.push(0);
        self.to_sink.push(0);
        (self.from_source.len() - 1) as u32
    }

    /// Adds finite capacity from the source to a node, which is cut if the node is on the sink's side.
    pub(crate) fn add_from_source(&mut self, node: u32, capacity: u64) {
        let sum = &mut self.from_source[node as usize];
        *sum = sum.saturating_add(capacity).min(UNBOUNDED - 1);
    }

    /// Adds finite capacity from a node to the sink, which is cut if the node is on the source's side.
    pub(crate) fn add_to_sink(&mut self, node: u32, capacity: u64) {
        let sum = &mut self.to_sink[node as usize];
        *sum = sum.saturating_add(capacity).min(UNBOUNDED - 1);
    }

    /// Adds an arc between different nodes, with its capacity and that of the way back.
    pub(crate) fn add_arc(&mut self, from: u32, to: u32, capacity: u64, back: u64) {
        self.arcs.push((from, to, capacity, back));
    }

    /// A minimum cut.
    pub(crate) fn min_cut(&self) -> Cut {
        let shift = self.shift();
        let mut solver = Solver::new(self, shift);
        solver.run();
        let value = u64::try_from(u128::from(solver.value) << shift.min(64)).unwrap_or(u64::MAX);
        Cut { value, sink_side: solver.height.iter().map(|&height| height < CUT_OFF).collect() }
    }

    /// How many low bits capacities lose, so that their sum stays below the limit. 0 but for absurd
    /// problems.
    fn shift(&self) -> u32 {
        let terminals = self.from_source.iter().chain(&self.to_sink).copied();
        let arcs = self.arcs.iter().flat_map(|&(_, _, capacity, back)| [capacity, back]);
        let finite = terminals.chain(arcs).filter(|&capacity| capacity != UNBOUNDED);
        let total: u128 = finite.map(u128::from).sum();
        (total / u128::from(LIMIT)).checked_ilog2().map_or(0, |log| log + 1)
    }
}

/// The height of nodes from which the sink can't be reached.
const CUT_OFF: u32 = u32::MAX;

struct Solver {
    /// What the source still has for each node.
    excess: Vec<u64>,
    to_sink: Vec<u64>,
    /// The arcs of node `v` are at `first[v]..first[v + 1]`.
    first: Vec<u32>,
    head: Vec<u32>,
    left: Vec<u64>,
    mate: Vec<u32>,
    /// The arc of each node that is tried next.
    current: Vec<u32>,
    height: Vec<u32>,
    active: VecDeque<u32>,
    is_active: Vec<bool>,
    search: Vec<u32>,
    value: u64,
}

impl Solver {
    fn new(network: &Network, shift: u32) -> Self {
        let n_nodes = network.to_sink.len();
        let mut first = vec![0u32; n_nodes + 1];
        for &(from, to, ..) in &network.arcs {
            first[from as usize + 1] += 1;
            first[to as usize + 1] += 1;
        }
        for v in 0..n_nodes {
            first[v + 1] += first[v];
        }
        let n_arcs = 2 * network.arcs.len();
        let mut next = first[..n_nodes].to_vec();
        let (mut head, mut left, mut mate) = (vec![0; n_arcs], vec![0; n_arcs], vec![0; n_arcs]);
        let scaled = |capacity| if capacity == UNBOUNDED { LIMIT } else { capacity >> shift };
        for &(from, to, capacity, back) in &network.arcs {
            let (there, here) = (next[from as usize], next[to as usize]);
            next[from as usize] += 1;
            next[to as usize] += 1;
            (head[there as usize], head[here as usize]) = (to, from);
            (mate[there as usize], mate[here as usize]) = (here, there);
            (left[there as usize], left[here as usize]) = (scaled(capacity), scaled(back));
        }
        let mut solver = Self {
            excess: network.from_source.iter().map(|&capacity| capacity >> shift).collect(),
            to_sink: network.to_sink.iter().map(|&capacity| capacity >> shift).collect(),
            current: first[..n_nodes].to_vec(),
            first,
            head,
            left,
            mate,
            height: vec![CUT_OFF; n_nodes],
            active: VecDeque::new(),
            is_active: vec![false; n_nodes],
            search: Vec::new(),
            value: 0,
        };
        for v in 0..n_nodes {
            solver.drain(v);
        }
        solver
    }

    /// Sends what a node has straight to the sink.
    fn drain(&mut self, v: usize) {
        let flow = self.excess[v].min(self.to_sink[v]);
        self.excess[v] -= flow;
        self.to_sink[v] -= flow;
        self.value += flow;
    }

    fn run(&mut self) {
        self.relabel_all();
        for v in 0..self.excess.len() {
            self.activate(v);
        }
        // Exact heights cost about one pass over the arcs; they pay after several passes' work.
        let patience = 2 * (self.height.len() + self.head.len()) as u64;
        let mut work = 0;
        while let Some(v) = self.active.pop_front() {
            self.is_active[v as usize] = false;
            work += self.discharge(v as usize);
            if work > patience {
                work = 0;
                self.relabel_all();
            }
        }
        self.relabel_all();
    }

    fn activate(&mut self, v: usize) {
        if self.excess[v] > 0 && self.height[v] != CUT_OFF && !self.is_active[v] {
            self.is_active[v] = true;
            self.active.push_back(v as u32);
        }
    }

    /// Pushes what a node has towards the sink until it has nothing left or is cut off. Gives the
    /// number of arcs looked at.
    fn discharge(&mut self, v: usize) -> u64 {
        let mut work = 1;
        while self.excess[v] > 0 && self.height[v] != CUT_OFF {
            if self.height[v] == 1 {
                self.drain(v);
            }
            while self.excess[v] > 0 && self.current[v] < self.first[v + 1] {
                self.push(v, self.current[v] as usize);
                work += 1;
                if self.excess[v] > 0 {
                    self.current[v] += 1;
                }
            }
            if self.excess[v] > 0 {
                work += self.relabel(v);
            }
        }
        work
    }

    fn push(&mut self, v: usize, arc: usize) {
        let to = self.head[arc] as usize;
        if self.left[arc] == 0
            || self.height[to] == CUT_OFF
            || self.height[v] != self.height[to] + 1
        {
            return;
        }
        let flow = self.excess[v].min(self.left[arc]);
        self.left[arc] -= flow;
        self.left[self.mate[arc] as usize] += flow;
        self.excess[v] -= flow;
        self.excess[to] += flow;
        self.activate(to);
    }

    /// Raises a node to just above its lowest neighbour that it can push to.
    fn relabel(&mut self, v: usize) -> u64 {
        let (start, end) = (self.first[v] as usize, self.first[v + 1] as usize);
        let mut lowest = if self.to_sink[v] > 0 { 0 } else { CUT_OFF };
        for arc in start..end {
            if self.left[arc] > 0 {
                lowest = lowest.min(self.height[self.head[arc] as usize]);
            }
        }
        let height = lowest.saturating_add(1);
        // A path to the sink has no more nodes than there are.
        let too_high = height as usize > self.height.len();
        self.height[v] = if too_high { CUT_OFF } else { height };
        self.current[v] = self.first[v];
        (end - start) as u64
    }

    /// Makes heights exact: the number of arcs to the sink.
    fn relabel_all(&mut self) {
        self.height.fill(CUT_OFF);
        self.search.clear();
        for v in 0..self.height.len() {
            if self.to_sink[v] > 0 {
                self.height[v] = 1;
                self.search.push(v as u32);
            }
        }
        let mut at = 0;
        while let Some(&v) = self.search.get(at) {
            at += 1;
            for arc in self.first[v as usize]..self.first[v as usize + 1] {
                let from = self.head[arc as usize] as usize;
                if self.height[from] == CUT_OFF && self.left[self.mate[arc as usize] as usize] > 0 {
                    self.height[from] = self.height[v as usize] + 1;
                    self.search.push(from as u32);
                }
            }
        }
        let n_nodes = self.current.len();
        self.current.copy_from_slice(&self.first[..n_nodes]);
    }
}
