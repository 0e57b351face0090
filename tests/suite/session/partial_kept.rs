//! Partial runs with all that a session keeps beside variables: counts, tables that change, accumulators, barriers, staging
//! areas, computed numbers of elements and chosen queues.

use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use convoke::prelude::*;
use convoke::{
    AccumulatorOptions, CancelToken, Error, Lack, PartialRun, Reduction, RunHandle, RunOptions,
    StagingOptions,
};
use convoke_tests::{A_WHILE, devices, ramp};

/// What nothing here takes that goes well.
const LONG: Duration = Duration::from_secs(30);

fn scalar<T: convoke::Element>(tensor: HostTensor) -> T {
    tensor.scalar().unwrap()
}

fn strings(all: &[&str]) -> HostTensor {
    HostTensor::strings(&[all.len()], all.iter().copied()).unwrap()
}

fn at_once() -> RunOptions {
    RunOptions { fail_if_blocked: true, ..RunOptions::default() }
}

/// Checks that a step lacks the feed of this name.
#[track_caller]
fn lacks<F: Fetch>(run: &mut PartialRun, feeds: &[Feed<'_>], fetch: F, name: &str) {
    let error = run.run(feeds, fetch).err().expect("a step that is refused");
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some(name)), "{error}");
    assert!(error.message().contains("fed so far"), "{error}");
}

/// A number that is counted in a step is stored at the end, and is the variable's for later steps.
#[test]
fn a_number_is_taken_for_good_when_the_run_has_ended() {
    for device in devices() {
        let g = Graph::new();
        let n = g.variable("n", Init::Constant(5.0), I64, []);
        let x = g.placeholder("x", F32, dims![]);
        let number = n.count_up_to(7);
        let after = g.after(&[&number.operation()], || n.read());
        let sum = number.cast(F32) + &x;
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        for expected in [5, 6] {
            let mut run = session.partial_run(&[&x], (&number, &after, &sum)).unwrap();
            assert_eq!(scalar::<i64>(run.run(&[], &number).unwrap()), expected, "{}", device.name);
            assert_eq!(scalar::<i64>(session.run(&[], &n).unwrap()), expected);
            assert_eq!(scalar::<i64>(run.run(&[], &after).unwrap()), expected + 1);
            let last = scalar::<f32>(run.run(&[x.feed(0.5)], &sum).unwrap());
            assert_eq!(last, expected as f32 + 0.5, "{}", device.name);
            assert_eq!(scalar::<i64>(session.run(&[], &n).unwrap()), expected + 1);
        }
        // Where the limit is reached, the step fails, and others may be made.
        let before = session.state_digest().unwrap();
        let mut run = session.partial_run(&[&x], (&x, &number)).unwrap();
        assert_eq!(run.run(&[], &number).unwrap_err().kind(), ErrorKind::OutOfRange);
        run.run(&[x.feed(1.0)], &x).unwrap();
        assert_eq!(run.run(&[], &number).unwrap_err().kind(), ErrorKind::OutOfRange);
        drop(run);
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
    }
}

