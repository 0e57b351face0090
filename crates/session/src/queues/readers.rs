//! The readers of a session: where each stands, and what a run would read from there. Nothing is changed by looking:
//! a run that is served has the reader to itself until it ends, and only its success moves the reader.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use convoke_graph_core::{
    Error, ErrorKind, HostTensor, NameList, QueueAction, QueueSpec, ReaderAction, ReaderSource,
    RecordFormat, Result, philox,
};
use smallvec::SmallVec;

use super::ahead::{Ahead, End, Job, Pair, Wanted};
use super::early::Early;
use super::serve::demand;
use super::uses::{Own, ReaderUse, Use, Uses};
use super::{Inner, state_bytes};
use crate::feeds::FeedData;
use convoke_graph_core::batches;

/// How many files are looked into at once at most for one that has a record.
const FILES_AHEAD: usize = 1024;

/// Where a reader stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// The file at hand, and how many of its records were given.
    pub file: Option<(HostTensor, u64)>,
    pub produced: u64,
    pub completed: u64,
}

/// One reader.
#[derive(Debug, Default)]
pub(super) struct KeptReader {
    pub place: Place,
    /// What was read of the file at hand, and of those that come next, as far as runs have found out that did not
    /// take it.
    ahead: Vec<Option<Ahead>>,
    /// The names of the epoch that is given next, once somebody has asked for them.
    epoch: Option<(u64, HostTensor)>,
    /// Whether a run that is under way has read, or reads right now.
    pub is_leased: bool,
    /// Tickets that wait for the reader.
    pub line: VecDeque<u64>,
    /// The container that it is in.
    container: Option<Arc<str>>,
    /// When it was made or reset last.
    made: u64,
}

/// Where a run leaves a reader that it has to itself.
#[derive(Debug)]
pub(super) struct Lease {
    pub reader: String,
    /// When the reader was made or reset last.
    made: u64,
    place: Place,
    /// How many files were begun.
    begun: usize,
    /// How many records were taken of the last file.
    used: usize,
    /// Whether something is missing: what comes after cannot be told.
    is_stuck: bool,
}

/// What the readers' part in a run comes to.
#[derive(Default)]
pub(super) struct Reads {
    /// For each use, its outputs.
    pub values: Vec<Vec<HostTensor>>,
    /// The file names that are taken, or are missing.
    pub names: Vec<Use>,
    pub leases: Vec<Lease>,
    /// Readers that others have.
    pub busy: SmallVec<[String; 2]>,
    /// The first use of each of them.
    pub blocked: SmallVec<[usize; 2]>,
    /// What is to be read first.
    pub wanted: Option<Wanted>,
}

impl Place {
    fn leave(&mut self) {
        self.file = None;
        self.completed = self.completed.saturating_add(1);
    }
}

impl Lease {
    fn begin(&mut self, file: HostTensor) {
        self.place.file = Some((file, 0));
        self.begun += 1;
        self.used = 0;
    }

    fn give(&mut self, n: usize) {
        self.used += n;
        self.place.produced = self.place.produced.saturating_add(n as u64);
        if let Some((_, given)) = &mut self.place.file {
            *given = given.saturating_add(n as u64);
        }
    }
}

impl KeptReader {
    /// Takes a file out, to be read; the lease keeps others away.
    pub fn start(&mut self, wanted: Wanted) -> Job {
        self.is_leased = true;
        self.ahead.truncate(wanted.slot.saturating_add(1));
        let ahead = self.ahead.get_mut(wanted.slot).and_then(Option::take);
        Job::new(wanted, ahead)
    }

    /// Has the file back, unless reading has failed.
    pub fn end(&mut self, job: Job, is_read: bool) {
        self.is_leased = false;
        if is_read {
            self.ahead.resize_with(job.wanted.slot, || None);
            self.ahead.extend(job.ahead.into_iter().map(Some));
        }
    }

    /// Moves to where a run has left it, unless it was reset meanwhile.
    pub fn move_to(&mut self, lease: Lease) {
        self.is_leased = false;
        if lease.made != self.made {
            return;
        }
        self.ahead.drain(..lease.begun.min(self.ahead.len()));
        match self.ahead.first_mut() {
            Some(first) if lease.place.file.is_none() => *first = None,
            Some(Some(first)) => first.advance(lease.used),
            _ => {}
        }
        self.place = lease.place;
    }

    /// Adds where it stands to a digest; one that has not moved adds nothing.
    pub fn hash(&self, name: &str, hasher: &mut impl Hasher) {
        let Place { file, produced, completed } = &self.place;
        if file.is_none() && *produced == 0 && *completed == 0 {
            return;
        }
        (name, produced, completed).hash(hasher);
        if let Some((file, given)) = file {
            (file.as_strings().ok(), given).hash(hasher);
        }
    }
}

