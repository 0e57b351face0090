//! Calibration while a session has nothing else to do.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use convoke_cpu_backend::Lanes;
use convoke_graph_core::{Error, ErrorKind, Result};

use super::{CalibrateOptions, Progress};
use crate::devices::Devices;

/// How often it is looked whether the session is idle.
const LOOK: Duration = Duration::from_millis(20);

/// What a session is at.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    runs: Lanes<Runs>,
    stopped: AtomicBool,
    /// Wakes who waits for the next look.
    lock: Mutex<()>,
    wake: Condvar,
}

/// Of some threads.
#[derive(Debug, Default)]
struct Runs {
    under_way: AtomicUsize,
    has_ended: AtomicBool,
}

/// A run in progress; ends when it is dropped.
pub(crate) struct Active<'a>(&'a Runs);

impl Activity {
    pub fn begin(&self) -> Active<'_> {
        let own = self.runs.own();
        own.under_way.fetch_add(1, Ordering::Relaxed);
        Active(own)
    }

    /// How many runs are under way.
    fn under_way(&self) -> usize {
        self.runs.all().map(|runs| runs.under_way.load(Ordering::Relaxed)).sum()
    }

    /// Whether no more than one run is under way.
    pub fn is_alone(&self) -> bool {
        self.under_way() <= 1
    }

    /// Waits until the session has run once and does nothing now; breaks off when it ends.
    fn wait_until_idle(&self) -> ControlFlow<()> {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return ControlFlow::Break(());
            }
            let has_run = self.runs.all().any(|runs| runs.has_ended.load(Ordering::Relaxed));
            if has_run && self.under_way() == 0 {
                return ControlFlow::Continue(());
            }
            let waited = self.wake.wait_timeout(guard, LOOK);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A thread that calibrates the devices that nothing is known of, probe by probe, each when the session is idle.
/// It ends with the session, after the probe at hand.
pub(crate) struct Background {
    activity: Arc<Activity>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts it.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub fn start(
        devices: Devices,
        options: CalibrateOptions,
        activity: Arc<Activity>,
    ) -> Result<Self> {
        let own = activity.clone();
        let thread = std::thread::Builder::new()
            .name("convoke-calibration".to_owned())
            .spawn(move || calibrate_all(&devices, &options, &own));
        let thread = thread.map_err(|e| {
            Error::new(ErrorKind::ResourceExhausted, format!("cannot start a thread: {e}"))
        })?;
        Ok(Self { activity, thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.activity.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and concerns nobody else.
            let _ = thread.join();
        }
    }
}

fn calibrate_all(devices: &Devices, options: &CalibrateOptions, activity: &Activity) {
    for (index, info) in devices.list().iter().enumerate() {
        if devices.calibration(index, options.threads).is_some() {
            continue;
        }
        let mut report = |_: &Progress| activity.wait_until_idle();
        match devices.calibrate(index, options, &mut report) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Cancelled => return,
            Err(error) => tracing::warn!("{} is not calibrated: {error}", info.name),
        }
    }
}
