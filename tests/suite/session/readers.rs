//! Readers of files as nodes of a graph. TensorFlow: `reader_ops_test.py`, by meaning.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use convoke::input::{Compression, FixedOptions, TfRecordWriter};
use convoke::prelude::*;
use convoke::{CancelToken, Queue, QueueKind, QueueOptions, Reader, RunOptions};
use convoke_tests::{A_WHILE, Folder, fails_while, kind};

/// A queue of file names, a reader, and what reads.
struct Files {
    q: Queue,
    reader: Reader,
    name: Tensor,
    put: Operation,
    close: Operation,
    key: Tensor,
    value: Tensor,
    session: Session,
    g: Graph,
}

impl Files {
    fn new(reader: impl FnOnce(&Graph) -> Reader) -> Self {
        Self::of(QueueKind::Fifo, reader)
    }

    fn of(kind: QueueKind, reader: impl FnOnce(&Graph) -> Reader) -> Self {
        let g = Graph::new();
        let options = QueueOptions { kind, ..QueueOptions::default() };
        let q = g.queue("files", [(Strings, dims![])], options);
        let reader = reader(&g);
        let name = g.placeholder("name", Strings, dims![]);
        let (put, close) = (q.enqueue(&[&name]), q.close());
        let (key, value) = reader.read(&q);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        Self { q, reader, name, put, close, key, value, session, g }
    }

    fn put(&self, names: &[&str]) {
        for name in names {
            self.session.run(&[self.name.feed(string(name.as_bytes()))], &self.put).unwrap();
        }
    }

    fn close(&self) {
        self.session.run(&[], &self.close).unwrap();
    }

    fn read(&self) -> convoke::Result<(Vec<u8>, Vec<u8>)> {
        let (key, value) = self.session.run(&[], (&self.key, &self.value))?;
        Ok((bytes(&key), bytes(&value)))
    }

    /// What is read until the queue is closed and empty, which is to be the end.
    fn all(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            match self.read() {
                Ok((key, value)) => all.push((String::from_utf8(key).unwrap(), value)),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::OutOfRange, "{e}");
                    let text =
                        "is closed and has insufficient elements (requested 1, current size 0)";
                    assert!(e.to_string().contains(text), "{e}");
                    return all;
                }
            }
        }
    }

    fn counts(&self) -> (i64, i64, i32) {
        let counts = (
            self.reader.num_records_produced(),
            self.reader.num_work_units_completed(),
            self.q.size(),
        );
        let (produced, completed, queued) = self.session.run(&[], counts).unwrap();
        (produced.scalar().unwrap(), completed.scalar().unwrap(), queued.scalar().unwrap())
    }

    fn digest(&self) -> u64 {
        self.session.state_digest().unwrap()
    }

    /// The error of a read, which is to change nothing.
    #[track_caller]
    fn refused(&self) -> convoke::Error {
        let before = self.digest();
        let error = self.read().expect_err("an error");
        assert_eq!(self.digest(), before);
        error
    }
}

fn string(bytes: &[u8]) -> HostTensor {
    HostTensor::strings(&[], [bytes]).unwrap()
}

fn bytes(tensor: &HostTensor) -> Vec<u8> {
    assert_eq!(tensor.dims(), [] as [usize; 0]);
    tensor.as_strings().unwrap()[0].clone()
}

fn texts(tensor: &HostTensor) -> Vec<String> {
    tensor.as_strings().unwrap().iter().map(|s| String::from_utf8(s.clone()).unwrap()).collect()
}

/// Writes a file and gives its path.
fn file(folder: &Folder, name: &str, contents: impl AsRef<[u8]>) -> String {
    let path: PathBuf = folder.path().join(name);
    fs::write(&path, contents).unwrap();
    path.display().to_string()
}

/// A TFRecord file of these records.
fn tf_records(folder: &Folder, name: &str, compression: Compression, records: &[&str]) -> String {
    let path = folder.path().join(name);
    let mut writer = TfRecordWriter::create(&path, compression).unwrap();
    records.iter().for_each(|record| writer.write(record.as_bytes()).unwrap());
    writer.finish().unwrap();
    path.display().to_string()
}

