//! A bounded map that forgets what was used longest ago.

use std::hash::Hash;
use std::sync::PoisonError;

use rustc_hash::FxHashMap;

use crate::sync::{Mutex, MutexGuard};

/// A bounded map for many threads.
#[derive(Debug)]
pub(crate) struct Cache<K, V>(Mutex<Lru<K, V>>);

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    pub fn new(capacity: usize) -> Self {
        Self(Mutex::new(Lru::new(capacity)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Lru<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the key has, or else what `make` gives, which is called without the lock. If the key came in meanwhile,
    /// what is there: who asks for one key at once has the same.
    ///
    /// # Errors
    /// What `make` gives.
    pub fn get_or_make<E>(&self, key: &K, make: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        if let Some(there) = self.lock().get(key) {
            return Ok(there);
        }
        let made = make()?;
        Ok(self.lock().insert(key.clone(), made))
    }
}

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

#[cfg(all(test, loom))]
mod loom_tests {
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use super::*;

    /// Three threads ask for the same key at once, and one of them fails to make it: the others have the same value.
    #[test]
    fn loom_one_value_for_a_key() {
        loom::model(|| {
            let cache = Arc::new(Cache::<u32, Arc<usize>>::new(2));
            let n_made = Arc::new(AtomicUsize::new(0));
            let ask = || {
                let (cache, n_made) = (cache.clone(), n_made.clone());
                thread::spawn(move || {
                    let number = || n_made.fetch_add(1, Ordering::Relaxed);
                    cache.get_or_make(&1, || Ok::<_, ()>(Arc::new(number()))).unwrap()
                })
            };
            let threads = [ask(), ask()];
            let failed = cache.get_or_make(&1, || Err(()));
            let [a, b] = threads.map(|thread| thread.join().unwrap());
            assert!(Arc::ptr_eq(&a, &b));
            assert!(failed.is_err() || failed.is_ok_and(|there| Arc::ptr_eq(&a, &there)));
            assert_eq!(cache.lock().len(), 1);
        });
    }

    /// Two keys take each other's place while a third thread forgets all: there is never more than one, and who asks
    /// has what belongs to its key.
    #[test]
    fn loom_keys_take_each_others_place() {
        loom::model(|| {
            let cache = Arc::new(Cache::<u32, u32>::new(1));
            let ask = |key: u32| {
                let cache = cache.clone();
                thread::spawn(move || {
                    let value = cache.get_or_make(&key, || Ok::<_, ()>(key * 10)).unwrap();
                    assert_eq!(value, key * 10);
                    assert!(cache.lock().len() <= 1);
                })
            };
            let threads = [ask(1), ask(2)];
            cache.lock().clear();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}
