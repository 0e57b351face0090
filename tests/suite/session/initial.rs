//! Initial values that are made of other variables', and which variables have none.

use convoke::prelude::*;
use convoke_tests::{Folder, devices};

/// The initial value of one variable is made of another's by a branch: of what the run stores, as without a branch.
#[test]
fn initial_values_through_branches_are_of_what_the_run_stores() {
    for device in devices() {
        let g = Graph::with_seed(3);
        let w = g.variable("w", Init::Uniform { low: 1.0, high: 2.0, seed: 5 }, F32, [8]);
        let from = w.initialized_value();
        let twice = g.cond(&from.sum(()).greater(0.0), || &from * 2.0, || from.clone());
        let v = g.variable("v", Init::Tensor(twice), F32, [8]);
        let session = device.session(&g);
        let mut before = vec![];
        for _ in 0..2 {
            session.run(&[], g.initializers()).unwrap();
            let (w, v) = session.run(&[], (&w, &v)).unwrap();
            let [w, v] = [w, v].map(|x| x.to_vec::<f32>().unwrap());
            assert_eq!(v, w.iter().map(|w| w * 2.0).collect::<Vec<f32>>(), "{}", device.name);
            assert_ne!(w, before, "{}", device.name);
            before = w;
        }
    }
}

/// `variables_test.py`, `testInitializationOrder`.
#[test]
fn initializers_run_together_in_the_order_of_their_values() {
    for device in devices() {
        let g = Graph::with_seed(3);
        let w = g.variable("w", Init::Uniform { low: 1.0, high: 2.0, seed: 5 }, F32, [8]);
        let twice = w.initialized_value() * 2.0;
        let v = g.variable("v", Init::Tensor(twice), F32, [8]);
        let u =
            g.variable("u", Init::Tensor(&w.initialized_value() + v.initialized_value()), F32, [8]);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let read = || {
            let (w, v, u) = session.run(&[], (&w, &v, &u)).unwrap();
            [w, v, u].map(|x| x.to_vec::<f32>().unwrap())
        };
        let [first, double, triple] = read();
        for (i, w) in first.iter().enumerate() {
            assert!((1.0..2.0).contains(w), "{}: {w}", device.name);
            assert_eq!((double[i], triple[i]), (w * 2.0, w + w * 2.0), "{}", device.name);
        }
        // All anew: of what the run stores, not of what was there.
        session.run(&[], g.initializers()).unwrap();
        let [second, double, _] = read();
        assert_ne!(first, second, "{}", device.name);
        assert_eq!(double, second.iter().map(|w| w * 2.0).collect::<Vec<f32>>(), "{}", device.name);
        // One alone: of the elements that are there.
        session.run(&[], w.assign(HostTensor::from([7.0f32; 8])).operation()).unwrap();
        session.run(&[], v.initializer()).unwrap();
        let [now, double, _] = read();
        assert_eq!((now, double), (vec![7.0; 8], vec![14.0; 8]), "{}", device.name);
    }
}

#[test]
fn the_initial_value_of_a_variable_without_elements() {
    for device in devices() {
        let g = Graph::new();
        let w = g.variable("w", Init::Constant(3.0), F32, [4]);
        let v = g.variable("v", Init::Tensor(w.initialized_value() + 1.0), F32, [4]);
        let session = device.session(&g);
        session.run(&[], v.initializer()).unwrap();
        assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [4.0; 4]);
        // Nothing gave `w` elements, and a read beside it is strict.
        let error = session.run(&[], (&w.initialized_value(), &w)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{}", device.name);
        assert_eq!(session.uninitialized().iter().map(|n| &**n).collect::<Vec<_>>(), ["w"]);
        // A plain read does not know the initial value.
        let plain = g.variable("plain", Init::Tensor(w.value() + 1.0), F32, [4]);
        let error = session.run(&[], plain.initializer()).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::FailedPrecondition, Some("w")));
    }
}

/// `variables_test.py`, `testCollections` and `testGlobalVariablesInitializer`.
#[test]
fn local_variables_are_neither_trained_nor_kept() {
    let folder = Folder::new("local");
    let path = folder.path().join("all.safetensors");
    for device in devices() {
        let g = Graph::new();
        let w = g.variable("w", Init::Constant(2.0), F32, [3]);
        let seen = g.local_variable("seen", Init::Constant(5.0), F32, [3]);
        let loss = (&w * &seen).sum(());
        let step = Sgd::new(1.0).minimize(&loss);
        let names = |all: Vec<Variable>| all.iter().map(Variable::name).collect::<Vec<_>>();
        assert_eq!(names(g.trainable_variables()), ["w"]);
        assert_eq!(names(g.global_variables()), ["w"]);
        assert_eq!(names(g.local_variables()), ["seen"]);
        assert_eq!(g.collection(&Collection::Local).len(), 1);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        assert_eq!(session.uninitialized().iter().map(|n| &**n).collect::<Vec<_>>(), ["seen"]);
        let error = session.run(&[], &step).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::FailedPrecondition, Some("seen")));
        session.run(&[], g.local_initializers()).unwrap();
        session.run(&[], &step).unwrap();
        let kept = || {
            let (w, seen) = session.run(&[], (&w, &seen)).unwrap();
            [w, seen].map(|x| x.to_vec::<f32>().unwrap())
        };
        assert_eq!(kept(), [vec![-3.0; 3], vec![5.0; 3]], "{}", device.name);
        session.save(&path).unwrap();
        session.run(&[], (seen.assign_add(1.0).operation(), w.assign(0.0).operation())).unwrap();
        session.restore(&path).unwrap();
        assert_eq!(kept(), [vec![-3.0; 3], vec![6.0; 3]], "{}", device.name);
        session.run(&[], g.initializers()).unwrap();
        assert_eq!(kept(), [vec![2.0; 3], vec![6.0; 3]], "{}", device.name);
    }
}

/// `variables_test.py`, `IsInitializedTest` and `ReportUninitializedVariablesTest`.
#[test]
fn variables_without_elements_are_reported_in_order() {
    let g = Graph::new();
    let w = g.variable("w", Init::Constant(1.0), F32, []);
    let v = g.variable("v", Init::Constant(2.0), F32, []);
    g.variable("a", Init::Zeros, F32, []);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let names = || session.uninitialized().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(), ["w", "v", "a"]);
    let error = session.check_initialized().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.message().contains("w, v, a"), "{error}");
    session.run(&[], w.initializer()).unwrap();
    assert_eq!(names(), ["v", "a"]);
    session.run(&[], v.assign(5.0).operation()).unwrap();
    assert_eq!(names(), ["a"]);
    session.run(&[], g.initializers()).unwrap();
    assert_eq!(names(), [] as [&str; 0]);
    session.check_initialized().unwrap();
}
