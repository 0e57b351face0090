//! What runs use one at a time and leave for others.

use std::sync::PoisonError;

use crate::sync::{Mutex, MutexGuard};

/// Things that nobody uses at the moment, `max` at most.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    max: usize,
    idle: Mutex<Vec<T>>,
}

impl<T> Pool<T> {
    pub fn new(max: usize) -> Self {
        Self { max, idle: Mutex::new(Vec::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One for this run alone, if there is any.
    pub fn take(&self) -> Option<T> {
        self.lock().pop()
    }

    /// Leaves one for others; it is dropped if there are enough.
    pub fn give_back(&self, used: T) {
        let mut idle = self.lock();
        if idle.len() < self.max {
            idle.push(used);
        }
    }

    /// Drops those that nobody uses. True if there were any.
    pub fn clear(&self) -> bool {
        let idle = std::mem::take(&mut *self.lock());
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
            let pool = Arc::new(Pool::<Arc<AtomicUsize>>::new(1));
            let run = || {
                let pool = pool.clone();
                thread::spawn(move || {
                    let used = pool.take().unwrap_or_else(|| Arc::new(AtomicUsize::new(0)));
                    assert_eq!(used.fetch_add(1, Ordering::Relaxed), 0, "two use it at once");
                    used.fetch_sub(1, Ordering::Relaxed);
                    pool.give_back(used);
                })
            };
            let threads = [run(), run()];
            pool.clear();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            assert!(pool.lock().len() <= 1);
            assert!(pool.lock().iter().all(|idle| Arc::strong_count(idle) == 1));
        });
    }
}
