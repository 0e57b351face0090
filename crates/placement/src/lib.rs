//! Where each part of a graph runs: device specs, constraints, cost, cut, explanation.
