//! Tables that runs change. TensorFlow: `MutableHashTableOpTest` of `python/kernel_tests/lookup_ops_test.py`, by
//! meaning.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use convoke::prelude::*;
use convoke::{
    Dims, FindOp, Monitor, MutableTable, OnDevice, RunOptions, Shape, TableAction, TableOp,
    TableOptions, TableSpec,
};
use convoke_tests::{Folder, devices, fails_while, slow_on_host};

fn strings(all: &[&str]) -> HostTensor {
    HostTensor::strings(&[all.len()], all.iter().copied()).unwrap()
}

fn texts(tensor: &HostTensor) -> Vec<String> {
    let all = tensor.as_strings().unwrap().iter();
    all.map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
}

fn session(g: &Graph) -> Session {
    Session::new(g, &Devices::cpu()).unwrap()
}

fn size(session: &Session, size: &Tensor) -> i64 {
    session.run(&[], size).unwrap().scalar().unwrap()
}

/// TensorFlow: `testMutableHashTable`.
#[test]
fn mutable_hash_table() {
    for device in devices() {
        let g = Graph::new();
        let table = g.mutable_table("table", Strings, I64);
        let insert = table.insert(
            &g.constant(strings(&["brain", "salad", "surgery", "tarkus"])),
            &g.constant([0i64, 1, 2, 3]),
        );
        let remove = table.remove(&g.constant(strings(&["tarkus", "tank"])));
        let found = table.find(&g.constant(strings(&["brain", "salad", "tank"])), -1i64);
        // What is found goes on to the device.
        let double = found.cast(F32) * 2.0;
        let (n, (keys, values)) = (table.size(), table.export());
        let session = device.session(&g);
        assert_eq!(size(&session, &n), 0);
        session.run(&[], &insert).unwrap();
        assert_eq!(size(&session, &n), 4, "{}", device.name);
        session.run(&[], &remove).unwrap();
        assert_eq!(size(&session, &n), 3);
        let (found, double) = session.run(&[], (&found, &double)).unwrap();
        assert_eq!(found.to_vec::<i64>().unwrap(), [0, 1, -1], "{}", device.name);
        assert_eq!(double.to_vec::<f32>().unwrap(), [0.0, 2.0, -2.0], "{}", device.name);
        let (keys, values) = session.run(&[], (&keys, &values)).unwrap();
        assert_eq!(texts(&keys), ["brain", "salad", "surgery"]);
        assert_eq!(values.to_vec::<i64>().unwrap(), [0, 1, 2]);
    }
}

/// TensorFlow: `testMutableHashTableDuplicateInsert`: the last value of a key counts.
#[test]
fn mutable_hash_table_duplicate_insert() {
    let g = Graph::new();
    let table = g.mutable_table("table", Strings, I64);
    let keys = g.constant(strings(&["brain", "salad", "surgery", "brain"]));
    let insert = table.insert(&keys, &g.constant([0i64, 1, 2, 3]));
    let (found, n) = (table.find(&keys, -1i64), table.size());
    let session = session(&g);
    session.run(&[], &insert).unwrap();
    let (found, n) = session.run(&[], (&found, &n)).unwrap();
    assert_eq!(found.to_vec::<i64>().unwrap(), [3, 1, 2, 3]);
    assert_eq!(n.scalar::<i64>().unwrap(), 3);
}

/// TensorFlow: `testMutableHashTableFindHighRank`, `testMutableHashTableInsertHighRank`,
/// `testMutableHashTableStringFloat`, `testMutableHashTableInt64String`.
#[test]
fn mutable_hash_table_high_rank_and_dtypes() {
    let g = Graph::new();
    let floats = g.mutable_table("floats", Strings, F32);
    let words = g.mutable_table("words", I64, Strings);
    let keys = strings(&["a", "b", "c", "d"]).reshaped(Shape::new(&[2, 2]).unwrap()).unwrap();
    let numbers = HostTensor::new(&[2, 2], vec![0.0f32, 1.1, -2.2, f32::NAN]).unwrap();
    let into_floats = floats.insert(&g.constant(keys.clone()), &g.constant(numbers));
    let into_words =
        words.insert(&g.constant([-9i64, 3, -1]), &g.constant(strings(&["x", "", "z"])));
    let three = strings(&["d", "c", "e"]).reshaped(Shape::new(&[1, 3, 1]).unwrap()).unwrap();
    let found = floats.find(&g.constant(three), 0.5f32);
    let word = words.find(&g.constant(3i64), HostTensor::strings(&[], ["none"]).unwrap());
    let other = words.find(&g.constant(4i64), HostTensor::strings(&[], ["none"]).unwrap());
    let (integers, _) = words.export();
    let session = session(&g);
    session.run(&[], (&into_floats, &into_words)).unwrap();
    let (found, word, other) = session.run(&[], (&found, &word, &other)).unwrap();
    assert_eq!(found.dims(), [1, 3, 1]);
    let found = found.to_vec::<f32>().unwrap();
    assert!(found[0].is_nan() && found[1..] == [-2.2, 0.5], "{found:?}");
    assert_eq!((texts(&word), texts(&other)), (vec![String::new()], vec!["none".to_owned()]));
    // By number, and not by bytes.
    assert_eq!(session.run(&[], &integers).unwrap().to_vec::<i64>().unwrap(), [-9, -1, 3]);
}

