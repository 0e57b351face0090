//! Lines: ends, keys, headers, limits.

use convoke_graph_core::ErrorKind;
use proptest::prelude::*;

use super::{Failing, Trickle, all, drain, record};
use crate::{LineOptions, Lines};

fn lines(text: &[u8], skip_header_lines: u64) -> Lines<&[u8]> {
    Lines::new(text, "f", LineOptions { skip_header_lines, ..LineOptions::default() })
}

#[track_caller]
fn check(text: &[u8], expected: &[&[u8]]) {
    let values: Vec<_> = all(lines(text, 0)).into_iter().map(|record| record.value).collect();
    assert_eq!(values, expected);
}

#[test]
fn ends_of_lines() {
    check(b"", &[]);
    check(b"a", &[b"a"]);
    check(b"a\n", &[b"a"]);
    check(b"a\nb", &[b"a", b"b"]);
    check(b"a\nb\n", &[b"a", b"b"]);
    check(b"a\r\nb\r\n", &[b"a", b"b"]);
    check(b"a\r\nb\r", &[b"a", b"b"]);
    check(b"\n", &[b""]);
    check(b"\n\n", &[b"", b""]);
    check(b"\r\n\r\n", &[b"", b""]);
    check(b"a\n\nb", &[b"a", b"", b"b"]);
    check(b"a\r\r\nb\rc\n", &[b"a\r", b"b\rc"]);
    check(b"\xff\0\n", &[b"\xff\0"]);
}

#[test]
fn keys_count_lines_from_one() {
    let expected = [record("f:1", "0: 0"), record("f:2", "0: 1"), record("f:3", "0: 2")];
    assert_eq!(all(lines(b"0: 0\n0: 1\n0: 2", 0)), expected);
    assert_eq!(all(lines(b"0: 0\r\n0: 1\r\n0: 2\r\n", 0)), expected);
}

#[test]
fn headers() {
    assert_eq!(all(lines(b"h\na\nb\n", 1)), [record("f:2", "a"), record("f:3", "b")]);
    assert_eq!(all(lines(b"h\n\na\n", 2)), [record("f:3", "a")]);
    for skipped in [2, 3, u64::MAX] {
        assert_eq!(all(lines(b"h\na", skipped)), []);
    }
    assert_eq!(all(lines(b"", 1)), []);
}

#[test]
fn limits() {
    let options = LineOptions { max_line_bytes: 3, ..LineOptions::default() };
    let (whole, fault) = drain(Lines::new(&b"abc\nabcd\nabc\n"[..], "f", options));
    assert_eq!(whole, [record("f:1", "abc")]);
    let message = "f: line 2 at byte 4: expected at most 3 bytes, found more; raise the limit, \
                   max_line_bytes, or check that the file is text";
    assert_eq!(fault, Some((ErrorKind::ResourceExhausted, message.to_owned())));
    let header = LineOptions { skip_header_lines: 1, ..options };
    assert_eq!(all(Lines::new(&b"a long header\nabc"[..], "f", header)), [record("f:2", "abc")]);
}

#[test]
fn errors_of_the_reader() {
    let (whole, fault) = drain(Lines::new(Failing(b"a\nb"), "f", LineOptions::default()));
    assert_eq!(whole, [record("f:1", "a")]);
    let message = "f: cannot be read at byte 3: the disk is gone".to_owned();
    assert_eq!(fault, Some((ErrorKind::Unavailable, message)));
}

proptest! {
    /// As the standard library splits, by any size of reads.
    #[test]
    fn as_split(text in "[a\n]{0,40}", step in 1usize..9) {
        let reader = Lines::new(Trickle::new(text.as_bytes(), step), "f", LineOptions::default());
        let expected: Vec<_> =
            (1..).zip(text.lines()).map(|(n, line)| record(&format!("f:{n}"), line)).collect();
        prop_assert_eq!(all(reader), expected);
    }
}
