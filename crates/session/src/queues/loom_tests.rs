//! Queues on two or three threads, in every order in which those can take their locks and wait.

use std::panic::Location;
use std::sync::Arc;

use convoke_graph_core::{DType, Dims, ErrorKind, NodeId, QueueKind, QueueRole, QueueSpec};
use loom::thread;

use super::early::Early;
use super::uses::{Own, Use};
use super::*;
use crate::sync::AtomicBool;

/// How many switches that no lock asks for orders have at most where all would take hours.
const SWITCHES: usize = 4;

/// In every order.
fn model(f: impl Fn() + Send + Sync + 'static) {
    loom::model::Builder::new().check(f);
}

/// In every order of at most [`SWITCHES`].
fn model_of_many(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(SWITCHES);
    builder.check(f);
}

/// A queue of scalars with room for one.
#[derive(Clone)]
struct One {
    queues: Arc<Queues>,
    spec: Arc<QueueSpec>,
    closed: Arc<AtomicBool>,
}

impl One {
    fn new() -> Self {
        let spec = QueueSpec {
            name: "q".into(),
            container: None,
            kind: QueueKind::Fifo,
            capacity: Some(1),
            components: vec![(DType::I32, Dims::Known(Default::default()))],
            role: QueueRole::Queue,
        };
        let closed = Arc::new(AtomicBool::new(false));
        Self { queues: Queues::new(&Graph::new(), None, None), spec: Arc::new(spec), closed }
    }

    fn uses(&self, action: QueueAction) -> Uses {
        let (queue, node, at) = (self.spec.clone(), Arc::from("node"), Location::caller());
        let (places, early) = (vec![0], Early::default());
        let id = NodeId(0);
        let queues = vec![Use {
            id,
            queue,
            action,
            node,
            at,
            places,
            early,
            keys: Arc::default(),
            rooms: 1,
            own: Own::default(),
        }];
        Uses { queues, ..Uses::default() }
    }

    fn stop<'a>(&'a self, token: Option<&'a CancelToken>) -> Stop<'a> {
        let tokens = [token, None];
        Stop { closed: &self.closed, tokens, deadline: None, fails_if_blocked: false }
    }

    /// A run of one action: what it takes, if it does.
    fn run(&self, action: QueueAction, put: i32, token: Option<&CancelToken>) -> Result<Vec<i32>> {
        let uses = self.uses(action);
        let mut taken = self.queues.take(&uses, &[], &self.stop(token))?;
        let values = take(&mut taken.values);
        let items = Puts::new(&uses).items(&[HostTensor::from(put)]);
        self.queues.hold(taken).put(
            &uses,
            items,
            std::iter::empty(),
            &[HostTensor::from(put)],
            None,
        );
        values.first().map_or(Ok(Vec::new()), HostTensor::to_vec)
    }

    fn put(&self, x: i32) {
        self.run(QueueAction::Enqueue, x, None).unwrap();
    }

    fn take(&self) -> Result<Vec<i32>> {
        self.run(QueueAction::Dequeue, 0, None)
    }

    fn close(&self) {
        self.run(QueueAction::Close { cancel_pending: false }, 0, None).unwrap();
    }

    fn spawn<T: 'static>(&self, f: impl FnOnce(Self) -> T + 'static) -> thread::JoinHandle<T> {
        let own = self.clone();
        thread::spawn(move || f(own))
    }

    /// Nobody stands in a line, and nothing is promised.
    fn is_calm(&self, n_items: usize) {
        let inner = self.queues.lock();
        let kept = &inner.queues["q"];
        assert_eq!((kept.items.len(), kept.reserved), (n_items, 0));
        assert!(kept.takers.is_empty() && kept.putters.is_empty() && inner.waiting.is_empty());
        assert!(inner.parked.is_empty());
    }
}

/// Two who put and one who takes twice: whoever finds no room or no element waits, and is woken.
#[test]
fn loom_every_element_once() {
    model(|| {
        let one = One::new();
        let puts = [1, 2].map(|x| one.spawn(move |one| one.put(x)));
        let mut got = [one.take().unwrap(), one.take().unwrap()].concat();
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        puts.into_iter().for_each(|put| put.join().unwrap());
        one.is_calm(0);
    });
}

/// Who takes two at once from a queue with room for one is served, though another comes between.
#[test]
fn loom_a_batch_is_served() {
    model_of_many(|| {
        let one = One::new();
        let batch = one.spawn(|one| one.run(QueueAction::DequeueMany(Some(2)), 0, None).unwrap());
        let single = one.spawn(|one| one.take().unwrap());
        (0..3).for_each(|x| one.put(x));
        let batch = batch.join().unwrap();
        let mut got = [&batch[..], &single.join().unwrap()].concat();
        assert_eq!(batch[0].abs_diff(batch[1]), if got[2] == 1 { 2 } else { 1 }, "{got:?}");
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2]);
        one.is_calm(0);
    });
}

