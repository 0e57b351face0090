//! TFRecord: known bytes, damage at every place, limits, the writer.

use std::io::{self, Write};

use convoke_graph_core::ErrorKind;
use proptest::prelude::*;

use super::{COMPRESSIONS, Failing, TempFile, Trickle, all, check_refused, compressed, drain};
use crate::tfrecord::masked_crc;
use crate::{Compression, TfRecordOptions, TfRecordWriter, TfRecords};

/// The records "", "foo" and "Record 0 of file 1". The checksums are from a bitwise CRC32C in Python.
const FILE: [u8; 69] = [
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x29, 0x03, 0x98, 0x07, // 0 bytes
    0xd8, 0xea, 0x82, 0xa2, //
    0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xb0, 0x99, 0x49, 0x0e, // 3 bytes
    b'f', b'o', b'o', 0x61, 0x8a, 0xbe, 0xfe, //
    0x12, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x24, 0x1f, 0x64, 0x25, // 18 bytes
    b'R', b'e', b'c', b'o', b'r', b'd', b' ', b'0', b' ', b'o', b'f', b' ', b'f', b'i', b'l', b'e',
    b' ', b'1', 0x1b, 0x33, 0x91, 0xe8,
];
/// The same file through Python's zlib and gzip; the gzip header holds a name and a time.
const ZLIB_FILE: [u8; 63] = [
    0x78, 0x9c, 0x63, 0x60, 0x80, 0x00, 0x4d, 0xe6, 0x19, 0xec, 0x37, 0x5e, 0x35, 0x2d, 0x62, 0x86,
    0xf2, 0x37, 0xcc, 0xf4, 0xe4, 0x4b, 0xcb, 0xcf, 0x4f, 0xec, 0xda, 0xf7, 0x4f, 0x08, 0x2a, 0xa4,
    0x22, 0x9f, 0xa2, 0x1a, 0x94, 0x9a, 0x9c, 0x5f, 0x94, 0xa2, 0x60, 0xa0, 0x90, 0x9f, 0xa6, 0x90,
    0x96, 0x99, 0x93, 0xaa, 0x60, 0x28, 0x6d, 0x3c, 0xf1, 0x05, 0x00, 0x14, 0x52, 0x11, 0x9a,
];
const GZIP_FILE: [u8; 77] = [
    0x1f, 0x8b, 0x08, 0x08, 0x01, 0x00, 0x00, 0x00, 0x02, 0xff, 0x61, 0x00, 0x63, 0x60, 0x80, 0x00,
    0x4d, 0xe6, 0x19, 0xec, 0x37, 0x5e, 0x35, 0x2d, 0x62, 0x86, 0xf2, 0x37, 0xcc, 0xf4, 0xe4, 0x4b,
    0xcb, 0xcf, 0x4f, 0xec, 0xda, 0xf7, 0x4f, 0x08, 0x2a, 0xa4, 0x22, 0x9f, 0xa2, 0x1a, 0x94, 0x9a,
    0x9c, 0x5f, 0x94, 0xa2, 0x60, 0xa0, 0x90, 0x9f, 0xa6, 0x90, 0x96, 0x99, 0x93, 0xaa, 0x60, 0x28,
    0x6d, 0x3c, 0xf1, 0x05, 0x00, 0xd1, 0x50, 0x56, 0x08, 0x45, 0x00, 0x00, 0x00,
];
const RECORDS: [&[u8]; 3] = [b"", b"foo", b"Record 0 of file 1"];
/// Where each record begins, and where the last ends.
const STARTS: [usize; 4] = [0, 16, 35, 69];

fn records(bytes: &[u8]) -> TfRecords<&[u8]> {
    TfRecords::new(bytes, TfRecordOptions::default()).named("f")
}

fn with_compression(compression: Compression) -> TfRecordOptions {
    TfRecordOptions { compression, ..TfRecordOptions::default() }
}

fn with_limit(max_record_bytes: u64) -> TfRecordOptions {
    TfRecordOptions { max_record_bytes, ..TfRecordOptions::default() }
}

fn written<R: AsRef<[u8]>>(records: &[R], compression: Compression) -> Vec<u8> {
    let mut writer = TfRecordWriter::new(Vec::new(), compression);
    for record in records {
        writer.write(record.as_ref()).expect("a vector grows");
    }
    writer.finish().expect("a vector grows")
}

/// A header that claims `len` bytes, with its right checksum.
fn header(len: u64) -> Vec<u8> {
    let len = len.to_le_bytes();
    [&len[..], &masked_crc(&len).to_le_bytes()].concat()
}

