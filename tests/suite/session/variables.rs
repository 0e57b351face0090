//! Variables: initialisation, assignment, order, failed runs.

use convoke::RunOptions;
use convoke::prelude::*;
use convoke_tests::devices;

#[test]
fn initialised_assigned_and_fetched() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(10.0), F32, []);
        let bump = v.assign_add(3.0);
        let session = device.session(&g);
        let error = session.run(&[], &v).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::FailedPrecondition, Some("v")));
        assert!(!session.run(&[], v.is_initialized()).unwrap().scalar::<bool>().unwrap());
        session.run(&[], g.initializers()).unwrap();
        assert!(session.run(&[], v.is_initialized()).unwrap().scalar::<bool>().unwrap());
        assert_eq!(
            session.run(&[], &bump).unwrap().scalar::<f32>().unwrap(),
            13.0,
            "{}",
            device.name
        );
        assert_eq!(session.run(&[], &v).unwrap().scalar::<f32>().unwrap(), 13.0, "{}", device.name);
    }
}

#[test]
fn a_read_sees_the_start_of_the_run_unless_it_follows() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, [3]);
        let set = v.assign(v.value() * 10.0);
        let later = g.after(&[&set.operation()], || v.read() + 1.0);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let (before, stored, later) = session.run(&[], (&v, &set, &later)).unwrap();
        assert_eq!(before.to_vec::<f32>().unwrap(), [1.0; 3], "{}", device.name);
        assert_eq!(stored.to_vec::<f32>().unwrap(), [10.0; 3], "{}", device.name);
        assert_eq!(later.to_vec::<f32>().unwrap(), [11.0; 3], "{}", device.name);
        assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [10.0; 3]);
    }
}

#[test]
fn two_variables_swap() {
    for device in devices() {
        let g = Graph::new();
        let a = g.variable("a", Init::Constant(1.0), F32, [2]);
        let b = g.variable("b", Init::Constant(2.0), F32, [2]);
        let (to_a, to_b) = (a.assign(&b), b.assign(&a));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], (to_a.operation(), to_b.operation())).unwrap();
        let (a, b) = session.run(&[], (&a, &b)).unwrap();
        assert_eq!(
            (a.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap()),
            (vec![2.0; 2], vec![1.0; 2]),
            "{}",
            device.name
        );
    }
}

#[test]
fn a_failed_run_changes_nothing() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, [4]);
        let at = g.placeholder("at", I32, dims![None]);
        let picked = v.value().gather(&at, 0).sum(());
        let step = v.assign_add(picked.broadcast_to(&[4]));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let error = session.run(&[at.feed([1i32, 4])], step.operation()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", device.name);
        assert!(error.message().contains('4'), "{error}");
        assert_eq!(
            session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(),
            [1.0; 4],
            "{}",
            device.name
        );
        session.run(&[at.feed([1i32, 2])], step.operation()).unwrap();
        assert_eq!(
            session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(),
            [3.0; 4],
            "{}",
            device.name
        );
    }
}

#[test]
fn concurrent_updates_are_not_lost() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Zeros, F32, [100]);
        let one = g.placeholder("one", F32, dims![]);
        let bump = v.assign_add(one.broadcast_to(&[100])).operation();
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        session.run(&[one.feed(1.0f32)], &bump).unwrap();
                    }
                });
            }
        });
        assert_eq!(
            session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(),
            [200.0; 100],
            "{}",
            device.name
        );
    }
}

#[test]
fn a_fetched_value_outlives_later_updates() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(1.0), F32, [1000]);
    let bump = v.assign_add(1.0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let first = session.run(&[], &v).unwrap();
    session.run(&[], bump.operation()).unwrap();
    assert_eq!(first.to_vec::<f32>().unwrap(), [1.0; 1000]);
    assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [2.0; 1000]);
}

#[test]
fn wrong_assignments_are_refused() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, F32, [2]);
    v.assign(g.constant([1i32, 2]));
    v.assign(g.constant([1.0f32; 3]));
    let messages: Vec<String> = g.check().iter().map(|e| e.message().to_owned()).collect();
    assert_eq!(
        messages,
        ["dtypes differ: f32 and i32; cast one of them", "expected shape [2], got [3]"]
    );
    let huge = g.variable("huge", Init::Zeros, F32, [usize::MAX, 8]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    assert_eq!(session.run(&[], &huge).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_label_out_of_range_fails_the_step() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None, 2]);
        let labels = g.placeholder("labels", I32, dims![None]);
        let w = g.variable("w", Init::Constant(1.0), F32, [2, 3]);
        let loss = x.matmul(&w).cross_entropy(&labels).mean(());
        let step = Sgd::new(0.1).minimize(&loss);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        for wrong in [3i32, -1] {
            let feeds = [x.feed([[1.0f32, 2.0], [3.0, 4.0]]), labels.feed([0, wrong])];
            let error = session.run(&feeds, &step).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", device.name);
            let says = format!("index {wrong} at position 1 is out of range for an axis of 3");
            assert_eq!(error.message(), says, "{}", device.name);
            assert_eq!(error.node(), Some("gather"), "{}", device.name);
            let w = session.run(&[], &w).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(w, [1.0; 6], "{}", device.name);
        }
    }
}

/// TensorFlow: `KeepsStateAcrossRunsOfSession` of `direct_session_test.cc`.
#[test]
fn keeps_state_across_runs_of_session() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Zeros, F32, [10, 10]);
        let init = v.assign(g.fill(&[10, 10], 20.0f32));
        let session = device.session(&g);
        session.run(&[], init.operation()).unwrap();
        for _ in 0..2 {
            let v = session.run(&[], &v).unwrap();
            assert_eq!(v.to_vec::<f32>().unwrap(), [20.0; 100], "{}", device.name);
        }
    }
}

/// Looking at a variable does not decide where it lives: its first use does.
#[test]
fn a_variable_that_was_only_fetched_may_still_go_where_it_is_used() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(1.0), F32, [256, 256]);
        let by = g.placeholder("by", F32, dims![]);
        let step = g.device("GPU:0", || v.assign_add(&by * v.read())).operation();
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], v.value()).unwrap();
        let run = || session.run_with(&[by.feed(1.0f32)], &step, RunOptions::default()).unwrap().1;
        run();
        let metadata = run();
        assert_eq!(metadata.download_bytes, 0, "{metadata} on {}", device.name);
        assert!(metadata.upload_bytes <= 64, "{metadata} on {}", device.name);
        let v = session.run(&[], v.value()).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(v, vec![4.0; 65_536], "{}", device.name);
    }
}
