//! Which runs wait, for what, and since when: as values and as text.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use convoke_graph_core::{Error, ErrorKind, QueueSpec};
use smallvec::SmallVec;

use super::Inner;
use super::kept::label;
use super::uses::{Own, ReaderUse, Use, Uses};
use super::wake::only_line;
use crate::cancel::Stop;
use crate::identity::{Prefix, SessionMetadata};

/// A run that waits for queues or readers, as [`Session::waiting`](crate::Session::waiting) finds it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WaitingRun {
    /// Its number among the runs of the session that have waited, from 0.
    pub run: u64,
    /// When it first found that something was lacking.
    pub since: Instant,
    /// The operations that lack something. The run takes nothing more before each of them has what it needs.
    pub operations: Vec<WaitingOperation>,
}

/// An operation that a run waits for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WaitingOperation {
    /// Its name.
    pub name: String,
    /// The line that made it.
    pub location: &'static Location<'static>,
    /// The name of the queue, or of the reader if it is that which lacks.
    pub of: String,
    /// What it lacks.
    pub lacks: Lack,
    /// The queue's kind and name, or the reader's name.
    label: String,
}

/// What an operation lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lack {
    /// Elements of the queue.
    Elements {
        /// How many it takes.
        wanted: usize,
        /// How many it could have, without those that a shuffling queue keeps back.
        there: usize,
    },
    /// Room in the queue.
    Room {
        /// How many elements the queue has room for.
        capacity: usize,
        /// How many are there.
        there: usize,
        /// For how many other elements room is kept: those that runs under way will put, and of a map staging area
        /// those that lack components.
        promised: usize,
    },
    /// The element of this key of a map staging area.
    Key {
        /// The key.
        key: i64,
    },
    /// Its turn: a run that came before it waits for the same queue, or has taken the element of the key that it puts.
    Turn,
    /// The reader, which another run has.
    Reader,
}

/// A run that stands in line.
pub(super) struct Waiter {
    since: Instant,
    lacks: SmallVec<[Lacking; 2]>,
    /// The queue of whose one line it depends alone.
    pub(super) only: Option<Arc<QueueSpec>>,
    /// The queues that it puts into once it has run.
    fills: SmallVec<[Arc<QueueSpec>; 2]>,
    /// When it is told of; none once it was.
    tell_at: Option<Instant>,
    /// Whether it was decided when it is told of.
    is_timed: bool,
}

/// A use that cannot be had yet.
struct Lacking {
    node: Arc<str>,
    at: &'static Location<'static>,
    of: Of,
    lack: Lack,
    /// What the run has of the queue.
    own: Own,
}

enum Of {
    Queue(Arc<QueueSpec>),
    Reader(String),
}

impl Lacking {
    fn operation(&self) -> WaitingOperation {
        let (of, label) = match &self.of {
            Of::Queue(spec) => (spec.name.clone(), label(spec)),
            Of::Reader(name) => (name.clone(), format!("reader '{name}'")),
        };
        let (name, location) = (self.node.to_string(), self.at);
        WaitingOperation { name, location, of, lacks: self.lack, label }
    }
}

impl Waiter {
    fn operations(&self) -> Vec<WaitingOperation> {
        self.lacks.iter().map(Lacking::operation).collect()
    }

    fn run(&self, ticket: u64) -> WaitingRun {
        WaitingRun { run: ticket, since: self.since, operations: self.operations() }
    }
}

impl Inner {
    /// Notes what a run waits for: nothing at the moment, if it reads.
    pub fn waits<'a>(
        &mut self,
        ticket: u64,
        uses: &Uses,
        queues: impl Iterator<Item = (&'a Use, Lack)>,
        readers: impl Iterator<Item = &'a ReaderUse>,
    ) {
        let waiter = self.waiting.entry(ticket).or_insert_with(|| Waiter {
            since: Instant::now(),
            lacks: SmallVec::new(),
            only: only_line(uses),
            fills: uses.fills(),
            tell_at: None,
            is_timed: false,
        });
        let queues = queues.map(|(used, lack)| Lacking {
            node: used.node.clone(),
            at: used.at,
            of: Of::Queue(used.queue.clone()),
            lack,
            own: used.own,
        });
        let readers = readers.map(|used| Lacking {
            node: used.node.clone(),
            at: used.at,
            of: Of::Reader(used.reader.name.clone()),
            lack: Lack::Reader,
            own: Own::default(),
        });
        waiter.lacks.clear();
        waiter.lacks.extend(queues.chain(readers));
    }

