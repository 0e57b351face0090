//! A team of threads that helps its caller with one job after the other.
//!
//! The caller does the job too and waits only for those who joined it, so that a thread that wakes late costs
//! nothing. Threads look out for the next job for a while before they sleep: waking one takes longer than many
//! a kernel.
#![expect(
    unsafe_code,
    reason = "a job is borrowed from its caller, who waits until nobody has it any more"
)]

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::product::look_at_caches;

/// How long a thread looks out before it sleeps.
const LOOKOUT: Duration = Duration::from_micros(100);

/// Set in the state while a job takes helpers. The bits below count those who joined.
const OPEN: u64 = 1 << 31;

/// One job's difference in the state.
const JOB: u64 = 1 << 32;

/// Threads that help their callers.
#[derive(Debug)]
pub(crate) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Whether somebody's job has the team.
    is_taken: AtomicBool,
}

struct Shared {
    /// The number of the job, whether it is open, and how many helpers joined it.
    state: AtomicU64,
    /// Those who joined the job and left.
    n_left: AtomicUsize,
    /// Written by the caller while the job is closed and all have left, read by those who joined.
    job: UnsafeCell<Option<Job>>,
    /// For each helper, whether it sleeps.
    sleeps: Vec<AtomicBool>,
    /// Whether the caller sleeps.
    caller_sleeps: AtomicBool,
    ends: AtomicBool,
}

// SAFETY: `job` is written only while nobody reads it, as said there; the state's orderings pass it on.
unsafe impl Sync for Shared {}
// SAFETY: What the job borrows is `Sync`, and a helper uses it only before it has left.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Job {
    /// Does what is left of it. Lives until all who joined have left.
    work: *const (dyn Fn() + Sync),
    caller: Thread,
}

impl Team {
    /// `n` helpers.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(n: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            n_left: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            sleeps: (0..n).map(|_| AtomicBool::new(false)).collect(),
            caller_sleeps: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let mut team = Self { shared, helpers: Vec::new(), is_taken: AtomicBool::new(false) };
        for i in 0..n {
            let shared = team.shared.clone();
            let named = thread::Builder::new().name(format!("convoke-cpu-{}", i + 1));
            let life = move || {
                if i == 0 {
                    look_at_caches();
                }
                shared.help(i);
            };
            team.helpers.push(named.spawn(life)?);
        }
        Ok(team)
    }

    /// Calls `work` here and on helpers at once, of whom `n` are woken, and returns when all calls have. False if
    /// the team has another job; then nothing is called.
    ///
    /// `work` takes what is left to do, if there is anything: a helper may come when all is done, or not at all.
    /// If it panics here or on a helper, so does the caller.
    pub fn run(&self, n: usize, work: &(dyn Fn() + Sync)) -> bool {
        if self.is_taken.swap(true, Acquire) {
            return false;
        }
        let panicked = AtomicBool::new(false);
        let guarded = || {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
                // Dropping it might panic again.
                std::mem::forget(payload);
                panicked.store(true, Relaxed);
            }
        };
        self.shared.open(&guarded);
        self.wake(n);
        let own = catch_unwind(AssertUnwindSafe(work));
        self.shared.close();
        self.is_taken.store(false, Release);
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        assert!(!panicked.load(Relaxed), "a kernel panicked on another thread");
        true
    }

    fn wake(&self, n: usize) {
        for (sleeps, helper) in self.shared.sleeps.iter().zip(&self.helpers).take(n) {
            if sleeps.load(SeqCst) {
                helper.thread().unpark();
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ends.store(true, SeqCst);
        self.wake(usize::MAX);
        for helper in self.helpers.drain(..) {
            // A helper catches all panics of its work.
            _ = helper.join();
        }
    }
}

impl Shared {
    /// Lets helpers join. Until [`Self::close`], `work` must live.
    fn open(&self, work: &(dyn Fn() + Sync)) {
        // SAFETY: Only the lifetime changes: nobody uses the pointer after `close`, which the caller of both
        // calls while `work` lives.
        let work: *const (dyn Fn() + Sync) = unsafe { std::mem::transmute(work) };
        // SAFETY: The job before is closed and all who joined it have left, so that nobody reads.
        unsafe { *self.job.get() = Some(Job { work, caller: thread::current() }) };
        self.n_left.store(0, Relaxed);
        let number = self.state.load(Relaxed) / JOB;
        self.state.store(number.wrapping_add(1).wrapping_mul(JOB) | OPEN, SeqCst);
    }

    /// Lets nobody join any more, and waits for those who did.
    fn close(&self) {
        let n_joined = (self.state.fetch_and(!OPEN, AcqRel) & (OPEN - 1)) as usize;
        let all_left = || self.n_left.load(SeqCst) == n_joined;
        if look_out(all_left) {
            return;
        }
        while !all_left() {
            self.caller_sleeps.store(true, SeqCst);
            if !all_left() {
                thread::park();
            }
        }
        self.caller_sleeps.store(false, SeqCst);
    }

    /// The life of helper `i`.
    fn help(&self, i: usize) {
        let mut last = 0;
        loop {
            let is_new = || {
                let state = self.state.load(SeqCst);
                state & OPEN != 0 && state / JOB != last
            };
            let wanted = || is_new() || self.ends.load(SeqCst);
            if !look_out(wanted) {
                self.sleeps[i].store(true, SeqCst);
                while !wanted() {
                    thread::park();
                }
                self.sleeps[i].store(false, SeqCst);
            }
            if self.ends.load(SeqCst) {
                return;
            }
            let state = self.state.load(Relaxed);
            if state & OPEN != 0 && state / JOB != last {
                let joined = self.state.compare_exchange(state, state + 1, AcqRel, Relaxed);
                if joined.is_ok() {
                    last = state / JOB;
                    self.do_job();
                }
            }
        }
    }

    /// Does the job that was joined, and leaves it.
    fn do_job(&self) {
        // SAFETY: Who joined may read the job until it leaves.
        let job = unsafe { (*self.job.get()).clone() };
        let Some(job) = job else { return };
        // SAFETY: The work lives until all who joined have left.
        unsafe { (*job.work)() };
        self.n_left.fetch_add(1, SeqCst);
        if self.caller_sleeps.load(SeqCst) {
            job.caller.unpark();
        }
    }
}

/// Looks out until something is so; false if it takes too long.
fn look_out(is_so: impl Fn() -> bool) -> bool {
    for _ in 0..64 {
        if is_so() {
            return true;
        }
        spin_loop();
    }
    let begun = Instant::now();
    while begun.elapsed() < LOOKOUT {
        for _ in 0..32 {
            if is_so() {
                return true;
            }
            spin_loop();
        }
        // Where there are fewer cores than threads, one of them may be whom this one waits for.
        thread::yield_now();
    }
    is_so()
}
