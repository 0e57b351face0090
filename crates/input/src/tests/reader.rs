//! Files by path in every format: keys, positions, what cannot be opened.

use std::path::Path;

use convoke_graph_core::ErrorKind;

use super::{TempFile, all, check_refused, drain, record};
use crate::{
    Compression, FixedOptions, LineOptions, Position, Record, RecordFormat, Records,
    TfRecordOptions, TfRecordWriter, WholeFile,
};

fn tfrecords() -> TempFile {
    let file = TempFile::new(b"");
    let mut writer = TfRecordWriter::create(&file, Compression::None).expect("it can be made");
    for record in [&b""[..], b"foo", b"Record 0 of file 1"] {
        writer.write(record).expect("it is written");
    }
    writer.finish().expect("it is finished");
    file
}

/// A file in each format, and what its three records are, with keys without the file's name.
fn samples() -> Vec<(TempFile, RecordFormat, [Record; 3])> {
    let fixed = FixedOptions { header_bytes: 1, footer_bytes: 1, ..FixedOptions::new(2) };
    vec![
        (
            TempFile::new(b"one\ntwo\r\nthree"),
            RecordFormat::Lines(LineOptions::default()),
            [record(":1", "one"), record(":2", "two"), record(":3", "three")],
        ),
        (
            TempFile::new(b"Haabbccf"),
            RecordFormat::Fixed(fixed),
            [record(":0", "aa"), record(":1", "bb"), record(":2", "cc")],
        ),
        (
            tfrecords(),
            RecordFormat::TfRecord(TfRecordOptions::default()),
            [record(":0", ""), record(":16", "foo"), record(":35", "Record 0 of file 1")],
        ),
    ]
}

fn open(path: impl AsRef<Path>, format: &RecordFormat) -> Records {
    Records::open(path, format).expect("it can be opened")
}

#[test]
fn readers_go_to_other_threads() {
    fn is_send<T: Send>() {}
    is_send::<Records>();
    is_send::<TfRecordWriter<std::fs::File>>();
}

#[test]
fn keys_begin_with_the_file() {
    for (file, format, expected) in samples() {
        let name = file.as_ref().to_string_lossy().into_owned();
        let expected =
            expected.map(|found| Record { key: format!("{name}{}", found.key), ..found });
        let mut records = open(&file, &format);
        assert_eq!((records.name(), records.records_produced()), (&*name, 0));
        for (idx, expected) in expected.iter().enumerate() {
            assert_eq!(records.next().expect("a record").as_ref().expect("whole"), expected);
            assert_eq!(records.records_produced(), idx as u64 + 1);
        }
        assert!(records.next().is_none());
        assert_eq!(records.records_produced(), 3);
    }
}

/// A reader that passed over as many records as another gave goes on as that one does.
#[test]
fn positions_can_be_restored() {
    for (file, format, _) in samples() {
        for given in 0..=3 {
            let mut first = open(&file, &format);
            assert_eq!(first.by_ref().take(given).count(), given);
            let position = first.position();
            let mut second = open(&file, &format);
            second.skip_records(position.records).expect("there are as many");
            assert_eq!(second.position(), position);
            assert_eq!(all(second), all(first));
        }
    }
}

#[test]
fn more_than_there_are() {
    for (file, format, _) in samples() {
        for n in [4, u64::MAX] {
            let mut records = open(&file, &format);
            let message = format!(
                "{}: expected {n} records to pass over, found 3; was the file changed?",
                file.as_ref().display()
            );
            check_refused(records.skip_records(n), ErrorKind::OutOfRange, &message);
        }
    }
}

#[test]
fn damage_is_found_while_passing_over() {
    let file = tfrecords();
    let mut bytes = std::fs::read(&file).expect("it is there");
    bytes[30] ^= 1;
    std::fs::write(&file, bytes).expect("it can be written");
    let mut records = open(&file, &RecordFormat::TfRecord(TfRecordOptions::default()));
    assert_eq!(records.skip_records(2).expect_err("damaged").kind(), ErrorKind::DataLoss);
    assert!(records.next().is_none());
}

#[test]
fn whole_files() {
    for content in [&b"One\na\nb\n"[..], b"Two\nC\nD", b"Three x, y, z", b""] {
        let file = TempFile::new(content);
        let name = file.as_ref().to_string_lossy();
        let mut records = open(&file, &RecordFormat::whole_file());
        assert_eq!(records.position(), Position::default());
        assert_eq!(records.next().expect("it").expect("whole"), record(&name, content));
        let position = Position { records: 1, offset: content.len() as u64 };
        assert_eq!(records.position(), position);
        assert!(records.next().is_none());
    }
}

#[test]
fn whole_files_have_a_limit() {
    assert_eq!(all(WholeFile::new(&b"abc"[..], "f", 3)), [record("f", "abc")]);
    assert_eq!(all(WholeFile::new(&b"abc"[..], "f", u64::MAX)), [record("f", "abc")]);
    let (_, fault) = drain(WholeFile::new(&b"abcd"[..], "f", 3));
    let message = "f: expected a file of at most 3 bytes, found more; raise the limit, max_bytes";
    assert_eq!(fault, Some((ErrorKind::ResourceExhausted, message.to_owned())));
    let (_, fault) = drain(WholeFile::new(std::io::repeat(0), "f", 1 << 20));
    assert_eq!(fault.expect("no end").0, ErrorKind::ResourceExhausted);
}

#[test]
fn the_path_itself() {
    for work in ["A", "", "no/such/file"] {
        let mut records = open(work, &RecordFormat::Identity);
        assert_eq!(records.records_produced(), 0);
        assert_eq!(records.next().expect("it").expect("whole"), record(work, work));
        assert_eq!(records.position(), Position { records: 1, offset: 0 });
        assert!(records.next().is_none());
    }
}

#[test]
fn what_cannot_be_opened() {
    let formats = || {
        let of_files = samples().into_iter().map(|(_, format, _)| format);
        of_files.chain([RecordFormat::whole_file()])
    };
    for format in formats() {
        let path = std::env::temp_dir().join("convoke-input-no-such-file");
        let e = Records::open(&path, &format).expect_err("there is none");
        assert_eq!(e.kind(), ErrorKind::NotFound);
        assert!(e.message().starts_with(&format!("cannot open {}: ", path.display())), "{e}");
        let folder = std::env::temp_dir();
        let message =
            format!("{}: expected a regular file, found something else", folder.display());
        check_refused(Records::open(&folder, &format), ErrorKind::InvalidArgument, &message);
        let e = Records::open("a\0b", &format).expect_err("no path");
        assert_eq!(e.kind(), ErrorKind::InvalidArgument);
    }
}

/// A device that never ends, and one that would wait.
#[cfg(unix)]
#[test]
fn devices_are_refused() {
    for device in ["/dev/zero", "/dev/tty"] {
        if Path::new(device).exists() {
            let e = Records::open(device, &RecordFormat::whole_file()).expect_err("no file");
            assert_eq!(e.kind(), ErrorKind::InvalidArgument);
        }
    }
}