/// A run that is open keeps nobody from counting, on its own thread neither, and gives up where somebody has.
#[test]
fn who_counts_first_has_the_number() {
    let g = Graph::new();
    let n = g.variable("n", Init::Zeros, I32, []);
    let x = g.placeholder("x", F32, dims![]);
    let q = g.fifo_queue("q", 9, [(F32, dims![])]);
    let table = g.mutable_table("table", I64, I64);
    let number = n.count_up_to(100);
    let put = q.enqueue(&[&x]);
    let insert = table.insert(&g.constant([1i64]), &g.constant([2i64]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let all = (&number, &put, &insert);
    let mut one = session.partial_run(&[&x], all).unwrap();
    let mut other = session.partial_run(&[&x], all).unwrap();
    assert_eq!(scalar::<i32>(one.run(&[], &number).unwrap()), 0);
    assert_eq!(scalar::<i32>(other.run(&[], &number).unwrap()), 0);
    let soon = RunOptions { timeout: Some(Duration::from_secs(60)), ..RunOptions::default() };
    assert_eq!(scalar::<i32>(session.run_with(&[], &number, soon).unwrap().0), 0);
    let before = session.state_digest().unwrap();
    one.run(&[x.feed(1.0)], &put).unwrap();
    let error = one.run(&[], &insert).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::Aborted, Some("n")), "{error}");
    assert_eq!(one.finish().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(session.state_digest().unwrap(), before);
    let mut third = session.partial_run(&[&x], all).unwrap();
    third.run(&[x.feed(1.0)], &put).unwrap();
    let ((), third) = third.run(&[], (&insert, &number)).unwrap();
    assert_eq!(scalar::<i32>(third), 1);
    assert_eq!(other.finish().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(scalar::<i32>(session.run(&[], &number).unwrap()), 2);
    // It gives up too where it assigns the variable afterwards.
    let set = g.after(&[&number.operation()], || n.assign(50));
    let mut run = session.partial_run(&[&x], (&number, &set, &x)).unwrap();
    let (got, _) = run.run(&[], (&number, &set)).unwrap();
    assert_eq!(scalar::<i32>(got), 3);
    assert_eq!(scalar::<i32>(session.run(&[], &number).unwrap()), 3);
    assert_eq!(run.run(&[x.feed(1.0)], &x).unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(scalar::<i32>(session.run(&[], &n).unwrap()), 4);
}

/// Whole runs and partial runs of several threads: each number is given once, and none is left out.
#[test]
fn no_number_comes_twice_among_partial_and_whole_runs() {
    const EACH: usize = 60;
    let g = Graph::new();
    let n = g.variable("n", Init::Zeros, I64, []);
    let x = g.placeholder("x", I64, dims![]);
    let number = n.count_up_to(1 << 40);
    let sum = &number + &x;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let numbers = Mutex::new(Vec::new());
    let in_steps = || {
        let mut run = session.partial_run(&[&x], (&number, &sum)).unwrap();
        let number = scalar::<i64>(run.run(&[], &number).unwrap());
        match run.run(&[x.feed(3i64)], &sum) {
            Ok(sum) => {
                assert_eq!(scalar::<i64>(sum), number + 3);
                Some(number)
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
                None
            }
        }
    };
    thread::scope(|scope| {
        for at in 0..4 {
            let (session, numbers, number, in_steps) = (&session, &numbers, &number, &in_steps);
            scope.spawn(move || {
                for i in 0..EACH {
                    let got = match (i + at) % 2 {
                        0 => Some(scalar::<i64>(session.run(&[], number).unwrap())),
                        _ => in_steps(),
                    };
                    numbers.lock().unwrap().extend(got);
                }
            });
        }
    });
    let mut numbers = numbers.into_inner().unwrap();
    // Alone, none of them gives up.
    let alone: Vec<i64> = (0..EACH).filter_map(|_| in_steps()).collect();
    assert_eq!(alone.len(), EACH);
    numbers.extend(alone);
    numbers.sort_unstable();
    assert_eq!(numbers, (0..numbers.len() as i64).collect::<Vec<_>>());
    assert_eq!(scalar::<i64>(session.run(&[], &n).unwrap()), numbers.len() as i64);
}

/// A tensor that a run comes to when it has told the receiver, and gets past when the sender says so; false fails it.
fn gate(g: &Graph, x: &Tensor) -> (Tensor, Receiver<()>, Sender<bool>) {
    let (tells, told) = mpsc::channel();
    let (go, goes) = mpsc::channel();
    let goes = Mutex::new(goes);
    let y = g.host_function("gate", &[x], [(F32, dims![])], move |inputs| {
        tells.send(()).unwrap();
        match goes.lock().unwrap().recv_timeout(LONG) {
            Ok(true) => Ok(inputs.to_vec()),
            _ => Err(Error::invalid("the test wants this to fail")),
        }
    });
    (y[0].clone(), told, go)
}

/// A variable that runs count, and a whole run that has the turn until it is let go.
struct Counting {
    session: Session,
    n: Variable,
    x: Tensor,
    number: Tensor,
    gated: Tensor,
    told: Receiver<()>,
    go: Sender<bool>,
}

impl Counting {
    fn new() -> Self {
        let g = Graph::new();
        let n = g.variable("n", Init::Zeros, I32, []);
        let x = g.placeholder("x", F32, dims![]);
        let number = n.count_up_to(100);
        let (gated, told, go) = gate(&g, &number.cast(F32));
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        Self { session, n, x, number, gated, told, go }
    }

    /// A whole run that has looked at the number and not stored it yet.
    fn rival(&self) -> RunHandle<(&Tensor, &Tensor)> {
        let fetches = (&self.number, &self.gated);
        let rival = self.session.submit(&[], fetches, RunOptions::default());
        self.told.recv_timeout(LONG).unwrap();
        rival
    }

    /// A run that has counted this number, and has its last step before it.
    fn counted(&self, number: i32) -> PartialRun {
        let mut run = self.session.partial_run(&[&self.x], (&self.number, &self.x)).unwrap();
        assert_eq!(scalar::<i32>(run.run(&[], &self.number).unwrap()), number);
        run
    }

    fn last(&self, run: &mut PartialRun, options: &RunOptions) -> Option<ErrorKind> {
        run.run_with(&[self.x.feed(1.0)], &self.x, options).err().map(|error| error.kind())
    }
}

fn within(limit: Duration) -> RunOptions {
    RunOptions { timeout: Some(limit), ..RunOptions::default() }
}

/// What `waits` gives where `ends` comes in between; it is woken, and does not come by itself in the end.
fn ended<T>(waits: impl FnOnce() -> T, ends: impl FnOnce() + Send) -> T {
    let start = Instant::now();
    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(A_WHILE * 2);
            ends();
        });
        waits()
    });
    assert!(start.elapsed() < LONG / 2);
    ended
}

