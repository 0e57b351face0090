//! The complete elements of a map staging area: which key each has, who waits for one, and which runs have taken.
//!
//! Who waits for a key has its element before those that came later, also before those that take any element, and keeps
//! the other keys of its run meanwhile; who waits for any has the next before those that came later and wait for a key.

use std::collections::VecDeque;

use convoke_graph_core::{Error, QueueAction, QueueRole};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::kept::{Item, Kept, Popped};
use super::parts::Key;
use super::serve::{Can, demand, is_first, same};
use super::uses::Use;
use super::waiting::Lack;

/// What a map staging area knows of keys.
#[derive(Debug, Default)]
pub(super) struct Keyed {
    /// The numbers of the complete elements.
    numbers: FxHashMap<i64, u64>,
    /// The keys of elements that runs under way have taken, and may give back.
    lent: FxHashSet<i64>,
    /// Who waits for keys, in order of the tickets.
    pub seekers: VecDeque<Seeker>,
}

/// Somebody who waits for the element of a key, or will take it with that of another.
#[derive(Debug, PartialEq)]
pub(super) struct Seeker {
    ticket: u64,
    key: i64,
    /// How many elements its run takes here.
    pub n: usize,
}

/// The key that an element has.
fn key_of(item: &Item) -> Option<i64> {
    item.first()?.scalar().ok()
}

impl Use {
    /// The key of the one element that it is about.
    pub fn number(&self) -> Option<i64> {
        match &self.keys[..] {
            [Key::Number(key)] => Some(*key),
            _ => None,
        }
    }

    /// The key whose element it takes.
    fn taken_key(&self) -> Option<i64> {
        self.number().filter(|_| self.action == QueueAction::GetKey)
    }
}

impl Kept {
    pub fn is_keyed(&self) -> bool {
        self.spec.role == QueueRole::MapStaging
    }

    /// Notes an element that has come.
    pub fn note(&mut self, number: u64, item: &Item) {
        if !self.is_keyed() {
            return;
        }
        if let Some(key) = key_of(item) {
            self.keyed.numbers.insert(key, number);
        }
    }

    /// Forgets all elements and who has taken some.
    pub fn forget_keys(&mut self) {
        self.keyed.numbers.clear();
        self.keyed.lent.clear();
        if self.is_keyed() {
            self.parts.clear();
        }
    }

    /// Elements that a run had taken are its own, or about to come back.
    pub fn settle(&mut self, items: &[Popped]) {
        if !self.is_keyed() {
            return;
        }
        for key in items.iter().filter_map(|(.., item)| key_of(item)) {
            self.keyed.lent.remove(&key);
        }
    }

    /// Whether there is a complete element of this key that the run does not take.
    pub fn has_whole(&self, key: &Key, taken: &[i64]) -> bool {
        match key {
            Key::Number(key) => self.keyed.numbers.contains_key(key) && !taken.contains(key),
            Key::Text(_) => false,
        }
    }

    /// The place of the element of a key.
    fn place(&self, key: i64) -> Option<usize> {
        let number = *self.keyed.numbers.get(&key)?;
        let at = self.place_for(number, Some(key));
        self.items.get(at).is_some_and(|(own, _)| *own == number).then_some(at)
    }

    /// The element of a key.
    pub fn element(&self, key: i64) -> Option<&Item> {
        self.items.get(self.place(key)?).map(|(_, item)| item)
    }

    /// Places and keys of the elements that a run of these uses takes, if it takes any: those that nobody asks for by
    /// key, neither itself nor one that came before it.
    fn unclaimed(&self, uses: &[Use], ticket: u64) -> impl Iterator<Item = (usize, i64)> {
        let own = same(uses, &self.spec).filter_map(Use::taken_key);
        let before = self.keyed.seekers.iter().filter(move |other| other.ticket < ticket);
        let sought: FxHashSet<i64> = own.chain(before.map(|other| other.key)).collect();
        let all = self.items.iter().enumerate();
        all.filter_map(move |(at, (_, item))| {
            key_of(item).filter(|key| !sought.contains(key)).map(|key| (at, key))
        })
    }

    /// The keys of all elements that a run of these uses takes here.
    fn taken_keys(&self, uses: &[Use], ticket: u64) -> SmallVec<[i64; 4]> {
        let any = same(uses, &self.spec).filter(|used| used.action == QueueAction::Dequeue);
        let any = self.unclaimed(uses, ticket).take(any.count()).map(|(_, key)| key);
        same(uses, &self.spec).filter_map(Use::taken_key).chain(any).collect()
    }

