//! The queues of a session: what runs take before they begin and put when they have succeeded, and who waits for it.
//!
//! A run takes and reserves all at once, under one lock, or waits; inside of branches and loops, when it comes to it
//! (`held.rs`). Who waits has a ticket; on each side of a queue, tickets are served in order. A run of the caller's thread
//! waits there; a submitted one leaves its thread and comes back when something has changed.

mod ahead;
mod clock;
mod early;
mod fillers;
mod held;
mod kept;
mod keyed;
#[cfg(all(test, loom))]
mod loom_tests;
mod parts;
mod presence;
mod puts;
mod readers;
mod serve;
mod state_bytes;
mod tables;
#[cfg(all(test, not(loom)))]
mod tests;
mod uses;
mod values;
mod waiting;
mod wake;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use convoke_graph_core::{
    Error, Graph, HostTensor, NodeId, QueueAction, Result, TableContents, TableSpec,
};
use rustc_hash::FxHashMap;

use crate::cancel::{Bell, CancelToken, Stop};
use crate::feeds::FeedData;
use crate::identity::SessionMetadata;
use crate::sync::{Condvar, Mutex, MutexGuard};
use clock::Clock;
use fillers::Fillers;
pub(crate) use held::{Call, Held};
pub(crate) use kept::Item;
use kept::{Kept, Popped};
use parts::Key;
pub(crate) use presence::{Handles, Presence};
pub(crate) use puts::{Puts, check, items};
use readers::{KeptReader, Lease};
use serve::Served;
use tables::KeptTable;
pub(crate) use tables::{Claimed, Tables};
pub(crate) use uses::{Use, Uses, puts, puts_of, with_queues};
use values::Draft;
pub use waiting::{Lack, WaitingOperation, WaitingRun};
use waiting::{Waiter, tell};

/// What a run has taken: its fed values in order, and how to give all back.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// The values that are fed, in the order of the uses.
    pub values: Vec<HostTensor>,
    /// What each use of a queue has given, and then each of a reader: what the values are made of.
    drafts: Vec<Draft>,
    read: Vec<Vec<HostTensor>>,
    /// For each use of a table, what it is that is fed of it.
    of_tables: Vec<Option<Arc<TableContents>>>,
    undo: Vec<Undo>,
    /// The readers that it has to itself.
    leases: Vec<Lease>,
    /// The tables that it looks keys up in.
    tables: Tables,
    /// What it may do inside of branches and loops, by node.
    inside: Arc<[Arc<Use>]>,
}

#[derive(Debug)]
enum Undo {
    /// Elements with the places that they were taken from, last taken last, and the draws before and after.
    Elements {
        queue: String,
        /// When the queue was made or reset last.
        made: u64,
        items: Vec<Popped>,
        draws: [u64; 2],
        /// Of an accumulator, its step when they were taken.
        step: i64,
    },
    /// Room for so many elements.
    Room { queue: String, n: usize },
    /// That the run may put elements.
    Coming { queue: String },
    /// Keys that components were to be put for.
    Keys { queue: String, keys: Arc<[Key]>, action: QueueAction },
}

/// How a run waits.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    ticket: Option<u64>,
}

/// A submitted run that waits for a change.
pub(crate) struct Parked {
    pub deadline: Option<Instant>,
    /// Called under the lock: it must not come back to the queues on this thread.
    pub resume: Box<dyn FnOnce() + Send>,
}

/// What parks a run with its place in line.
pub(crate) type Park<'a> = &'a dyn Fn(Attempt) -> Parked;

/// All queues of a session.
pub(crate) struct Queues {
    inner: Mutex<Inner>,
    /// Wakes who waits until nobody is about to change a table.
    free_tables: Condvar,
    /// Wakes the thread that keeps time.
    tick: Condvar,
    own: Weak<Queues>,
    /// How long a run waits before it is told of.
    stall_after: Option<Duration>,
    /// The session's name and version.
    session: Option<Arc<SessionMetadata>>,
}

struct Inner {
    queues: FxHashMap<String, Kept>,
    readers: FxHashMap<String, KeptReader>,
    tables: FxHashMap<String, KeptTable>,
    /// How often tables were made or changed.
    n_table_changes: u64,
    next_ticket: u64,
    /// How often queues were reset.
    n_resets: u64,
    /// The submitted runs that wait, with their tickets.
    parked: Vec<(Option<u64>, Parked)>,
    /// What wakes each run that waits on its thread, with its ticket, until it is woken.
    sleeping: Vec<(Option<u64>, Arc<Condvar>)>,
    /// The runs that wait, by ticket.
    waiting: BTreeMap<u64, Waiter>,
    fillers: Fillers,
    /// For each queue, how many runs may put into it: submitted ones that have not tried to take yet, and those under way
    /// that put inside of branches and loops.
    coming: FxHashMap<String, usize>,
    /// How many submitted runs there are that use queues.
    n_submitted: usize,
    /// Whether no handle of the session is left, so that no run comes any more.
    is_orphaned: bool,
    /// Whether none is under way either: who waits would wait for ever.
    is_abandoned: bool,
    clock: Clock,
    /// Whether somebody has come into a line or left one since it was last looked.
    moved: bool,
    ends: bool,
}