/// A last step and an early end wait for a whole run that counts, as their options say, and go on where they fail.
#[test]
fn the_end_of_a_run_that_counts_follows_who_counts() {
    let all = Counting::new();
    let (mut run, mut other) = (all.counted(0), all.counted(0));
    let rival = all.rival();
    let before = all.session.state_digest().unwrap();
    let soon = within(A_WHILE);
    assert_eq!(all.last(&mut run, &soon), Some(ErrorKind::DeadlineExceeded));
    assert_eq!(run.finish_with(&soon).unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    let tokens = [(); 2].map(|()| CancelToken::new());
    let until = |token: &CancelToken| RunOptions { cancel: Some(token.clone()), ..within(LONG) };
    let kind = ended(|| all.last(&mut run, &until(&tokens[0])), || tokens[0].cancel());
    assert_eq!(kind, Some(ErrorKind::Cancelled));
    let finished = ended(|| run.finish_with(&until(&tokens[1])), || tokens[1].cancel());
    assert_eq!(finished.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(!run.is_done());
    assert_eq!(all.session.state_digest().unwrap(), before);
    // The whole run gives the number back, and the same step has it.
    all.go.send(false).unwrap();
    assert_eq!(rival.wait().unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(all.last(&mut run, &within(LONG)), None);
    assert_eq!(scalar::<i32>(all.session.run(&[], &all.n).unwrap()), 1);
    assert_eq!(other.finish_with(&soon).unwrap_err().kind(), ErrorKind::Aborted);
    // It takes the number, and a last step that has waited for it gives up.
    let mut run = all.counted(1);
    let rival = all.rival();
    assert_eq!(all.last(&mut run, &soon), Some(ErrorKind::DeadlineExceeded));
    all.go.send(true).unwrap();
    assert_eq!(all.last(&mut run, &within(LONG)), Some(ErrorKind::Aborted));
    assert_eq!(scalar::<i32>(rival.wait().unwrap().0), 1);
}

#[test]
fn a_last_step_that_waits_to_count_ends_with_its_session() {
    let all = Counting::new();
    let mut run = all.counted(0);
    let rival = all.rival();
    let kind = ended(|| all.last(&mut run, &within(LONG)), || all.session.close());
    assert_eq!(kind, Some(ErrorKind::Cancelled));
    all.go.send(false).unwrap();
    rival.wait().unwrap_err();
}

/// One that is ended before it has come to count waits for nobody, and then has ended.
#[test]
fn who_has_not_counted_ends_while_another_counts() {
    let all = Counting::new();
    let Counting { session, n, x, number, .. } = &all;
    let mut run = session.partial_run(&[x], (number, x, n)).unwrap();
    let rival = all.rival();
    run.run(&[x.feed(1.0)], x).unwrap();
    run.finish_with(&within(LONG / 2)).unwrap();
    assert!(run.is_done());
    run.finish_with(&within(A_WHILE)).unwrap();
    let error = run.run(&[], n).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    run.finish().unwrap();
    all.go.send(true).unwrap();
    assert_eq!(scalar::<i32>(rival.wait().unwrap().0), 0);
}

/// The numbers of a variable that was reset count anew: one from before is not given once more.
#[test]
fn a_number_from_before_a_reset_is_not_taken() {
    let g = Graph::new();
    let n = g.variable("n", Init::Constant(5.0), I64, []);
    let x = g.placeholder("x", F32, dims![]);
    let number = n.count_up_to(100);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for counts in [false, true] {
        session.run(&[], g.initializers()).unwrap();
        let mut run = session.partial_run(&[&x], (&number, &x)).unwrap();
        assert_eq!(scalar::<i64>(run.run(&[], &number).unwrap()), 5);
        session.reset(&[]).unwrap();
        session.run(&[], g.initializers()).unwrap();
        if counts {
            assert_eq!(scalar::<i64>(session.run(&[], &number).unwrap()), 5);
        }
        let before = session.state_digest().unwrap();
        let error = run.run(&[x.feed(1.0)], &x).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::Aborted, Some("n")), "{error}");
        assert_eq!(run.finish().unwrap_err().kind(), ErrorKind::Aborted);
        assert_eq!(session.state_digest().unwrap(), before);
    }
}

/// All steps see tables as they were when one first looked; what they put is there at the end.
#[test]
fn tables_are_seen_as_at_the_first_look_and_changed_at_the_end() {
    for device in devices() {
        let g = Graph::new();
        let table = g.mutable_table("table", I64, F32);
        let keys = g.placeholder("keys", I64, dims![None]);
        let values = g.placeholder("values", F32, dims![None]);
        let (insert, remove) = (table.insert(&keys, &values), table.remove(&keys));
        let found = table.find(&g.constant([1i64, 2, 3]), -1.0f32);
        let double = &found * 2.0;
        let (size, (all, _)) = (table.size(), table.export());
        let session = device.session(&g);
        let feeds = |k: i64, v: f32| [keys.feed(vec![k]), values.feed(vec![v])];
        session.run(&feeds(1, 10.0), &insert).unwrap();
        // One that only looks.
        let mut run = session.partial_run(&[&keys], (&keys, &size, &double, &all)).unwrap();
        run.run(&[keys.feed([0i64])], &keys).unwrap();
        session.run(&feeds(2, 20.0), &insert).unwrap();
        assert_eq!(scalar::<i64>(run.run(&[], &size).unwrap()), 2, "{}", device.name);
        session.run(&feeds(3, 30.0), &insert).unwrap();
        let double = run.run(&[], &double).unwrap();
        assert_eq!(double.to_vec::<f32>().unwrap(), [20.0, 40.0, -2.0], "{}", device.name);
        assert_eq!(run.run(&[], &all).unwrap().to_vec::<i64>().unwrap(), [1, 2]);
        assert!(run.is_done());
        // One that only changes, whatever others do.
        let mut run = session.partial_run(&[&keys], (&keys, &remove)).unwrap();
        run.run(&[keys.feed([1i64])], &remove).unwrap();
        session.run(&feeds(4, 40.0), &insert).unwrap();
        assert_eq!(scalar::<i64>(session.run(&[], &size).unwrap()), 4);
        run.run(&[], &keys).unwrap();
        let now = session.run(&[], &all).unwrap();
        assert_eq!(now.to_vec::<i64>().unwrap(), [2, 3, 4], "{}", device.name);
    }
}

#[test]
fn who_looks_at_a_table_and_changes_it_gives_up_where_another_has() {
    let g = Graph::new();
    let table = g.mutable_table("table", I64, I64);
    let keys = g.placeholder("keys", I64, dims![None]);
    let v = g.variable("v", Init::Zeros, F32, []);
    let q = g.fifo_queue("q", 9, [(F32, dims![])]);
    let (size, insert) = (table.size(), table.insert(&keys, &keys));
    let (add, put) = (v.assign_add(1.0), q.enqueue(&[&g.constant(1.0f32)]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let add = add.operation();
    let all = (&size, &insert, &add, &put);
    let mut run = session.partial_run(&[&keys], all).unwrap();
    assert_eq!(scalar::<i64>(run.run(&[], &size).unwrap()), 0);
    run.run(&[keys.feed([1i64])], &insert).unwrap();
    session.run(&[keys.feed([2i64, 3])], &insert).unwrap();
    let before = session.state_digest().unwrap();
    // The last step, twice, and an early end.
    for _ in 0..2 {
        let error = run.run(&[], (&add, &put)).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::Aborted, Some("table_insert")));
        assert!(error.message().contains("another run has changed table"), "{error}");
    }
    assert!(!run.is_done());
    assert_eq!(run.finish().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(session.state_digest().unwrap(), before);
    // One that is ended before it has come to change the table has nothing to give up.
    let mut run = session.partial_run(&[&keys], all).unwrap();
    run.run(&[], (&size, &put)).unwrap();
    session.run(&[keys.feed([4i64])], &insert).unwrap();
    run.finish().unwrap();
    let sizes = session.run(&[], (&size, q.size())).unwrap();
    assert_eq!((scalar::<i64>(sizes.0), scalar::<i32>(sizes.1)), (3, 1));
    // Again, and alone.
    let mut run = session.partial_run(&[&keys], all).unwrap();
    run.run(&[], &size).unwrap();
    run.run(&[keys.feed([5i64])], (&insert, &add, &put)).unwrap();
    assert_eq!(scalar::<i64>(session.run(&[], &size).unwrap()), 4);
}

/// Keys and values that do not go together fail the step that makes them.
#[test]
fn a_step_that_puts_wrong_pairs_fails() {
    let g = Graph::new();
    let table = g.mutable_table("table", I64, I64);
    let keys = g.placeholder("keys", I64, dims![None]);
    let values = g.placeholder("values", I64, dims![None]);
    let insert = table.insert(&keys, &values);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut run = session.partial_run(&[&keys, &values], (&keys, &insert)).unwrap();
    let error = run.run(&[keys.feed([1i64]), values.feed([1i64, 2])], &insert).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("table_insert")));
    run.run(&[keys.feed([1i64]), values.feed([2i64])], &insert).unwrap();
    run.finish().unwrap();
    assert_eq!(scalar::<i64>(session.run(&[], table.size()).unwrap()), 1);
}