/// TensorFlow: `testMutableHashTableExportInsert`: what one table gives, another takes.
#[test]
fn mutable_hash_table_export_insert() {
    let g = Graph::new();
    let (first, second) = (g.mutable_table("first", U8, F64), g.mutable_table("second", U8, F64));
    let insert = first.insert(&g.constant([200u8, 7]), &g.constant([2.0f64, 0.7]));
    let (keys, values) = first.export();
    let copy = second.insert(&keys, &values);
    let found = second.find(&g.constant([7u8, 200, 1]), f64::INFINITY);
    let session = session(&g);
    session.run(&[], &insert).unwrap();
    session.run(&[], &copy).unwrap();
    let found = session.run(&[], &found).unwrap().to_vec::<f64>().unwrap();
    assert_eq!(found, [0.7, 2.0, f64::INFINITY]);
}

fn of_values(value_dims: Dims) -> TableOptions {
    TableOptions { value_dims, ..TableOptions::default() }
}

/// TensorFlow: `testMutableHashTableOfTensors`, `testMutableHashTableOfTensorsFindHighRank`: values of several elements,
/// of each way of keeping them.
#[test]
fn mutable_hash_table_of_tensors() {
    for device in devices() {
        let g = Graph::new();
        let table = g.mutable_table_with("table", Strings, I64, of_values(dims![2]));
        let keys = g.constant(strings(&["brain", "salad", "surgery", "tarkus"]));
        let insert = table.insert(&keys, &g.constant([[0i64, 1], [2, 3], [4, 5], [6, 7]]));
        let remove = table.remove(&g.constant(strings(&["tarkus", "tank"])));
        let asked = strings(&["brain", "salad", "tank"]);
        let asked = asked.reshaped(Shape::new(&[3, 1]).unwrap()).unwrap();
        let found = table.find(&g.constant(asked), [-1i64, -2]);
        assert_eq!(found.dims(), dims![3, 1, 2]);
        let half = found.cast(F32) * 0.5;
        let (n, (names, values)) = (table.size(), table.export());
        assert_eq!(values.dims(), dims![None, 2]);
        let session = device.session(&g);
        let empty = session.state_digest().unwrap();
        let (_, none) = session.run(&[], (&names, &values)).unwrap();
        assert_eq!(none.dims(), [0, 2]);
        session.run(&[], &insert).unwrap();
        session.run(&[], &remove).unwrap();
        assert_eq!(size(&session, &n), 3, "{}", device.name);
        let (found, half) = session.run(&[], (&found, &half)).unwrap();
        assert_eq!(found.dims(), [3, 1, 2]);
        assert_eq!(found.to_vec::<i64>().unwrap(), [0, 1, 2, 3, -1, -2], "{}", device.name);
        assert_eq!(half.to_vec::<f32>().unwrap(), [0.0, 0.5, 1.0, 1.5, -0.5, -1.0]);
        let (names, values) = session.run(&[], (&names, &values)).unwrap();
        assert_eq!(texts(&names), ["brain", "salad", "surgery"]);
        assert_eq!(values.dims(), [3, 2]);
        assert_eq!(values.to_vec::<i64>().unwrap(), [0, 1, 2, 3, 4, 5]);
        assert_ne!(session.state_digest().unwrap(), empty);
    }
    let g = Graph::new();
    let words = g.mutable_table_with("words", I64, Strings, of_values(dims![2, 1]));
    let nothing = g.mutable_table_with("nothing", U8, F32, of_values(dims![0]));
    let pairs = HostTensor::strings(&[2, 2, 1], ["a", "", "cc", "d"]).unwrap();
    let default = HostTensor::strings(&[2, 1], ["x", "y"]).unwrap();
    let insert = words.insert(&g.constant([7i64, 8]), &g.constant(pairs));
    let found = words.find(&g.constant([8i64, 9, 7]), default);
    let none = HostTensor::new(&[2, 0], Vec::<f32>::new()).unwrap();
    let fill = nothing.insert(&g.constant([5u8, 6]), &g.constant(none));
    let (bytes, empty) = nothing.export();
    let session = session(&g);
    session.run(&[], (&insert, &fill)).unwrap();
    let found = session.run(&[], &found).unwrap();
    assert_eq!(found.dims(), [3, 2, 1]);
    assert_eq!(texts(&found), ["cc", "d", "x", "y", "a", ""]);
    let (bytes, empty) = session.run(&[], (&bytes, &empty)).unwrap();
    assert_eq!((bytes.to_vec::<u8>().unwrap(), empty.dims()), (vec![5, 6], &[2, 0][..]));
}

