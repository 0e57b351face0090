//! gzip and zlib: every cut and every flipped bit, several streams, names.

use std::io::Write;

use convoke_graph_core::ErrorKind;
use flate2::{Compress, FlushCompress, Status};

use super::{all, check_refused, compressed, drain};
use crate::{Compression, LineOptions, Lines, Record};

const TEXT: &[u8] =
    b"Gallia est omnis divisa in partes tres,\nquarum unam incolunt Belgae,\naliam \
    Aquitani,\ntertiam qui ipsorum lingua Celtae, nostra Galli appellantur.\n";

fn lines(bytes: &[u8], compression: Compression) -> Lines<&[u8]> {
    Lines::new(bytes, "f", LineOptions { compression, ..LineOptions::default() })
}

fn plain() -> Vec<Record> {
    all(lines(TEXT, Compression::None))
}

const BOTH: [Compression; 2] = [Compression::Gzip, Compression::Zlib];

#[test]
fn every_truncation() {
    for compression in BOTH {
        let file = compressed(TEXT, compression);
        for len in 0..file.len() {
            let (whole, fault) = drain(lines(&file[..len], compression));
            assert!(plain().starts_with(&whole), "{compression:?}, {len} bytes");
            let (kind, message) = fault.expect("the end is missing");
            assert_eq!(kind, ErrorKind::DataLoss, "{compression:?}, {len} bytes");
            assert!(message.starts_with("f: expected compressed data, found damage after byte "));
        }
        assert_eq!(all(lines(&file, compression)), plain());
    }
}

/// Every flipped bit that changes the content is found. Nothing guards the last byte's padding, nor the
/// bytes of a gzip header that say when and by which system.
#[test]
fn every_flipped_bit() {
    for compression in BOTH {
        let file = compressed(TEXT, compression);
        let mut unseen = 0;
        for bit in 0..file.len() * 8 {
            let mut file = file.clone();
            file[bit / 8] ^= 1 << (bit % 8);
            let (whole, fault) = drain(lines(&file, compression));
            match fault {
                None => {
                    assert_eq!(whole, plain(), "{compression:?}, bit {bit}");
                    unseen += 1;
                }
                Some((kind, _)) => {
                    assert_eq!(kind, ErrorKind::DataLoss, "{compression:?}, bit {bit}");
                }
            }
        }
        let time_and_system = if compression == Compression::Gzip { 8 * 7 } else { 0 };
        let padding = 7;
        assert!(unseen <= time_and_system + padding, "{compression:?}: {unseen} bits");
    }
}

#[test]
fn several_streams_are_one_content() {
    for compression in BOTH {
        for cut in [0, 1, 40, TEXT.len()] {
            let (first, second) = TEXT.split_at(cut);
            let file = [compressed(first, compression), compressed(second, compression)].concat();
            assert_eq!(all(lines(&file, compression)), plain(), "{compression:?}, cut at {cut}");
        }
    }
}

#[test]
fn what_follows_is_found() {
    for compression in BOTH {
        let mut file = compressed(TEXT, compression);
        file.extend_from_slice(b"and more");
        let (whole, fault) = drain(lines(&file, compression));
        assert_eq!(whole, plain(), "{compression:?}");
        assert_eq!(fault.expect("no stream").0, ErrorKind::DataLoss, "{compression:?}");
    }
}

/// A byte at a time, each with a full flush, and empty blocks behind: the meaning of TensorFlow's
/// `testZLibFlushRecord`.
#[test]
fn many_flushes() {
    let mut state = Compress::new(flate2::Compression::best(), true);
    let mut file = Vec::with_capacity(1 << 16);
    for byte in TEXT {
        state.compress_vec(&[*byte], &mut file, FlushCompress::Full).expect("there is room");
    }
    for _ in 0..2 {
        state.compress_vec(&[], &mut file, FlushCompress::Full).expect("there is room");
    }
    let end = state.compress_vec(&[], &mut file, FlushCompress::Finish).expect("there is room");
    assert_eq!(end, Status::StreamEnd);
    assert_eq!(all(lines(&file, Compression::Zlib)), plain());
}

/// 64 MiB of zeros are 64 KiB of file. A line of them ends at its limit, so little is decompressed.
#[test]
fn a_bomb_ends_at_the_limit() {
    for compression in BOTH {
        let mut file = Vec::new();
        let zeros = vec![0; 1 << 26];
        file.write_all(&compressed(&zeros, compression)).expect("a vector grows");
        let options = LineOptions { compression, max_line_bytes: 1000, ..LineOptions::default() };
        let mut reader = Lines::new(&*file, "f", options);
        let e = reader.next().expect("a line").expect_err("it is too long");
        assert_eq!(e.kind(), ErrorKind::ResourceExhausted);
        assert_eq!(reader.offset(), 0);
        assert!(reader.next().is_none());
    }
}

#[test]
fn names() {
    let named = |name: &str| name.parse::<Compression>();
    assert_eq!(named("").expect("no compression"), Compression::None);
    assert_eq!(named("NONE").expect("no compression"), Compression::None);
    assert_eq!(named("GZIP").expect("gzip"), Compression::Gzip);
    assert_eq!(named("ZLIB").expect("zlib"), Compression::Zlib);
    check_refused(
        named("gzip"),
        ErrorKind::InvalidArgument,
        "expected the compression GZIP, ZLIB, NONE or nothing, got \"gzip\"",
    );
}
