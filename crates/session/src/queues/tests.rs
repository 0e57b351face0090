//! Who is woken, and when.

use std::hash::{DefaultHasher, Hasher};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    let queue = Arc::new(QueueSpec {
        name: "queue".into(),
        container: None,
        role: QueueRole::Queue,
        kind: QueueKind::Fifo,
        capacity: Some(1),
        components: vec![(DType::I32, dims![])],
    });
    let (id, node, at) = (NodeId(0), Arc::from("node"), Location::caller());
    let (places, early, keys) = (vec![0], Early::default(), Arc::default());
    let queues = vec![Use {
        id,
        queue,
        action,
        node,
        at,
        places,
        early,
        keys,
        rooms: 1,
        own: Own::default(),
    }];
    Uses { queues, ..Uses::default() }
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
