//! Explicit device scopes: a stage on the CPU, one on the GPU if there is one, and why.
//!
//! An argument names an adapter: `cargo run --example device_scopes llvmpipe`.

use convoke::prelude::*;

fn main() -> convoke::Result<()> {
    let devices = match std::env::args().nth(1) {
        Some(name) => Devices::named(&name)?,
        None => Devices::open()?,
    };
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None, 8]);
    let w = g.device("GPU:0", || g.variable("w", Init::glorot(1), F32, [8, 4]));
    let scaled = g.device("CPU:0", || &x * 2.0);
    let hidden = g.device("GPU:0", || scaled.matmul(&w).relu());
    let y = g.device("CPU:0", || hidden.sum(1));

    let session = Session::new(&g, &devices)?;
    session.run(&[], g.initializers())?;
    let rows = [[1.0f32; 8], [-1.0; 8]];
    println!("{}", session.explain(&[x.feed(rows)], &y)?);
    println!("{}", session.run(&[x.feed(rows)], &y)?);
    Ok(())
}
