//! A bounded map that forgets what was used longest ago.

use std::hash::Hash;

use rustc_hash::FxHashMap;

/// At most `capacity` entries; the one used longest ago goes first.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    entries: FxHashMap<K, (u64, V)>,
    capacity: usize,
    clock: u64,
}

impl<K: Hash + Eq + Clone, V: Clone> Lru<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { entries: FxHashMap::default(), capacity: capacity.max(1), clock: 0 }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let (used, value) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(value.clone())
    }

    /// Keeps `value`, unless the key came in meanwhile: then gives what is there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> V {
        if let Some(there) = self.get(&key) {
            return there;
        }
        if self.entries.len() >= self.capacity {
            let oldest = self.entries.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                self.entries.remove(&key);
            }
        }
        self.entries.insert(key, (self.clock, value.clone()));
        value
    }

    /// Keeps `value` instead of what the key had.
    pub(crate) fn replace(&mut self, key: K, value: V) {
        self.entries.remove(&key);
        self.insert(key, value);
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values().map(|(_, value)| value)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }
}
