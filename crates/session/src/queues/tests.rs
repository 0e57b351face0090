//! Who is woken, and when.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use convoke_graph_core::{
    DType, Graph, HostTensor, NodeId, QueueAction, QueueKind, QueueRole, QueueSpec, TableAction,
    TableSpec, dims,
};

use super::early::Early;
use super::uses::TableUse;
use super::{Attempt, Parked, Puts, Queues, Use, Uses};
use crate::cancel::Stop;

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
    let queues = vec![Use { id, queue, action, node, at, places, early, keys }];
    Uses { queues, ..Uses::default() }
}

fn table_uses(action: TableAction, places: Vec<usize>) -> Uses {
    let (keys, values) = (DType::I32, DType::I32);
    let (name, value_dims) = ("table".into(), dims![]);
    let spec = TableSpec { name, container: None, keys, values, value_dims };
    let (table, node) = (Arc::new(spec), Arc::from("node"));
    Uses { tables: vec![TableUse { table, action, node, places }], ..Uses::default() }
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
        queues.hold(taken).put(uses, Puts::new(uses).items(fetched), fetched, None);
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
