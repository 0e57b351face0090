//! Who is woken, and when.

use std::hash::{DefaultHasher, Hasher};
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use convoke_graph_core::{
    DType, ErrorKind, Graph, HostTensor, NodeId, QueueAction, QueueKind, QueueRole, QueueSpec,
    TableAction, TableSpec, dims,
};

use super::early::Early;
use super::uses::{Own, TableUse};
use super::{Attempt, Parked, Puts, Queues, Use, Uses};
use crate::cancel::{Bell, CancelToken, Stop};

fn queue_uses(action: QueueAction) -> Uses {
    Uses { queues: vec![queue_use("queue", action)], ..Uses::default() }
}

fn queue_use(name: &str, action: QueueAction) -> Use {
    let queue = Arc::new(QueueSpec {
        name: name.into(),
        container: None,
        role: QueueRole::Queue,
        kind: QueueKind::Fifo,
        capacity: Some(1),
        components: vec![(DType::I32, dims![])],
    });
    let (id, node, at) = (NodeId(0), Arc::from("node"), Location::caller());
    let (places, early, keys) = (vec![0], Early::default(), Arc::default());
    Use { id, queue, action, node, at, places, early, keys, rooms: 1, own: Own::default() }
}

fn table_uses(action: TableAction, places: Vec<usize>) -> Uses {
    let (keys, values) = (DType::I32, DType::I32);
    let (name, value_dims) = ("table".into(), dims![]);
    let spec = TableSpec { name, container: None, keys, values, value_dims };
    let (table, node) = (Arc::new(spec), Arc::from("node"));
    Uses {
        tables: vec![TableUse { id: NodeId(0), table, action, node, places }],
        ..Uses::default()
    }
}

/// A run that uses only tables wakes nobody who waits for a queue.
#[test]
fn tables_wake_nobody() {
    let queues = Queues::new(&Graph::new(), None, None);
    let closed = AtomicBool::new(false);
    let tokens = [None, None];
    let stop = Stop { closed: &closed, tokens, deadline: None, fails_if_blocked: false };
    let woken = Arc::new(AtomicUsize::new(0));
    let park = |_: Attempt| {
        let woken = woken.clone();
        let resume = Box::new(move || {
            woken.fetch_add(1, Ordering::SeqCst);
        });
        Parked { deadline: None, resume }
    };
    let wants = queue_uses(QueueAction::Dequeue);
    let waits = queues.try_take(&wants, &[], &mut Attempt::default(), &stop, park).unwrap();
    assert!(waits.is_none());
    let run = |uses: &Uses, fetched: &[HostTensor]| {
        let taken = queues.take(uses, &[], &stop).unwrap();
        let (items, changed) = (Puts::new(uses).items(fetched), uses.changed_tables());
        queues.hold(taken).put(uses, items, changed, fetched, None);
    };
    let one = HostTensor::from(vec![1i32]);
    run(&table_uses(TableAction::Insert, vec![0, 0]), &[one]);
    let sizes = table_uses(TableAction::Size, vec![0]);
    run(&sizes, &[]);
    drop(queues.hold(queues.take(&sizes, &[], &stop).unwrap()));
    assert_eq!(woken.load(Ordering::SeqCst), 0);
    let size = queues.take(&sizes, &[], &stop).unwrap().values;
    assert_eq!(size[0].scalar::<i64>().unwrap(), 1);
    run(&queue_uses(QueueAction::Enqueue), &[HostTensor::from(5i32)]);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
}

