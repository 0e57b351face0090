//! A variable initialised, assigned and fetched; then placeholders of three dtypes fed in one run.

use convoke::prelude::*;

fn main() -> convoke::Result<()> {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(10.0), F32, []);
    let bump = v.assign_add(3.0);
    let session = Session::new(&g, &Devices::cpu())?;
    session.run(&[], g.initializers())?;
    println!("{}", session.run(&[], &bump)?.scalar::<f32>()?);

    let name = g.placeholder("name", Strings, dims![]);
    let count = g.placeholder("count", I32, dims![]);
    let price = g.placeholder("price", F32, dims![]);
    let total = count.cast(F32) * &price;
    let feeds = [name.feed("pears"), count.feed(3i32), price.feed(0.5f32)];
    let (name, total) = session.run(&feeds, (&name, &total))?;
    println!("{} {}", String::from_utf8_lossy(&name.as_strings()?[0]), total.scalar::<f32>()?);
    Ok(())
}
