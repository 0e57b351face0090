//! A bounded pool of instances, so that runs on several threads don't wait for each other's buffers.

use std::ops::Deref;
use std::sync::{Arc, PoisonError};
#[cfg(not(loom))]
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use convoke_graph_core::Error;
#[cfg(loom)]
use loom::sync::{Condvar, Mutex, MutexGuard};

/// How often who waits for an instance looks whether it is to end.
const LOOK: Duration = Duration::from_millis(10);

/// Idle instances, and how many there are in all.
#[derive(Debug)]
pub(super) struct Pool<T> {
    max: usize,
    state: Mutex<State<T>>,
    returned: Condvar,
}

#[derive(Debug)]
struct State<T> {
    idle: Vec<Arc<T>>,
    alive: usize,
}

/// What a pool has lent to one run. Dropping it gives it back.
#[derive(Debug)]
pub struct Leased<'a, T> {
    pool: &'a Pool<T>,
    instance: Arc<T>,
}

impl<T> Pool<T> {
    pub(super) fn new(max: usize) -> Self {
        let state = State { idle: Vec::new(), alive: 0 };
        Self { max: max.max(1), state: Mutex::new(state), returned: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An instance that is idle, or else made. Waits while all are taken, and asks `check` meanwhile whether it is to go on.
    pub(super) fn lease(
        &self,
        make: impl FnOnce() -> Result<T, Error>,
        check: &dyn Fn() -> Result<(), Error>,
    ) -> Result<Leased<'_, T>, Error> {
        let mut state = self.lock();
        loop {
            if let Some(instance) = state.idle.pop() {
                return Ok(self.leased(instance));
            }
            if state.alive < self.max {
                break;
            }
            check()?;
            let waited = self.returned.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.alive += 1;
        drop(state);
        match make() {
            Ok(instance) => Ok(self.leased(Arc::new(instance))),
            Err(error) => {
                self.lock().alive -= 1;
                self.returned.notify_one();
                Err(error)
            }
        }
    }

    fn leased(&self, instance: Arc<T>) -> Leased<'_, T> {
        Leased { pool: self, instance }
    }

    /// Frees instances that nobody uses. True if there were any.
    pub(super) fn shrink(&self) -> bool {
        let mut state = self.lock();
        state.alive -= state.idle.len();
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        // Who waits may make another.
        self.returned.notify_all();
        !idle.is_empty()
    }
}

impl<T> Deref for Leased<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.instance
    }
}

impl<T> Drop for Leased<'_, T> {
    fn drop(&mut self) {
        self.pool.lock().idle.push(self.instance.clone());
        self.pool.returned.notify_one();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use super::*;

    /// What is leased by at most one run at a time.
    #[derive(Default)]
    struct Used(AtomicUsize);

    impl Used {
        fn run(&self) {
            assert_eq!(self.0.fetch_add(1, Ordering::Relaxed), 0, "two use it at once");
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Two runs by turns with one instance, and somebody who frees what is idle: nobody waits for ever, nothing is used by
    /// two at once, and no more are there than may be.
    #[test]
    fn loom_leases() {
        loom::model(|| {
            let pool = Arc::new(Pool::new(1));
            let run = || {
                let pool = pool.clone();
                thread::spawn(move || pool.lease(|| Ok(Used::default()), &|| Ok(())).unwrap().run())
            };
            let threads = [run(), run()];
            pool.shrink();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let state = pool.lock();
            assert!(state.alive <= 1 && state.idle.len() == state.alive);
        });
    }

    /// One of two that cannot make its own leaves the place to the other.
    #[test]
    fn loom_a_place_is_left_by_who_makes_none() {
        loom::model(|| {
            let pool = Arc::new(Pool::new(1));
            let other = pool.clone();
            let fails = thread::spawn(move || {
                let made = || Err(Error::internal("no memory"));
                other.lease(made, &|| Ok(())).map(|used: Leased<'_, Used>| used.run()).is_err()
            });
            pool.lease(|| Ok(Used::default()), &|| Ok(())).unwrap().run();
            // It may have found the one that was made here.
            let _failed = fails.join().unwrap();
            assert_eq!(pool.lock().alive, 1);
        });
    }
}