/// Of a line, only the first is woken, and the next when that has left it, whether it got something or gave up.
#[test]
fn of_a_line_the_first_is_woken() {
    let queues = Queues::new(&Graph::new(), None, None);
    let (closed, token) = (AtomicBool::new(false), CancelToken::new());
    let free =
        Stop { closed: &closed, tokens: [None, None], deadline: None, fails_if_blocked: false };
    let (put, get) = (queue_uses(QueueAction::Enqueue), queue_uses(QueueAction::Dequeue));
    let resumed = Arc::new(Mutex::new(Vec::new()));
    let tries = |name: char, attempt: Attempt, stop: &Stop<'_>| {
        let resumed = resumed.clone();
        let mut attempt = attempt;
        let park = |attempt| {
            let resume = Box::new(move || resumed.lock().unwrap().push((name, attempt)));
            Parked { deadline: None, resume }
        };
        queues.try_take(&get, &[], &mut attempt, stop, park)
    };
    for name in ['a', 'b', 'c', 'd'] {
        assert!(tries(name, Attempt::default(), &free).unwrap().is_none());
    }
    // Those who were woken, and try again in that order.
    let goes_on = |stop: &Stop<'_>| {
        let all = std::mem::take(&mut *resumed.lock().unwrap());
        let outcomes = all.into_iter().map(|(name, attempt)| {
            let outcome = match tries(name, attempt, if name == 'b' { stop } else { &free }) {
                Ok(None) => "waits",
                Ok(Some(taken)) => {
                    queues.hold(taken).put(&get, vec![Some(Vec::new())], [].iter(), &[], None);
                    "takes"
                }
                Err(_) => "fails",
            };
            (name, outcome)
        });
        outcomes.collect::<Vec<_>>()
    };
    // Who comes may make room for others.
    assert_eq!(goes_on(&free), [('a', "waits")]);
    let puts = || {
        let taken = queues.take(&put, &[], &free).unwrap();
        let fetched = [HostTensor::from(5i32)];
        let items = Puts::new(&put).items(&fetched);
        queues.hold(taken).put(&put, items, [].iter(), &fetched, None);
    };
    puts();
    assert_eq!(goes_on(&free), [('a', "takes")]);
    // It has made way, in vain.
    assert_eq!(goes_on(&free), [('b', "waits")]);
    assert_eq!(goes_on(&free), []);
    // All are to hear of what ends runs, and the first gives up.
    token.cancel();
    queues.ring();
    let stop = Stop { tokens: [Some(&token), None], ..free };
    assert_eq!(goes_on(&stop), [('c', "waits"), ('d', "waits"), ('b', "fails")]);
    assert_eq!(goes_on(&free), [('c', "waits")]);
    puts();
    assert_eq!(goes_on(&free), [('c', "takes")]);
    assert_eq!(goes_on(&free), [('d', "waits")]);
}

/// Who waits at two queues makes way at one of them whatever keeps it back at the other, and hears when either is closed.
#[test]
fn who_waits_at_two_queues_looks_again_at_each_change() {
    let queues = Queues::new(&Graph::new(), None, None);
    let closed = AtomicBool::new(false);
    let free =
        Stop { closed: &closed, tokens: [None, None], deadline: None, fails_if_blocked: false };
    let resumed = Arc::new(Mutex::new(Vec::new()));
    let uses_of = |uses: &[(&str, QueueAction)]| Uses {
        queues: uses.iter().map(|&(name, action)| queue_use(name, action)).collect(),
        ..Uses::default()
    };
    let (get, put) = (QueueAction::Dequeue, QueueAction::Enqueue);
    let runs = [
        uses_of(&[("a", get)]),
        uses_of(&[("a", get), ("b", get)]),
        uses_of(&[("b", get), ("a", put)]),
    ];
    let tries = |at: usize, mut attempt: Attempt| {
        let resumed = resumed.clone();
        let park = |attempt| {
            let resume = Box::new(move || resumed.lock().unwrap().push((at, attempt)));
            Parked { deadline: None, resume }
        };
        queues.try_take(&runs[at], &[], &mut attempt, &free, park)
    };
    let commits = |taken, uses: &Uses| {
        let fetched = [HostTensor::from(5i32)];
        let items = Puts::new(uses).items(&fetched);
        queues.hold(taken).put(uses, items, [].iter(), &fetched, None);
    };
    for at in 0..runs.len() {
        assert!(tries(at, Attempt::default()).unwrap().is_none());
    }
    let does = |action| {
        let uses = uses_of(&[("b", action)]);
        commits(queues.take(&uses, &[], &free).unwrap(), &uses);
    };
    // Until nobody is woken any more.
    let go_on = || {
        let mut ended = Vec::new();
        loop {
            let woken = std::mem::take(&mut *resumed.lock().unwrap());
            if woken.is_empty() {
                return ended;
            }
            for (at, attempt) in woken {
                match tries(at, attempt) {
                    Ok(None) => {}
                    Ok(Some(taken)) => {
                        commits(taken, &runs[at]);
                        ended.push((at, None));
                    }
                    Err(error) => ended.push((at, Some(error.kind()))),
                }
            }
        }
    };
    // The third takes what the second leaves to others, and puts what the first waits for.
    does(put);
    assert_eq!(go_on(), [(2, None), (0, None)]);
    does(QueueAction::Close { cancel_pending: false });
    assert_eq!(go_on(), [(1, Some(ErrorKind::OutOfRange))]);
}