/// What tells how much the run takes is there with the first step that takes some, or before.
#[test]
fn a_number_of_elements_is_fed_before_anything_is_taken() {
    for device in devices() {
        let g = Graph::new();
        let q = g.fifo_queue("q", 20, [(F32, dims![])]);
        let fill = q.enqueue_many(&[&g.constant(ramp(&[8]))]);
        let [n, x] = ["n", "x"].map(|name| g.placeholder(name, I32, dims![]));
        let some = q.dequeue_many(&n).remove(0);
        // Computed from two feeds.
        let more = q.dequeue_up_to(&n * 2 - &x).remove(0);
        let one = q.dequeue().remove(0);
        let double = &x * 2;
        let session = device.session(&g);
        session.run(&[], &fill).unwrap();
        let ramp = ramp(&[8]).to_vec::<f32>().unwrap();
        let before = session.state_digest().unwrap();
        let all = (&one, &some, &more, &double);
        let mut run = session.partial_run(&[&n, &x], all).unwrap();
        // The step itself needs none of them.
        lacks(&mut run, &[], &one, "n");
        lacks(&mut run, &[n.feed(2)], &one, "x");
        let error = run.run(&[n.feed(-1), x.feed(1)], &one).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert_eq!(error.node(), Some(&*some.operation().name()), "{error}");
        assert_eq!(scalar::<i32>(run.run(&[x.feed(1)], &double).unwrap()), 2);
        assert_eq!(session.state_digest().unwrap(), before);
        // They were fed before, and go where they are not needed any more.
        let more_of = run.run(&[n.feed(2)], &more).unwrap();
        assert_eq!(more_of.to_vec::<f32>().unwrap(), ramp[2..5], "{}", device.name);
        drop(run);
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
        let mut run = session.partial_run(&[&n, &x], all).unwrap();
        run.run(&[n.feed(2), x.feed(1)], &double).unwrap();
        assert_eq!(scalar::<f32>(run.run(&[], &one).unwrap()), ramp[5]);
        let (some, more) = run.run(&[], (&some, &more)).unwrap();
        assert_eq!(some.to_vec::<f32>().unwrap(), ramp[..2], "{}", device.name);
        assert_eq!(more.to_vec::<f32>().unwrap(), ramp[2..5], "{}", device.name);
        assert!(run.is_done());
        assert_eq!(scalar::<i32>(session.run(&[], q.size()).unwrap()), 2);
    }
}

