//! The elements of a barrier that lack components, and which keys runs under way will insert.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use convoke_graph_core::{Error, ErrorKind, HostTensor, Result};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use super::kept::{Item, Kept};

/// A key and a component.
type Part = (Vec<u8>, usize);

/// An element that lacks components: its number, and those that are there.
type Incomplete = (u64, SmallVec<[Option<HostTensor>; 2]>);

/// What a barrier has besides complete elements.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// By key.
    incomplete: BTreeMap<Vec<u8>, Incomplete>,
    /// What runs under way will insert.
    promised: FxHashSet<Part>,
}

impl Parts {
    pub fn len(&self) -> usize {
        self.incomplete.len()
    }

    /// Forgets elements that lack components.
    pub fn clear(&mut self) {
        self.incomplete.clear();
    }

    pub fn promise(&mut self, keys: &[Vec<u8>], component: usize) {
        self.promised.extend(keys.iter().map(|key| (key.clone(), component)));
    }

    pub fn release(&mut self, keys: &[Vec<u8>], component: usize) {
        for key in keys {
            self.promised.remove(&(key.clone(), component));
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

impl Kept {
    /// # Errors
    /// A component of these keys cannot be inserted. `before` are keys that the run inserts it for already.
    pub fn check_insert<'k>(
        &self,
        keys: &'k [Vec<u8>],
        component: usize,
        before: impl Iterator<Item = &'k Vec<u8>>,
    ) -> Result<()> {
        let is_new = |key: &Vec<u8>| !self.parts.incomplete.contains_key(key);
        if self.closed.is_some_and(|(_, cancels)| cancels || keys.iter().any(is_new)) {
            let message = format!("{} is closed", self.label());
            return Err(Error::new(ErrorKind::Cancelled, message));
        }
        let mut own: FxHashSet<&Vec<u8>> = before.collect();
        for key in keys {
            let there = self.parts.incomplete.get(key);
            let has = there.is_some_and(|(_, all)| all.get(component).is_some_and(Option::is_some));
            let will = self.parts.promised.contains(&(key.clone(), component));
            if has || will || !own.insert(key) {
                let (key, label) = (String::from_utf8_lossy(key), self.label());
                let message =
                    format!("{label}: key '{key}' already has a value for component {component}");
                return Err(Error::invalid(message));
            }
        }
        Ok(())
    }

    /// Inserts a component of an element, which may make it complete.
    pub fn insert_part(&mut self, key: &[u8], component: usize, value: HostTensor) {
        let n = self.spec.components.len();
        let next = &mut self.next;
        let (number, components) = self.parts.incomplete.entry(key.to_vec()).or_insert_with(|| {
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
        let Ok(key) = HostTensor::strings(&[], [key]) else { return };
        let item: Item = std::iter::once(key).chain(components.into_iter().flatten()).collect();
        self.insert(number, item);
    }
}
