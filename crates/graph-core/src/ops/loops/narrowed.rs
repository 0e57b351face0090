//! Loops that do only a part of what they were built for.

use super::LoopOp;
use crate::ops::body::Body;

impl LoopOp {
    /// The same loop with some of its carried tensors, and those of the other outputs that are `wanted`. `body` is its
    /// body, of the nodes that this needs.
    pub(crate) fn narrowed(
        &self,
        carried: &[usize],
        wanted: &dyn Fn(usize) -> bool,
        body: Body,
    ) -> Self {
        let (next, trips) = (self.next_at(), self.trips_at());
        let collected: Vec<usize> = (self.n_carried..trips).filter(|&at| wanted(at)).collect();
        let residuals = self.residuals_at()..self.outputs.len();
        let residuals: Vec<usize> = residuals.filter(|&at| wanted(at)).collect();
        let collects = collected.iter().chain(&residuals).filter_map(|&at| self.collects(at));
        let results = (0..next).chain(carried.iter().map(|at| next + at)).chain(collects);
        let results: Vec<usize> = results.collect();
        let history = carried.iter().map(|at| self.history_at() + at);
        let places = carried.iter().chain(&collected).copied().chain([trips]).chain(history);
        let places = places.chain(residuals.iter().copied()).map(|at| self.node_output(at));
        let params = carried.iter().copied().chain(self.n_carried..self.body.params.len());
        let params: Vec<usize> = params.collect();
        let body = Body {
            params: some(&body.params, &params),
            facts: some(&body.facts, &results),
            results: some(&body.results, &results),
            ..body
        };
        Self {
            body,
            n_carried: carried.len(),
            n_collected: collected.len(),
            expected: some(&self.expected, &params),
            places: places.collect(),
            ..self.clone()
        }
        .complete()
    }

    /// Which output of the node an output is.
    pub fn node_output(&self, output: usize) -> usize {
        self.places.get(output).copied().unwrap_or(output)
    }

    /// Which output an output of the node is; `None` if the loop does not give it.
    pub fn output_of(&self, node_output: usize) -> Option<usize> {
        match self.places.is_empty() {
            true => Some(node_output),
            false => self.places.iter().position(|&place| place == node_output),
        }
    }
}

fn some<T: Clone>(all: &[T], places: &[usize]) -> Vec<T> {
    places.iter().filter_map(|&at| all.get(at)).cloned().collect()
}
