//! Tests of private algorithms: layouts, shapes, rows.
