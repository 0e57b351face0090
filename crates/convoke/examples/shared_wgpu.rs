//! An app that owns its wgpu device and lets Convoke compute on it.
//!
//! `cargo run --example shared_wgpu`; it uses whatever adapter wgpu prefers, software or not.

use convoke::prelude::*;
use convoke::{DeviceTensor, OnDevice, RunOptions, Shape, wgpu};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::default();
    let adapter = block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?;
    let limits = adapter.limits();
    let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
    let (device, queue) = block_on(adapter.request_device(&descriptor))?;

    // The app keeps using its device and queue; Convoke has handles to the same ones.
    let devices = Devices::from_wgpu(device.clone(), queue.clone())?;
    let watched = devices.clone();
    device.set_device_lost_callback(move |_, why| watched.notify_lost(&why));

    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let y = g.device("GPU:0", || (&x * 2.0 + 1.0).relu());
    let session = Session::new(&g, &devices)?;
    println!("{}", devices.list()[1]);
    println!("{}", session.run(&[x.feed([-3.0f32, 0.0, 4.0])], &y)?);

    // Elements that are on the device already stay there: in a buffer of the app, through the graph, in another.
    let buffer = |usage| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 12,
            usage: usage | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let input = buffer(wgpu::BufferUsages::COPY_SRC);
    let bytes: Vec<u8> = [1.0f32, 2.0, 3.0].into_iter().flat_map(f32::to_ne_bytes).collect();
    queue.write_buffer(&input, 0, &bytes);
    queue.submit([]);
    let fed = DeviceTensor::from_buffer(&devices, "GPU:0", input, F32, Shape::new(&[3])?)?;
    let (kept, run) = session.run_with(&[x.feed(&fed)], OnDevice(&y), RunOptions::default())?;
    kept.copy_to_buffer(&buffer(wgpu::BufferUsages::VERTEX), 0)?;
    println!(
        "{kept:?}, {} uploads and downloads: {}",
        run.uploads + run.downloads,
        kept.to_host()?
    );
    Ok(())
}

/// Waits for a future that wgpu completes at once on native backends.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::yield_now();
    }
}
