//! Sessions and graphs used by many threads at once, and the threads of sessions.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use convoke::prelude::*;
use convoke::{
    Backward, Class, CustomKernel, Fact, Facts, KernelShapes, Op, OpError, RunHandle, RunOptions,
    TensorView, TensorViewMut, Values, Wgsl,
};
use convoke_tests::{A_WHILE, Stress, devices};

/// Gives its input, and calls a function on the thread that runs it.
#[derive(Clone)]
struct Tap(Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tap")
    }
}

#[track_caller]
fn tap(x: &Tensor, f: impl Fn() + Send + Sync + 'static) -> Tensor {
    x.apply(Tap(Arc::new(f)), &[x])
}

impl Op for Tap {
    fn name(&self) -> &str {
        "tap"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<Facts, OpError> {
        Ok([inputs[0].clone()].into())
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<Values, OpError> {
        Ok([inputs[0].clone()].into())
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![backward.dy()]
    }

    fn class(&self) -> Class<'_> {
        Class::Custom(Arc::new(self.clone()))
    }

    fn encode(&self) -> Option<convoke::Attributes> {
        None
    }
}

impl CustomKernel for Tap {
    fn cpu(
        &self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
    ) -> convoke::Result<()> {
        (self.0)();
        outputs[0].as_slice_mut::<f32>()?.copy_from_slice(inputs[0].as_slice::<f32>()?);
        Ok(())
    }

    fn wgsl(&self, _: &KernelShapes) -> Option<Wgsl> {
        None
    }

    fn flops(&self, _: &KernelShapes) -> u64 {
        1
    }
}

/// `[3, 2; -1, 0]` times a vector, doubled, as in `direct_session_test.cc`: of ones, `[10, -2]`.
struct Network {
    g: Graph,
    x: Tensor,
    y: Tensor,
}

const ONES: [[f32; 1]; 2] = [[1.0], [1.0]];

impl Network {
    fn new() -> Self {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![2, 1]);
        let y = g.constant([[3.0f32, 2.0], [-1.0, 0.0]]).matmul(&x) * 2.0;
        Self { g, x, y }
    }

    fn run(&self, session: &Session, y: &Tensor) -> Vec<f32> {
        session.run(&[self.x.feed(ONES)], y).unwrap().to_vec::<f32>().unwrap()
    }

    fn submit(&self, session: &Session, y: &Tensor) -> RunHandle<Tensor> {
        session.submit(&[self.x.feed(ONES)], y.clone(), RunOptions::default())
    }
}

/// TensorFlow: `testDefaultGraphWithThreads`: threads build graphs of their own at once.
#[test]
fn default_graph_with_threads() {
    thread::scope(|scope| {
        for i in 0..10 {
            scope.spawn(move || {
                for device in devices() {
                    let g = Graph::new();
                    let v = g.variable("v", Init::Constant(f64::from(i)), F32, []);
                    let w = g.scope("s", || v.value() * 2.0);
                    assert_eq!((v.name(), w.name()), ("v".into(), "s/mul:0".into()));
                    let session = device.session(&g);
                    session.run(&[], g.initializers()).unwrap();
                    let w = session.run(&[], &w).unwrap().scalar::<f32>().unwrap();
                    assert_eq!(w, 2.0 * i as f32, "{}", device.name);
                }
            });
        }
    });
}

/// TensorFlow: `testParallelRun`: a hundred threads.
#[test]
fn parallel_run() {
    for device in devices() {
        let net = Network::new();
        let session = device.session(&net.g);
        thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| {
                    assert_eq!(net.run(&session, &net.y), [10.0, -2.0], "{}", device.name);
                });
            }
        });
    }
}

/// Ten threads run while `n_builders` add loops of operations, their gradients and scopes to the graph, and run those.
fn run_and_build(n_builders: usize) {
    for device in devices() {
        let g = Graph::new();
        let c = g.constant(5.0f32) * 1.0;
        let session =
            device.session_with(&g, SessionOptions { warn_of_growth: false, ..Default::default() });
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let c = session.run(&[], &c).unwrap().scalar::<f32>().unwrap();
                        assert_eq!(c, 5.0);
                        thread::yield_now();
                    }
                });
            }
            let builders: Vec<_> = (0..n_builders)
                .map(|i| {
                    let (g, session) = (&g, &session);
                    scope.spawn(move || {
                        for j in 0..5 {
                            let y = g.scope(&format!("b{i}"), || {
                                let x = g.placeholder("x", F32, dims![]);
                                let y = (0..5).fold(x.clone(), |y, _| &y * &x);
                                (x.clone(), y.gradients(&[&x]).remove(0).unwrap())
                            });
                            let (x, dy) = y;
                            // Of x to the sixth: 6 x^5.
                            let dy = session.run(&[x.feed(2.0)], &dy).unwrap();
                            assert_eq!(dy.scalar::<f32>().unwrap(), 192.0, "round {j}");
                        }
                    })
                })
                .collect();
            let built: Vec<_> = builders.into_iter().map(|builder| builder.join()).collect();
            stop.store(true, Ordering::Relaxed);
            built.into_iter().for_each(|built| built.unwrap());
        });
        assert!(g.check().is_empty(), "{}: {:?}", device.name, g.check());
    }
}