impl Inner {
    /// What the readers' part in a run would come to now.
    ///
    /// # Errors
    /// An epoch too many, a state that is none.
    pub fn reads(&mut self, uses: &Uses, data: &[FeedData<'_>], ticket: u64) -> Result<Reads> {
        let mut reads = Reads::default();
        for (i, used) in uses.readers.iter().enumerate() {
            let name = &used.reader.name;
            let made = self.n_resets;
            let container = &used.reader.container;
            let kept = self.readers.entry(name.clone()).or_insert_with(|| KeptReader {
                container: container.clone(),
                made,
                ..KeptReader::default()
            });
            if let Some(seen) = seen(&kept.place, used.action)? {
                reads.values.push(vec![seen]);
                continue;
            }
            if kept.is_leased || kept.line.front().is_some_and(|&first| first < ticket) {
                if !reads.busy.contains(name) {
                    reads.busy.push(name.clone());
                    reads.blocked.push(i);
                }
                continue;
            }
            let own = reads.leases.iter().position(|lease| lease.reader == *name);
            let mut lease = match own {
                Some(own) => reads.leases.swap_remove(own),
                None => Lease {
                    reader: name.clone(),
                    made: kept.made,
                    place: kept.place.clone(),
                    begun: 0,
                    used: 0,
                    is_stuck: false,
                },
            };
            if !lease.is_stuck {
                let values = self.serve_reader(uses, used, data, &mut lease, &mut reads);
                match values.map_err(|e| e.with_node(&*used.node))? {
                    Some(values) => reads.values.push(values),
                    None => lease.is_stuck = true,
                }
            }
            reads.leases.push(lease);
        }
        Ok(reads)
    }

    /// Has the readers of containers that are named begin anew. What runs under way have read does not move them.
    pub fn reset_readers(&mut self, is_named: impl Fn(Option<&str>) -> bool) {
        let made = self.n_resets;
        self.readers.retain(|_, kept| {
            if !is_named(kept.container.as_deref()) {
                return true;
            }
            (kept.place, kept.made) = (Place::default(), made);
            kept.ahead.clear();
            kept.is_leased || !kept.line.is_empty()
        });
    }

    /// The outputs of one use; none if something is missing, which `reads` then says.
    fn serve_reader(
        &mut self,
        uses: &Uses,
        used: &ReaderUse,
        data: &[FeedData<'_>],
        lease: &mut Lease,
        reads: &mut Reads,
    ) -> Result<Option<Vec<HostTensor>>> {
        let format = match &used.reader.source {
            ReaderSource::Files(format) => format,
            ReaderSource::Names(list) => {
                let kept = self.readers.entry(lease.reader.clone()).or_default();
                return next_epoch(list, &mut lease.place, &mut kept.epoch).map(Some);
            }
        };
        match used.action {
            ReaderAction::Read => {
                let pairs = self.read(uses, used, format, 1, lease, reads);
                Ok(pairs.and_then(|mut pairs| pairs.pop()).map(Vec::from))
            }
            ReaderAction::ReadUpTo(n) => {
                let pairs = self.read(uses, used, format, n, lease, reads);
                pairs.map(|pairs| columns(&pairs)).transpose()
            }
            ReaderAction::SkipFile => {
                Ok(self.skip(uses, used, format, lease, reads).then(Vec::new))
            }
            ReaderAction::Reset => {
                lease.place = Place::default();
                Ok(Some(Vec::new()))
            }
            ReaderAction::RestoreState => {
                let state = used.state(data)?;
                let state = state.as_strings()?.first().map(Vec::as_slice).unwrap_or_default();
                let Some([produced, completed]) = state_bytes::parsed(state) else {
                    let name = &used.reader.name;
                    let message = format!("could not parse state for identity reader '{name}'");
                    return Err(Error::invalid(message));
                };
                lease.place = Place { file: None, produced, completed };
                Ok(Some(Vec::new()))
            }
            action => Err(Error::internal(format!("{action:?} of a reader of files"))),
        }
    }

    /// The next records of one file, `n` at most.
    fn read(
        &mut self,
        uses: &Uses,
        used: &ReaderUse,
        format: &RecordFormat,
        n: usize,
        lease: &mut Lease,
        reads: &mut Reads,
    ) -> Option<Vec<Pair>> {
        let mut pairs: Vec<Pair> = Vec::new();
        while pairs.len() < n {
            let (file, given) = self.file_at_hand(uses, used, lease, reads)?;
            let kept = self.readers.get(&lease.reader)?;
            let missing = n - pairs.len();
            let ahead = kept.ahead.get(lease.begun).and_then(Option::as_ref);
            let ahead = ahead.filter(|a| a.follows(&file, given.saturating_sub(lease.used as u64)));
            let mut is_at_end = false;
            if let Some(ahead) = ahead {
                let there = ahead.records.iter().skip(lease.used).take(missing);
                let before = pairs.len();
                pairs.extend(there.cloned());
                lease.give(pairs.len() - before);
                is_at_end = ahead.end == End::Reached;
            }
            if format.is_single() && !pairs.is_empty() {
                lease.place.leave();
                break;
            }
            if pairs.len() == n {
                break;
            }
            if !is_at_end {
                let missing = n - pairs.len();
                let more = self.names_ahead(uses, used, lease, reads);
                let wanted = wanted(used, format, lease, file, more);
                let n = lease.used.saturating_add(missing);
                reads.wanted.get_or_insert(Wanted { n, ..wanted });
                return None;
            }
            lease.place.leave();
            if !pairs.is_empty() {
                break;
            }
        }
        Some(pairs)
    }

    /// Leaves the file that the next record would come from; false if something is missing.
    fn skip(
        &mut self,
        uses: &Uses,
        used: &ReaderUse,
        format: &RecordFormat,
        lease: &mut Lease,
        reads: &mut Reads,
    ) -> bool {
        loop {
            let Some((file, given)) = self.file_at_hand(uses, used, lease, reads) else {
                return false;
            };
            let kept = self.readers.get(&lease.reader);
            let ahead = kept.and_then(|kept| kept.ahead.get(lease.begun)?.as_ref());
            let ahead = ahead.filter(|a| a.follows(&file, given.saturating_sub(lease.used as u64)));
            let is_it = format.is_single()
                || ahead.is_some_and(|a| a.end == End::Failed || a.records.len() > lease.used);
            if !is_it && ahead.is_none_or(|ahead| ahead.end == End::Open) {
                let more = self.names_ahead(uses, used, lease, reads);
                let wanted = wanted(used, format, lease, file, more);
                reads.wanted.get_or_insert(Wanted { skips: true, ..wanted });
                return false;
            }
            lease.place.leave();
            if is_it {
                return true;
            }
        }
    }

    /// The file that the reader is at, which may be the next of the queue; none if the queue has none for it.
    fn file_at_hand(
        &mut self,
        uses: &Uses,
        used: &ReaderUse,
        lease: &mut Lease,
        reads: &mut Reads,
    ) -> Option<(HostTensor, u64)> {
        if lease.place.file.is_none() {
            let queue = used.queue.as_ref()?;
            let before = reads.names_before(uses, queue);
            let name = self.queues.get_mut(&queue.name)?.peek(before, 1).pop();
            reads.take_name(used, queue, name.is_some());
            lease.begin(name?);
        }
        lease.place.file.clone()
    }

    /// The names that come next. The more files in a row had no record, the more are looked into at once.
    fn names_ahead(
        &mut self,
        uses: &Uses,
        used: &ReaderUse,
        lease: &Lease,
        reads: &Reads,
    ) -> Vec<HostTensor> {
        let Some(queue) = &used.queue else { return Vec::new() };
        let before = reads.names_before(uses, queue);
        let kept = self.queues.get_mut(&queue.name);
        kept.map_or_else(Vec::new, |kept| kept.peek(before, lease.begun.min(FILES_AHEAD)))
    }

    /// # Errors
    /// A run asks for an epoch of names after the last.
    pub fn check_epochs(&self, uses: &Uses) -> Result<()> {
        for used in &uses.readers {
            let (ReaderAction::NextEpoch, ReaderSource::Names(list), Some(kept)) =
                (used.action, &used.reader.source, self.readers.get(&used.reader.name))
            else {
                continue;
            };
            if !kept.is_leased {
                check_epoch(list, &kept.place).map_err(|e| e.with_node(&*used.node))?;
            }
        }
        Ok(())
    }
}

impl Reads {
    /// How many elements of a queue are taken before the next name.
    fn names_before(&self, uses: &Uses, queue: &QueueSpec) -> usize {
        taken_before(&uses.queues, queue).saturating_add(taken_before(&self.names, queue))
    }

    /// Notes that a name is taken, or missing. Those of one queue that are taken are one use.
    fn take_name(&mut self, used: &ReaderUse, queue: &Arc<QueueSpec>, is_there: bool) {
        if is_there {
            let last = self.names.iter_mut().rev().find(|other| other.queue.name == queue.name);
            if let Some(QueueAction::DequeueMany(Some(n))) = last.map(|last| &mut last.action) {
                *n += 1;
                return;
            }
        }
        let action =
            if is_there { QueueAction::DequeueMany(Some(1)) } else { QueueAction::Dequeue };
        let (id, queue, node) = (used.id, queue.clone(), used.node.clone());
        let (at, places, early) = (used.at, Vec::new(), Early::default());
        let keys = Arc::default();
        self.names.push(Use {
            id,
            queue,
            action,
            node,
            at,
            places,
            early,
            keys,
            rooms: 1,
            own: Own::default(),
        });
    }
}

/// What is to be read of a file before the run can be served: one record more.
fn wanted(
    used: &ReaderUse,
    format: &RecordFormat,
    lease: &Lease,
    file: HostTensor,
    more: Vec<HostTensor>,
) -> Wanted {
    let given = lease.place.file.as_ref().map_or(0, |(_, given)| *given);
    Wanted {
        reader: lease.reader.clone(),
        node: used.node.clone(),
        format: format.clone(),
        slot: lease.begun,
        file,
        given: given.saturating_sub(lease.used as u64),
        used: lease.used,
        n: lease.used.saturating_add(1),
        more,
        skips: false,
    }
}

/// How many elements of a queue these take.
fn taken_before(uses: &[Use], queue: &QueueSpec) -> usize {
    let same = uses.iter().filter(|used| used.queue.name == queue.name);
    same.filter_map(|used| demand(used.action)).fold(0, usize::saturating_add)
}

/// What an action that only looks gives.
fn seen(place: &Place, action: ReaderAction) -> Result<Option<HostTensor>> {
    let count = |n: u64| HostTensor::from(i64::try_from(n).unwrap_or(i64::MAX));
    Ok(match action {
        ReaderAction::RecordsProduced => Some(count(place.produced)),
        ReaderAction::WorkUnitsCompleted => Some(count(place.completed)),
        ReaderAction::SerializeState => {
            let state = state_bytes::of([place.produced, place.completed]);
            Some(HostTensor::strings(&[], [state])?)
        }
        _ => None,
    })
}

/// Keys and values, each as one axis.
fn columns(pairs: &[Pair]) -> Result<Vec<HostTensor>> {
    let column = |i: usize| {
        let column: Vec<&HostTensor> = pairs.iter().map(|pair| &pair[i]).collect();
        batches::stacked(convoke_graph_core::DType::String, &[], &column, false)
    };
    Ok(vec![column(0)?, column(1)?])
}

/// # Errors
/// All epochs were given.
fn check_epoch(list: &NameList, place: &Place) -> Result<()> {
    match list.epochs.filter(|&epochs| place.completed >= epochs) {
        Some(epochs) => {
            let message = format!("all names were given for each of {epochs} epochs");
            Err(Error::new(ErrorKind::OutOfRange, message))
        }
        None => Ok(()),
    }
}

/// All names, in the order of the epoch that `place` has come to. `made` keeps them, for whoever asks again.
fn next_epoch(
    list: &NameList,
    place: &mut Place,
    made: &mut Option<(u64, HostTensor)>,
) -> Result<Vec<HostTensor>> {
    check_epoch(list, place)?;
    // Without an order of their own all epochs are the same.
    let is_made = |epoch: u64| list.shuffle.is_none() || epoch == place.completed;
    let names = match made {
        Some((epoch, names)) if is_made(*epoch) => names.clone(),
        _ => {
            let names = names_of(list, place.completed)?;
            *made = Some((place.completed, names.clone()));
            names
        }
    };
    place.completed = place.completed.saturating_add(1);
    place.produced = place.produced.saturating_add(names.len() as u64);
    Ok(vec![names])
}

/// All names, in the order of an epoch.
fn names_of(list: &NameList, epoch: u64) -> Result<HostTensor> {
    let mut order: Vec<usize> = (0..list.names.len()).collect();
    if let Some(seed) = list.shuffle {
        let epoch = [epoch as u32, (epoch >> 32) as u32];
        for i in (1..order.len()).rev() {
            let counter = [i as u32, (i as u64 >> 32) as u32, epoch[0], epoch[1]];
            let [low, high, ..] = philox::philox(seed, counter);
            let random = u64::from(high) << 32 | u64::from(low);
            order.swap(i, ((u128::from(random) * (i as u128 + 1)) >> 64) as usize);
        }
    }
    let names = order.iter().map(|&i| list.names[i].clone());
    HostTensor::strings(&[order.len()], names)
}