/// Who waits and is cancelled has taken the element, or has left it.
#[test]
fn loom_cancelled_or_served() {
    model(|| {
        let one = One::new();
        let token = CancelToken::new();
        let own = token.clone();
        let taker = one.spawn(move |one| one.run(QueueAction::Dequeue, 0, Some(&own)));
        let putter = one.spawn(|one| one.put(1));
        token.cancel();
        putter.join().unwrap();
        match taker.join().unwrap() {
            Ok(got) => {
                assert_eq!(got, [1]);
                one.is_calm(0);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                one.is_calm(1);
            }
        }
    });
}

/// A run that fails gives back what another waits for.
#[test]
fn loom_what_is_given_back_wakes() {
    model(|| {
        let one = One::new();
        one.put(1);
        let fails = one.spawn(|one| {
            let uses = one.uses(QueueAction::Dequeue);
            let taken = one.queues.take(&uses, &[], &one.stop(None))?;
            drop(one.queues.hold(taken));
            Ok::<_, Error>(())
        });
        let taker = one.spawn(|one| one.take().unwrap());
        // It may come after the taker.
        one.put(2);
        fails.join().unwrap().unwrap();
        let taken = taker.join().unwrap();
        assert!(taken == [1] || taken == [2], "{taken:?}");
        one.is_calm(1);
    });
}

/// Closing ends who waits, unless an element came first.
#[test]
fn loom_closing_ends_the_wait() {
    model(|| {
        let one = One::new();
        let takers = [(); 2].map(|()| one.spawn(|one| one.take()));
        one.put(1);
        one.close();
        let mut got = takers.map(|taker| taker.join().unwrap());
        got.sort_by_key(|got| got.is_err());
        assert_eq!(got[0].as_ref().unwrap(), &[1]);
        assert_eq!(got[1].as_ref().unwrap_err().kind(), ErrorKind::OutOfRange);
        one.is_calm(0);
    });
}

/// Closing lets in who waited for room before, and who takes waits for that.
#[test]
fn loom_who_waited_for_room_gets_in() {
    model(|| {
        let one = One::new();
        one.put(1);
        let putter = one.spawn(|one| one.run(QueueAction::Enqueue, 2, None));
        let closer = one.spawn(|one| one.close());
        assert_eq!(one.take().unwrap(), [1]);
        let second = one.take();
        closer.join().unwrap();
        match putter.join().unwrap() {
            Ok(_) => assert_eq!(second.unwrap(), [2]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                assert_eq!(second.unwrap_err().kind(), ErrorKind::OutOfRange);
            }
        }
        one.is_calm(0);
    });
}

/// A submitted run, with a thread that takes it up again whenever it is resumed.
fn submitted(one: &One, uses: &Uses, presence: &mut Option<Presence>) -> Result<Vec<HostTensor>> {
    let mut attempt = Attempt::default();
    loop {
        let again: Arc<(Mutex<Option<Attempt>>, Condvar)> =
            Arc::new((Mutex::new(None), Condvar::new()));
        let own = again.clone();
        let park = |attempt| {
            let resume = Box::new(move || {
                *own.0.lock().unwrap() = Some(attempt);
                own.1.notify_one();
            });
            Parked { deadline: None, resume }
        };
        let taken = one.queues.try_take(uses, &[], &mut attempt, &one.stop(None), park);
        presence.iter_mut().for_each(Presence::has_tried);
        if let Some(mut taken) = taken? {
            let values = take(&mut taken.values);
            let items = Puts::new(uses).items(&[HostTensor::from(7)]);
            one.queues.hold(taken).put(
                uses,
                items,
                std::iter::empty(),
                &[HostTensor::from(7)],
                None,
            );
            return Ok(values);
        }
        let mut waits = again.0.lock().unwrap();
        attempt = loop {
            match waits.take() {
                Some(attempt) => break attempt,
                None => waits = again.1.wait(waits).unwrap(),
            }
        };
    }
}

/// A submitted run that waits is resumed when there is what it waits for.
#[test]
fn loom_a_parked_run_is_resumed() {
    model_of_many(|| {
        let one = One::new();
        let parked = one.spawn(|one| {
            submitted(&one, &one.uses(QueueAction::Dequeue), &mut None).unwrap().len()
        });
        let other = one.spawn(|one| one.take().unwrap().len());
        one.put(1);
        one.put(2);
        assert_eq!((parked.join().unwrap(), other.join().unwrap()), (1, 1));
        one.is_calm(0);
    });
}

/// With the last handle gone, a run that waits is served by another that is under way, or ends.
#[test]
fn loom_nobody_is_left_waiting() {
    model_of_many(|| {
        let one = One::new();
        let handles = one.queues.handles();
        let enter = |action| {
            let uses = one.uses(action);
            let mut presence = one.queues.enter(&uses);
            one.spawn(move |one| submitted(&one, &uses, &mut presence))
        };
        let takers = [QueueAction::Dequeue, QueueAction::DequeueMany(Some(2))].map(enter);
        let putter = enter(QueueAction::Enqueue);
        drop(handles);
        putter.join().unwrap().unwrap();
        let got = takers.map(|taker| taker.join().unwrap());
        assert!(got.iter().any(Result::is_err));
        for error in got.iter().filter_map(|got| got.as_ref().err()) {
            assert_eq!(error.kind(), ErrorKind::Cancelled);
        }
        one.is_calm(usize::from(got.iter().all(Result::is_err)));
    });
}
