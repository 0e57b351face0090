//! Raw bytes: both byte orders, every dtype, lengths.

use convoke_graph_core::{DType, ErrorKind, HostTensor};

use super::check_refused;
use crate::{Endian, decode_raw, decode_raw_batch};

const BYTES: [u8; 8] = [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08];

#[track_caller]
fn check(bytes: &[u8], endian: Endian, expected: impl Into<HostTensor>) {
    let expected = expected.into();
    assert_eq!(decode_raw(bytes, expected.dtype(), endian).expect("good bytes"), expected);
}

#[test]
fn byte_orders() {
    check(&BYTES, Endian::Little, [0x0201u16, 0x0403, 0x0605, 0x0807]);
    check(&BYTES, Endian::Big, [0x0102u16, 0x0304, 0x0506, 0x0708]);
    check(&BYTES, Endian::Little, [0x0403_0201, 0x0807_0605]);
    check(&BYTES, Endian::Big, [0x0102_0304, 0x0506_0708]);
    check(&BYTES, Endian::Little, [0x0807_0605_0403_0201i64]);
    check(&BYTES, Endian::Big, [0x0102_0304_0506_0708i64]);
    check(&BYTES, Endian::Big, BYTES);
    check(&[0, 0, 0x80, 0x3f], Endian::Little, [1.0f32]);
    check(&[0x3f, 0x80, 0, 0], Endian::Big, [1.0f32]);
    check(&[0xc0, 0x08, 0, 0, 0, 0, 0, 0], Endian::Big, [-3.0]);
    check(&[0, 1, 1], Endian::Little, [false, true, true]);
    check(&[0xff], Endian::Little, [-1i8]);
}

#[test]
fn every_dtype_by_its_size() {
    for dtype in DType::NUMERIC {
        for endian in [Endian::Little, Endian::Big] {
            let decoded = decode_raw(&[0; 24], dtype, endian).expect("zeros");
            assert_eq!((decoded.dtype(), decoded.dims()), (dtype, &[24 / dtype.n_bytes()][..]));
            assert_eq!(decode_raw(&[], dtype, endian).expect("nothing").dims(), [0]);
        }
    }
}

#[test]
fn lengths() {
    for (dtype, len, rest) in [(DType::I32, 7, 3), (DType::I16, 1, 1), (DType::F64, 12, 4)] {
        let size = dtype.n_bytes();
        check_refused(
            decode_raw(&vec![0; len], dtype, Endian::Little),
            ErrorKind::InvalidArgument,
            &format!(
                "expected a multiple of {size} bytes, the size of {dtype}, got {len}, which leaves \
                 {rest}"
            ),
        );
    }
}

#[test]
fn batches() {
    let records = HostTensor::strings(&[2, 1], [&BYTES[..4], &BYTES[4..]]).expect("strings");
    let decoded = decode_raw_batch(&records, DType::U16, Endian::Big).expect("good bytes");
    assert_eq!(decoded.dims(), [2, 1, 2]);
    assert_eq!(decoded.as_slice::<u16>().expect("u16"), [0x0102, 0x0304, 0x0506, 0x0708]);

    let none = HostTensor::strings(&[0], [] as [&str; 0]).expect("strings");
    assert_eq!(decode_raw_batch(&none, DType::I64, Endian::Little).expect("none").dims(), [0, 0]);
    let empty = HostTensor::strings(&[3], ["", "", ""]).expect("strings");
    assert_eq!(decode_raw_batch(&empty, DType::I64, Endian::Little).expect("none").dims(), [3, 0]);

    let uneven = HostTensor::strings(&[3], ["abcd", "abcd", "ab"]).expect("strings");
    check_refused(
        decode_raw_batch(&uneven, DType::U8, Endian::Little),
        ErrorKind::InvalidArgument,
        "expected strings of one length, got 4 bytes in string 0 and 2 in string 2",
    );
}

#[test]
fn what_is_refused() {
    let e = decode_raw(&[2], DType::Bool, Endian::Little).expect_err("no bool");
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
    check_refused(
        decode_raw(&[2], DType::String, Endian::Little),
        ErrorKind::InvalidArgument,
        "expected a dtype of fixed size, got string",
    );
    let e = decode_raw_batch(&[1].into(), DType::U8, Endian::Little).expect_err("no strings");
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
    let deep = HostTensor::strings(&[1; 8], ["a"]).expect("strings");
    let e = decode_raw_batch(&deep, DType::U8, Endian::Little).expect_err("one axis too many");
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
}
