//! A custom operation: its shape rule, CPU function, WGSL, gradient and form in files are in `cumsum.rs`.
//!
//! An argument names an adapter: `cargo run --example custom_op llvmpipe`.

mod cumsum;

use convoke::LoadOptions;
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
    let (walked, slope) = session.run(&[feed], (&walk, &slope[0]))?;
    println!("on {device}\nwalk {walked}");
    if let Some(slope) = slope {
        println!("gradient of its squared length {slope}");
    }

    let path = std::env::temp_dir().join(format!("convoke-walk-{}", std::process::id()));
    session.save_model(&path, &ModelSpec::frozen(&[("steps", &steps)], &[("walk", &walk)]))?;
    let operations = vec![("cumsum".into(), cumsum::decode as convoke::ops::Decode)];
    let options = LoadOptions { operations, ..LoadOptions::default() };
    let model = SavedModel::load_with(&path, &devices, options)?;
    std::fs::remove_file(&path).map_err(|e| convoke::Error::internal(e.to_string()))?;
    let feed = model.input("steps")?.feed([[2.0f32, 2.0, 2.0, 2.0]]);
    println!("of a saved model {}", model.session().run(&[feed], model.output("walk")?)?);
    Ok(())
}
