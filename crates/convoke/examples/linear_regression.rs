//! Fits a line to points by gradient descent.

use convoke::prelude::*;

fn main() -> convoke::Result<()> {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None]);
    let y = g.placeholder("y", F32, dims![None]);
    let slope = g.variable("slope", Init::Zeros, F32, []);
    let offset = g.variable("offset", Init::Zeros, F32, []);
    let loss = (&x * &slope + &offset).squared_error(&y).mean(());
    let step = Sgd::new(0.1).minimize(&loss);

    let session = Session::new(&g, &Devices::cpu())?;
    session.run(&[], g.initializers())?;
    let xs: Vec<f32> = (0..50).map(|i| i as f32 / 25.0 - 1.0).collect();
    let ys: Vec<f32> = xs.iter().map(|x| 3.0 * x - 1.0).collect();
    for _ in 0..200 {
        session.run(&[x.feed(&xs), y.feed(&ys)], &step)?;
    }
    let (slope, offset) = session.run(&[], (&slope, &offset))?;
    println!("y = {:.3} x + {:.3}", slope.scalar::<f32>()?, offset.scalar::<f32>()?);
    Ok(())
}
