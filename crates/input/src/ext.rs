//! The methods by which any iterator becomes an input.

use crate::{Batches, Example, Prefetch, Shuffled};

/// Inputs of a session, made of any iterator.
///
/// The usual order is: shuffle single examples, then batch them, then prefetch.
pub trait InputExt: Iterator + Sized {
    /// [`Shuffled::new`]: each item once, drawn from a buffer of `n` by `seed`.
    fn shuffled(self, n: usize, seed: u64) -> Shuffled<Self> {
        Shuffled::new(self, n, seed)
    }

    /// [`Batches::new`]: `n` examples at a time, along a new first axis.
    fn batches(self, n: usize) -> Batches<Self>
    where
        Self::Item: Example,
    {
        Batches::new(self, n)
    }

    /// [`Prefetch::new`]: a thread makes up to `depth` items ahead.
    fn prefetch(self, depth: usize) -> Prefetch<Self::Item>
    where
        Self: Send + 'static,
        Self::Item: Send + 'static,
    {
        Prefetch::new(self, depth)
    }

    /// [`Prefetch::with_threads`]: `threads` threads apply `f`, up to `depth` items ahead, and keep the
    /// order.
    fn prefetch_map<T, F>(self, threads: usize, depth: usize, f: F) -> Prefetch<T>
    where
        Self: Send + 'static,
        T: Send + 'static,
        F: Fn(Self::Item) -> T + Send + Sync + 'static,
    {
        Prefetch::with_threads(self, threads, depth, f)
    }
}

impl<I: Iterator> InputExt for I {}