    /// Whether use `at` of a run can have what it wants of a map staging area.
    pub fn can_keyed(&self, uses: &[Use], at: usize, ticket: u64) -> Can {
        let used = &uses[at];
        match used.action {
            QueueAction::Put { .. } => self.can_put_parts(uses, at, ticket),
            QueueAction::GetKey => self.can_get(uses, at, ticket),
            QueueAction::PeekKey => match used.number() {
                Some(key) if self.place(key).is_none() => Can::Later(Lack::Key { key }),
                _ => Can::Now,
            },
            QueueAction::Dequeue => {
                let before = same(&uses[..at], &self.spec);
                let before = before.filter(|other| other.action == used.action).count();
                let there = self.unclaimed(uses, ticket).take(before.saturating_add(1)).count();
                let there = there.saturating_sub(before);
                self.can_take(used.action, 1, there, ticket)
            }
            _ => Can::Now,
        }
    }

    fn can_get(&self, uses: &[Use], at: usize, ticket: u64) -> Can {
        let Some(key) = uses[at].number() else { return Can::Now };
        let mut before = same(&uses[..at], &self.spec);
        if let Some(other) = before.find(|other| other.taken_key() == Some(key)) {
            return Can::Never(Error::invalid(format!(
                "{} takes the element of key {key} in the same run; share what one takes",
                other.node
            )));
        }
        let mut seekers = self.keyed.seekers.iter();
        let comes_after = seekers.any(|other| other.ticket < ticket && other.key == key);
        let any = self.takers.front().map(|(ticket, _)| *ticket);
        match self.place(key) {
            None => Can::Later(Lack::Key { key }),
            Some(_) if comes_after || !is_first(any, ticket) => Can::Later(Lack::Turn),
            Some(_) => Can::Now,
        }
    }

    fn can_put_parts(&self, uses: &[Use], at: usize, ticket: u64) -> Can {
        let used = &uses[at];
        let Some(key) = used.number() else { return Can::Now };
        let taken = self.taken_keys(uses, ticket);
        if let Err(error) = self.check_parts(used, &taken) {
            return Can::Never(error);
        }
        // It has the room of the element that the run takes, for which it waits elsewhere if it must.
        let replaces = |key: &i64| taken.contains(key);
        if replaces(&key) {
            return Can::Now;
        }
        if self.keyed.lent.contains(&key) {
            return Can::Later(Lack::Turn);
        }
        // An element that was begun has its room.
        let begins = |key: &i64| !self.parts.is_open(&Key::Number(*key));
        let put = |uses| same(uses, &self.spec).filter(|other| other.needs_room());
        let before = put(&uses[..at]).filter_map(Use::number);
        let later = put(&uses[at..]).filter_map(Use::number).filter(replaces);
        let begun: FxHashSet<i64> = before.chain(later).filter(begins).collect();
        if !begins(&key) || begun.contains(&key) {
            return Can::Now;
        }
        self.can_have_room(begun.len(), 0, taken.len(), ticket)
    }

    /// Takes the elements that a use takes, of a run of `uses`.
    pub fn take_keyed(&mut self, uses: &[Use], used: &Use, ticket: u64) -> Vec<Popped> {
        let at = match used.action {
            QueueAction::GetKey => used.number().and_then(|key| self.place(key)),
            _ => self.unclaimed(uses, ticket).next().map(|(at, _)| at),
        };
        let Some((at, (number, item))) = at.and_then(|at| Some((at, self.items.remove(at)?)))
        else {
            return Vec::new();
        };
        if let Some(key) = key_of(&item) {
            self.keyed.numbers.remove(&key);
            self.keyed.lent.insert(key);
        }
        vec![(at, number, item)]
    }

    /// Has a ticket wait for the keys whose elements these uses take here, and for no others. True if it has not done
    /// just that before.
    pub fn seek(&mut self, ticket: u64, uses: &[Use]) -> bool {
        let here = || same(uses, &self.spec);
        let n = here().filter_map(|used| demand(used.action)).fold(0, usize::saturating_add);
        let keys = here().filter_map(Use::taken_key);
        let own: SmallVec<[Seeker; 2]> = keys.map(|key| Seeker { ticket, key, n }).collect();
        let seekers = &mut self.keyed.seekers;
        if seekers.iter().filter(|other| other.ticket == ticket).eq(own.iter()) {
            return false;
        }
        seekers.retain(|other| other.ticket != ticket);
        let at = seekers.partition_point(|other| other.ticket < ticket);
        for (i, seeker) in own.into_iter().enumerate() {
            seekers.insert(at + i, seeker);
        }
        true
    }
}
