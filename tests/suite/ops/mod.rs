//! A table for each operation.

mod custom;
mod elementwise;
mod flow;
mod half;
mod heads;
mod layout;
mod matmul;
mod networks;
mod random;
mod reduce;
mod rows;
mod strings;
mod tails;
