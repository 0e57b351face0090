//! What callables keep of their plans and programs, where their session finds it.

use std::sync::{Arc, PoisonError, Weak};

use crate::core::Planned;
use crate::recent::Recent;
use crate::sync::Mutex;

/// What a callable keeps.
pub(crate) struct Prepared {
    pub planned: Arc<Planned>,
    pub recent: Recent,
}

/// What the callables of a session keep.
#[derive(Default)]
pub(crate) struct AllPrepared(Mutex<All>);

#[derive(Default)]
struct All {
    /// Some may be gone.
    prepared: Vec<Weak<Prepared>>,
    /// How many there are when those that are gone are left out.
    full: usize,
}

impl AllPrepared {
    /// What a new callable keeps.
    pub fn add(&self, planned: Arc<Planned>) -> Arc<Prepared> {
        let prepared = Arc::new(Prepared { planned, recent: Recent::default() });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.prepared.len() >= all.full {
            all.prepared.retain(|other| other.strong_count() > 0);
            // As many come as are looked at.
            all.full = all.prepared.len().saturating_mul(2).max(16);
        }
        all.prepared.push(Arc::downgrade(&prepared));
        prepared
    }

    /// Drops the programs of all.
    pub fn forget_programs(&self) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let there: Vec<Arc<Prepared>> = all.prepared.iter().filter_map(Weak::upgrade).collect();
        drop(all);
        for prepared in there {
            prepared.planned.forget_programs();
            prepared.recent.clear();
        }
    }
}
