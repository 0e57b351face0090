//! What runs use one at a time and leave for others.

use convoke_cpu_backend::Lanes;

use crate::sync::Slot;

/// Things that nobody uses at the moment, one for each lane at most. A thread looks in its own lane first, so that
/// many do not wait for one another; nobody takes a lock.
pub(crate) struct Pool<T>(Lanes<Slot<Box<T>>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(Lanes::default())
    }
}

impl<T> Pool<T> {
    /// One for this run alone, if there is any.
    pub fn take(&self) -> Option<Box<T>> {
        self.0.all().find_map(|lane| lane.swap(None))
    }

    /// Leaves one for others, each time in the place of another, until one has an empty place; it is dropped if there are
    /// enough.
    pub fn give_back(&self, used: Box<T>) {
        let mut used = Some(used);
        for lane in self.0.all() {
            used = lane.swap(used);
            if used.is_none() {
                return;
            }
        }
    }

    /// Drops those that nobody uses. True if there were any.
    pub fn clear(&self) -> bool {
        let idle: Vec<Box<T>> = self.0.all().filter_map(|lane| lane.swap(None)).collect();
        !idle.is_empty()
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use super::*;

    /// Runs on two threads, and a third that frees what is idle: nothing is used by two at once, no more stay than are
    /// to, and each is dropped once.
    #[test]
    fn loom_pool() {
        loom::model(|| {
            let pool = Arc::new(Pool::<Arc<AtomicUsize>>::default());
            let run = || {
                let pool = pool.clone();
                thread::spawn(move || {
                    let used =
                        pool.take().unwrap_or_else(|| Box::new(Arc::new(AtomicUsize::new(0))));
                    assert_eq!(used.fetch_add(1, Ordering::Relaxed), 0, "two use it at once");
                    used.fetch_sub(1, Ordering::Relaxed);
                    pool.give_back(used);
                })
            };
            let threads = [run(), run()];
            pool.clear();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let idle = || std::iter::from_fn(|| pool.take());
            assert!(idle().all(|idle| Arc::strong_count(&idle) == 1));
        });
    }
}
