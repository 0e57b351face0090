//! What a warm call does without.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use convoke_graph_core::{DType, Graph, Shape, TensorViewMut, dims};

use crate::{Devices, Session};

/// Calls of what uses no variables go on while somebody holds what a session locks: its state, its plans, the programs of
/// the plan, its growth and its moves.
#[test]
fn a_warm_call_takes_no_lock() {
    let g = Graph::new();
    let [a, b] = ["a", "b"].map(|name| g.placeholder(name, DType::F32, dims![]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let add = session.callable(&[&a, &b], &a + &b).unwrap();
    let call = || {
        let (shape, mut memory) = (Shape::new(&[]).unwrap(), [0u8; 4]);
        let view = TensorViewMut::new(DType::F32, &shape, &mut memory).unwrap();
        add.call_into((1.0f32, 2.0f32), &mut [view]).unwrap();
        let sum = add.call((1.0f32, 2.0f32)).unwrap().scalar::<f32>().unwrap();
        assert_eq!((f32::from_ne_bytes(memory), sum), (3.0, 3.0));
    };
    let (begin, begun) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            (0..3).for_each(|_| call());
            tell.send("warm").unwrap();
            begun.recv().unwrap();
            (0..100).for_each(|_| call());
            tell.send("done").unwrap();
        });
        assert_eq!(told.recv(), Ok("warm"));
        let core = &*session.core;
        let plans = core.plans();
        let planned: Vec<_> = plans.values().cloned().collect();
        let programs: Vec<_> = planned.iter().map(|planned| planned.programs()).collect();
        assert!(!programs.is_empty());
        let held = (core.state.lock(), core.growth.lock(), core.moves.write());
        begin.send(()).unwrap();
        let done = told.recv_timeout(Duration::from_secs(20));
        drop((held, programs, plans));
        assert_eq!(done, Ok("done"));
    });
}
