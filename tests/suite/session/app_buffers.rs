//! Buffers of an app's own wgpu device: fed to runs, and receivers of what they give.

use convoke::prelude::*;
use convoke::{DeviceTensor, OnDevice, RunOptions, Shape, wgpu};
use convoke_tests::devices;
use wgpu::BufferUsages;

/// A device of the app on an adapter that the tests use.
struct App {
    name: &'static str,
    adapter: wgpu::Adapter,
    device: wgpu::Device,
    queue: wgpu::Queue,
}

impl App {
    fn open(name: &'static str) -> Self {
        let instance = wgpu::Instance::default();
        let all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
        let is_it = |adapter: &wgpu::Adapter| adapter.get_info().name.to_lowercase().contains(name);
        let adapter = all.into_iter().find(is_it).unwrap();
        Self::on(name, adapter)
    }

    fn on(name: &'static str, adapter: wgpu::Adapter) -> Self {
        let descriptor = wgpu::DeviceDescriptor::default();
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        Self { name, adapter, device, queue }
    }

    /// Another device of the same instance.
    fn another(&self) -> Self {
        Self::on(self.name, self.adapter.clone())
    }

    fn buffer(&self, size: u64, usage: BufferUsages) -> wgpu::Buffer {
        let (label, mapped_at_creation) = (None, false);
        let descriptor = wgpu::BufferDescriptor { label, size, usage, mapped_at_creation };
        self.device.create_buffer(&descriptor)
    }

    fn filled(&self, elements: &[f32]) -> wgpu::Buffer {
        let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let buffer = self.buffer(4 * elements.len() as u64, usage);
        self.fill(&buffer, elements);
        buffer
    }

    fn fill(&self, buffer: &wgpu::Buffer, elements: &[f32]) {
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_ne_bytes()).collect();
        self.queue.write_buffer(buffer, 0, &bytes);
        self.queue.submit([]);
    }

    /// What a buffer with `COPY_SRC` holds.
    fn read(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let staging = self.buffer(buffer.size(), usage);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, None);
        self.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |mapped| mapped.unwrap());
        self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let view = staging.get_mapped_range(..).unwrap();
        view.chunks_exact(4).map(|x| f32::from_ne_bytes(x.try_into().unwrap())).collect()
    }
}

fn apps() -> impl Iterator<Item = App> {
    devices().iter().skip(1).map(|device| App::open(&device.name))
}

fn dims(n: usize) -> Shape {
    Shape::new(&[n]).unwrap()
}

#[test]
fn a_buffer_goes_through_a_graph_into_another() {
    for app in apps() {
        let devices = Devices::from_wgpu(app.device.clone(), app.queue.clone()).unwrap();
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None]);
        let y = g.device("GPU:0", || &x * 2.0);
        let session = Session::new(&g, &devices).unwrap();
        let input = app.filled(&[1.0, 2.0, 3.0]);
        let output = app.buffer(16, BufferUsages::COPY_SRC | BufferUsages::COPY_DST);
        let fed =
            DeviceTensor::from_buffer(&devices, "GPU:0", input.clone(), F32, dims(3)).unwrap();
        assert_eq!((fed.device(), fed.buffer()), ("GPU:0", Some(&input)));
        for scale in [1.0f32, 10.0] {
            // A run sees what the app has submitted before it.
            app.fill(&input, &[scale, 2.0 * scale, 3.0 * scale]);
            let feeds = [x.feed(&fed)];
            let (kept, run) =
                session.run_with(&feeds, OnDevice(&y), RunOptions::default()).unwrap();
            assert_eq!((run.uploads, run.downloads), (0, 0), "{}", app.name);
            kept.copy_to_buffer(&output, 4).unwrap();
            let doubled = [2.0 * scale, 4.0 * scale, 6.0 * scale];
            assert_eq!(
                app.read(&output),
                [0.0, doubled[0], doubled[1], doubled[2]],
                "{}",
                app.name
            );
            // Or with no copy at all.
            assert_eq!(app.read(kept.buffer().unwrap())[..3], doubled, "{}", app.name);
            assert_eq!(kept.to_host().unwrap().to_vec::<f32>().unwrap(), doubled);
        }
        assert_eq!(fed.to_host().unwrap().to_vec::<f32>().unwrap(), [10.0, 20.0, 30.0]);
        // Its bytes are the app's, not of Convoke's budget, and the app goes on to own it.
        drop(fed);
        assert_eq!(app.read(&input), [10.0, 20.0, 30.0], "{}", app.name);
    }
}

