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

/// How much work is known at most: of more, all is forgotten.
const KNOWN_MAX: usize = 1 << 16;

/// How often a variable moves for the sake of what was learned.
pub(crate) const MOVES_MAX: u32 = 8;

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
    /// For each group, what it took in each run, and in how many steps.
    times: Mutex<FxHashMap<u32, Vec<(Duration, f64)>>>,
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
        self.is_stale.load(Ordering::Acquire)
    }

    /// The placement that its runs suggest can't be had: it stays as it is.
    pub fn give_up(&self) {
        self.is_stale.store(false, Ordering::Release);
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
        let mut run: FxHashMap<u32, (Duration, f64)> = FxHashMap::default();
        for note in notes {
            if let Some(group) = note.group {
                let (time, steps) = run.entry(group).or_default();
                *time += note.time;
                *steps += note.share;
            }
        }
        run.into_iter().for_each(|(group, took)| times.entry(group).or_default().push(took));
        if self.n_timed.fetch_add(1, Ordering::Relaxed) + 1 != TIMED {
            return;
        }
        let mut by_work: FxHashMap<(usize, Work), Vec<(Duration, f64)>> = FxHashMap::default();
        for segment in &program.segments {
            let device = segment.device.0 as usize;
            for &group in &segment.groups {
                let Some(times) = times.remove(&group) else { continue };
                let work = program.groups[group as usize].work(&program.values);
                by_work.entry((device, work)).or_default().extend(times);
            }
        }
        let mut known = known.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        let learns = !by_work.is_empty();
        for ((device, work), times) in by_work {
            // A GPU's clock tells of the steps, not of what starting them takes.
            let launch = devices.get(device).filter(|model| model.kind != DeviceKind::Cpu);
            let launch = launch.map_or(0, |model| model.launch);
            let whole = |(time, steps): (Duration, f64)| {
                let time = time.as_nanos().saturating_mul(1000);
                let time = Picoseconds::try_from(time).unwrap_or(Picoseconds::MAX);
                time.saturating_add((launch as f64 * steps) as Picoseconds)
            };
            let mut times: Vec<Picoseconds> = times.into_iter().map(whole).collect();
            times.sort_unstable();
            known.insert((device, work), times[times.len() / 2]);
        }
        // Where nothing could be timed, nothing is to be tried. Whoever sees it finds the times known.
        self.is_stale.store(learns, Ordering::Release);
    }
}
