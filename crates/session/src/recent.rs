//! The program that a callable used last: no look-up while the shapes stay the same.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::core::ProgramKey;
use crate::devices::Gpus;
use crate::executor::Compiled;
use crate::feeds::FeedData;

/// The program that was used last, where all runs have one plan.
#[derive(Default)]
pub(crate) struct Recent(Mutex<Option<(ProgramKey, Arc<Compiled>)>>);

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Option<(ProgramKey, Arc<Compiled>)>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The program, if it is for feeds like these.
    pub fn get(&self, data: &[FeedData<'_>], gpus: &Gpus) -> Option<Arc<Compiled>> {
        let kept = self.lock();
        let (key, compiled) = kept.as_ref()?;
        let mut pairs = key.iter().zip(data);
        let is_like = pairs.all(|((shape, home, is_given, contents), data)| {
            contents.is_none()
                && shape == data.shape()
                && *home == gpus.home(data)
                && *is_given == matches!(data, FeedData::Given(..))
        });
        is_like.then(|| compiled.clone())
    }

    /// Keeps a program.
    pub fn set(&self, key: ProgramKey, compiled: Arc<Compiled>) {
        *self.lock() = Some((key, compiled));
    }
}