/// TensorFlow: `testMutableHashTableOfTensorsInvalidShape`: values of other sizes, also where only the run knows them.
#[test]
fn mutable_hash_table_of_tensors_invalid_shape() {
    let g = Graph::new();
    let table = g.mutable_table_with("table", Strings, I64, of_values(dims![2]));
    let keys = g.constant(strings(&["a", "b"]));
    let refused = |operation: Operation| operation.node().error().unwrap().to_string();
    for values in [g.constant([0i64, 1]), g.constant([[0i64, 1]]), g.constant([[0i64], [1]])] {
        assert!(refused(table.insert(&keys, &values)).contains("a value [2] for each key"));
    }
    let defaults: [HostTensor; 3] = [0i64.into(), [1i64, 2, 3].into(), [1.0f32, 2.0].into()];
    for default in defaults {
        let error = refused(table.find(&keys, default).operation());
        assert!(error.contains("a default of one i64[2]"), "{error}");
    }
    for dims in [dims![None], Dims::UnknownRank, dims![usize::MAX, 3]] {
        let open = g.mutable_table_with("open", I64, I64, of_values(dims));
        assert!(refused(open.size().operation()).contains("values of specified sizes"));
    }
    let some = g.placeholder("some", I64, Dims::UnknownRank);
    let insert = table.insert(&keys, &some);
    let session = session(&g);
    let before = session.state_digest().unwrap();
    for values in [[[1i64, 2]].into(), HostTensor::from([1i64, 2])] {
        let error = session.run(&[some.feed(values)], &insert).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    assert_eq!(session.state_digest().unwrap(), before);
    session.run(&[some.feed([[1i64, 2], [3, 4]])], &insert).unwrap();
    assert_ne!(session.state_digest().unwrap(), before);
}

/// TensorFlow's `shared_name` of tables: those of one shared name are one if they are alike.
#[test]
fn tables_of_a_shared_name_are_one() {
    let g = Graph::new();
    let shared = |value_dims| TableOptions { value_dims, shared_name: Some("s".into()) };
    let table = |name: &str, dims| g.mutable_table_with(name, I64, F32, shared(dims));
    let (one, other) = (table("one", dims![2]), table("other", dims![2]));
    let unlike = table("unlike", dims![3]);
    let elsewhere = g.container("c", || table("elsewhere", dims![2]));
    let key = g.constant([4i64]);
    let insert = one.insert(&key, &g.constant([[1.0f32, 2.0]]));
    let (found, n) = (other.find(&key, [0.0f32, 0.0]), elsewhere.size());
    assert_eq!(insert.name(), "one_insert");
    let session = session(&g);
    session.run(&[], &insert).unwrap();
    let (found, n) = session.run(&[], (&found, &n)).unwrap();
    assert_eq!((found.to_vec::<f32>().unwrap(), n.scalar::<i64>().unwrap()), (vec![1.0, 2.0], 0));
    let error = session.run(&[], unlike.size()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("of the name 'shared: s' differs"), "{error}");
    session.reset(&["c"]).unwrap();
    assert_eq!(size(&session, &other.size()), 1);
    session.reset(&[""]).unwrap();
    assert_eq!(size(&session, &other.size()), 0);
}

/// TensorFlow: `testSignatureMismatch`.
#[test]
fn wrong_keys_and_values_are_refused() {
    let g = Graph::new();
    let table = g.mutable_table("table", Strings, I64);
    let (word, number) = (g.constant(strings(&["a"])), g.constant([1i64]));
    let refused = |operation: Operation| operation.node().error().unwrap().to_string();
    assert!(refused(table.insert(&number, &number)).contains("expected keys of string"));
    assert!(refused(table.insert(&word, &word)).contains("expected values of i64"));
    assert!(refused(table.remove(&number)).contains("expected keys of string"));
    let two = g.constant([1i64, 2]);
    assert!(refused(table.insert(&word, &two)).contains("expected a value for each key"));
    assert!(refused(table.find(&word, 1.0f32).operation()).contains("a default of one i64"));
    assert!(refused(table.find(&number, 1i64).operation()).contains("expected keys of string"));
    let floats = g.mutable_table("floats", F32, I64);
    assert!(refused(floats.size().operation()).contains("keys of integers or strings"));
    let (keys, values) = floats.export();
    assert!(refused(keys.operation()) == refused(values.operation()));
    // Known only in the run, before anything is stored.
    let some = g.placeholder("some", I64, dims![None]);
    let v = g.variable("v", Init::Zeros, F32, []);
    let insert = (table.insert(&word, &some), v.assign_add(1.0).operation());
    let pred = g.placeholder("pred", Bool, dims![]);
    g.cond(&pred, || table.find(&word, 0i64), || number.clone());
    let inside = g.check().into_iter().map(|error| error.to_string());
    let inside: Vec<String> = inside.filter(|error| error.contains("branch or loop")).collect();
    assert!(inside[0].contains("unsupported: a table that runs change"), "{inside:?}");
    let session = session(&g);
    session.run(&[], g.initializers()).unwrap();
    let before = session.state_digest().unwrap();
    let error = session.run(&[some.feed([1i64, 2])], &insert).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("table_insert_3")));
    assert_eq!(session.state_digest().unwrap(), before);
    session.run(&[some.feed([1i64])], &insert).unwrap();
    assert_ne!(session.state_digest().unwrap(), before);
}