/// RFC 3720, B.4, and the check value of CRC32C.
#[test]
fn published_checksums() {
    let rising: Vec<u8> = (0..32).collect();
    let falling: Vec<u8> = (0..32).rev().collect();
    let cases: [(&[u8], u32); 5] = [
        (&[0; 32], 0x8a91_36aa),
        (&[0xff; 32], 0x62a8_ab43),
        (&rising, 0x46dd_794e),
        (&falling, 0x113f_db5c),
        (b"123456789", 0xe306_9283),
    ];
    for (bytes, crc) in cases {
        let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_crc(bytes), masked, "{bytes:?}");
    }
}

#[test]
fn known_bytes() {
    let mut reader = records(&FILE);
    for (idx, record) in RECORDS.iter().enumerate() {
        assert_eq!(reader.offset(), STARTS[idx] as u64);
        assert_eq!(reader.next().expect("a record").expect("whole"), *record);
        assert_eq!(reader.records_produced(), idx as u64 + 1);
    }
    assert!(reader.next().is_none());
    assert_eq!(written(&RECORDS, Compression::None), FILE);
    assert!(all(records(&[])).is_empty());
}

#[test]
fn known_compressed_bytes() {
    let zlib = TfRecords::new(&ZLIB_FILE[..], with_compression(Compression::Zlib));
    assert_eq!(all(zlib), RECORDS);
    let gzip = TfRecords::new(&GZIP_FILE[..], with_compression(Compression::Gzip));
    assert_eq!(all(gzip), RECORDS);
}

#[test]
fn every_truncation() {
    for len in 0..FILE.len() {
        let (whole, fault) = drain(records(&FILE[..len]));
        let expected = STARTS.iter().filter(|&&start| start <= len).count() - 1;
        assert_eq!(whole, RECORDS[..expected], "{len} bytes");
        if STARTS.contains(&len) {
            assert_eq!(fault, None, "{len} bytes");
        } else {
            let (kind, message) = fault.expect("a cut record");
            assert_eq!(kind, ErrorKind::DataLoss);
            let place = format!("f: record {expected} at byte {}: expected ", STARTS[expected]);
            assert!(message.starts_with(&place), "{message}");
        }
    }
}

#[test]
fn every_flipped_bit() {
    for bit in 0..FILE.len() * 8 {
        let mut file = FILE;
        file[bit / 8] ^= 1 << (bit % 8);
        let (whole, fault) = drain(records(&file));
        let hit = STARTS.iter().filter(|&&start| start <= bit / 8).count() - 1;
        assert_eq!(whole, RECORDS[..hit], "bit {bit}");
        assert_eq!(fault.map(|(kind, _)| kind), Some(ErrorKind::DataLoss), "bit {bit}");
    }
}

#[test]
fn messages() {
    let check = |bytes: &[u8], message: &str| {
        let (_, fault) = drain(records(bytes));
        assert_eq!(fault, Some((ErrorKind::DataLoss, message.to_owned())));
    };
    check(
        &FILE[..20],
        "f: record 1 at byte 16: expected 12 bytes of its header, found 4 before the end; the file \
         was cut",
    );
    check(
        &FILE[..30],
        "f: record 1 at byte 16: expected 3 bytes of its data, found 2 before the end; the file was \
         cut",
    );
    check(
        &FILE[..34],
        "f: record 1 at byte 16: expected 4 bytes of its data's checksum, found 3 before the end; \
         the file was cut",
    );
    let mut wrong = FILE;
    wrong[31] ^= 1;
    check(
        &wrong,
        "f: record 1 at byte 16: expected the masked CRC32C 0xfebe8a60 of its data, found \
         0xfebe8a61; the file is damaged or no TFRecord file",
    );
    let unnamed = drain(TfRecords::new(&FILE[..1], TfRecordOptions::default()));
    assert!(unnamed.1.expect("cut").1.starts_with("input: record 0 at byte 0: "));
}

#[test]
fn garbage() {
    let gzip = compressed(&FILE, Compression::Gzip);
    let (_, fault) = drain(records(&gzip));
    let (kind, message) = fault.expect("compressed");
    assert_eq!(kind, ErrorKind::DataLoss);
    assert!(message.ends_with("the file begins as gzip does: open it with that compression"));
    for byte in 0..=255 {
        let (whole, fault) = drain(records(&[byte; 100]));
        assert_eq!((whole.len(), fault.expect("no checksum").0), (0, ErrorKind::DataLoss));
    }
}

