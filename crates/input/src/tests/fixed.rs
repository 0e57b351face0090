//! Records of one length: headers, footers, hops, what is left over, sizes.

use convoke_graph_core::ErrorKind;

use super::{COMPRESSIONS, Failing, Trickle, all, check_refused, compressed, drain, record};
use crate::{FixedOptions, FixedRecords, Record};

/// Records of 3 bytes after a header of 5, before a footer of 2.
fn options(hop_bytes: u64) -> FixedOptions {
    FixedOptions { header_bytes: 5, footer_bytes: 2, hop_bytes, ..FixedOptions::new(3) }
}

#[track_caller]
fn read(content: &[u8], options: FixedOptions) -> Vec<Record> {
    let read = |compression, step| {
        let file = compressed(content, compression);
        let options = FixedOptions { compression, ..options };
        let reader = FixedRecords::new(Trickle::new(&file, step), "f", options);
        all(reader.expect("the sizes are good"))
    };
    let plain = read(COMPRESSIONS[0], 1000);
    for compression in COMPRESSIONS {
        for step in [1, 2, 7] {
            assert_eq!(read(compression, step), plain, "{compression:?} by {step}");
        }
    }
    plain
}

#[track_caller]
fn check(content: &[u8], options: FixedOptions, expected: &[&[u8]]) {
    let expected: Vec<_> =
        expected.iter().enumerate().map(|(n, value)| record(&format!("f:{n}"), *value)).collect();
    assert_eq!(read(content, options), expected);
}

#[test]
fn one_after_the_other() {
    let expected: [&[u8]; 7] = [b"000", b"111", b"222", b"333", b"444", b"555", b"666"];
    check(b"HHHHH000111222333444555666FF", options(0), &expected);
    check(b"HHHHH000111222333444555666FF", options(3), &expected);
    check(b"HHHHHFF", options(0), &[]);
    check(b"abcdef", FixedOptions::new(2), &[b"ab", b"cd", b"ef"]);
    check(b"", FixedOptions::new(2), &[]);
}

#[test]
fn overlaps_and_gaps() {
    check(b"HHHHH0123456FF", options(2), &[b"012", b"234", b"456"]);
    check(b"HHHHH0123FF", options(1), &[b"012", b"123"]);
    check(b"HHHHH012..345..678FF", options(5), &[b"012", b"345", b"678"]);
    check(b"HHHHH012....3FF", options(7), &[b"012"]);
    check(b"HHHHH012FF", options(u64::MAX), &[b"012"]);
}

#[test]
fn what_is_left_over_is_dropped() {
    for rest in [&b"1"[..], b"11"] {
        check(&[b"HHHHH000", rest, b"FF"].concat(), options(0), &[b"000"]);
    }
    // Without the footer, the last record is taken for it.
    check(b"HHHHH000111", options(0), &[b"000"]);
    check(b"HHHHHF", options(0), &[]);
    check(b"HHHHH", options(0), &[]);
    check(b"HHHHH01234FF", options(2), &[b"012", b"234"]);
}

#[test]
fn shorter_than_the_header() {
    let (whole, fault) =
        drain(FixedRecords::new(&b"HHH"[..], "f", options(0)).expect("good sizes"));
    assert_eq!(whole, []);
    let message = "f: expected a header of 5 bytes, found a file of 3".to_owned();
    assert_eq!(fault, Some((ErrorKind::DataLoss, message)));
}

#[test]
fn sizes() {
    let refused = |options, kind, message: &str| {
        check_refused(FixedRecords::new(&b""[..], "f", options), kind, message);
    };
    refused(
        FixedOptions::new(0),
        ErrorKind::InvalidArgument,
        "expected record_bytes of at least 1, got 0",
    );
    let above = "expected at most 10 bytes of a record and the footer, got 4 and 7; raise the limit, \
                 max_record_bytes";
    let limited = FixedOptions { max_record_bytes: 10, ..FixedOptions::new(4) };
    let footer = |footer_bytes| FixedOptions { footer_bytes, ..limited };
    refused(footer(7), ErrorKind::ResourceExhausted, above);
    assert!(FixedRecords::new(&b""[..], "f", footer(6)).is_ok());
    refused(
        FixedOptions { footer_bytes: u64::MAX, max_record_bytes: u64::MAX, ..limited },
        ErrorKind::ResourceExhausted,
        "expected at most 18446744073709551615 bytes of a record and the footer, got 4 and \
         18446744073709551615; raise the limit, max_record_bytes",
    );
}

/// To allocate what these ask for would abort.
#[test]
fn absurd_sizes_cost_no_memory() {
    let huge = FixedOptions { max_record_bytes: u64::MAX, ..FixedOptions::new(u64::MAX / 2) };
    assert_eq!(all(FixedRecords::new(&b"abc"[..], "f", huge).expect("good sizes")), []);
    let header = FixedOptions { header_bytes: u64::MAX, ..FixedOptions::new(1) };
    let (_, fault) = drain(FixedRecords::new(&b"abc"[..], "f", header).expect("good sizes"));
    assert_eq!(fault.expect("a short file").0, ErrorKind::DataLoss);
}

#[test]
fn errors_of_the_reader() {
    let reader = FixedRecords::new(Failing(b"HHHHH000FF1"), "f", options(0)).expect("good sizes");
    let (whole, fault) = drain(reader);
    assert_eq!(whole, [record("f:0", "000")]);
    assert_eq!(fault.expect("the reader's").0, ErrorKind::Unavailable);
}