/// A table, what puts the pairs that are fed, what takes keys out, and what counts them.
fn fed(g: &Graph) -> (MutableTable, [Tensor; 2], Operation, Operation, Tensor) {
    let table = g.mutable_table("table", I64, I64);
    let keys = g.placeholder("keys", I64, dims![None]);
    let values = g.placeholder("values", I64, dims![None]);
    let (insert, remove) = (table.insert(&keys, &values), table.remove(&keys));
    let n = table.size();
    (table, [keys, values], insert, remove, n)
}

/// A run looks at the tables as they were when it began, and changes them in the order of the operations when it has
/// succeeded; one that fails changes nothing.
#[test]
fn a_run_is_a_transaction() {
    let g = Graph::new();
    let (table, [keys, values], insert, remove, n) = fed(&g);
    let found = g.after(&[&insert], || table.find(&keys, -1i64));
    let fails = Arc::new(AtomicBool::new(true));
    let failing = fails_while(&values.cast(F32), &fails);
    let session = session(&g);
    let feeds = |all: &[i64]| {
        [keys.feed(all.to_vec()), values.feed(all.iter().map(|key| key * 10).collect::<Vec<_>>())]
    };
    let empty = session.state_digest().unwrap();
    let (first, before, ()) = session.run(&feeds(&[1, 2]), (&found, &n, &insert)).unwrap();
    assert_eq!(first.to_vec::<i64>().unwrap(), [-1, -1]);
    assert_eq!(before.scalar::<i64>().unwrap(), 0);
    let (second, before) = session.run(&feeds(&[2, 3]), (&found, &n)).unwrap();
    assert_eq!(second.to_vec::<i64>().unwrap(), [20, -1]);
    assert_eq!(before.scalar::<i64>().unwrap(), 2);
    let digest = session.state_digest().unwrap();
    let error = session.run(&feeds(&[7, 8]), (&insert, &failing)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert_eq!((size(&session, &n), session.state_digest().unwrap()), (3, digest));
    // The removal was built after the insertion.
    session.run(&feeds(&[8]), (&remove, &insert)).unwrap();
    assert_eq!((size(&session, &n), session.state_digest().unwrap()), (3, digest));
    session.run(&feeds(&[1, 2, 3]), &remove).unwrap();
    // An empty table is as one that nobody has used, and so is one that has come to be the same.
    assert_eq!(session.state_digest().unwrap(), empty);
    for all in [[3, 1], [2, 1]] {
        session.run(&feeds(&all), &insert).unwrap();
    }
    assert_eq!(session.state_digest().unwrap(), digest);
}

/// Who looks at a table goes on seeing it as it was, and all that is inserted at once is there in the end.
#[test]
fn runs_at_the_same_time() {
    let g = Graph::new();
    let (table, [keys, values], insert, _, n) = fed(&g);
    let late = slow_on_host(&keys.cast(F32), Duration::from_millis(300)).cast(I64);
    let found = table.find(&late, -1i64);
    let session = session(&g);
    session.run(&[keys.feed(vec![1i64]), values.feed(vec![5i64])], &insert).unwrap();
    let run = session.submit(&[keys.feed(vec![1i64])], (&found, &n), RunOptions::default());
    std::thread::sleep(Duration::from_millis(100));
    std::thread::scope(|scope| {
        for thread in 0..4i64 {
            let (session, keys, values, insert) = (&session, &keys, &values, &insert);
            scope.spawn(move || {
                for i in 0..50 {
                    let key = vec![1 + i % 10, 100 * thread + i + 100];
                    session.run(&[keys.feed(key), values.feed(vec![6i64, i])], insert).unwrap();
                }
            });
        }
    });
    let (found, before) = run.wait().unwrap();
    assert_eq!(found.to_vec::<i64>().unwrap(), [5]);
    assert_eq!(before.scalar::<i64>().unwrap(), 1);
    assert_eq!(size(&session, &n), 10 + 200);
}

/// TensorFlow's `insert(keys, lookup(keys) + 1)` loses what another step inserts in between. Here the run that is late
/// is made again.
#[test]
fn what_a_run_has_looked_at_must_not_have_changed() {
    let g = Graph::new();
    let table = g.mutable_table("table", I64, I64);
    let keys = g.placeholder("keys", I64, dims![None]);
    let now = table.find(&keys, 0i64);
    let add = table.insert(&keys, &(&now + 1));
    // Between the programs: a run has its tables to itself from its last program on.
    let later = |x: &Tensor| {
        let all = |given: &[HostTensor]| {
            std::thread::sleep(Duration::from_millis(500));
            Ok(given.to_vec())
        };
        g.host_function("later", &[x], [(I64, dims![None])], all).remove(0)
    };
    let late = later(&now);
    let v = g.variable("v", Init::Zeros, F32, []);
    let add_late = (table.insert(&keys, &(late + 1)), v.assign_add(1.0).operation());
    let count = table.insert(&keys, &(g.constant([0i64]) + table.size()));
    let count_late = table.insert(&later(&keys), &(g.constant([0i64]) + table.size()));
    let session = session(&g);
    session.run(&[], g.initializers()).unwrap();
    let key = || [keys.feed(vec![7i64])];
    let run = session.submit(&key(), (&add_late.0, &add_late.1), RunOptions::default());
    std::thread::sleep(Duration::from_millis(150));
    session.run(&key(), &add).unwrap();
    run.wait().unwrap();
    let (found, v_now) = session.run(&key(), (&now, v.value())).unwrap();
    assert_eq!((found.to_vec::<i64>().unwrap(), v_now.scalar::<f32>().unwrap()), (vec![2], 1.0));
    // A size is looked at, too. Who does not look may be late.
    let run = session.submit(&key(), &count_late, RunOptions::default());
    std::thread::sleep(Duration::from_millis(150));
    session.run(&[keys.feed(vec![8i64])], &count).unwrap();
    run.wait().unwrap();
    let both = session.run(&[keys.feed(vec![7i64, 8])], &now).unwrap();
    assert_eq!(both.to_vec::<i64>().unwrap(), [2, 1]);
    let blind = table.insert(&keys, &later(&keys));
    let run = session.submit(&[keys.feed(vec![8i64])], &blind, RunOptions::default());
    std::thread::sleep(Duration::from_millis(150));
    session.run(&[keys.feed(vec![8i64])], &add).unwrap();
    run.wait().unwrap();
    assert_eq!(session.run(&[keys.feed(vec![8i64])], &now).unwrap().to_vec::<i64>().unwrap(), [8]);
}

/// A run whose tables change each time that it is made fails in the end, and has changed nothing. It keeps what it took
/// from queues meanwhile, and gives it back.
#[test]
fn a_run_is_not_made_again_for_ever() {
    let g = Graph::new();
    let table = g.mutable_table("table", I64, I64);
    let (key, one) = (g.constant([1i64]), g.constant([1i64]));
    let now = table.find(&key, 0i64);
    let add = table.insert(&key, &(&now + &one));
    let queue = g.fifo_queue("queue", 9, [(I64, dims![1])]);
    let (put, n) = (queue.enqueue(&[&g.constant([100i64])]), queue.size());
    let v = g.variable("v", Init::Zeros, F32, []);
    let (other, calls) = (Arc::new(OnceLock::<Session>::new()), Arc::new(AtomicI64::new(0)));
    let until = Arc::new(AtomicI64::new(i64::MAX));
    let given = (other.clone(), calls.clone(), until.clone(), add.clone());
    let changes = move |all: &[HostTensor]| {
        let (other, calls, until, add) = &given;
        if calls.fetch_add(1, Relaxed) < until.load(Relaxed) {
            let run = || other.get().unwrap().run(&[], add);
            std::thread::scope(|scope| scope.spawn(run).join().unwrap())?;
        }
        Ok(all.to_vec())
    };
    let late = g.host_function("late", &[&now], [(I64, dims![1])], changes).remove(0);
    let sum = late + queue.dequeue().remove(0);
    let late = (table.insert(&key, &sum), v.assign_add(1.0).operation());
    let session = session(&g);
    other.set(session.clone()).unwrap();
    session.run(&[], (g.initializers(), &put)).unwrap();
    let error = session.run(&[], (&late.0, &late.1)).unwrap_err();
    assert_eq!(
        (error.kind(), error.node()),
        (ErrorKind::Aborted, Some("table_insert_1")),
        "{error}"
    );
    assert!(error.message().contains("run again"), "{error}");
    let is = |expected: (i64, f32, i32)| {
        let (now, v, n) = session.run(&[], (&now, v.value(), &n)).unwrap();
        let now = now.to_vec::<i64>().unwrap()[0];
        assert_eq!((now, v.scalar::<f32>().unwrap(), n.scalar::<i32>().unwrap()), expected);
    };
    assert_eq!(calls.load(Relaxed), 16);
    is((16, 0.0, 1));
    // Three times another is in its way, and then none.
    until.store(16 + 3, Relaxed);
    session.run(&[], (&late.0, &late.1)).unwrap();
    assert_eq!(calls.load(Relaxed), 16 + 4);
    is((16 + 3 + 100, 1.0, 0));
}

/// A monitored session goes on with what it has trained where another run changes a table meanwhile.
#[test]
fn a_table_that_changes_loses_no_monitored_session() {
    let g = Graph::new();
    let (a, b) = (g.mutable_table("a", I64, I64), g.mutable_table("b", I64, I64));
    let (key, x) = (g.constant([1i64]), g.placeholder("x", I64, dims![1]));
    let into_a = a.insert(&key, &x);
    let given = (Arc::new(OnceLock::<Session>::new()), x.clone(), into_a.clone());
    let other = given.0.clone();
    let changes = move |all: &[HostTensor]| {
        let (other, x, into_a) = &given;
        // Only once: it is there then.
        if all[0].to_vec::<i64>()? == [0] {
            let run = || other.get().unwrap().run(&[x.feed([7i64])], into_a);
            std::thread::scope(|scope| scope.spawn(run).join().unwrap())?;
        }
        Ok(all.to_vec())
    };
    let of_a = a.find(&key, 0i64);
    let late = g.host_function("late", &[&of_a], [(I64, dims![1])], changes).remove(0);
    let copy = b.insert(&key, &(late + 100));
    let of_b = b.find(&key, 0i64);
    let w = g.variable("w", Init::Zeros, F32, []);
    let train = w.assign_add(1.0).operation();
    let folder = Folder::new("monitored-tables");
    let saver = Saver::new(folder.path().join("model"));
    let mut session = Monitor::new(&g, &Devices::cpu()).saver(saver).start().unwrap();
    other.set(session.session().unwrap().clone()).unwrap();
    session.run(&[], &train).unwrap();
    session.run(&[], &copy).unwrap();
    let (b, w) = session.run(&[], (&of_b, w.value())).unwrap();
    assert_eq!((b.to_vec::<i64>().unwrap(), w.scalar::<f32>().unwrap()), (vec![107], 1.0));
}

/// A run that has looked at one table and changes another is made again if the first has changed meanwhile: who has seen
/// that change and not yet the other table's would have come both before and after it.
#[test]
fn what_a_run_has_looked_at_elsewhere_must_not_have_changed() {
    let g = Graph::new();
    let (a, b) = (g.mutable_table("a", I64, I64), g.mutable_table("b", I64, I64));
    let key = g.constant([1i64]);
    let x = g.placeholder("x", I64, dims![1]);
    let (of_a, of_b) = (a.find(&key, 0i64), b.find(&key, 0i64));
    let later = |given: &[HostTensor]| {
        std::thread::sleep(Duration::from_millis(300));
        Ok(given.to_vec())
    };
    let late = g.host_function("later", &[&of_a], [(I64, dims![1])], later).remove(0);
    let copy = b.insert(&key, &(late + 100));
    let (into_a, into_b) = (a.insert(&key, &x), b.insert(&key, &x));
    let session = session(&g);
    let both = || {
        let (a, b) = session.run(&[], (&of_a, &of_b)).unwrap();
        [a, b].map(|x| x.to_vec::<i64>().unwrap()[0])
    };
    session.run(&[x.feed([7i64])], &into_a).unwrap();
    let run = session.submit(&[], &copy, RunOptions::default());
    std::thread::sleep(Duration::from_millis(100));
    session.run(&[x.feed([8i64])], &into_a).unwrap();
    run.wait().unwrap();
    assert_eq!(both(), [8, 108]);
    // It has not looked at what it changes, so that others may change that.
    let run = session.submit(&[], &copy, RunOptions::default());
    std::thread::sleep(Duration::from_millis(100));
    session.run(&[x.feed([9i64])], &into_b).unwrap();
    assert_eq!(both(), [8, 9]);
    run.wait().unwrap();
    assert_eq!(both(), [8, 108]);
}

/// One makes `a` one more than `b`, the other `b` one more than `a`: in whatever order, they are one apart.
#[test]
fn runs_over_two_tables_are_as_one_after_the_other() {
    let g = Graph::new();
    let (a, b) = (g.mutable_table("a", I64, I64), g.mutable_table("b", I64, I64));
    let key = g.constant([1i64]);
    let (of_a, of_b) = (a.find(&key, 0i64), b.find(&key, 0i64));
    let calls = Arc::new(AtomicI64::new(0));
    let later = |x: &Tensor| {
        let calls = calls.clone();
        let all = move |given: &[HostTensor]| {
            calls.fetch_add(1, Relaxed);
            std::thread::sleep(Duration::from_millis(1));
            Ok(given.to_vec())
        };
        g.host_function("later", &[x], [(I64, dims![1])], all).remove(0)
    };
    let steps = [a.insert(&key, &(later(&of_b) + 1)), b.insert(&key, &(later(&of_a) + 1))];
    let session = session(&g);
    session.run(&[], &steps[0]).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (session, step) = (&session, &steps[thread % 2]);
            let both = (&of_a, &of_b);
            scope.spawn(move || {
                for _ in 0..20 {
                    while let Err(error) = session.run(&[], step) {
                        assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
                    }
                    let (a, b) = session.run(&[], both).unwrap();
                    let [a, b] = [a, b].map(|x| x.to_vec::<i64>().unwrap()[0]);
                    assert_eq!((a - b).abs(), 1, "{a} and {b}");
                }
            });
        }
    });
    // Some were made again.
    assert!(calls.load(Relaxed) > 1 + 4 * 20);
}