/// `IdentityReaderTest.testOneEpoch`, `testMultipleEpochs`.
#[test]
fn an_identity_reader_gives_what_the_queue_gives() {
    let f = Files::new(|g| g.identity_reader("reader"));
    assert_eq!(f.counts(), (0, 0, 0));
    f.put(&["A", "B", "C"]);
    assert_eq!(f.counts(), (0, 0, 3));
    assert_eq!(f.read().unwrap(), (b"A".to_vec(), b"A".to_vec()));
    // A work item of one record is completed with it.
    assert_eq!(f.counts(), (1, 1, 2));
    f.put(&["D"]);
    f.close();
    let rest = f.all();
    assert_eq!(rest.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["B", "C", "D"]);
    assert!(rest.iter().all(|(key, value)| key.as_bytes() == value));
    assert_eq!(f.counts(), (4, 4, 0));
}

/// `IdentityReaderTest.testSerializeRestore`.
#[test]
fn serialize_restore() {
    let f = Files::new(|g| g.identity_reader("reader"));
    let state = f.g.placeholder("state", Strings, dims![]);
    let (save, restore) = (f.reader.serialize_state(), f.reader.restore_state(&state));
    f.put(&["X", "Y", "Z"]);
    f.read().unwrap();
    let saved = f.session.run(&[], &save).unwrap();
    f.read().unwrap();
    f.read().unwrap();
    assert_eq!(f.counts().0, 3);
    f.put(&["Y", "Z"]);
    f.close();
    f.session.run(&[state.feed(saved.clone())], &restore).unwrap();
    assert_eq!(f.counts(), (1, 1, 2));
    assert_eq!(f.all().len(), 2);
    assert_eq!(f.counts(), (3, 3, 0));
    let good = bytes(&saved);
    let mut flipped = good.clone();
    flipped[17] ^= 1;
    let bad = [
        good[1..].to_vec(),
        good[..good.len() - 1].to_vec(),
        [&good[..], b"ExtraJunk"].concat(),
        [b"PREFIX", &good[..]].concat(),
        [b"BOGUS", &good[5..]].concat(),
        flipped,
        Vec::new(),
    ];
    let before = f.digest();
    for bad in bad {
        let error = f.session.run(&[state.feed(string(&bad))], &restore).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let text = "could not parse state for identity reader 'reader'";
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!(f.digest(), before);
    // A constant is known before the run, too; what is computed in it is not.
    let constant = f.reader.restore_state(&f.g.constant(saved));
    f.session.run(&[], &constant).unwrap();
    assert_eq!(f.counts().0, 1);
    let error = f.session.run(&[], f.reader.restore_state(&save)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    assert!(error.to_string().contains("unsupported"), "{error}");
}

/// `IdentityReaderTest.testReset`; and of a file at hand, the rest is left.
#[test]
fn reset() {
    let f = Files::new(|g| g.identity_reader("reader"));
    f.put(&["X", "Y", "Z"]);
    f.read().unwrap();
    f.read().unwrap();
    f.session.run(&[], f.reader.reset()).unwrap();
    assert_eq!(f.counts(), (0, 0, 1));
    assert_eq!(f.read().unwrap().0, b"Z");

    let folder = Folder::new("reset");
    let f = Files::new(|g| g.text_line_reader("lines", 0));
    f.put(&[&file(&folder, "a", "1\n2\n3\n"), &file(&folder, "b", "4\n")]);
    f.read().unwrap();
    let before = f.reader.read(&f.q).1;
    let reset = f.reader.reset();
    let after = f.reader.read(&f.q).1;
    // In one run, in the order of building.
    let (before, (), after) = f.session.run(&[], (before, reset, after)).unwrap();
    assert_eq!((bytes(&before), bytes(&after)), (b"2".to_vec(), b"4".to_vec()));
    assert_eq!(f.counts(), (1, 0, 0));
}

/// `WholeFileReaderTest.testOneEpoch`, `testInfiniteEpochs`.
#[test]
fn a_whole_file_is_one_record() {
    let folder = Folder::new("whole");
    let contents: [&[u8]; 3] = [b"A contents\n\0", b"", b"no line feed"];
    let names: Vec<String> = (0..3).map(|i| file(&folder, &i.to_string(), contents[i])).collect();
    let f = Files::new(|g| g.whole_file_reader("reader"));
    for _ in 0..2 {
        f.put(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for (name, contents) in names.iter().zip(contents) {
            assert_eq!(f.read().unwrap(), (name.as_bytes().to_vec(), contents.to_vec()));
        }
    }
    f.close();
    assert!(f.all().is_empty());
    assert_eq!(f.counts(), (6, 6, 0));
}

/// `TextLineReaderTest.testOneEpochLF`, `testOneEpochCRLF`, `testSkipHeaderLines`.
#[test]
fn lines_have_keys_of_file_and_number() {
    let folder = Folder::new("lines");
    let a = file(&folder, "a", "header\none\r\n\r\nthree");
    let b = file(&folder, "b", "header");
    let c = file(&folder, "c", "header\nzwölf\n");
    let f = Files::new(|g| g.text_line_reader("reader", 1));
    f.put(&[&a, &b, &c]);
    f.close();
    let expected = [
        (format!("{a}:2"), b"one".to_vec()),
        (format!("{a}:3"), Vec::new()),
        (format!("{a}:4"), b"three".to_vec()),
        (format!("{c}:2"), "zwölf".into()),
    ];
    assert_eq!(f.all(), expected);
    assert_eq!(f.counts(), (4, 2, 0), "the end of c is found by a read, which has failed");
}

/// `FixedLengthRecordReaderTest`: header, footer, hop and overlap, files without records.
#[test]
fn records_of_one_length_have_keys_of_file_and_index() {
    let folder = Folder::new("fixed");
    let none = file(&folder, "none", "HHfff");
    let some = file(&folder, "some", "HHabcdefgfff");
    let read = |hop_bytes: u64| {
        let options =
            FixedOptions { header_bytes: 2, footer_bytes: 3, hop_bytes, ..FixedOptions::new(3) };
        let f = Files::new(|g| g.fixed_length_record_reader("reader", options));
        f.put(&[&none, &some, &none]);
        f.close();
        f.all()
    };
    let of = |values: &[&str]| -> Vec<(String, Vec<u8>)> {
        let values = values.iter().enumerate();
        values.map(|(i, value)| (format!("{some}:{i}"), value.as_bytes().to_vec())).collect()
    };
    assert_eq!(read(0), of(&["abc", "def"]));
    assert_eq!(read(2), of(&["abc", "cde", "efg"]));
    assert_eq!(read(4), of(&["abc", "efg"]));
}

/// `FixedLengthRecordReaderTest.testOneEpoch_GZIP`, `..ZLIB`, `TFRecordReaderTest.testOneEpoch`, `testReadZlibFiles`,
/// `testReadGzipFiles`.
#[test]
fn compressed_files_are_read_on_the_way() {
    let folder = Folder::new("compressed");
    for compression in [Compression::None, Compression::Gzip, Compression::Zlib] {
        let [a, b] = [&["one", ""][..], &["three"]].map(|records| {
            let name = format!("{compression:?}{}", records.len());
            tf_records(&folder, &name, compression, records)
        });
        let f = Files::new(|g| g.tf_record_reader("reader", compression));
        f.put(&[&a, &b]);
        f.close();
        // A record takes 16 bytes more than it has.
        let expected = [
            (format!("{a}:0"), b"one".to_vec()),
            (format!("{a}:19"), Vec::new()),
            (format!("{b}:0"), b"three".to_vec()),
        ];
        assert_eq!(f.all(), expected, "{compression:?}");
        // The same bytes as records of one length.
        let options = FixedOptions { compression, header_bytes: 12, ..FixedOptions::new(3) };
        let f = Files::new(|g| g.fixed_length_record_reader("reader", options));
        f.put(&[&a]);
        assert_eq!(f.read().unwrap(), (format!("{a}:0").into_bytes(), b"one".to_vec()));
    }
}

/// `TFRecordReaderTest.testReadUpTo`: batches do not go from one file into the next.
#[test]
fn up_to_so_many_are_of_one_file() {
    let folder = Folder::new("up_to");
    let a = tf_records(&folder, "a", Compression::None, &["1", "2", "3", "4", "5"]);
    let none = tf_records(&folder, "none", Compression::None, &[]);
    let b = tf_records(&folder, "b", Compression::None, &["6", "7", "8"]);
    let f = Files::new(|g| g.tf_record_reader("reader", Compression::None));
    let up_to = f.reader.read_up_to(&f.q, 3);
    let none_at_all = f.reader.read_up_to(&f.q, 0);
    let (keys, values) = f.session.run(&[], none_at_all).unwrap();
    assert_eq!((keys.dims(), values.dims()), (&[0][..], &[0][..]));
    f.put(&[&a, &none, &b]);
    f.close();
    let mut got = Vec::new();
    for _ in 0..3 {
        let (keys, values) = f.session.run(&[], &up_to).unwrap();
        assert_eq!(keys.dims(), values.dims());
        let file = &texts(&keys)[0];
        assert!(
            texts(&keys)
                .iter()
                .all(|key| key[..key.rfind(':').unwrap()] == file[..file.rfind(':').unwrap()])
        );
        got.push(texts(&values));
    }
    assert_eq!(got, [&["1", "2", "3"][..], &["4", "5"], &["6", "7", "8"]]);
    assert_eq!(f.counts(), (8, 2, 0));
    assert_eq!(kind(f.session.run(&[], &up_to)), ErrorKind::OutOfRange);
}

/// Reads of one run are served in the order of building, after what is taken from the queue of names itself.
#[test]
fn several_reads_in_one_run() {
    let folder = Folder::new("several");
    let names: Vec<String> = ["1\n2\n", "3\n4\n5\n", "6\n7\n", "8\n9\n"]
        .iter()
        .enumerate()
        .map(|(i, lines)| file(&folder, &i.to_string(), lines))
        .collect();
    let f = Files::new(|g| g.text_line_reader("reader", 0));
    let other = f.g.text_line_reader("other", 0);
    let own: Vec<Tensor> = (0..4).map(|_| f.reader.read(&f.q).1).collect();
    let others: Vec<Tensor> = (0..2).map(|_| other.read(&f.q).1).collect();
    let name = f.q.dequeue().remove(0);
    f.put(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let (name, own, others) = f.session.run(&[], (&name, &own, &others)).unwrap();
    assert_eq!(bytes(&name), names[0].as_bytes());
    let values = |tensors: &[HostTensor]| tensors.iter().map(bytes).collect::<Vec<_>>().concat();
    assert_eq!(values(&own), b"3456");
    assert_eq!(values(&others), b"89");
    assert_eq!(f.counts(), (4, 1, 0));
}

/// Names that are drawn at random are those that the queue would have given, and are drawn again after a failure.
#[test]
fn a_shuffling_queue_of_names() {
    let order = |reads: bool| {
        let kind = QueueKind::RandomShuffle { min_after_dequeue: 1, seed: 4 };
        let f = Files::of(kind, |g| g.identity_reader("reader"));
        let name = f.q.dequeue().remove(0);
        f.put(&["a", "b", "c", "d", "e", "f", "g"]);
        let one = || {
            if reads {
                f.read().map(|(key, _)| key)
            } else {
                f.session.run(&[], &name).map(|n| bytes(&n))
            }
        };
        let mut order: Vec<Vec<u8>> = (0..6).map(|_| one().unwrap()).collect();
        f.close();
        order.push(one().unwrap());
        order
    };
    assert_eq!(order(true), order(false));
}

/// Not as TensorFlow does: there, what a step has read is lost if it fails.
#[test]
fn a_failed_run_gives_back_what_it_read() {
    let folder = Folder::new("gives_back");
    let (a, b) = (file(&folder, "a", "1\n2\n"), file(&folder, "b", "3\n4\n"));
    let f = Files::new(|g| g.text_line_reader("reader", 0));
    let fails = Arc::new(AtomicBool::new(false));
    let x = f.g.placeholder("x", F32, dims![1]);
    let failing = fails_while(&x, &fails);
    let step = (f.reader.read_up_to(&f.q, 2).1, &f.value, &failing);
    f.put(&[&a, &b]);
    assert_eq!(f.read().unwrap().1, b"1");
    let before = f.digest();
    // It reads the rest of a and one line of b; the order is that of building.
    fails.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        assert_eq!(kind(f.session.run(&[x.feed([0.0f32])], &step)), ErrorKind::Aborted);
        assert_eq!((f.digest(), f.counts()), (before, (1, 0, 1)));
    }
    fails.store(false, Ordering::Relaxed);
    let (many, one, _) = f.session.run(&[x.feed([0.0f32])], &step).unwrap();
    assert_eq!((texts(&many), bytes(&one)), (vec!["3".to_owned(), "4".to_owned()], b"2".to_vec()));
    assert_eq!(f.counts(), (4, 1, 0));
    // A run that skips and fails, or resets and fails.
    f.put(&[&a, &b]);
    let before = f.digest();
    fails.store(true, Ordering::Relaxed);
    for operation in [f.reader.skip_file(&f.q), f.reader.reset()] {
        assert_eq!(
            kind(f.session.run(&[x.feed([0.0f32])], (&failing, operation))),
            ErrorKind::Aborted
        );
        assert_eq!(f.digest(), before);
    }
    assert_eq!(f.read().unwrap().1, b"1");
}

/// The kinds of errors, with the file's name; the reader stands where it stood, and the file can be left.
#[test]
fn bad_files_are_refused_and_can_be_skipped() {
    let folder = Folder::new("bad");
    let good = tf_records(&folder, "good", Compression::None, &["g"]);
    let cut = tf_records(&folder, "cut", Compression::None, &["one", "two"]);
    let contents = fs::read(&cut).unwrap();
    fs::write(&cut, &contents[..contents.len() - 1]).unwrap();
    let damaged = tf_records(&folder, "damaged", Compression::None, &["one", "two"]);
    let mut contents = fs::read(&damaged).unwrap();
    *contents.last_mut().unwrap() ^= 1;
    fs::write(&damaged, contents).unwrap();
    let garbage = file(&folder, "garbage", [0xa5; 400]);
    let missing = folder.path().join("missing").display().to_string();
    let dir = folder.path().display().to_string();
    let cases = [
        (&missing, ErrorKind::NotFound, 0),
        (&dir, ErrorKind::InvalidArgument, 0),
        (&garbage, ErrorKind::DataLoss, 0),
        (&cut, ErrorKind::DataLoss, 1),
        (&damaged, ErrorKind::DataLoss, 1),
    ];
    for (bad, expected, n_good) in cases {
        let f = Files::new(|g| g.tf_record_reader("reader", Compression::None));
        let skip = f.reader.skip_file(&f.q);
        f.put(&[&good, bad, &good]);
        assert_eq!(f.read().unwrap().1, b"g");
        for _ in 0..n_good {
            assert_eq!(f.read().unwrap().1, b"one");
        }
        for _ in 0..2 {
            let error = f.refused();
            assert_eq!(error.kind(), expected, "{error}");
            assert!(error.to_string().contains(bad.as_str()), "{error}");
            assert_eq!(error.node(), Some("reader_read"));
        }
        f.session.run(&[], &skip).unwrap();
        assert_eq!(f.counts(), (1 + n_good, 2, 1), "{bad}");
        assert_eq!(f.read().unwrap().1, b"g");
        f.close();
        assert_eq!(kind(f.session.run(&[], &skip)), ErrorKind::OutOfRange);
    }
    // What is mended is read at the next try.
    let f = Files::new(|g| g.tf_record_reader("reader", Compression::None));
    f.put(&[&missing]);
    f.refused();
    tf_records(&folder, "missing", Compression::None, &["late"]);
    assert_eq!(f.read().unwrap().1, b"late");
}

/// Of a file at hand the rest is skipped; without one, the next file that has a record.
#[test]
fn skipping_leaves_the_file_of_the_next_record() {
    let folder = Folder::new("skip");
    let (a, b) = (file(&folder, "a", "1\n2\n3\n"), file(&folder, "b", "4\n"));
    let none = file(&folder, "none", "");
    let f = Files::new(|g| g.text_line_reader("reader", 0));
    let skip = f.reader.skip_file(&f.q);
    f.put(&[&a, &none, &b, &a]);
    assert_eq!(f.read().unwrap().1, b"1");
    f.session.run(&[], &skip).unwrap();
    assert_eq!(f.counts(), (1, 1, 3));
    // The file without lines is no file of a record: b goes, too.
    f.session.run(&[], &skip).unwrap();
    assert_eq!(f.counts(), (1, 3, 1));
    assert_eq!(f.read().unwrap().0, format!("{a}:1").into_bytes());
    // Readers whose files are one record each open none to skip it.
    let f = Files::new(|g| g.whole_file_reader("reader"));
    f.put(&["not there", &b]);
    f.session.run(&[], f.reader.skip_file(&f.q)).unwrap();
    assert_eq!(f.read().unwrap().1, b"4\n");
}

/// `AsyncReaderTest.testNoDeadlockFromQueue`: three blocked readers and one thread for submitted runs.
#[test]
fn no_deadlock_from_queue() {
    let folder = Folder::new("async");
    let g = Graph::new();
    let name = g.placeholder("name", Strings, dims![]);
    let parts: Vec<_> = (0..3)
        .map(|i| {
            let q = g.fifo_queue("files", 99, [(Strings, dims![])]);
            let reader = g.text_line_reader(&format!("reader{i}"), 0);
            (q.enqueue(&[&name]), reader.read(&q).1)
        })
        .collect();
    let options = SessionOptions { runners: 1, ..SessionOptions::default() };
    let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
    let runs: Vec<_> =
        parts.iter().map(|(_, value)| session.submit(&[], value, RunOptions::default())).collect();
    thread::sleep(A_WHILE);
    assert!(runs.iter().all(|run| !run.is_done()));
    for (i, (put, _)) in parts.iter().enumerate() {
        let path = file(&folder, &i.to_string(), format!("contents {i}"));
        session
            .submit(&[name.feed(string(path.as_bytes()))], put, RunOptions::default())
            .wait()
            .unwrap();
    }
    for (i, run) in runs.into_iter().enumerate() {
        assert_eq!(bytes(&run.wait().unwrap()), format!("contents {i}").into_bytes());
    }
}

#[test]
fn who_waits_for_a_file_can_be_cancelled_in_each_way() {
    let folder = Folder::new("cancelled");
    let a = file(&folder, "a", "1\n2\n");
    let f = Files::new(|g| g.text_line_reader("reader", 0));
    let timeout = RunOptions { timeout: Some(A_WHILE), ..RunOptions::default() };
    let here = f.session.run_with(&[], &f.value, timeout.clone()).map(|_| ());
    assert_eq!(kind(here), ErrorKind::DeadlineExceeded);
    let submitted = f.session.submit(&[], &f.value, timeout);
    assert_eq!(kind(submitted.wait()), ErrorKind::DeadlineExceeded);
    let token = CancelToken::new();
    let cancel = RunOptions { cancel: Some(token.clone()), ..RunOptions::default() };
    let waits = f.session.submit(&[], &f.value, cancel);
    let waits = waits.wait_for(A_WHILE).expect_err("there is no file");
    token.cancel();
    assert_eq!(kind(waits.wait()), ErrorKind::Cancelled);
    // Nobody stands in line any more.
    f.put(&[&a]);
    assert_eq!(f.read().unwrap().1, b"1");
    assert_eq!(f.read().unwrap().1, b"2");
    let waits = f.session.submit(&[], &f.value, RunOptions::default());
    let waits = waits.wait_for(A_WHILE).expect_err("the file is at its end");
    f.close();
    assert_eq!(kind(waits.wait()), ErrorKind::OutOfRange);
}

/// Many threads on one reader, and many readers on one queue: every record once.
#[test]
fn many_threads_read_every_record_once() {
    let folder = Folder::new("threads");
    let files: Vec<String> = (0..12)
        .map(|i| {
            let lines = (0..i).map(|line| format!("{i}/{line}\n"));
            file(&folder, &i.to_string(), lines.collect::<String>())
        })
        .collect();
    let mut expected: Vec<String> =
        (0..12).flat_map(|i| (0..i).map(move |line| format!("{i}/{line}"))).collect();
    expected.sort();
    let f = Files::new(|g| g.text_line_reader("reader", 0));
    let others: Vec<Tensor> =
        (0..2).map(|i| f.g.text_line_reader(&format!("other{i}"), 0).read(&f.q).1).collect();
    f.put(&files.iter().map(String::as_str).collect::<Vec<_>>());
    f.close();
    let values: Vec<&Tensor> = [&f.value; 3].into_iter().chain(&others).collect();
    let mut got: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = values
            .into_iter()
            .map(|value| {
                let session = &f.session;
                scope.spawn(move || {
                    let mut got = Vec::new();
                    loop {
                        match session.run(&[], value) {
                            Ok(line) => got.push(String::from_utf8(bytes(&line)).unwrap()),
                            Err(e) if e.kind() == ErrorKind::OutOfRange => return got,
                            Err(e) => panic!("{e}"),
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    got.sort();
    assert_eq!(got, expected);
}

/// What is read goes on into a queue in the same run, which waits for room before it reads for good.
#[test]
fn records_go_on_into_a_queue() {
    let folder = Folder::new("onward");
    let a = file(&folder, "a", "1\n2\n3\n4\n");
    let f = Files::new(|g| g.text_line_reader("reader", 0));
    let lines = f.g.fifo_queue("lines", 2, [(Strings, dims![]), (Strings, dims![])]);
    let fill = lines.enqueue(&[&f.key, &f.value]);
    // As an operation of a group, it is run as well.
    let fill = f.g.group([&fill]);
    f.put(&[&a]);
    f.session.run(&[], &fill).unwrap();
    f.session.run(&[], &fill).unwrap();
    let third = f.session.submit(&[], &fill, RunOptions::default());
    let third = third.wait_for(A_WHILE).expect_err("there is no room");
    // It has not read yet: another run may.
    assert_eq!(f.read().unwrap().1, b"3");
    let two = f.session.run(&[], lines.dequeue_many(2)).unwrap();
    assert_eq!(texts(&two[1]), ["1", "2"]);
    assert_eq!(texts(&two[0]), [format!("{a}:1"), format!("{a}:2")]);
    third.wait().unwrap();
    assert_eq!(texts(&f.session.run(&[], lines.dequeue_many(1)).unwrap()[1]), ["4"]);
    // One output fed, the other is still read; both fed, nothing is.
    f.put(&[&a]);
    let fed = (&f.key, &f.value);
    let (_, value) = f.session.run(&[f.key.feed(string(b"k"))], fed).unwrap();
    assert_eq!(bytes(&value), b"1");
    let feeds = [f.key.feed(string(b"k")), f.value.feed(string(b"v"))];
    f.session.run(&feeds, fed).unwrap();
    assert_eq!(f.counts().0, 5);
    // For its effect alone, in a group, it reads as well.
    f.session.run(&[], f.g.group([&f.value.operation()])).unwrap();
    assert_eq!(f.counts().0, 6);
    assert_eq!(f.read().unwrap().1, b"3");
}

/// Recorded while building, with the line.
#[test]
fn wrong_readers_are_refused() {
    let g = Graph::new();
    let refused = |what: &str, message: &str| {
        let errors = g.check();
        let text = errors.last().map(ToString::to_string).unwrap_or_default();
        assert!(text.contains(message) && text.contains("readers.rs"), "{what}: {text}");
    };
    let reader = g.text_line_reader("reader", 0);
    let numbers = g.fifo_queue("numbers", 4, [(I32, dims![])]);
    let (key, value) = reader.read(&numbers);
    refused("numbers", "expected a queue of file names");
    assert_eq!(key.operation().id(), value.operation().id());
    reader.read_up_to(&g.fifo_queue("rows", 4, [(Strings, dims![2])]), 3);
    refused("rows", "expected a queue of file names");
    reader.skip_file(&Graph::new().fifo_queue("foreign", 4, [(Strings, dims![])]));
    refused("foreign", "another graph");
    g.fixed_length_record_reader("none", FixedOptions::new(0));
    refused("no bytes", "record_bytes of at least 1");
    reader.serialize_state();
    refused("state", "unsupported");
    reader.restore_state(&g.constant(string(b"")));
    refused("restore", "unsupported");
    let identity = g.identity_reader("identity");
    identity.restore_state(&g.constant(1.0f32));
    refused("no string", "a scalar string");
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let error = session.run(&[], value).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("readers.rs"), "{error}");
}

/// Many files without a record in a row, which are looked into together.
#[test]
fn many_empty_files_in_a_row() {
    let folder = Folder::new("empty");
    let (empty, full) = (file(&folder, "empty", ""), file(&folder, "full", "one\ntwo\n"));
    let missing = folder.path().join("missing").to_str().unwrap().to_owned();
    let f = Files::new(|g| g.text_line_reader("reader", 0));
    let mut names = vec![&*empty; 2000];
    names.push(&full);
    names.extend(vec![&*empty; 700]);
    names.push(&missing);
    names.extend(vec![&*empty; 700]);
    names.push(&full);
    f.put(&names);
    let start = std::time::Instant::now();
    assert_eq!(f.read().unwrap(), (format!("{full}:1").into(), b"one".to_vec()));
    assert_eq!(f.counts(), (1, 2000, 1402));
    assert_eq!(f.read().unwrap().1, b"two");
    // One of them that cannot be read fails the run, and is passed over when that is asked for.
    let before = f.session.state_digest().unwrap();
    assert_eq!(f.read().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(f.session.state_digest().unwrap(), before);
    let skip = f.reader.skip_file(&f.q);
    f.session.run(&[], &skip).unwrap();
    assert_eq!(f.counts(), (2, 2702, 701));
    assert_eq!(f.read().unwrap().1, b"one");
    assert_eq!(f.counts(), (3, 3402, 0));
    // Minutes, if each file were looked for from the first on.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