/// TensorFlow: `testParallelRunAndSingleBuild`.
#[test]
fn parallel_run_and_single_build() {
    run_and_build(1);
}

/// TensorFlow: `testParallelRunAndParallelBuild`.
#[test]
fn parallel_run_and_parallel_build() {
    run_and_build(10);
}

/// TensorFlow: `TestConcurrency` of `direct_session_test.cc`: four threads, a thousand runs each.
#[test]
fn concurrency() {
    let net = Network::new();
    let session = Session::new(&net.g, &Devices::cpu()).unwrap();
    let n_right = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let right = net.run(&session, &net.y) == [10.0, -2.0];
                    n_right.fetch_add(usize::from(right), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(n_right.into_inner(), 4000);
}

/// TensorFlow: `TestConcurrency_Callable`.
#[test]
fn concurrency_callable() {
    let net = Network::new();
    let session = Session::new(&net.g, &Devices::cpu()).unwrap();
    let callable = session.callable(&[&net.x], &net.y).unwrap();
    let n_right = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let y = callable.call([ONES]).unwrap().to_vec::<f32>().unwrap();
                    n_right.fetch_add(usize::from(y == [10.0, -2.0]), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(n_right.into_inner(), 4000);
}

/// TensorFlow: `testPerSessionThreads` and `TestPerSessionThreads`: each session has as many as it is told.
#[test]
fn per_session_threads() {
    for device in devices() {
        let net = Network::new();
        let halves = net.x.slice(&[0, 0], &[Some(1), None]).broadcast_to(&[300, 300]) * 0.5;
        let large = halves.matmul(&halves).sum(());
        let sessions = [1, 2, 7].map(|threads| {
            device.session_with(&net.g, SessionOptions { threads, ..SessionOptions::default() })
        });
        thread::scope(|scope| {
            for session in &sessions {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let fetches = (&net.y, &large);
                        let (y, large) = session.run(&[net.x.feed(ONES)], fetches).unwrap();
                        assert_eq!(y.to_vec::<f32>().unwrap(), [10.0, -2.0], "{}", device.name);
                        // 300 * 0.25 in 90 000 places.
                        assert_eq!(large.scalar::<f32>().unwrap(), 6_750_000.0);
                    }
                });
            }
        });
    }
}

/// `threads` counts the caller's: with 1, a session has none of its own for kernels. Other tests start and end threads
/// all the time, so that a process of its own counts them.
#[cfg(target_os = "linux")]
#[test]
fn a_session_of_one_thread_starts_none() {
    const ALONE: &str = "CONVOKE_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "session::threads::a_session_of_one_thread_starts_none";
        let output = command.args([name, "--exact"]).env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let n_threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = n_threads();
    // The last one's threads may outlive it for a moment.
    for (threads, own) in [(1, 0), (3, 2)] {
        let net = Network::new();
        let halves = net.x.slice(&[0, 0], &[Some(1), None]).broadcast_to(&[300, 300]) * 0.5;
        let large = halves.matmul(&halves).sum(());
        let options = SessionOptions { threads, ..SessionOptions::default() };
        let session = Session::with_options(&net.g, &Devices::cpu(), options).unwrap();
        // 300 * 0.25 in 90 000 places.
        assert_eq!(net.run(&session, &large), [6_750_000.0]);
        assert_eq!(n_threads(), before + own, "{threads} threads");
    }
}

/// TensorFlow: `testSessionInterOpThreadPool`: submitted runs have the threads of their session.
#[test]
fn session_inter_op_thread_pool() {
    let net = Network::new();
    let seen = Arc::new(Mutex::new(Vec::<ThreadId>::new()));
    let own = seen.clone();
    let y = tap(&net.y, move || own.lock().unwrap().push(thread::current().id()));
    for runners in [1, 3] {
        seen.lock().unwrap().clear();
        let options = SessionOptions { runners, ..SessionOptions::default() };
        let session = Session::with_options(&net.g, &Devices::cpu(), options).unwrap();
        let runs: Vec<_> = (0..20).map(|_| net.submit(&session, &y)).collect();
        for run in runs {
            assert_eq!(run.wait().unwrap().to_vec::<f32>().unwrap(), [10.0, -2.0]);
        }
        let mut threads = seen.lock().unwrap().clone();
        assert!(threads.len() == 20 && !threads.contains(&thread::current().id()));
        threads.sort_by_key(|id| format!("{id:?}"));
        threads.dedup();
        assert!(threads.len() <= runners, "{} threads of {runners}", threads.len());
    }
}