/// Of many who count at the same time, beside others that only insert, none is lost.
#[test]
fn no_count_is_lost() {
    let g = Graph::new();
    let (table, [keys, values], insert, _, n) = fed(&g);
    let now = table.find(&keys, 0i64);
    let add = table.insert(&keys, &(&now + 1));
    let session = session(&g);
    std::thread::scope(|scope| {
        for thread in 0..4i64 {
            let (session, keys, values, add, insert) = (&session, &keys, &values, &add, &insert);
            scope.spawn(move || {
                for i in 0..25 {
                    let feeds = [keys.feed(vec![1i64])];
                    while let Err(error) = session.run(&feeds, add) {
                        assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
                    }
                    let key = vec![100 * thread + i + 100];
                    session.run(&[keys.feed(key), values.feed(vec![i])], insert).unwrap();
                }
            });
        }
    });
    let now = session.run(&[keys.feed(vec![1i64])], &now).unwrap();
    assert_eq!(now.to_vec::<i64>().unwrap(), [100]);
    assert_eq!(size(&session, &n), 101);
}

/// Tables of one name must be alike, before anything is taken or stored.
#[test]
fn tables_of_one_name_must_be_alike() {
    let g = Graph::new();
    let table = g.mutable_table("table", I64, I64);
    let one = g.constant([1i64]);
    let insert = table.insert(&one, &one);
    let spec = Arc::new(TableSpec { values: F32, ..table.spec().clone() });
    let op = TableOp { table: spec.clone(), action: TableAction::Insert };
    let other = g.apply(op, &[&one, &g.constant([2.0f32])]).operation();
    let op = FindOp { table: spec, default: 0.0f32.into() };
    let found = g.apply(op, &[&one]);
    let queue = g.fifo_queue("queue", 9, [(I64, dims![])]);
    let (put, taken, n) = (queue.enqueue(&[&g.constant(1i64)]), queue.dequeue(), queue.size());
    let session = session(&g);
    session.run(&[], &put).unwrap();
    let refused = |result: convoke::Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains("of the name 'table' differs"), "{error}");
    };
    let before = session.state_digest().unwrap();
    refused(session.run(&[], (&insert, &other)).map(|_| ()));
    refused(session.run(&[], (&insert, &found)).map(|_| ()));
    assert_eq!(session.state_digest().unwrap(), before);
    session.run(&[], &insert).unwrap();
    let before = session.state_digest().unwrap();
    refused(session.run(&[], (&other, &taken[0])).map(|_| ()));
    assert_eq!(session.run(&[], &n).unwrap().scalar::<i32>().unwrap(), 1);
    assert_eq!(session.state_digest().unwrap(), before);
}

