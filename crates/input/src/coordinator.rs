//! Threads that stop together, and the first error of any of them.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use convoke_graph_core::{Error, ErrorKind, Result};

/// Lets threads stop together, and keeps the first error of any of them for who joins them.
///
/// A stop is a request: threads look at [`Self::should_stop`], or wait by [`Self::wait_for_stop`]. Clones
/// are handles of the same coordinator. Dropping handles neither waits nor stops anything, as each thread
/// has one.
///
/// ```
/// use std::sync::mpsc;
/// use std::time::Duration;
///
/// use convoke_input::Coordinator;
/// use convoke_graph_core::{Error, Result};
///
/// # fn main() -> Result<()> {
/// let coordinator = Coordinator::new();
/// let (send, batches) = mpsc::sync_channel(2);
/// coordinator.spawn("reader", move |coordinator| {
///     let mut batch = 0..100;
///     while !coordinator.should_stop() {
///         let Some(batch) = batch.next() else { break };
///         send.send(batch).map_err(|_| Error::internal("nobody takes batches"))?;
///     }
///     Ok(())
/// })?;
/// coordinator.looper("report", Duration::from_secs(10), |_| Ok(println!("still at work")))?;
/// for batch in batches {
///     // session.run(&[x.feed(batch)], &train)?;
/// }
/// coordinator.request_stop();
/// coordinator.join(Coordinator::GRACE)
/// # }
/// ```
///
/// # Source
/// `tf.train.Coordinator` and `tf.train.LooperThread`.
#[derive(Clone)]
pub struct Coordinator(Arc<Shared>);

struct Shared {
    /// Errors that stop threads and are no failure.
    clean: Vec<ErrorKind>,
    state: Mutex<State>,
    /// A stop is requested, or a thread has ended.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    joined: bool,
    error: Option<Error>,
    members: Vec<Member>,
    next_id: u64,
    /// The handles of threads that have left, or are just about to.
    left: Vec<JoinHandle<()>>,
    hooks: Vec<(u64, Hook)>,
}

type Hook = Box<dyn FnOnce() + Send>;

/// A thread that [`Coordinator::join`] waits for.
struct Member {
    id: u64,
    name: String,
    /// `None` until a thread that is being started knows its own.
    thread: Option<ThreadId>,
    handle: Option<JoinHandle<()>>,
}

impl State {
    /// Whether other threads than `own`, which may be the one that waits, are members.
    fn has_others(&self, own: ThreadId) -> bool {
        self.members.iter().any(|member| member.thread != Some(own))
    }

    fn member(&mut self, id: u64) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }
}

impl Coordinator {
    /// How long TensorFlow gives threads to end after a stop: two minutes.
    pub const GRACE: Duration = Duration::from_secs(120);

    /// Without threads. [`ErrorKind::OutOfRange`], the end of an input, is a clean stop.
    pub fn new() -> Self {
        Self::with_clean_stops([ErrorKind::OutOfRange])
    }