/// TensorFlow: `SessionSyncRun`, `SyncSession`: `run` computes on the caller's thread.
#[test]
fn session_sync_run() {
    let net = Network::new();
    let seen = Arc::new(Mutex::new(Vec::<ThreadId>::new()));
    let own = seen.clone();
    let y = tap(&net.y, move || own.lock().unwrap().push(thread::current().id()));
    let session = Session::new(&net.g, &Devices::cpu()).unwrap();
    net.run(&session, &y);
    session.callable(&[&net.x], &y).unwrap().call([ONES]).unwrap();
    assert_eq!(*seen.lock().unwrap(), [thread::current().id(); 2]);
}

/// TensorFlow: `TestSessionInterOpThreads`: the small pool's only thread is held up; who does without it goes on.
#[test]
fn session_inter_op_threads() {
    let net = Network::new();
    let (open, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (gate, told) = (open.clone(), begun.clone());
    let held = tap(&net.y, move || {
        told.store(true, Ordering::Release);
        while !gate.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let free = &net.y + 1.0;
    let with = |runners| {
        let options = SessionOptions { runners, ..SessionOptions::default() };
        Session::with_options(&net.g, &Devices::cpu(), options).unwrap()
    };
    let (small, large) = (with(1), with(8));
    let blocked = net.submit(&small, &held);
    let since = Instant::now();
    while !begun.load(Ordering::Acquire) {
        assert!(since.elapsed() < Duration::from_secs(60), "it does not begin");
        thread::yield_now();
    }
    let behind = net.submit(&small, &free);
    let right = |y: HostTensor| assert_eq!(y.to_vec::<f32>().unwrap(), [11.0, -1.0]);
    (0..10).for_each(|_| right(net.submit(&large, &free).wait().unwrap()));
    (0..10).for_each(|_| right(small.run(&[net.x.feed(ONES)], &free).unwrap()));
    let blocked = blocked.wait_for(A_WHILE).expect_err("it is held up");
    assert!(!behind.is_done(), "there is one thread");
    open.store(true, Ordering::Release);
    assert_eq!(blocked.wait().unwrap().to_vec::<f32>().unwrap(), [10.0, -2.0]);
    right(behind.wait().unwrap());
}

/// TensorFlow: `UseRunHandlerPool`: runs of one pool give what each by itself gives.
#[test]
fn use_run_handler_pool() {
    for device in devices() {
        let net = Network::new();
        let session = device.session(&net.g);
        let runs: Vec<_> = (0..30).map(|_| net.submit(&session, &net.y)).collect();
        for run in runs {
            let y = run.wait().unwrap().to_vec::<f32>().unwrap();
            assert_eq!(y, [10.0, -2.0], "{}", device.name);
        }
    }
}

/// TensorFlow: `TestTimeoutCleanShutdown`: a run that timed out returns when its kernels are done, not before.
#[test]
fn timeout_clean_shutdown() {
    let net = Network::new();
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (b, e) = (begun.clone(), ended.clone());
    let y = tap(&net.y, move || {
        b.fetch_add(1, Ordering::SeqCst);
        thread::sleep(4 * A_WHILE);
        e.fetch_add(1, Ordering::SeqCst);
    });
    let after = tap(&y, || panic!("the run had timed out"));
    let session = Session::new(&net.g, &Devices::cpu()).unwrap();
    net.run(&session, &y);
    let feeds = [net.x.feed(ONES)];
    for _ in 0..3 {
        let options = RunOptions { timeout: Some(A_WHILE), ..RunOptions::default() };
        let error = session.run_with(&feeds, &after, options.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        assert_eq!(begun.load(Ordering::SeqCst), ended.load(Ordering::SeqCst));
        let error = session.submit(&feeds, &after, options).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        assert_eq!(begun.load(Ordering::SeqCst), ended.load(Ordering::SeqCst));
    }
}

/// The short form of `convoke-tests`' command `stress`.
#[test]
fn many_threads_run_every_kind_of_run() {
    for device in devices() {
        let stress = Stress {
            threads: 16,
            runs: if device.name == "CPU" { 300 } else { 20 },
            cancels: 40,
            patience: Duration::from_secs(60),
            seed: 3,
        };
        let figures = stress.run(device, |_| {}).unwrap();
        assert!(figures.runs >= stress.n_runs(), "{}: {figures}", device.name);
        println!("{}: {figures}", device.name);
    }
}