/// In callables, beside queues, and fed by what is on a device.
#[test]
fn tables_beside_others() {
    for device in devices() {
        let g = Graph::new();
        let (table, [keys, values], insert, _, n) = fed(&g);
        let queue = g.fifo_queue("queue", 9, [(I64, dims![2])]);
        let put = queue.enqueue(&[&keys]);
        let taken = queue.dequeue().remove(0);
        let learn = table.insert(&taken, &(&taken * 2));
        let found = table.find(&keys, 0i64);
        let session = device.session_with(&g, SessionOptions::default());
        let call = session.callable(&[&keys], (&found, &n)).unwrap();
        session.run(&[keys.feed([4i64, 5])], &put).unwrap();
        session.run(&[], &learn).unwrap();
        let (found, n) = call.call([[5i64, 6]]).unwrap();
        assert_eq!(found.to_vec::<i64>().unwrap(), [10, 0], "{}", device.name);
        assert_eq!(n.scalar::<i64>().unwrap(), 2);
        let there = session.run(&[values.feed([1i64, 2])], OnDevice(&(&values + 0)));
        let there = there.unwrap();
        session.run(&[keys.feed([5i64, 6]), values.feed(&there)], &insert).unwrap();
        let (found, _) = call.call([[5i64, 6]]).unwrap();
        assert_eq!(found.to_vec::<i64>().unwrap(), [1, 2], "{}", device.name);
    }
}