impl Inner {
    fn new(graph: Graph) -> Self {
        Self {
            queues: FxHashMap::default(),
            readers: FxHashMap::default(),
            tables: FxHashMap::default(),
            n_table_changes: 0,
            next_ticket: 0,
            n_resets: 0,
            parked: Vec::new(),
            sleeping: Vec::new(),
            waiting: BTreeMap::new(),
            fillers: Fillers::new(graph),
            coming: FxHashMap::default(),
            n_submitted: 0,
            is_orphaned: false,
            is_abandoned: false,
            clock: Clock::None,
            moved: false,
            ends: false,
        }
    }
}

impl Queues {
    /// The queues of a session of this graph, which tells of runs that wait longer than `stall_after`.
    pub fn new(
        graph: &Graph,
        stall_after: Option<Duration>,
        session: Option<Arc<SessionMetadata>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            inner: Mutex::new(Inner::new(graph.clone())),
            free_tables: Condvar::new(),
            tick: Condvar::new(),
            own: own.clone(),
            stall_after,
            session,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes, reads and reserves what `uses` say, and waits for it on this thread. `data` is what is fed.
    ///
    /// # Errors
    /// `OutOfRange` and `Cancelled` of closed queues, what files give, and what `stop` says.
    pub fn take(&self, uses: &Uses, data: &[FeedData<'_>], stop: &Stop<'_>) -> Result<Taken> {
        let mut attempt = Attempt::default();
        let bell: Arc<dyn Bell> = match self.own.upgrade() {
            Some(own) => own,
            None => return Err(Error::internal("queues without an owner")),
        };
        stop.ring(&bell);
        let mut inner = self.lock();
        loop {
            let taken;
            (inner, taken) = self.try_in(inner, uses, data, &mut attempt, stop)?;
            if let Some(taken) = taken {
                drop(inner);
                return self.finished(taken, uses);
            }
            let (now, tells_at) = (Instant::now(), inner.tells_at(attempt.ticket));
            if tells_at.is_some_and(|at| at <= now) {
                let overdue = inner.overdue(now);
                drop(inner);
                tell(&overdue, self.session.as_deref());
                inner = self.lock();
                continue;
            }
            let until = stop.deadline.map(|(until, _)| until).into_iter().chain(tells_at).min();
            let rung = Arc::new(Condvar::new());
            inner.sleeping.push((attempt.ticket, rung.clone()));
            inner = match until.map(|until| until.saturating_duration_since(now)) {
                None => rung.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = rung.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            inner.sleeping.retain(|(_, other)| !Arc::ptr_eq(other, &rung));
        }
    }

    /// As [`Self::take`], but does not wait: calls `park` under the lock, so that no change is missed, and gives
    /// nothing.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn try_take(
        &self,
        uses: &Uses,
        data: &[FeedData<'_>],
        attempt: &mut Attempt,
        stop: &Stop<'_>,
        park: impl FnOnce(Attempt) -> Parked,
    ) -> Result<Option<Taken>> {
        if let Some(own) = self.own.upgrade() {
            let bell: Arc<dyn Bell> = own;
            stop.ring(&bell);
        }
        let (mut inner, taken) = self.try_in(self.lock(), uses, data, attempt, stop)?;
        if let Some(taken) = taken {
            drop(inner);
            return self.finished(taken, uses).map(Some);
        }
        let deadline = stop.deadline.map(|(until, _)| until);
        let until = deadline.into_iter().chain(inner.tells_at(attempt.ticket)).min();
        let clock = until.map_or(Ok(()), |until| self.look_at(&mut inner, until));
        // Who has no deadline can do without.
        if let (Err(error), true) = (clock, deadline.is_some()) {
            inner.forget(attempt);
            inner.wake();
            return Err(error);
        }
        let ticket = attempt.ticket;
        inner.parked.push((ticket, park(take(attempt))));
        inner.look_for_abandoned();
        Ok(None)
    }

    /// Makes the values of what was taken, or gives it back.
    ///
    /// # Errors
    /// They cannot be made.
    fn finished(&self, mut taken: Taken, uses: &Uses) -> Result<Taken> {
        match taken.finish(uses) {
            Ok(()) => Ok(taken),
            Err(error) => {
                self.give_back(taken, Attempt::default());
                Err(error)
            }
        }
    }

    /// One try, and the reading that it needs, for which the lock is given up. Who fails gives up its ticket.
    fn try_in<'q>(
        &'q self,
        mut inner: MutexGuard<'q, Inner>,
        uses: &Uses,
        data: &[FeedData<'_>],
        attempt: &mut Attempt,
        stop: &Stop<'_>,
    ) -> Result<(MutexGuard<'q, Inner>, Option<Taken>)> {
        loop {
            let mut served = stop.check().and_then(|()| inner.serve(uses, data, attempt));
            if let (Ok(Served::Waits), Some(ticket)) = (&served, attempt.ticket)
                && let Some(refusal) = inner.refusal(ticket, stop, self.stall_after)
            {
                served = Err(refusal);
            }
            let goes_on = matches!(served, Ok(Served::Waits | Served::Reads(_)));
            if !goes_on {
                inner.forget(attempt);
            }
            // Others may have their turn now, or room for what somebody waits for.
            let is_nothing = matches!(&served, Ok(Served::Taken(taken)) if taken.undo.is_empty());
            let frees = !goes_on && !is_nothing && uses.has_lines();
            if take(&mut inner.moved) || frees {
                inner.wake();
            }
            let mut job = match served? {
                Served::Taken(taken) => return Ok((inner, Some(taken))),
                Served::Waits => return Ok((inner, None)),
                Served::Reads(job) => job,
            };
            drop(inner);
            let read = catch_unwind(AssertUnwindSafe(|| job.run(stop)));
            let read = read.unwrap_or_else(|_| Err(Error::internal("reading a file panicked")));
            inner = self.lock();
            let node = job.wanted.node.clone();
            if let Some(kept) = inner.readers.get_mut(&job.wanted.reader) {
                kept.end(*job, read.is_ok());
            }
            // Who came first may have come into the line only meanwhile.
            inner.moved = true;
            if let Err(error) = read {
                inner.forget(attempt);
                inner.wake();
                return Err(error.with_node(&*node));
            }
        }
    }

    /// Notes that a queue runner begins, whose runs have this token and put by these operations. False if it is at
    /// work.
    pub fn start_runner(&self, id: NodeId, token: &CancelToken, puts: Vec<NodeId>) -> bool {
        self.lock().fillers.start(id, token, puts)
    }

    /// Notes that a queue runner has ended.
    pub fn end_runner(&self, id: NodeId) {
        let mut inner = self.lock();
        inner.fillers.end(id);
        inner.wake_all();
    }

    /// The runs that wait.
    pub fn waiting(&self) -> Vec<WaitingRun> {
        self.lock().waiting_runs()
    }

    /// What tables hold, in the order of the specs.
    ///
    /// # Errors
    /// Another table of one of the names.
    pub fn table_contents(&self, specs: &[Arc<TableSpec>]) -> Result<Vec<Arc<TableContents>>> {
        self.lock().table_contents(specs)
    }

    /// Has tables hold what is given.
    pub fn set_tables(&self, tables: Vec<(Arc<TableSpec>, TableContents)>) {
        self.lock().set_tables(tables);
    }

    /// Empties and opens the queues of containers that are named, empties their tables, and has their readers begin.
    pub fn reset(&self, is_named: impl Fn(Option<&str>) -> bool) {
        let mut inner = self.lock();
        inner.reset(&is_named);
        inner.reset_readers(&is_named);
        inner.reset_tables(&is_named);
        inner.fillers.forget();
        inner.wake_all();
    }

    /// Drops what all of them hold, and lets all who wait look again: the session is closed, and nothing comes in any
    /// more. What runs under way have taken does not come back, and what they put is dropped.
    pub fn close(&self) {
        let mut inner = self.lock();
        // Who has claimed a table before puts nothing into another of the name.
        inner.n_resets += 1;
        let kept = (take(&mut inner.queues), take(&mut inner.readers), take(&mut inner.tables));
        self.free_tables.notify_all();
        inner.wake_all();
        drop(inner);
        drop(kept);
    }

    /// Ends what is left to end with the session.
    pub fn end(&self) {
        let mut inner = self.lock();
        inner.ends = true;
        self.tick.notify_all();
    }

    /// Adds what queues and tables hold and where readers stand to a digest.
    pub fn hash(&self, hasher: &mut impl Hasher) {
        let inner = self.lock();
        let mut names: Vec<&String> = inner.queues.keys().collect();
        names.sort_unstable();
        for name in names {
            let kept = &inner.queues[name];
            // A queue that was only looked at is as one that nobody has used.
            if kept.is_new() {
                continue;
            }
            (name, kept.draws, kept.step, kept.closed.is_some(), kept.items.len()).hash(hasher);
            kept.parts.hash(hasher);
            for tensor in kept.items.iter().flat_map(|(_, item)| item) {
                (tensor.dims(), tensor.bytes(), tensor.as_strings().ok()).hash(hasher);
            }
        }
        let mut readers: Vec<_> = inner.readers.iter().collect();
        readers.sort_unstable_by_key(|(name, _)| *name);
        readers.into_iter().for_each(|(name, kept)| kept.hash(name, hasher));
        inner.hash_tables(hasher);
    }
}

impl Bell for Queues {
    fn ring(&self) {
        let mut inner = self.lock();
        self.free_tables.notify_all();
        inner.wake_all();
    }
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} queues", self.lock().queues.len())
    }
}
