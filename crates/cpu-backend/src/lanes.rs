//! What threads would disturb one another with, kept apart.

use std::cell::Cell;
#[cfg(not(loom))]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

#[cfg(loom)]
use loom::sync::atomic::AtomicUsize;

/// How many lanes there are; fewer where all orders of threads are tried.
const N: usize = if cfg!(loom) { 2 } else { 8 };

/// A copy for each of some groups of threads. Each lies in memory that the processor moves as a whole, so that threads
/// which use their own do not wait for one another.
#[derive(Debug, Default)]
pub struct Lanes<T>([Apart<T>; N]);

/// Two cache lines, as processors fetch the neighbour too.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart<T>(T);

impl<T> Lanes<T> {
    /// That of this thread, which others may have too.
    pub fn own(&self) -> &T {
        &self.0[lane()].0
    }

    /// All of them, this thread's first.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        let (before, own) = self.0.split_at(lane());
        own.iter().chain(before).map(|apart| &apart.0)
    }
}

/// The lane of this thread. Threads get them in turn.
fn lane() -> usize {
    OWN.with(|own| {
        if own.get() == N {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed) % N);
        }
        own.get()
    })
}

#[cfg(not(loom))]
static NEXT: AtomicUsize = AtomicUsize::new(0);
#[cfg(not(loom))]
thread_local! {
    static OWN: Cell<usize> = const { Cell::new(N) };
}

#[cfg(loom)]
loom::lazy_static! {
    static ref NEXT: AtomicUsize = AtomicUsize::new(0);
}
#[cfg(loom)]
loom::thread_local! {
    static OWN: Cell<usize> = Cell::new(N);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A thread has one lane, others have others while there are any, and each sees all with its own first.
    #[test]
    fn threads_have_lanes() {
        let lanes = Lanes::<AtomicUsize>::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * N {
                scope.spawn(|| {
                    lanes.own().fetch_add(1, Ordering::Relaxed);
                    assert!(std::ptr::eq(lanes.own(), lanes.own()));
                    assert!(lanes.all().next().is_some_and(|own| std::ptr::eq(own, lanes.own())));
                    assert_eq!(lanes.all().count(), N);
                });
            }
        });
        let all: Vec<usize> = lanes.all().map(|n| n.load(Ordering::Relaxed)).collect();
        assert_eq!(all.iter().sum::<usize>(), 2 * N);
        assert!(all.iter().filter(|&&n| n > 0).count() > 1, "all threads have one lane: {all:?}");
        assert!(align_of::<Lanes<u8>>() == 128 && size_of::<Lanes<u8>>() == 128 * N);
    }
}
