//! Elements that come in parts, by key: of barriers and map staging areas. Those that lack components, and which runs
//! under way will put.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use convoke_graph_core::{Error, ErrorKind, HostTensor, QueueAction, QueueSpec, Result};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::kept::{Item, Kept, label};
use super::uses::Use;

/// What an element is found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    Text(Vec<u8>),
    Number(i64),
}

impl Key {
    /// As a component of an element.
    fn tensor(&self) -> Result<HostTensor> {
        match self {
            Self::Text(text) => HostTensor::strings(&[], [text.as_slice()]),
            Self::Number(number) => Ok(HostTensor::from(*number)),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "'{}'", String::from_utf8_lossy(text)),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// An element that lacks components: its number, and those that are there.
type Incomplete = (u64, SmallVec<[Option<HostTensor>; 2]>);

/// What a queue has besides complete elements.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// By key.
    incomplete: BTreeMap<Key, Incomplete>,
    /// The components that runs under way will put, by key.
    promised: FxHashMap<Key, SmallVec<[usize; 2]>>,
}

impl Parts {
    pub fn len(&self) -> usize {
        self.incomplete.len()
    }

    /// How many elements lack components, with those that runs under way will begin.
    pub fn n_open(&self) -> usize {
        let begun = |key: &&Key| self.incomplete.contains_key(*key);
        self.incomplete.len() + self.promised.keys().filter(|key| !begun(key)).count()
    }

    /// Whether a component of this key is there, or will be put by a run under way.
    pub fn is_open(&self, key: &Key) -> bool {
        self.incomplete.contains_key(key) || self.promised.contains_key(key)
    }

    /// Forgets elements that lack components.
    pub fn clear(&mut self) {
        self.incomplete.clear();
    }

    pub fn promise(&mut self, keys: &[Key], action: QueueAction) {
        for key in keys {
            self.promised.entry(key.clone()).or_default().extend(action.parts());
        }
    }

    pub fn release(&mut self, keys: &[Key], action: QueueAction) {
        for key in keys {
            let Some(promised) = self.promised.get_mut(key) else { continue };
            promised.retain(|own| action.parts().all(|component| component != *own));
            if promised.is_empty() {
                self.promised.remove(key);
            }
        }
    }

    pub fn hash(&self, hasher: &mut impl Hasher) {
        for (key, (number, components)) in &self.incomplete {
            (key, number).hash(hasher);
            for component in components {
                let parts =
                    |t: &HostTensor| (t.bytes().to_vec(), t.as_strings().map(Vec::from).ok());
                component.as_ref().map(parts).hash(hasher);
            }
        }
    }
}

fn is_there(queue: &QueueSpec, key: &Key, component: usize) -> Error {
    let label = label(queue);
    Error::invalid(format!("{label}: key {key} already has a value for component {component}"))
}

/// # Errors
/// Uses of one run of which two put the same component under the same key.
pub(super) fn check_once(uses: &[Use]) -> Result<()> {
    let mut all: FxHashSet<(&str, &Key, usize)> = FxHashSet::default();
    for used in uses {
        let mut parts = used.parts();
        if let Some((key, component)) =
            parts.find(|(key, component)| !all.insert((&used.queue.name, key, *component)))
        {
            return Err(is_there(&used.queue, key, component).with_node(&*used.node));
        }
    }
    Ok(())
}

impl Kept {
    /// # Errors
    /// What `used` puts of these keys cannot be put. Of `taken` keys the run takes the elements.
    pub fn check_parts(&self, used: &Use, taken: &[i64]) -> Result<()> {
        let is_new = |key: &Key| !self.parts.incomplete.contains_key(key);
        if self.is_cancelled() || (self.closed.is_some() && used.keys.iter().any(is_new)) {
            let message = format!("{} is closed", self.label());
            return Err(Error::new(ErrorKind::Cancelled, message));
        }
        for (key, component) in used.parts() {
            let there = self.parts.incomplete.get(key);
            let has = there.is_some_and(|(_, all)| all.get(component).is_some_and(Option::is_some));
            let will = self.parts.promised.get(key).is_some_and(|all| all.contains(&component));
            if has || will || self.has_whole(key, taken) {
                return Err(is_there(&self.spec, key, component));
            }
        }
        Ok(())
    }

    /// Puts a component of an element, which may make it complete.
    pub fn insert_part(&mut self, key: &Key, component: usize, value: HostTensor) {
        let n = self.spec.parts().len();
        let next = &mut self.next;
        let (number, components) = self.parts.incomplete.entry(key.clone()).or_insert_with(|| {
            *next += 1;
            (*next - 1, (0..n).map(|_| None).collect())
        });
        if let Some(place) = components.get_mut(component) {
            *place = Some(value);
        }
        if components.iter().any(Option::is_none) {
            return;
        }
        let (number, components) = (*number, std::mem::take(components));
        self.parts.incomplete.remove(key);
        let Ok(first) = key.tensor() else { return };
        let item: Item = std::iter::once(first).chain(components.into_iter().flatten()).collect();
        self.insert(number, item);
    }
}
