//! What kernels took in a session's own runs, where models only predict it.
//!
//! Each program has a few of its runs timed kernel by kernel. What they took becomes the cost of those kernels, and
//! the program is placed once more. Where it goes elsewhere, it is timed there too, so that after a few rounds every
//! device that seems best has been tried.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use convoke_compiler::Program;
use convoke_placement::{DeviceKind, DeviceModel, Picoseconds, Work};
use rustc_hash::FxHashMap;

use crate::metadata::KernelNote;

/// Runs of a program before one is timed: they fill caches and pools.
const UNTIMED: u32 = 2;

/// Runs that are timed.
const TIMED: u32 = 5;

/// How often a program is placed at most.
const ROUNDS: u32 = 5;

/// What work has taken on devices.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<FxHashMap<(usize, Work), Picoseconds>>);

impl Known {
    fn lock(&self) -> MutexGuard<'_, FxHashMap<(usize, Work), Picoseconds>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For each of `n_devices`, what work has taken there; empty if it has run nowhere.
    pub fn of(&self, n_devices: usize, work: &Work) -> Vec<Option<Picoseconds>> {
        let known = self.lock();
        let of: Vec<_> =
            (0..n_devices).map(|device| known.get(&(device, *work)).copied()).collect();
        if of.iter().all(Option::is_none) { Vec::new() } else { of }
    }
}

/// The timed runs of a program.
#[derive(Debug, Default)]
pub(crate) struct Tuning {
    round: u32,
    runs: AtomicU32,
    /// The times of each group.
    times: Mutex<FxHashMap<u32, Vec<Duration>>>,
    n_timed: AtomicU32,
    /// Whether the program is to be placed anew.
    is_stale: AtomicBool,
}

impl Tuning {
    /// Of the program that follows, and whether its placement is the same: then nothing new is to be learned.
    pub fn next(&self, is_same: bool) -> Self {
        let round = match self.is_stale() {
            true if is_same => ROUNDS,
            true => self.round + 1,
            // It was compiled again for other reasons.
            false => self.round,
        };
        Self { round, ..Self::default() }
    }

    /// Counts a run, and says whether it is to be timed.
    pub fn begin(&self) -> bool {
        self.round < ROUNDS
            && self.n_timed.load(Ordering::Relaxed) < TIMED
            && self.runs.fetch_add(1, Ordering::Relaxed) >= UNTIMED
    }

    /// Whether the program is to be placed anew.
    pub fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    /// Takes the times of a run; after the last one that is wanted, they become known.
    pub fn end(
        &self,
        notes: &[KernelNote],
        program: &Program,
        devices: &[DeviceModel],
        known: &Known,
    ) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        for note in notes {
            if let Some(group) = note.group {
                times.entry(group).or_default().push(note.time);
            }
        }
        if self.n_timed.fetch_add(1, Ordering::Relaxed) + 1 != TIMED {
            return;
        }
        let mut by_work: FxHashMap<(usize, Work), Vec<Duration>> = FxHashMap::default();
        for segment in &program.segments {
            let device = segment.device.0 as usize;
            for &group in &segment.groups {
                let Some(times) = times.remove(&group) else { continue };
                let work = program.groups[group as usize].work(&program.values);
                by_work.entry((device, work)).or_default().extend(times);
            }
        }
        // Where nothing could be timed, nothing is to be tried.
        self.is_stale.store(!by_work.is_empty(), Ordering::Relaxed);
        let mut known = known.lock();
        for ((device, work), mut times) in by_work {
            times.sort_unstable();
            let median = times[times.len() / 2].as_nanos().saturating_mul(1000);
            let median = Picoseconds::try_from(median).unwrap_or(Picoseconds::MAX);
            // A GPU's clock tells of the kernel, not of what starting it takes.
            let launch = devices.get(device).filter(|model| model.kind != DeviceKind::Cpu);
            let launch = launch.map_or(0, |model| model.launch);
            known.insert((device, work), median.saturating_add(launch));
        }
    }
}
