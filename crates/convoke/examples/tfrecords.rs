//! Training from TFRecord files: a queue of file names, readers on threads, a queue that shuffles, batches. It saves by
//! step, and goes on from the newest checkpoint that it finds.
//!
//! `cargo run --release --example tfrecords -- FOLDER [STEPS]`. The files are written into the folder, which must
//! exist, at the first start; a later start trains up to STEPS in all.

use std::path::{Path, PathBuf};

use convoke::data::{Images, digits};
use convoke::input::{Compression, Coordinator, Endian, TfRecordWriter, decode_raw_batch};
use convoke::prelude::*;
use convoke::{ProducerOptions, Queue, QueueKind, QueueOptions, QueueRunner};

const FILES: usize = 4;
const READERS: usize = 2;
const BATCH: usize = 32;
const SAVE_EVERY: u64 = 50;
const PIXELS: usize = 64;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("give a folder for files and checkpoints")?);
    let steps: u64 = arguments.next().map_or(Ok(1000), |steps| steps.parse())?;
    let data = digits()?;
    let files = write_records(&folder, &data.train)?;

    let saver = Saver::new(folder.join("digits"));
    let begun = saver.latest()?.map_or(0, |checkpoint| checkpoint.step);
    let g = Graph::with_seed(1);
    // A start that goes on has the files in another order than the one before.
    let examples = examples(&g, files, begun);
    let batch = examples.dequeue_many(BATCH).remove(0);
    let model = Model::new(&g);

    let session = Session::new(&g, &Devices::cpu())?;
    match begun {
        0 => session.run(&[], g.initializers())?,
        _ => println!("resumed at step {}", saver.restore_latest(&session)?),
    }
    let coordinator = Coordinator::new();
    session.start_queue_runners(&coordinator)?;
    let trained = coordinator.stop_on_error(|| {
        let take = session.callable(&[], &batch)?;
        let train = session.callable(&[&model.records], (&model.loss, &model.train))?;
        for step in begun + 1..=steps {
            let records = decode_raw_batch(&take.call(())?, U8, Endian::Little)?;
            let (loss, ()) = train.call([records])?;
            if step % SAVE_EVERY == 0 || step == steps {
                saver.save(&session, step)?;
                println!("step {step}: loss {:.4}, saved", loss.scalar::<f32>()?);
            }
        }
        Ok(())
    });
    coordinator.request_stop();
    // A file that cannot be read is the first error, and that the queue of examples ends its consequence.
    coordinator.join(Coordinator::GRACE)?;
    trained?;

    let tested = model.records.feed(records(&data.test)?);
    let (loss, accuracy) = session.run(&[tested], (&model.loss, &model.accuracy))?;
    let (loss, accuracy) = (loss.scalar::<f32>()?, accuracy.scalar::<f32>()?);
    println!("tested after step {}: loss {loss:.4}, accuracy {accuracy:.3}", steps.max(begun));
    Ok(())
}

/// A network of one hidden layer, of records as they are in the files.
struct Model {
    records: Tensor,
    loss: Tensor,
    accuracy: Tensor,
    train: Operation,
}

impl Model {
    fn new(g: &Graph) -> Self {
        let records = g.placeholder("records", U8, dims![None, PIXELS + 1]);
        let images = records.slice(&[0, 0], &[None, Some(PIXELS)]).cast(F32) / 16.0;
        let labels = records.slice(&[0, PIXELS], &[None, Some(1)]).reshape(&[-1]).cast(I32);
        let w1 = g.variable("w1", Init::glorot(1), F32, [PIXELS, 32]);
        let b1 = g.variable("b1", Init::zeros(), F32, [32]);
        let w2 = g.variable("w2", Init::glorot(2), F32, [32, 10]);
        let b2 = g.variable("b2", Init::zeros(), F32, [10]);
        let logits = (images.matmul(&w1) + &b1).relu().matmul(&w2) + &b2;
        let loss = logits.cross_entropy(&labels).mean(());
        let accuracy = logits.argmax(-1).equal(&labels).cast(F32).mean(());
        let train = Adam::new(3e-3).minimize(&loss);
        Self { records, loss, accuracy, train }
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
