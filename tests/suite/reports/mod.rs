//! What a session tells of its runs: explanations in their forms, pages in a browser, and traces.

mod browser;
mod copies;
mod explanations;
mod pages;
mod parts;
mod schema;
mod traces;

use convoke::prelude::*;
use convoke::{Feed, RunMetadata, RunOptions};
use convoke_tests::{TestDevice, ramp};

/// A product, a stage in f64, which no GPU has, and another product.
struct Staged {
    session: Session,
    x: Tensor,
    y: Tensor,
}

/// Rows that are fed.
const ROWS: usize = 6;

impl Staged {
    fn new(device: &TestDevice) -> Self {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 8]);
        let w = g.variable("w", Init::Constant(0.5), F32, [8, 4]);
        let v = g.variable("v", Init::Constant(0.25), F32, [4, 2]);
        let hidden = g.scope("first", || x.matmul(&w).relu());
        let exact = g.scope("exact", || (hidden.cast(F64).sin() * 2.0).cast(F32));
        let y = g.scope("last", || exact.matmul(&v).tanh());
        let session = device.session_with(&g, SessionOptions::default());
        session.run(&[], g.initializers()).unwrap();
        Self { session, x, y }
    }

    fn feeds(&self) -> [Feed<'static>; 1] {
        [self.x.feed(ramp(&[ROWS, 8]))]
    }

    fn run(&self) -> RunMetadata {
        let timed = RunOptions::timed();
        self.session.run_with(&self.feeds(), &self.y, timed).unwrap().1
    }
}
