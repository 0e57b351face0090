//! A small convolutional network on the built-in digits, on the device that an argument names.
//!
//! `cargo run --release --example cnn`, or `... cnn llvmpipe`.

use convoke::data::digits;
use convoke::prelude::*;
use convoke::{Conv2d, Padding, Pool};

const BATCH: usize = 64;

#[derive(Fetch)]
struct Step<T> {
    loss: T,
    accuracy: T,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let devices = match std::env::args().nth(1) {
        Some(name) => Devices::named(&name)?,
        None => Devices::open()?,
    };
    let data = digits()?;
    let g = Graph::with_seed(1);
    let images = g.placeholder("images", F32, dims![None, 64]);
    let labels = g.placeholder("labels", I32, dims![None]);
    let filters =
        g.variable("filters", Init::Normal { deviation: 0.2, seed: 1 }, F32, [16, 1, 3, 3]);
    let conv = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    let pool = Pool { window: [2, 2], stride: [2, 2], ..Pool::default() };
    let features = images.reshape(&[-1, 1, 8, 8]).conv2d(&filters, conv).relu().max_pool(pool);
    let w = g.variable("w", Init::glorot(2), F32, [256, 10]);
    let b = g.variable("b", Init::zeros(), F32, [10]);
    let logits = features.reshape(&[-1, 256]).matmul(&w) + &b;
    let loss = logits.cross_entropy(&labels).mean(());
    let accuracy = logits.argmax(-1).equal(&labels).cast(F32).mean(());
    let train = Adam::new(3e-3).minimize(&loss);
    let fetch = Step { loss, accuracy };

    let session = Session::new(&g, &devices)?;
    session.run(&[], g.initializers())?;
    let (mut pixels, mut classes) = (vec![0.0f32; BATCH * 64], vec![0i32; BATCH]);
    for step in 0..200 {
        let rows: Vec<usize> = (0..BATCH).map(|i| (step * BATCH + i) % data.train.len()).collect();
        data.train.write_batch(&rows, &mut pixels, &mut classes)?;
        let feeds = [images.feed((&pixels[..], [BATCH, 64])), labels.feed(&classes)];
        let (seen, ()) = session.run(&feeds, (&fetch, &train))?;
        if step % 20 == 0 {
            let (loss, accuracy) = (seen.loss.scalar::<f32>()?, seen.accuracy.scalar::<f32>()?);
            println!("step {step}: loss {loss:.4}, accuracy {accuracy:.3}");
        }
    }
    Ok(())
}
