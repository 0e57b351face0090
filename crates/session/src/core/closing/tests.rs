//! What is left of a session that is closed while runs are under way.

use std::hash::{DefaultHasher, Hasher};
use std::thread;
use std::time::Duration;

use convoke_graph_core::{DType, Error, ErrorKind, Graph, Init, Operation, Result, dims};

use crate::queues::Queues;
use crate::{Devices, RunOptions, Session};

/// The error that ends a thread: one of another run that was in the way does not.
fn last_of(run: Result<()>) -> Option<Error> {
    run.err().filter(|error| error.kind() != ErrorKind::Aborted)
}

fn digest(queues: &Queues) -> u64 {
    let mut hasher = DefaultHasher::new();
    queues.hash(&mut hasher);
    hasher.finish()
}

/// Variables, queues, tables and readers, changed by runs of each kind.
#[test]
fn nothing_is_left_however_runs_and_closing_meet() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, DType::F32, [4]);
    let q = g.fifo_queue("q", 3, [(DType::F32, dims![4])]);
    let names = g.fifo_queue("names", 3, [(DType::String, dims![])]);
    let table = g.mutable_table("t", DType::I64, DType::F32);
    let text = g.constant(convoke_graph_core::HostTensor::strings(&[], ["a"]).unwrap());
    let key = g.identity_reader("reader").read(&names).0.operation();
    let (key_of, one) = (g.constant([1i64]), g.constant([1.0f32]));
    let insert = table.insert(&key_of, &one);
    let puts = [insert, q.enqueue(&[v.value()])];
    let all: Vec<Operation> =
        [v.assign_add(1.0).operation()].into_iter().chain(puts.clone()).collect();
    let take = v.assign_add(&q.dequeue()[0]).operation();
    let last = g.cond(&v.value().sum(()).less(9.0f32), || v.assign_add(1.0), || v.assign_sub(1.0));
    let (add_name, last) = (names.enqueue(&[&text]), last.operation());
    for i in 0..40u32 {
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let callable = session.callable(&[], &all).unwrap();
        let partial = || -> Result<()> {
            let mut run = session.partial_run(&[], (&last, &puts))?;
            run.run(&[], &last)?;
            run.run(&[], &puts[0])?;
            run.finish()
        };
        let submit = |y: &Operation| session.submit(&[], y, RunOptions::default()).wait();
        let run = |n: usize| match n {
            0 => callable.call(()).map(|_| ()),
            1 => session.run(&[], &take),
            2 => submit(&add_name).and_then(|()| submit(&last)),
            3 => session.run(&[], &key),
            _ => partial(),
        };
        thread::scope(|scope| {
            let run = &run;
            let runs = [0, 1, 2, 3, 4].map(|n| {
                scope.spawn(move || -> Error { (0..).find_map(|_| last_of(run(n))).unwrap() })
            });
            thread::sleep(Duration::from_micros(u64::from(i) * 200));
            session.close();
            for run in runs {
                let error = run.join().unwrap();
                let expected = [ErrorKind::FailedPrecondition, ErrorKind::Cancelled];
                assert!(expected.contains(&error.kind()), "{error}");
                assert!(error.message().contains("closed"), "{error}");
            }
        });
        let core = &session.core;
        // A thread of the runners may still have its run.
        while std::sync::Arc::strong_count(core) > 2 {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(digest(&core.queues), digest(&Queues::new(&g, None, None)));
        assert_eq!(core.plans().len(), 0);
        let kept = core.state.lock();
        assert!(!kept.variables.is_empty());
        assert!(kept.variables.values().all(|own| own.version == 0 && own.elements.is_none()));
    }
}
