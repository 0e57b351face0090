//! Derive for fetch structures.
