//! Training from TFRecord files: a queue of file names, readers on threads, a queue that shuffles, batches. It saves by
//! step, and goes on from the newest checkpoint that it finds.
//!
//! `cargo run --release --example tfrecords -- FOLDER [STEPS]`. The files are written into the folder, which must
//! exist, at the first start; a later start trains up to STEPS in all.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use convoke::data::{Images, digits};
use convoke::input::{Compression, Endian, TfRecordWriter, decode_raw_batch};
use convoke::prelude::*;
use convoke::{
    CheckpointSaver, FinalOps, Monitor, ProducerOptions, Queue, QueueKind, QueueOptions,
    QueueRunner,
};

const FILES: usize = 4;
const READERS: usize = 2;
const BATCH: usize = 32;
const TELL_EVERY: i64 = 50;
const SAVE_EVERY: u64 = 50;
const PIXELS: usize = 64;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("give a folder for files and checkpoints")?);
    let steps: i64 = arguments.next().map_or(Ok(1000), |steps| steps.parse())?;
    let data = digits()?;
    let files = write_records(&folder, &data.train)?;

    let saver = Saver::new(folder.join("digits"));
    let begun = saver.latest()?.map_or(0, |checkpoint| checkpoint.step);
    if begun > 0 {
        println!("goes on from step {begun}");
    }
    let g = Graph::with_seed(1);
    // A start that goes on has the files in another order than the one before.
    let examples = examples(&g, files, begun);
    let model = Model::new(&g, &examples.dequeue_many(BATCH).remove(0));
    let tested = model.records.feed(records(&data.test)?);
    let mut tests = FinalOps::new((&model.step, &model.loss, &model.accuracy)).feed(tested);
    let saves = CheckpointSaver::every_steps(saver.clone(), SAVE_EVERY).on_save(|saved| {
        println!("saved step {}", saved.step);
        Ok(ControlFlow::Continue(()))
    });
    let session =
        Monitor::new(&g, &Devices::cpu()).saver(saver).hook(saves).hook(&mut tests).start()?;
    let mut step = session.session()?.run(&[], &model.step)?.scalar::<i64>()?;
    session.supervise(|session| {
        while step < steps && !session.should_stop() {
            let (loss, counted) = session.run(&[], (&model.loss, &model.train))?;
            step = counted.scalar()?;
            if step % TELL_EVERY == 0 {
                println!("step {step}: loss {:.4}", loss.scalar::<f32>()?);
            }
        }
        Ok(())
    })?;
    let (step, loss, accuracy) = tests.into_value().ok_or("the training has not ended")?;
    let (loss, accuracy) = (loss.scalar::<f32>()?, accuracy.scalar::<f32>()?);
    println!("tested after step {}: loss {loss:.4}, accuracy {accuracy:.3}", step.scalar::<i64>()?);
    Ok(())
}

/// A network of one hidden layer, of records as they are in the files.
struct Model {
    records: Tensor,
    loss: Tensor,
    accuracy: Tensor,
    step: Variable,
    /// Trains, and gives the step that it has come to.
    train: Tensor,
}

impl Model {
    /// Trained with these records, strings; tested with others, which are fed.
    fn new(g: &Graph, batch: &Tensor) -> Self {
        let decode = |batch: &[HostTensor]| {
            batch.iter().map(|records| decode_raw_batch(records, U8, Endian::Little)).collect()
        };
        let is = [(U8, dims![None, PIXELS + 1])];
        let records = g.host_function("decode", &[batch], is, decode).remove(0);
        let images = records.slice(&[0, 0], &[None, Some(PIXELS)]).cast(F32) / 16.0;
        let labels = records.slice(&[0, PIXELS], &[None, Some(1)]).reshape(&[-1]).cast(I32);
        let w1 = g.variable("w1", Init::glorot(1), F32, [PIXELS, 32]);
        let b1 = g.variable("b1", Init::zeros(), F32, [32]);
        let w2 = g.variable("w2", Init::glorot(2), F32, [32, 10]);
        let b2 = g.variable("b2", Init::zeros(), F32, [10]);
        let logits = (images.matmul(&w1) + &b1).relu().matmul(&w2) + &b2;
        let loss = logits.cross_entropy(&labels).mean(());
        let accuracy = logits.argmax(-1).equal(&labels).cast(F32).mean(());
        let (step, train) = (g.global_step(), Adam::new(3e-3).minimize(&loss));
        let train = g.after(&[&train], || step.assign_add(1));
        Self { records, loss, accuracy, step, train }
    }
}

/// A queue of examples in random order, which readers fill from the files, epoch by epoch without end.
fn examples(g: &Graph, files: Vec<String>, seed: u64) -> Queue {
    let options = ProducerOptions { shuffle: Some(seed), ..ProducerOptions::default() };
    let names = g.string_input_producer("files", files, options);
    let kind = QueueKind::RandomShuffle { min_after_dequeue: 500, seed };
    let options = QueueOptions { kind, capacity: Some(1000), shared_name: None };
    let examples = g.queue("examples", [(Strings, dims![])], options);
    let fills = (0..READERS).map(|_| {
        let reader = g.tf_record_reader("reader", Compression::None);
        let (_, records) = reader.read_up_to(&names, BATCH);
        examples.enqueue_many(&[&records])
    });
    g.add_queue_runner(&QueueRunner::new(&examples, fills));
    examples
}

/// Each image with its label behind it, one byte for each number: `[n, 65]`.
fn records(images: &Images) -> Result<HostTensor, Failure> {
    let rows = images.pixels().chunks_exact(PIXELS).zip(images.labels());
    let bytes: Vec<u8> = rows.flat_map(|(pixels, label)| [pixels, &[*label]].concat()).collect();
    Ok(HostTensor::new(&[images.len(), PIXELS + 1], bytes)?)
}

/// Writes the images as TFRecord files where these are not there, and gives their paths. A file has its name only
/// when it is whole.
fn write_records(folder: &Path, images: &Images) -> Result<Vec<String>, Failure> {
    let records = records(images)?;
    let mut files = Vec::new();
    for i in 0..FILES {
        let file = folder.join(format!("digits-{i:05}-of-{FILES:05}.tfrecord"));
        if !file.exists() {
            let part = file.with_extension("part");
            let mut writer = TfRecordWriter::create(&part, Compression::None)?;
            for record in records.bytes().chunks_exact(PIXELS + 1).skip(i).step_by(FILES) {
                writer.write(record)?;
            }
            writer.finish()?;
            std::fs::rename(&part, &file)?;
        }
        files.push(file.to_str().ok_or("give a folder whose path is UTF-8")?.to_owned());
    }
    Ok(files)
}
