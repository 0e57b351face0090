//! Sessions: plans, variables and runs.
