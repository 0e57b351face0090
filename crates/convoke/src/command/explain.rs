//! `convoke explain`: where each part of a model would run.

use clap::Args;
use convoke::models::{Classifier, OptimizerKind};
use convoke::{Session, SessionOptions};

use super::{Failure, ModelName, OptimizerName, devices};

#[derive(Args)]
pub(super) struct Options {
    /// The network.
    #[arg(long, value_enum, default_value = "mlp")]
    model: ModelName,
    /// The optimizer.
    #[arg(long, value_enum, default_value = "adam")]
    optimizer: OptimizerName,
    /// Images in a batch.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// auto, cpu, gpu, GPU:0, part of an adapter's or driver's name, or auto:NAME for it and the CPU.
    #[arg(long, default_value = "auto")]
    device: String,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let (devices, policy) = devices::choose(&options.device)?;
    let optimizer = OptimizerKind::from(options.optimizer);
    let classifier =
        Classifier::new(options.model.into(), [8, 8], 10, optimizer, optimizer.default_rate(), 1);
    let session_options = SessionOptions { policy, ..SessionOptions::default() };
    let session = Session::with_options(&classifier.graph, &devices, session_options)?;
    let batch = options.batch as usize;
    let (images, labels) = (vec![0.0f32; batch * 64], vec![0i32; batch]);
    let feeds =
        [classifier.images.feed((images.as_slice(), [batch, 64])), classifier.labels.feed(&labels)];
    for device in devices.list() {
        println!("{device}");
    }
    println!("{}", session.explain(&feeds, (&classifier.loss, &classifier.step))?);
    Ok(())
}