/// An operation that takes is run without what it takes being fetched, after the number has gone.
#[test]
fn what_takes_is_a_target_too() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 20, [(F32, dims![])]);
    let fill = q.enqueue_many(&[&g.constant(ramp(&[8]))]);
    let n = g.placeholder("n", I32, dims![]);
    let taken = q.dequeue_many(&n * 2).remove(0);
    let sum = taken.sum(0);
    let after = g.after(&[&taken.operation()], || g.constant(1.0f32) * 3.0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], &fill).unwrap();
    let all = (&after, &sum, taken.operation());
    let mut run = session.partial_run(&[&n], all).unwrap();
    lacks(&mut run, &[], taken.operation(), "n");
    lacks(&mut run, &[], &after, "n");
    run.run(&[n.feed(2)], &sum).unwrap();
    run.run(&[], taken.operation()).unwrap();
    assert!(!run.is_done());
    assert_eq!(scalar::<f32>(run.run(&[], &after).unwrap()), 3.0);
    assert!(run.is_done());
    assert_eq!(scalar::<i32>(session.run(&[], q.size()).unwrap()), 4);
}

/// What depends on variables is not known before, as in a whole run; what was not declared is told of at once.
#[test]
fn numbers_that_only_the_run_knows_are_refused() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 20, [(F32, dims![])]);
    let v = g.variable("v", Init::Constant(1.0), I32, []);
    let n = g.placeholder("n", I32, dims![]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let error = session.partial_run(&[], &q.dequeue_many(v.read())[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented, "{error}");
    assert!(error.message().contains("unsupported"), "{error}");
    let error = session.partial_run(&[], &q.dequeue_many(&n * 2)[0]).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("n")), "{error}");
}

