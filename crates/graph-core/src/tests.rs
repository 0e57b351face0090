//! Tests of private algorithms: layouts, shapes, rows.

mod images;
mod moves;
mod nodes;
mod saved;
mod saved_flow;