/// To allocate what these claim would abort.
#[test]
fn absurd_lengths() {
    for len in [u64::MAX, u64::MAX - 3, u64::MAX - 4, 1 << 63, 1 << 40] {
        let file = [header(len), vec![7; 1000]].concat();
        let (_, fault) = drain(records(&file));
        let (kind, message) = fault.expect("too long");
        assert_eq!(kind, ErrorKind::ResourceExhausted);
        assert_eq!(
            message,
            format!(
                "f: record 0 at byte 0: expected at most 1073741824 bytes, found {len}; raise the \
                 limit, max_record_bytes"
            )
        );
        let (_, fault) = drain(TfRecords::new(&*file, with_limit(u64::MAX)));
        assert_eq!(fault.expect("cut").0, ErrorKind::DataLoss);
    }
}

#[test]
fn the_limit_is_exact() {
    let file = written(&[[1; 10]], Compression::None);
    assert_eq!(all(TfRecords::new(&*file, with_limit(10))), [[1; 10]]);
    let (_, fault) = drain(TfRecords::new(&*file, with_limit(9)));
    assert_eq!(fault.expect("too long").0, ErrorKind::ResourceExhausted);
}

/// Large enough to go through every buffer several times.
#[test]
fn large_records() {
    let large: Vec<u8> =
        (0..3_000_000u32).map(|x| (x.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for compression in COMPRESSIONS {
        let file = written(&[&large[..], b"", &large[..70_000]], compression);
        let options = with_compression(compression);
        let read = all(TfRecords::new(&*file, options));
        assert!(read == [&large[..], b"", &large[..70_000]], "{compression:?}");
    }
}

#[test]
fn errors_of_the_reader() {
    let (whole, fault) = drain(TfRecords::new(Failing(&FILE[..40]), TfRecordOptions::default()));
    assert_eq!(whole, RECORDS[..2]);
    let message = "input: cannot be read at byte 40: the disk is gone".to_owned();
    assert_eq!(fault, Some((ErrorKind::Unavailable, message)));
}

/// Takes some bytes, then fails.
#[derive(Debug)]
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.0);
        self.0 -= len;
        if len == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(len) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_failed_writer_stays_failed() {
    let mut writer = TfRecordWriter::new(Full(100), Compression::None);
    writer.write(b"small").expect("it is buffered");
    let e = writer.write(&[0; 100_000]).expect_err("no room");
    assert_eq!(e.kind(), ErrorKind::ResourceExhausted);
    assert!(e.message().starts_with("output: cannot write after 1 records: "), "{e}");
    check_refused(
        writer.write(b"more"),
        ErrorKind::FailedPrecondition,
        "output: an earlier write failed after 1 records; write the file again",
    );
    assert_eq!(writer.records_written(), 1);
    assert_eq!(writer.finish().expect_err("failed").kind(), ErrorKind::FailedPrecondition);
    for compression in COMPRESSIONS {
        let mut writer = TfRecordWriter::new(Full(5), compression);
        writer.write(b"small").expect("it is buffered");
        assert_eq!(writer.finish().expect_err("no room").kind(), ErrorKind::ResourceExhausted);
    }
}

/// What was flushed can be read before the file is finished.
#[test]
fn flushed_records_are_there() {
    for compression in COMPRESSIONS {
        let file = TempFile::new(b"");
        let mut writer = TfRecordWriter::create(&file, compression).expect("it can be made");
        writer.write(b"first").expect("it is written");
        writer.flush().expect("it is flushed");
        let options = with_compression(compression);
        let mut reader = TfRecords::open(&file, options).expect("it is there");
        assert_eq!(reader.next().expect("a record").expect("whole"), b"first", "{compression:?}");
        writer.write(b"second").expect("it is written");
        writer.finish().expect("it is finished");
        let reader = TfRecords::open(&file, options).expect("it is there");
        assert_eq!(all(reader), [&b"first"[..], b"second"], "{compression:?}");
    }
}

#[test]
fn no_folder_to_write_to() {
    let path = std::env::temp_dir().join("convoke-input-no-folder").join("file");
    let e = TfRecordWriter::create(&path, Compression::None).expect_err("there is no folder");
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert!(e.message().starts_with(&format!("cannot create {}: ", path.display())), "{e}");
}

proptest! {
    #[test]
    fn round_trips(
        records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
        step in 1usize..100,
        kind in 0usize..3,
    ) {
        let file = written(&records, COMPRESSIONS[kind]);
        let options = with_compression(COMPRESSIONS[kind]);
        let reader = TfRecords::new(Trickle::new(&file, step), options);
        prop_assert_eq!(all(reader), records);
    }

    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0usize..3) {
        drain(TfRecords::new(&*bytes, with_compression(COMPRESSIONS[kind])));
    }
}
