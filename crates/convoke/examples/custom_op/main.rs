//! A custom operation: its shape rule, CPU function, WGSL and gradient are in `cumsum.rs`.
//!
//! An argument names an adapter: `cargo run --example custom_op llvmpipe`.

mod cumsum;

use convoke::prelude::*;
use cumsum::cumsum;

fn main() -> convoke::Result<()> {
    let devices = match std::env::args().nth(1) {
        Some(name) => Devices::named(&name)?,
        None => Devices::open()?,
    };
    let g = Graph::new();
    let steps = g.placeholder("steps", F32, dims![None, 4]);
    let device = devices.list().last().map_or("CPU:0".into(), |info| info.name.to_string());
    let walk = g.device(&device, || cumsum(&steps));
    let end = walk.square().sum(());
    let slope = end.gradients(&[&steps]);

    let session = Session::new(&g, &devices)?;
    let feed = steps.feed([[1.0f32, -2.0, 3.0, 1.0], [0.5, 0.5, 0.5, 0.5]]);
    let (walk, slope) = session.run(&[feed], (&walk, &slope[0]))?;
    println!("on {device}\nwalk {walk}");
    if let Some(slope) = slope {
        println!("gradient of its squared length {slope}");
    }
    Ok(())
}