    /// As [`Self::new`], with other kinds of errors that stop the threads and are no failure.
    pub fn with_clean_stops(kinds: impl IntoIterator<Item = ErrorKind>) -> Self {
        let clean = kinds.into_iter().collect();
        Self(Arc::new(Shared { clean, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Asks all threads to stop.
    pub fn request_stop(&self) {
        self.stop(self.lock());
    }

    fn stop(&self, mut state: MutexGuard<'_, State>) {
        state.stopped = true;
        let hooks = std::mem::take(&mut state.hooks);
        drop(state);
        self.0.changed.notify_all();
        hooks.into_iter().for_each(|(_, hook)| hook());
    }

    /// Calls `f` when a stop is requested, on the thread that requests it; at once if one was. Not after what this
    /// returns is dropped: for threads that wait for something else than the coordinator.
    pub fn on_stop(&self, f: impl FnOnce() + Send + 'static) -> StopHook {
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id = id.wrapping_add(1);
        if state.stopped {
            drop(state);
            f();
        } else {
            state.hooks.push((id, Box::new(f)));
        }
        StopHook { coordinator: self.clone(), id }
    }

    /// Asks all threads to stop because of `error`, which [`Self::join`] gives. Unless a stop was
    /// requested before: then it is a consequence of that, and is dropped.
    ///
    /// # Errors
    /// `error` itself, if [`Self::join`] is over and nobody would hear of it. Call [`Self::clear_stop`] to
    /// go on after a join.
    pub fn request_stop_with(&self, error: Error) -> Result<()> {
        if self.0.clean.contains(&error.kind()) {
            self.request_stop();
            return Ok(());
        }
        let mut state = self.lock();
        if state.joined {
            return Err(error);
        }
        if !state.stopped {
            state.error = Some(error);
            self.stop(state);
        }
        Ok(())
    }

    /// What `f` gives; its error, or its panic as an error, also requests a stop.
    ///
    /// # Errors
    /// That of `f`, or [`ErrorKind::Internal`] if it panics.
    pub fn stop_on_error<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let given =
            catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(of_panic(&*panic)));
        given.inspect_err(|e| {
            // After a join only the caller hears of it.
            let _ = self.request_stop_with(e.clone());
        })
    }

    /// Whether a stop was requested.
    pub fn should_stop(&self) -> bool {
        self.lock().stopped
    }

    /// Waits for a stop, up to a duration or, with `None`, without limit: whether one was requested.
    pub fn wait_for_stop(&self, timeout: impl Into<Option<Duration>>) -> bool {
        let goes_on = |state: &mut State| !state.stopped;
        self.wait_while(self.lock(), timeout.into(), goes_on).stopped
    }

    /// Forgets the stop, its error, and that threads were joined.
    pub fn clear_stop(&self) {
        let mut state = self.lock();
        state.stopped = false;
        state.joined = false;
        state.error = None;
    }

    /// The error for which a stop was requested.
    ///
    /// # Errors
    /// That one, if there is one.
    pub fn check(&self) -> Result<()> {
        self.lock().error.clone().map_or(Ok(()), Err)
    }

    /// Runs `f` on a thread of this name. Its error or panic requests a stop.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a name with a zero byte, [`ErrorKind::ResourceExhausted`] if the
    /// system refuses a thread.
    pub fn spawn<F>(&self, name: impl Into<String>, f: F) -> Result<()>
    where
        F: FnOnce(&Self) -> Result<()> + Send + 'static,
    {
        let name = name.into();
        if name.contains('\0') {
            return Err(Error::invalid(format!(
                "expected a name without zero bytes, got {name:?}"
            )));
        }
        let registered = self.add(name.clone(), None);
        let id = registered.id;
        let run = move || {
            registered.start();
            let coordinator = &registered.coordinator;
            // It is recorded; here nobody else would hear of it.
            let _ = coordinator.stop_on_error(|| f(coordinator));
        };
        let handle = thread::Builder::new().name(name.clone()).spawn(run).map_err(|e| {
            let message = format!("cannot start the thread {name}: {e}");
            Error::new(ErrorKind::ResourceExhausted, message)
        })?;
        let mut state = self.lock();
        match state.member(id) {
            Some(member) => member.handle = Some(handle),
            None => state.left.push(handle),
        }
        Ok(())
    }

    /// Calls `f` on a thread of this name: at once, then whenever another `interval` has passed, until a
    /// stop. An interval of 0 is back to back; calls that are late are made up for.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn looper<F>(&self, name: impl Into<String>, interval: Duration, mut f: F) -> Result<()>
    where
        F: FnMut(&Self) -> Result<()> + Send + 'static,
    {
        self.spawn(name, move |coordinator| {
            let mut next = Some(Instant::now());
            // An instant that can't be expressed never comes.
            while !coordinator.wait_for_stop(next.map(time_until)) {
                next = next.and_then(|next| next.checked_add(interval));
                f(coordinator)?;
            }
            Ok(())
        })
    }

    /// Makes the current thread one that [`Self::join`] waits for until what this returns is dropped: for
    /// threads that others have started.
    pub fn register(&self, name: impl Into<String>) -> Registered {
        self.add(name.into(), Some(thread::current().id()))
    }

    /// The names of the threads that have not ended.
    pub fn running(&self) -> Vec<String> {
        self.lock().members.iter().map(|member| member.name.clone()).collect()
    }

    /// Waits until all threads have ended, or, after a stop, for up to `grace` longer.
    ///
    /// Threads that are left then can be joined by another call. One that joins from a thread of the
    /// coordinator does not wait for itself.
    ///
    /// # Errors
    /// The error for which a stop was requested; else [`ErrorKind::DeadlineExceeded`] with the names of
    /// the threads that have not ended.
    pub fn join(&self, grace: Duration) -> Result<()> {
        let own = thread::current().id();
        let state = self.lock();
        let state = self.wait_while(state, None, |state| !state.stopped && state.has_others(own));
        let mut state = self.wait_while(state, Some(grace), |state| state.has_others(own));
        state.joined = true;
        let left = std::mem::take(&mut state.left);
        let late = state.members.iter().filter(|member| member.thread != Some(own));
        let late: Vec<_> = late.map(|member| member.name.clone()).collect();
        let error = state.error.clone();
        drop(state);
        for handle in left {
            // Panics within are errors already.
            let _ = handle.join();
        }
        match error {
            Some(error) => Err(error),
            None if late.is_empty() => Ok(()),
            None => {
                let message = format!(
                    "threads still run {grace:?} after a stop was requested: {}; each must end soon after \
                     should_stop",
                    late.join(", ")
                );
                Err(Error::new(ErrorKind::DeadlineExceeded, message))
            }
        }
    }

    /// Whether [`Self::join`] is over, and [`Self::clear_stop`] was not called since.
    pub fn joined(&self) -> bool {
        self.lock().joined
    }

    fn add(&self, name: String, thread: Option<ThreadId>) -> Registered {
        let mut state = self.lock();
        // Threads that are over need nobody to join them.
        state.left.retain(|handle| !handle.is_finished());
        let id = state.next_id;
        state.next_id = id.wrapping_add(1);
        state.members.push(Member { id, name, thread, handle: None });
        drop(state);
        Registered { coordinator: self.clone(), id }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'s>(
        &'s self,
        state: MutexGuard<'s, State>,
        timeout: Option<Duration>,
        condition: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'s, State> {
        let changed = &self.0.changed;
        match timeout {
            None => changed.wait_while(state, condition).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = changed.wait_timeout_while(state, timeout, condition);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

impl Default for Coordinator {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let names: Vec<_> = state.members.iter().map(|member| member.name.as_str()).collect();
        let mut f = f.debug_struct("Coordinator");
        f.field("stopped", &state.stopped).field("error", &state.error).field("running", &names);
        f.finish_non_exhaustive()
    }
}

/// A thread's membership of a coordinator, from [`Coordinator::register`]; ends when dropped.
#[must_use = "a thread is registered until this is dropped"]
#[derive(Debug)]
pub struct Registered {
    coordinator: Coordinator,
    id: u64,
}

impl Registered {
    /// The current thread is the member.
    fn start(&self) {
        if let Some(member) = self.coordinator.lock().member(self.id) {
            member.thread = Some(thread::current().id());
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut state = self.coordinator.lock();
        if let Some(idx) = state.members.iter().position(|member| member.id == self.id) {
            let handle = state.members.remove(idx).handle;
            state.left.extend(handle);
        }
        drop(state);
        self.coordinator.0.changed.notify_all();
    }
}

/// What is called when a stop is requested, from [`Coordinator::on_stop`]; forgotten when dropped.
#[must_use = "a hook is forgotten when this is dropped"]
#[derive(Debug)]
pub struct StopHook {
    coordinator: Coordinator,
    id: u64,
}

impl Drop for StopHook {
    fn drop(&mut self) {
        let mut state = self.coordinator.lock();
        let at = state.hooks.iter().position(|(id, _)| *id == self.id);
        let hook = at.map(|at| state.hooks.swap_remove(at));
        drop(state);
        // It may hold what locks the coordinator when it goes.
        drop(hook);
    }
}

fn time_until(then: Instant) -> Duration {
    then.saturating_duration_since(Instant::now())
}

fn of_panic(panic: &(dyn Any + Send)) -> Error {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    Error::panicked(format_args!("the thread {name}"), panic)
}
