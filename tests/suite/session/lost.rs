//! A GPU that is lost while a run stores: what lives elsewhere has not changed.

use convoke::prelude::*;
use convoke::{OnDevice, wgpu};
use convoke_tests::devices;

/// A device of the app on an adapter that the tests use.
fn open(name: &str) -> (wgpu::Device, wgpu::Queue) {
    let instance = wgpu::Instance::default();
    let all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let is_it = |adapter: &wgpu::Adapter| adapter.get_info().name.to_lowercase().contains(name);
    let adapter = all.into_iter().find(is_it).unwrap();
    pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap()
}

/// A graph that assigns variables on the host and on the GPU in a branch, then calls `last`, and then ends.
struct Model {
    g: Graph,
    p: Tensor,
    assigned: Tensor,
    last: Tensor,
    on_host: Vec<Variable>,
}

impl Model {
    fn new(last: impl Fn() + Send + Sync + 'static) -> Self {
        let g = Graph::with_seed(1);
        let p = g.placeholder("p", Bool, dims![]);
        let variables = |device: &str| -> Vec<Variable> {
            let name = |i: i32| format!("{}{i}", device.to_lowercase().replace(':', ""));
            let make = |i: i32| g.variable(&name(i), Init::Constant(1.0), F32, [4]);
            (0..6).map(|i| g.device(device, || make(i))).collect()
        };
        let (on_host, on_gpu) = (variables("CPU:0"), variables("GPU:0"));
        let draw = g.device("CPU:0", || g.random_uniform(&[4], F32, 1));
        // It is read there, so that it lives there.
        let read = |device: &str, v: &Variable| g.device(device, || v.value() + 1.0);
        let mut sums: Vec<Tensor> = on_host.iter().map(|v| read("CPU:0", v)).collect();
        sums.extend(on_gpu.iter().map(|v| read("GPU:0", v)));
        let all: Vec<&Variable> = on_host.iter().chain(&on_gpu).collect();
        let assigned = g.cond(
            &p,
            || all.iter().zip(&sums).map(|(v, sum)| v.assign(sum)).collect::<Vec<_>>(),
            || sums.clone(),
        );
        let called = move |inputs: &[HostTensor]| {
            last();
            Ok(inputs.to_vec())
        };
        let after = [&assigned[0].operation(), &draw.operation()];
        let first = &assigned[0];
        let function = || g.host_function("last", &[first], [(F32, dims![4])], called).remove(0);
        let last = g.after(&after, function);
        Self { p, assigned: assigned[0].clone(), last, on_host, g }
    }
}

fn values(session: &Session, variables: &[Variable]) -> Vec<HostTensor> {
    variables.iter().map(|v| session.run(&[], v).unwrap()).collect()
}

#[test]
fn a_flow_run_that_cannot_store_on_a_gpu_changes_nothing_on_the_host() {
    for device in devices().iter().skip(1) {
        let (app, queue) = open(&device.name);
        let lost = app.clone();
        let loses = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let now = loses.clone();
        let model = Model::new(move || {
            if now.load(std::sync::atomic::Ordering::Relaxed) {
                lost.destroy();
            }
        });
        let devices = Devices::from_wgpu(app, queue).unwrap();
        let session = Session::new(&model.g, &devices).unwrap();
        session.run(&[], model.g.initializers()).unwrap();
        let run = || session.run(&[model.p.feed(true)], &model.last);
        assert_eq!(run().unwrap().to_vec::<f32>().unwrap(), [2.0; 4], "{}", device.name);
        let variables = session.variables();
        let n = variables.iter().filter(|v| v.device == 1 && v.initialized).count();
        assert_eq!(n, 6, "{}", device.name);
        let before = values(&session, &model.on_host);
        assert_eq!(before[5].to_vec::<f32>().unwrap(), [2.0; 4]);
        loses.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(run().is_err(), "{}", device.name);
        assert_eq!(values(&session, &model.on_host), before, "{}", device.name);
    }
}

#[test]
fn a_partial_run_that_cannot_store_on_a_gpu_changes_nothing_on_the_host() {
    for device in devices().iter().skip(1) {
        let (app, queue) = open(&device.name);
        let model = Model::new(|| ());
        let devices = Devices::from_wgpu(app.clone(), queue).unwrap();
        let session = Session::new(&model.g, &devices).unwrap();
        session.run(&[], model.g.initializers()).unwrap();
        session.run(&[model.p.feed(true)], &model.last).unwrap();
        let before = values(&session, &model.on_host);
        let fetches = (&model.assigned, &model.last);
        let mut run = session.partial_run(&[&model.p], fetches).unwrap();
        run.run(&[model.p.feed(true)], &model.assigned).unwrap();
        app.destroy();
        assert!(run.run(&[], &model.last).is_err(), "{}", device.name);
        assert_eq!(values(&session, &model.on_host), before, "{}", device.name);
        assert!(!run.is_done());
        assert!(run.finish().is_err(), "{}", device.name);
        assert_eq!(values(&session, &model.on_host), before, "{}", device.name);
    }
}

/// A tensor that stayed on a GPU is gone with it, for runs of the GPU and of the host alike.
#[test]
fn a_tensor_on_a_gpu_that_is_lost_is_unavailable() {
    for device in devices().iter().skip(1) {
        let (app, queue) = open(&device.name);
        let devices = Devices::from_wgpu(app.clone(), queue).unwrap();
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let v = g.device("CPU:0", || g.variable("v", Init::Constant(1.0), F32, [4]));
        let [double, triple] = [2.0, 3.0].map(|by| g.device("GPU:0", || &x * by));
        let [sum, stored, stored_double] =
            g.device("CPU:0", || [&x + v.value(), v.assign(&x), v.assign(&double)]);
        let session = Session::new(&g, &devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let kept = session.run(&[x.feed([1.0f32, 2.0, 3.0, 4.0])], OnDevice(&double)).unwrap();
        assert_eq!(kept.device(), "GPU:0", "{}", device.name);
        let run = |fetch: &Tensor| session.run(&[x.feed(&kept)], fetch);
        let expected = [
            (&double, [4.0f32, 8.0, 12.0, 16.0]),
            (&sum, [3.0, 5.0, 7.0, 9.0]),
            (&stored, [2.0, 4.0, 6.0, 8.0]),
            (&stored_double, [4.0, 8.0, 12.0, 16.0]),
        ];
        for (fetch, expected) in expected {
            let found = run(fetch).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(found, expected, "{}", device.name);
        }
        assert!(session.variables().iter().all(|v| v.device == 0), "{}", device.name);
        let before = session.state_digest().unwrap();
        app.destroy();
        let error = kept.to_host().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}: {error}", device.name);
        // The last one was not compiled before.
        for fetch in [&double, &sum, &stored, &stored_double, &triple] {
            let error = run(fetch).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{}: {error}", device.name);
            assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
        }
        assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [4.0, 8.0, 12.0, 16.0]);
    }
}
