//! A bounded pool of instances, so that runs on several threads don't wait for each other's buffers.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use convoke_graph_core::Error;

use super::compile::GpuSegment;
use super::instance::GpuInstance;

/// How often who waits for an instance looks whether it is to end.
const LOOK: Duration = Duration::from_millis(10);

/// Idle instances, and how many there are in all.
#[derive(Debug)]
pub(super) struct Pool {
    max: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Arc<GpuInstance>>,
    alive: usize,
}

/// An instance for one run. Dropping it gives it back.
#[derive(Debug)]
pub struct Lease<'a> {
    pool: &'a Pool,
    instance: Arc<GpuInstance>,
}

impl Pool {
    pub(super) fn new(max: usize) -> Pool {
        Pool { max: max.max(1), state: Mutex::default(), returned: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while all are taken, and asks `check` meanwhile whether it is to go on.
    pub(super) fn lease<'a>(
        &'a self,
        segment: &GpuSegment,
        check: &dyn Fn() -> Result<(), Error>,
    ) -> Result<Lease<'a>, Error> {
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
        match segment.instance() {
            Ok(instance) => Ok(self.leased(Arc::new(instance))),
            Err(error) => {
                self.lock().alive -= 1;
                self.returned.notify_one();
                Err(error)
            }
        }
    }

    fn leased(&self, instance: Arc<GpuInstance>) -> Lease<'_> {
        Lease { pool: self, instance }
    }

    /// Frees instances that nobody uses. True if there were any.
    pub(super) fn shrink(&self) -> bool {
        let mut state = self.lock();
        state.alive -= state.idle.len();
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        !idle.is_empty()
    }
}

impl Deref for Lease<'_> {
    type Target = GpuInstance;

    fn deref(&self) -> &GpuInstance {
        &self.instance
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.pool.lock().idle.push(self.instance.clone());
        self.pool.returned.notify_one();
    }
}
