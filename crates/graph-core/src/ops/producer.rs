//! Queues of file names that are filled from a list, epoch by epoch.
//!
//! Source: TensorFlow's `python/training/input.py`, `string_input_producer`.

use crate::ops::reader::{NameList, ReaderAction, ReaderSource};
use crate::{DType, Graph, Queue, QueueRunner, dims};

/// How a list of names gets into a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerOptions {
    /// How often all names are put; then the queue is closed, and who takes the last gets `OutOfRange` afterwards.
    /// `None` is without end.
    pub epochs: Option<u64>,
    /// The seed by which each epoch has an order of its own; `None` is the order of the list.
    pub shuffle: Option<u64>,
    /// How many names the queue holds before the next epoch waits for room; at least 1.
    pub capacity: usize,
}

impl Default for ProducerOptions {
    /// Without end, in the order of the list, 32 names.
    fn default() -> Self {
        Self { epochs: None, shuffle: None, capacity: 32 }
    }
}

impl Graph {
    /// A queue of `names`, which the graph's queue runner for it fills: start that with the others when the session
    /// begins. How many epochs were put is kept by the session.
    ///
    /// # Errors
    /// Recorded: no names, no epochs, no capacity.
    #[track_caller]
    pub fn string_input_producer<S: Into<Vec<u8>>>(
        &self,
        name: &str,
        names: impl IntoIterator<Item = S>,
        options: ProducerOptions,
    ) -> Queue {
        let ProducerOptions { epochs, shuffle, capacity } = options;
        let names = names.into_iter().map(Into::into).collect();
        let queue = self.fifo_queue(name, capacity, [(DType::String, dims![])]);
        let list = ReaderSource::Names(NameList { names, epochs, shuffle });
        let producer = self.reader_of(&format!("{name}_names"), list);
        let epoch = producer.apply(ReaderAction::NextEpoch, None, &[]).outputs().remove(0);
        let enqueue = queue.enqueue_many(&[&epoch]);
        self.add_queue_runner(&QueueRunner::new(&queue, [enqueue]));
        queue
    }
}