/// Who waits for a table that another is about to change is woken when its run is to end, and has the table afterwards.
#[test]
fn who_waits_for_a_table_ends_when_its_run_does() {
    const SOON: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(20);
    let queues = Queues::new(&Graph::new(), None, None);
    // They look at it and change it.
    let mut uses = table_uses(TableAction::Insert, vec![0, 0]);
    uses.tables.extend(table_uses(TableAction::Size, vec![0]).tables);
    let (closed, token) = (AtomicBool::new(false), CancelToken::new());
    let (tokens, deadline) = ([None, None], None);
    let free = Stop { closed: &closed, tokens, deadline, fails_if_blocked: false };
    let hold = || queues.hold(queues.take(&uses, &[], &free).unwrap());
    let digest = || {
        let mut hasher = DefaultHasher::new();
        queues.hash(&mut hasher);
        hasher.finish()
    };
    let (one, other) = (hold(), hold());
    let before = digest();
    let claimed = one.claim(uses.changed_tables(), &free).unwrap();
    assert!(claimed.is_some());
    let ended = |tokens, limit: Duration, end: &dyn Fn()| {
        let start = Instant::now();
        let deadline = Some((start + limit, limit));
        let stop = Stop { tokens, deadline, ..free };
        thread::scope(|scope| {
            let waits = scope.spawn(|| other.claim(uses.changed_tables(), &stop).err());
            thread::sleep(SOON);
            end();
            let kind = waits.join().unwrap().unwrap().kind();
            // It was woken, and did not come by itself in the end.
            assert!(start.elapsed() < LONG / 2, "{kind:?}");
            kind
        })
    };
    let kind = ended([None, Some(&token)], LONG, &|| token.cancel());
    assert_eq!(kind, ErrorKind::Cancelled);
    let close = || {
        closed.store(true, Ordering::Release);
        queues.ring();
    };
    assert_eq!(ended([None, None], LONG, &close), ErrorKind::Cancelled);
    closed.store(false, Ordering::Release);
    assert_eq!(ended([None, None], SOON, &|| ()), ErrorKind::DeadlineExceeded);
    assert_eq!(digest(), before);
    // The first gives it up, and the second has it as it has seen it.
    drop(claimed);
    let claimed = other.claim(uses.changed_tables(), &free).unwrap();
    let fetched = [HostTensor::from(vec![1i32])];
    other.put(&uses, Vec::new(), uses.changed_tables(), &fetched, claimed.as_ref());
    drop(claimed);
    assert_ne!(digest(), before);
    let late = one.claim(uses.changed_tables(), &free).err().unwrap();
    assert_eq!(late.kind(), ErrorKind::Aborted, "{late}");
}