/// A step that waits is told of with the number that it has computed.
#[test]
fn a_step_that_waits_for_a_computed_number_says_so() {
    let g = Graph::new();
    let q = g.fifo_queue("q", 20, [(F32, dims![])]);
    let [n, x] = [g.placeholder("n", I32, dims![]), g.placeholder("x", F32, dims![])];
    let (put, taken) = (q.enqueue(&[&x]), q.dequeue_many(&n + 1).remove(0));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut run = session.partial_run(&[&n], (&taken, taken.operation())).unwrap();
    let error = run.run_with(&[n.feed(1)], &taken, &at_once()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    let soon = RunOptions { timeout: Some(A_WHILE), ..RunOptions::default() };
    let error = run.run_with(&[n.feed(1)], &taken, &soon).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    thread::scope(|scope| {
        scope.spawn(|| {
            let until = Instant::now() + LONG;
            while session.waiting().is_empty() && Instant::now() < until {
                thread::sleep(Duration::from_millis(1));
            }
            let waiting = session.waiting();
            let lacks = waiting.first().map(|run| run.operations[0].lacks);
            assert_eq!(lacks, Some(Lack::Elements { wanted: 2, there: 0 }));
            (0..2).for_each(|i| session.run(&[x.feed(i as f32)], &put).unwrap());
        });
        let limit = RunOptions { timeout: Some(LONG * 2), ..RunOptions::default() };
        let (taken, _) = run.run_with(&[n.feed(1)], &taken, &limit).unwrap();
        assert_eq!(taken.to_vec::<f32>().unwrap(), [0.0, 1.0]);
    });
}

/// One of several queues, to be put into and taken from; room is kept in the one that was chosen.
#[test]
fn queues_are_chosen_by_what_is_fed() {
    for device in devices() {
        let g = Graph::new();
        let queues = ["a", "b"].map(|name| g.fifo_queue(name, 1, [(F32, dims![])]));
        let [a, b] = &queues;
        let [at, x] = [g.placeholder("at", I32, dims![]), g.placeholder("x", F32, dims![])];
        let chosen = g.select_queue(&at, &[a, b]);
        let other = g.select_queue(&(&at * -1 + 1), &[a, b]);
        let put = chosen.enqueue(&[&(&x * 2.0)]);
        let taken = other.dequeue().remove(0);
        let (put_a, put_b) = (a.enqueue(&[&x]), b.enqueue(&[&x]));
        let session = device.session(&g);
        session.run(&[x.feed(7.0)], &put_b).unwrap();
        let mut run = session.partial_run(&[&at, &x], (&put, &taken)).unwrap();
        lacks(&mut run, &[x.feed(3.0)], &put, "at");
        let error = run.run(&[at.feed(2)], &taken).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains("index"), "{error}");
        assert_eq!(scalar::<f32>(run.run(&[at.feed(0)], &taken).unwrap()), 7.0);
        // Of `a` there is no room left, in `b` there is.
        let full = session.run_with(&[x.feed(1.0)], &put_a, at_once()).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::FailedPrecondition, "{full}");
        session.run_with(&[x.feed(1.0)], &put_b, at_once()).unwrap();
        run.run(&[x.feed(3.0)], &put).unwrap();
        let all = session.run(&[], (&a.dequeue()[0], &b.dequeue()[0])).unwrap();
        assert_eq!((scalar::<f32>(all.0), scalar::<f32>(all.1)), (6.0, 1.0), "{}", device.name);
    }
}

/// What is applied comes in at the end, and the step goes up then; what was taken is given back with its step.
#[test]
fn accumulators_count_when_the_run_has_ended() {
    for device in devices() {
        let g = Graph::new();
        let options = AccumulatorOptions { reduction: Reduction::Sum, ..Default::default() };
        let all = g.conditional_accumulator("all", F32, dims![2], options);
        let x = g.placeholder("x", F32, dims![2]);
        let step = g.placeholder("step", I64, dims![]);
        let apply = all.apply_gradient(&(&x * 10.0), &step);
        let (take, n) = (all.take_gradient(2), all.num_accumulated());
        let (y, set) = (&take + 1.0, all.set_global_step(&step));
        let session = device.session(&g);
        let count = || scalar::<i32>(session.run(&[], &n).unwrap());
        let put = |at: f32, of: i64| {
            session.run(&[x.feed([at, 0.5]), step.feed(of)], &apply).unwrap();
        };
        put(1.0, 0);
        put(2.0, 0);
        let before = session.state_digest().unwrap();
        let mut run = session.partial_run(&[&x, &step], (&n, &y, &take, &apply)).unwrap();
        let got = run.run(&[], &y).unwrap();
        assert_eq!(got.to_vec::<f32>().unwrap(), [31.0, 11.0], "{}", device.name);
        assert_eq!(count(), 0);
        drop(run);
        assert_eq!(session.state_digest().unwrap(), before);
        let mut run = session.partial_run(&[&x, &step], (&n, &y, &take, &apply)).unwrap();
        run.run(&[x.feed([3.0f32, 3.0]), step.feed(1i64)], &apply).unwrap();
        assert_eq!(scalar::<i32>(run.run(&[], &n).unwrap()), 2);
        assert_eq!(count(), 0);
        // The step is still 0 for others.
        put(4.0, 0);
        assert_eq!(count(), 1);
        run.run(&[], (&y, &take)).unwrap();
        assert_eq!(count(), 2);
        put(9.0, 0);
        assert_eq!(count(), 2, "{}: a gradient that is too old", device.name);
        put(5.0, 1);
        assert_eq!(count(), 3);
        // Ended early: what was taken counts, what has not run does not.
        let mut run = session.partial_run(&[&x, &step], (&take, &apply, &y)).unwrap();
        run.run(&[], &take).unwrap();
        run.finish().unwrap();
        put(6.0, 1);
        assert_eq!(count(), 0, "{}: a gradient that is too old", device.name);
        // A step that is set is so at the end, or not at all.
        let mut run = session.partial_run(&[&step], (&set, &step)).unwrap();
        run.run(&[step.feed(9i64)], &set).unwrap();
        put(7.0, 2);
        assert_eq!(count(), 1);
        run.run(&[], &step).unwrap();
        put(8.0, 8);
        assert_eq!(count(), 1);
        let mut run = session.partial_run(&[&step], (&set, &n)).unwrap();
        run.run(&[], &n).unwrap();
        run.finish().unwrap();
        put(8.0, 9);
        assert_eq!(count(), 2, "{}", device.name);
    }
}