#[test]
fn what_is_no_buffer_of_the_device_is_refused() {
    for app in apps() {
        let devices = Devices::from_wgpu(app.device.clone(), app.queue.clone()).unwrap();
        let of = |buffer: &wgpu::Buffer, n| {
            DeviceTensor::from_buffer(&devices, "GPU:0", buffer.clone(), F32, dims(n))
        };
        let refused = |found: convoke::Result<DeviceTensor>, what: &str| {
            let error = found.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", app.name);
            assert!(error.to_string().contains(what), "{}: {error}", app.name);
        };
        let good = app.filled(&[1.0, 2.0]);
        refused(of(&good, 3), "don't fit");
        refused(of(&app.buffer(8, BufferUsages::COPY_DST), 2), "COPY_SRC");
        let other = app.another();
        refused(of(&other.filled(&[1.0, 2.0]), 2), "evice");
        // wgpu may take one of another instance for some other buffer, or panic, which goes no further.
        for _ in 0..4 {
            let _ = of(&App::open(app.name).filled(&[1.0, 2.0]), 2);
        }
        let destroyed = app.filled(&[1.0, 2.0]);
        destroyed.destroy();
        assert!(of(&destroyed, 2).is_err() || is_refused_by_a_run(&devices, &destroyed));
        let on = |device: &str, dtype| {
            DeviceTensor::from_buffer(&devices, device, good.clone(), dtype, dims(2))
        };
        refused(on("CPU:0", F32), "CPU:0");
        refused(on("GPU:0", Strings), "strings");
        assert_eq!(on("GPU:1", F32).unwrap_err().kind(), ErrorKind::NotFound);
        let tensor = of(&good, 2).unwrap();
        let to = |buffer: &wgpu::Buffer, offset| tensor.copy_to_buffer(buffer, offset).unwrap_err();
        let small = app.buffer(8, BufferUsages::COPY_DST);
        for error in [
            to(&small, 4),
            to(&small, u64::MAX),
            to(&app.buffer(16, BufferUsages::COPY_DST), 2),
            to(&app.buffer(8, BufferUsages::COPY_SRC), 0),
            to(&other.buffer(8, BufferUsages::COPY_DST), 0),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}: {error}", app.name);
        }
        // The device is as good as before, and nothing escaped to the app.
        assert_eq!(tensor.to_host().unwrap().to_vec::<f32>().unwrap(), [1.0, 2.0]);
        let host = Session::new(&Graph::new(), &Devices::cpu()).unwrap();
        let one = host.graph().constant(1.0f32);
        let on_host = host.run(&[], OnDevice(&one)).unwrap();
        assert!(on_host.buffer().is_none());
        let error = on_host.copy_to_buffer(&small, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

/// Whether a run that is fed a buffer fails, and one after it does not.
fn is_refused_by_a_run(devices: &Devices, buffer: &wgpu::Buffer) -> bool {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![2]);
    let y = g.device("GPU:0", || &x * 2.0);
    let session = Session::new(&g, devices).unwrap();
    let fed = DeviceTensor::from_buffer(devices, "GPU:0", buffer.clone(), F32, dims(2)).unwrap();
    let error = session.run(&[x.feed(&fed)], &y).unwrap_err();
    session.run(&[x.feed([1.0f32, 2.0])], &y).unwrap();
    !error.message().is_empty()
}

/// A buffer that is mapped while a run needs it fails the run.
#[test]
fn a_mapped_buffer_fails_the_run() {
    for app in apps() {
        let devices = Devices::from_wgpu(app.device.clone(), app.queue.clone()).unwrap();
        let mapped = app.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 8,
            usage: BufferUsages::COPY_SRC | BufferUsages::MAP_WRITE,
            mapped_at_creation: true,
        });
        assert!(is_refused_by_a_run(&devices, &mapped), "{}", app.name);
        mapped.unmap();
        let fed = DeviceTensor::from_buffer(&devices, "GPU:0", mapped, F32, dims(2)).unwrap();
        assert_eq!(fed.to_host().unwrap().to_vec::<f32>().unwrap(), [0.0; 2], "{}", app.name);
    }
}
