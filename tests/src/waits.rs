//! What tests of runs that wait, and of what fails, have in common.

use std::thread;
use std::time::{Duration, Instant};

use convoke::prelude::*;
use convoke::{Result, WaitingRun};

/// Long enough that what could go on has gone on.
pub const A_WHILE: Duration = Duration::from_millis(15);

/// How long what must come may take.
pub const GRACE: Duration = Duration::from_secs(20);

/// Waits for what another thread is about to do.
///
/// # Panics
/// If it does not come.
#[track_caller]
pub fn comes(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < GRACE, "it does not come");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The runs that wait, when there are so many.
///
/// # Panics
/// If there never are.
#[track_caller]
pub fn waiting(session: &Session, n: usize) -> Vec<WaitingRun> {
    comes(|| session.waiting().len() == n);
    session.waiting()
}

/// The kind of an error.
///
/// # Panics
/// If there is none.
#[track_caller]
pub fn kind<T>(result: Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("an error is missing"),
        Err(error) => error.kind(),
    }
}