/// A gradient that a run gives back is too old if the step has gone beyond it meanwhile.
#[test]
fn gradients_that_are_given_back_too_late_are_dropped() {
    let g = Graph::new();
    let all = g.conditional_accumulator("all", F32, dims![], AccumulatorOptions::default());
    let [x, step] = [g.placeholder("x", F32, dims![]), g.placeholder("step", I64, dims![])];
    let (apply, take) = (all.apply_gradient(&x, &step), all.take_gradient(1));
    let (n, set) = (all.num_accumulated(), all.set_global_step(&step));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let put = |at: f32, of: i64| {
        session.run(&[x.feed(at), step.feed(of)], &apply).unwrap();
    };
    let count = || scalar::<i32>(session.run(&[], &n).unwrap());
    let holds = || {
        let mut run = session.partial_run(&[&x], (&take, &x)).unwrap();
        run.run(&[], &take).unwrap();
        assert_eq!(count(), 0);
        run
    };
    put(1.0, 0);
    put(3.0, 1);
    let run = holds();
    put(5.0, 0);
    assert_eq!(scalar::<f32>(session.run(&[], &take).unwrap()), 5.0);
    // Now at step 1.
    drop(run);
    assert_eq!(count(), 1);
    assert_eq!(scalar::<f32>(session.run(&[], &take).unwrap()), 3.0);
    // One that was there when the step was set is there until it is taken.
    put(7.0, 2);
    session.run(&[step.feed(9i64)], &set).unwrap();
    let before = session.state_digest().unwrap();
    drop(holds());
    assert_eq!((count(), session.state_digest().unwrap()), (1, before));
}