    /// Why a run that would wait does not, if it is so. A queue runner's runs are never told of: they wait most of
    /// the time.
    pub fn refusal(
        &mut self,
        ticket: u64,
        stop: &Stop<'_>,
        after: Option<Duration>,
    ) -> Option<Error> {
        let is_filler = self.fillers.has(&stop.tokens);
        let waiter = self.waiting.get_mut(&ticket)?;
        if !waiter.is_timed {
            waiter.is_timed = true;
            let after = after.filter(|_| !is_filler);
            waiter.tell_at = after.and_then(|after| waiter.since.checked_add(after));
        }
        let (kind, reason) = if stop.fails_if_blocked {
            let reason = "the run would wait, which its options refuse".to_owned();
            (ErrorKind::FailedPrecondition, reason)
        } else if self.is_abandoned {
            let reason =
                "the session has no handle any more, and no run of it is under way that could help";
            (ErrorKind::Cancelled, reason.to_owned())
        } else {
            let queue = self.hopeless(ticket)?;
            let reason = format!(
                "all that put into {} belong to queue runners, which have ended",
                label(&queue)
            );
            (ErrorKind::OutOfRange, reason)
        };
        let operations = self.waiting.get(&ticket)?.operations();
        let message = format!("{reason}: {}", List(&operations));
        let error = Error::new(kind, message);
        Some(match operations.first() {
            Some(first) => error.with_node(&*first.name),
            None => error,
        })
    }

    /// A queue that lacks elements for a run, and that nobody will put into any more.
    fn hopeless(&mut self, ticket: u64) -> Option<Arc<QueueSpec>> {
        if !self.fillers.has_ended() {
            return None;
        }
        let waiter = self.waiting.get(&ticket)?;
        let lacking = waiter.lacks.iter().filter_map(|lacking| match (&lacking.of, lacking.lack) {
            (Of::Queue(spec), Lack::Elements { .. } | Lack::Key { .. }) => {
                Some((spec.clone(), lacking.own))
            }
            _ => None,
        });
        let lacking: SmallVec<[(Arc<QueueSpec>, Own); 2]> = lacking.collect();
        let found = lacking.into_iter().find(|(spec, own)| {
            let fills = |other: &Waiter| other.fills.iter().any(|queue| queue.name == spec.name);
            let mut others = self.waiting.iter().filter(|(other, _)| **other != ticket);
            let may_come =
                self.queues.get(&spec.name).is_some_and(|kept| kept.reserved > own.rooms)
                    || self.coming.get(&spec.name).is_some_and(|&n| n > own.coming)
                    || others.any(|(_, waiter)| fills(waiter));
            !may_come && self.fillers.have_ended_for(&spec.name)
        });
        found.map(|(spec, _)| spec)
    }

    /// The runs that wait.
    pub fn waiting_runs(&self) -> Vec<WaitingRun> {
        let waiting = self.waiting.iter().filter(|(_, waiter)| !waiter.lacks.is_empty());
        waiting.map(|(&ticket, waiter)| waiter.run(ticket)).collect()
    }

    /// When this run is told of, if it was not.
    pub fn tells_at(&self, ticket: Option<u64>) -> Option<Instant> {
        self.waiting.get(&ticket?)?.tell_at
    }

    /// When the next run is told of.
    pub fn next_tell(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|waiter| waiter.tell_at).min()
    }

    /// The runs that are to be told of now. Each is given once.
    pub fn overdue(&mut self, now: Instant) -> Vec<WaitingRun> {
        let due = self.waiting.iter_mut().filter_map(|(&ticket, waiter)| {
            if waiter.tell_at.is_none_or(|at| at > now) {
                return None;
            }
            waiter.tell_at = None;
            (!waiter.lacks.is_empty()).then(|| waiter.run(ticket))
        });
        due.collect()
    }
}

/// Tells of runs that have waited long. Not under the lock: who hears of it may ask the session.
pub(super) fn tell(runs: &[WaitingRun], session: Option<&SessionMetadata>) {
    for run in runs {
        tracing::warn!("{}{run}", Prefix(session));
    }
}

/// Operations as text.
struct List<'a>(&'a [WaitingOperation]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, operation) in self.0.iter().enumerate() {
            write!(f, "{}{operation}", if i > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for WaitingRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.since.elapsed().as_secs_f64();
        write!(f, "run {} has waited for {seconds:.1} s: {}", self.run, List(&self.operations))
    }
}

impl fmt::Display for WaitingOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, label) = (self.location, &self.label);
        write!(f, "{} at {}:{}:{} lacks ", self.name, at.file(), at.line(), at.column())?;
        match self.lacks {
            Lack::Elements { wanted, there } => {
                write!(f, "elements of {label} (wanted {wanted}, there {there})")
            }
            Lack::Room { capacity, there, promised } => {
                write!(
                    f,
                    "room in {label} (capacity {capacity}, there {there}, promised {promised})"
                )
            }
            Lack::Key { key } => write!(f, "the element of key {key} of {label}"),
            Lack::Turn => write!(f, "its turn at {label}"),
            Lack::Reader => write!(f, "{label}, which another run has"),
        }
    }
}