/// A reset empties the tables of the containers that it names.
#[test]
fn a_reset_empties_tables() {
    let g = Graph::new();
    let one = g.constant([1i64]);
    let of = |name: &str| g.container(name, || g.mutable_table("table", I64, I64));
    let (a, b) = (of("a"), of(""));
    let both = [a.insert(&one, &one), b.insert(&one, &one)];
    let (of_a, of_b) = (a.size(), b.size());
    let session = session(&g);
    session.run(&[], &both).unwrap();
    session.reset(&["a"]).unwrap();
    assert_eq!((size(&session, &of_a), size(&session, &of_b)), (0, 1));
    session.run(&[], &both).unwrap();
    session.reset(&[]).unwrap();
    assert_eq!((size(&session, &of_a), size(&session, &of_b)), (0, 0));
}

/// What a run puts into a table is lost that is reset when the run has it, whether it looks at it or not.
#[test]
fn what_is_put_into_a_table_that_is_reset_is_lost() {
    let g = Graph::new();
    let [a, b, c] =
        ["a", "b", "c"].map(|name| g.container(name, || g.mutable_table(name, I64, I64)));
    let key = g.constant([1i64]);
    let slow = slow_on_host(&a.find(&key, 5i64).cast(F32), Duration::from_millis(1000)).cast(I64);
    let all = [a.insert(&key, &slow), b.insert(&key, &slow), c.insert(&key, &slow)];
    let sizes = [a.size(), b.size(), c.size()];
    let session = session(&g);
    let run = session.submit(&[], &all, RunOptions::default());
    std::thread::sleep(Duration::from_millis(400));
    session.reset(&["a", "b"]).unwrap();
    run.wait().unwrap();
    assert_eq!(sizes.each_ref().map(|n| size(&session, n)), [0, 0, 1]);
    session.run(&[], &all).unwrap();
    assert_eq!(sizes.each_ref().map(|n| size(&session, n)), [1, 1, 1]);
}

/// A graph that is put together from its parts has the same tables, with contents of its own.
#[test]
fn tables_of_a_graph_that_was_put_together() {
    let g = Graph::new();
    let (table, _, insert, remove, n) = g.container("c", || fed(&g));
    let found = table.find(&g.constant([1i64, 2]), -1i64);
    let again = Graph::from_parts(g.parts()).unwrap();
    let operation = |of: &Operation| again.operation(&of.name()).unwrap();
    let tensor = |of: &Tensor| again.tensor(&of.name()).unwrap();
    let (keys, values) = (again.tensor("keys").unwrap(), again.tensor("values").unwrap());
    let session = session(&again);
    let feeds = [keys.feed(vec![1i64, 2]), values.feed(vec![5i64, 6])];
    session.run(&feeds, operation(&insert)).unwrap();
    session.run(&[keys.feed(vec![1i64])], operation(&remove)).unwrap();
    let count = tensor(&n);
    let (found, n) = session.run(&[], (tensor(&found), &count)).unwrap();
    assert_eq!(found.to_vec::<i64>().unwrap(), [-1, 6]);
    assert_eq!(n.scalar::<i64>().unwrap(), 1);
    session.reset(&["c"]).unwrap();
    assert_eq!(size(&session, &count), 0);
}