/// Components come in at the end; their keys are promised meanwhile, and free again if the run is given up.
#[test]
fn barriers_get_what_steps_insert_at_the_end() {
    let g = Graph::new();
    let barrier = g.barrier("b", [(F32, dims![]), (F32, dims![])], None);
    let keys = g.placeholder("keys", Strings, dims![None]);
    let [first, second] = ["first", "second"].map(|name| g.placeholder(name, F32, dims![None]));
    let insert = [0, 1].map(|i| barrier.insert_many(i, &keys, [&first, &second][i]));
    let taken = barrier.take_many(1);
    let (ready, incomplete) = (barrier.ready_size(), barrier.incomplete_size());
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let sizes = || {
        let (ready, incomplete) = session.run(&[], (&ready, &incomplete)).unwrap();
        [ready, incomplete].map(scalar::<i32>)
    };
    let two = || keys.feed(strings(&["one", "two"]));
    let feeds = [&keys, &first, &second];
    let all = (&insert[0], &insert[1]);
    let mut run = session.partial_run(&feeds, all).unwrap();
    lacks(&mut run, &[first.feed([1.0f32, 2.0])], &insert[0], "keys");
    let error = run.run(&[two(), first.feed([1.0f32])], &insert[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.message().contains("expected values [2]"), "{error}");
    run.run(&[two(), first.feed([1.0f32, 2.0])], &insert[0]).unwrap();
    assert_eq!(sizes(), [0, 0]);
    // The keys are promised for both components.
    let error = session.run(&[two(), second.feed([0.0f32, 0.0])], &insert[1]).unwrap_err();
    assert!(error.message().contains("already has a value"), "{error}");
    run.run(&[second.feed([10.0f32, 20.0])], &insert[1]).unwrap();
    assert_eq!(sizes(), [2, 0]);
    let fetches = (&taken.keys, &taken.components[1]);
    let mut run = session.partial_run(&[], fetches).unwrap();
    assert_eq!(run.run(&[], fetches.1).unwrap().to_vec::<f32>().unwrap(), [10.0]);
    assert_eq!(sizes(), [1, 0]);
    drop(run);
    assert_eq!(sizes(), [2, 0]);
    session.run(&[], &barrier.take_many(2).keys).unwrap();
    // Ended early: what has not run is promised no longer.
    let mut run = session.partial_run(&feeds, all).unwrap();
    run.run(&[two(), first.feed([3.0f32, 4.0])], &insert[0]).unwrap();
    run.finish().unwrap();
    assert_eq!(sizes(), [0, 2]);
    session.run(&[two(), second.feed([30.0f32, 40.0])], &insert[1]).unwrap();
    assert_eq!(sizes(), [2, 0]);
}

#[test]
fn staging_areas_in_steps() {
    for device in devices() {
        let g = Graph::new();
        let area = g.staging_area("area", [(F32, dims![])], StagingOptions::default());
        let [x, at] = [g.placeholder("x", F32, dims![]), g.placeholder("at", I32, dims![])];
        let put = area.put(&[&(&x + 1.0)]);
        let (got, seen, size) = (area.get().remove(0), area.peek(&at).remove(0), area.size());
        let clear = area.clear();
        let session = device.session(&g);
        let count = || scalar::<i32>(session.run(&[], &size).unwrap());
        (1..4).for_each(|i| session.run(&[x.feed(i as f32)], &put).unwrap());
        let before = session.state_digest().unwrap();
        let mut run = session.partial_run(&[&x, &at], (&size, &got, &seen, &put)).unwrap();
        lacks(&mut run, &[], &size, "at");
        // As the area was when the first step looked.
        assert_eq!(scalar::<f32>(run.run(&[at.feed(2)], &seen).unwrap()), 4.0);
        assert_eq!(count(), 2, "{}", device.name);
        assert_eq!(scalar::<f32>(run.run(&[], &got).unwrap()), 2.0);
        drop(run);
        assert_eq!(session.state_digest().unwrap(), before);
        let mut run = session.partial_run(&[&x, &at], (&size, &got, &seen, &put)).unwrap();
        run.run(&[x.feed(8.0), at.feed(0)], &put).unwrap();
        assert_eq!(scalar::<i32>(run.run(&[], &size).unwrap()), 3);
        run.run(&[], (&got, &seen)).unwrap();
        assert_eq!(count(), 3, "{}", device.name);
        // Cleared at the end.
        let mut run = session.partial_run(&[], (&size, &clear)).unwrap();
        run.run(&[], &clear).unwrap();
        assert_eq!(count(), 3);
        run.run(&[], &size).unwrap();
        assert_eq!(count(), 0, "{}", device.name);
    }
}

/// A step is told from another by all that came before it, in whatever run.
#[test]
fn steps_with_other_steps_before_them_are_others() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let (a, b) = (&x * 2.0, &x * 3.0);
    let c = &a + &b;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let options = RunOptions::default();
    let mut runs = Vec::new();
    for first in [&a, &b, &a, &b] {
        let mut run = session.partial_run(&[&x], (&a, &b, &c)).unwrap();
        let (_, one) = run.run_with(&[x.feed(1.0)], first, &options).unwrap();
        // A step that fails is none of those before.
        run.run(&[], &x).unwrap_err();
        let (sum, two) = run.run_with(&[], &c, &options).unwrap();
        assert_eq!(scalar::<f32>(sum), 5.0);
        runs.push([one, two].map(|step| (step.plan_cached, step.graph_nodes)));
    }
    // The second has the other product to compute, and the sum.
    let each = |cached: bool| [(cached, 2), (cached, 3)];
    let [one, two] = each(false);
    assert_eq!(runs, [[one, two], [one, two], each(true), each(true)]);
}

/// What was made after the plan, or after the run, was not declared.
#[test]
fn what_is_newer_than_the_run_was_not_declared() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let y = &x * 2.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let mut old = session.partial_run(&[&x], &y).unwrap();
    let z = &x + 1.0;
    let w = g.placeholder("w", F32, dims![]);
    // It has the plan of the first.
    let mut new = session.partial_run(&[&x], &y).unwrap();
    for run in [&mut old, &mut new] {
        let refused = [
            (run.run(&[x.feed(1.0)], &z).err(), &z),
            (run.run(&[x.feed(1.0)], z.operation()).err(), &z),
            (run.run(&[x.feed(1.0), w.feed(1.0)], &y).err(), &w),
        ];
        for (error, newer) in refused {
            let (error, name) = (error.unwrap(), newer.operation().name());
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert_eq!(error.node(), Some(&*name), "{error}");
            assert!(error.message().contains("not declared"), "{error}");
        }
        assert_eq!(scalar::<f32>(run.run(&[x.feed(1.5)], &y).unwrap()), 3.0);
    }
}
