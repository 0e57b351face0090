//! CSV: the cases of TensorFlow's `decode_csv_op_test.py` by their meaning, and each refusal.

use convoke_graph_core::{DType, ErrorKind, HostTensor};
use proptest::prelude::*;

use super::check_refused;
use crate::{CsvDecoder, CsvOptions};

/// A required field's default.
fn required(dtype: DType) -> HostTensor {
    match dtype {
        DType::F32 => Vec::<f32>::new().into(),
        DType::F64 => Vec::<f64>::new().into(),
        DType::I32 => Vec::<i32>::new().into(),
        DType::I64 => Vec::<i64>::new().into(),
        _ => strings([]),
    }
}

fn strings<const N: usize>(strings: [&str; N]) -> HostTensor {
    HostTensor::strings(&[N], strings).expect("as many as there are")
}

fn no_quotes() -> CsvOptions {
    CsvOptions { use_quote_delim: false, ..CsvOptions::default() }
}

fn columns<const N: usize>(select_cols: [usize; N]) -> CsvOptions {
    CsvOptions { select_cols: select_cols.to_vec(), ..CsvOptions::default() }
}

fn decoder<const N: usize>(defaults: [HostTensor; N], options: CsvOptions) -> CsvDecoder {
    CsvDecoder::new(defaults.to_vec(), options).expect("good options")
}

/// Of a batch; and each record alone gives the elements of the batch.
#[track_caller]
fn check<const N: usize>(
    defaults: [HostTensor; N],
    options: CsvOptions,
    records: &[&str],
    expected: [HostTensor; N],
) {
    let decoder = decoder(defaults, options);
    assert_eq!(decoder.decode_batch(records).expect("good records"), expected);
    let tensor =
        HostTensor::strings(&[1, records.len()], records.iter().copied()).expect("strings");
    for (column, expected) in decoder.decode_tensor(&tensor).expect("good").iter().zip(&expected) {
        assert_eq!(column.dims(), [1, records.len()]);
        assert_eq!(column.bytes(), expected.bytes());
    }
    for (idx, record) in records.iter().enumerate() {
        for (scalar, column) in
            decoder.decode(record.as_bytes()).expect("good").iter().zip(&expected)
        {
            assert_eq!((scalar.dims(), scalar.dtype()), (&[][..], column.dtype()));
            match column.as_strings() {
                Ok(column) => assert_eq!(scalar.as_strings().expect("strings")[0], column[idx]),
                Err(_) => {
                    let n_bytes = column.dtype().n_bytes();
                    assert_eq!(scalar.bytes(), &column.bytes()[idx * n_bytes..][..n_bytes]);
                }
            }
        }
    }
}

#[track_caller]
fn refused<const N: usize>(
    defaults: [HostTensor; N],
    options: CsvOptions,
    records: &[&str],
    message: &str,
) {
    let result = decoder(defaults, options).decode_batch(records);
    check_refused(result, ErrorKind::InvalidArgument, message);
}

#[test]
fn numbers() {
    check([[1].into()], CsvOptions::default(), &["1", "2", "\"3\""], [[1, 2, 3].into()]);
    check(
        [1.into(), 2.into()],
        CsvOptions::default(),
        &["1,4", "2,5", "3,6"],
        [[1, 2, 3].into(), [4, 5, 6].into()],
    );
    check(
        [required(DType::F64)],
        CsvOptions::default(),
        &["1.0", "-1.79e+308", "\"1.79e+308\""],
        [[1.0, -1.79e308, 1.79e308].into()],
    );
    check(
        [required(DType::I64)],
        CsvOptions::default(),
        &["1", "2", "\"2147483648\"", "-9223372036854775808"],
        [[1, 2, 2_147_483_648, i64::MIN].into()],
    );
    check([[0].into()], CsvOptions::default(), &[" 7 ", "-7", "+7"], [[7, -7, 7].into()]);
    check(
        [required(DType::F32)],
        CsvOptions::default(),
        &["inf", "-Infinity", ".5", "1.", " 1e3", "1e99"],
        [[f32::INFINITY, -f32::INFINITY, 0.5, 1.0, 1000.0, f32::INFINITY].into()],
    );
}

#[test]
fn quotes() {
    check(
        [strings(["1"])],
        CsvOptions::default(),
        &["\"1.0\"", "\"ab , c\"", "\"a\nbc\"", "\"ab\"\"c\"", " abc ", "\"\"\"\"", "\",\""],
        [strings(["1.0", "ab , c", "a\nbc", "ab\"c", " abc ", "\"", ","])],
    );
    check(
        [strings([""]), strings([""])],
        CsvOptions::default(),
        &["\"a\"\"\",b", "\"a\",", "\"a\"\"b\"\"c\",\"\r\n\""],
        [strings(["a\"", "a", "a\"b\"c"]), strings(["b", "", "\r\n"])],
    );
    check([strings([""])], no_quotes(), &["1", "2", "\"3\""], [strings(["1", "2", "\"3\""])]);
    check(
        [strings([""])],
        no_quotes(),
        &["1", "2", "\"\"", "\""],
        [strings(["1", "2", "\"\"", "\""])],
    );
}

#[test]
fn defaults() {
    let row = || [[1.0f32].into(), [0].into(), strings(["a"])];
    check(
        row(),
        CsvOptions::default(),
        &["1.0,4,aa", "0.2,5,bb", "3,6,cc"],
        [[1.0f32, 0.2, 3.0].into(), [4, 5, 6].into(), strings(["aa", "bb", "cc"])],
    );
    check(
        row(),
        CsvOptions::default(),
        &[",1,", "0.2,3,bcd", "3.0,,"],
        [[1.0f32, 0.2, 3.0].into(), [1, 3, 0].into(), strings(["a", "bcd", "a"])],
    );
    check(
        row(),
        no_quotes(),
        &[",1,", "0.2,3,bcd", "3.0,,\""],
        [[1.0f32, 0.2, 3.0].into(), [1, 3, 0].into(), strings(["a", "bcd", "\""])],
    );
    check([[3].into(), [4].into()], CsvOptions::default(), &["1,\"\""], [[1].into(), [4].into()]);
    let na = CsvOptions { na_value: b"NA".to_vec(), ..CsvOptions::default() };
    check(
        [[0.0f32].into(), [0].into(), strings([""])],
        na,
        &["2.0,NA,aa", "NA,5,bb", "3,6,NA"],
        [[2.0f32, 0.0, 3.0].into(), [0, 5, 6].into(), strings(["aa", "bb", ""])],
    );
}

#[test]
fn delimiters() {
    let tab = CsvOptions { field_delim: b'\t', ..CsvOptions::default() };
    check(
        [[1.0f32].into(), [0].into()],
        tab,
        &["1\t1", "0.2\t3", "3.0\t"],
        [[1.0f32, 0.2, 3.0].into(), [1, 3, 0].into()],
    );
}

#[test]
fn selected_columns() {
    let two = || [[1].into(), [2].into()];
    let three = || [[0].into(), [1].into(), [2].into()];
    check(two(), columns([0, 1]), &[",,", "4,5,6"], [[1, 4].into(), [2, 5].into()]);
    check(two(), columns([0, 2]), &[",,", "4,5,6"], [[1, 4].into(), [2, 6].into()]);
    check(
        three(),
        columns([0, 1, 2]),
        &[",,", "4,5,6"],
        [[0, 4].into(), [1, 5].into(), [2, 6].into()],
    );
    // What comes after the last selected column is not looked at.
    check([[1].into()], columns([1]), &["x,5,a\"b"], [[5].into()]);
    refused(
        three(),
        columns([0, 1, 3]),
        &[",,", "4,5,6"],
        "Expect 3 fields but have 2 in record 0",
    );
    refused(two(), columns([0, 3]), &["1,2,3"], "Expect 2 fields but have 1 in record 0");
}

#[test]
fn fields_that_are_refused() {
    let row = || [[1.0f32].into(), required(DType::I32)];
    let of = |records: &[&str], message: &str| {
        refused(row(), CsvOptions::default(), records, message);
    };
    of(&[",1", "0.2,3", "3.0,"], "Field 1 is required but missing in record 2!");
    of(&[",1", "0.2,234a", "3.0,2"], "Field 1 in record 1 is not a valid int32: 234a");
    of(&[",1", "0.2,2", "3.0adf,3"], "Field 0 in record 2 is not a valid float: 3.0adf");
    of(&["1"], "Expect 2 fields but have 1 in record 0");
    of(&["1,2", "1,2,3"], "Expect 2 fields but have 3 in record 1");
    of(&[""], "Expect 2 fields but have 0 in record 0");
    let one = |default: HostTensor, record: &str, message: &str| {
        refused([default], CsvOptions::default(), &[record], message);
    };
    one(
        [1].into(),
        "9999999999999999999999999",
        "Field 0 in record 0 is not a valid int32: 9999999999999999999999999",
    );
    one([1].into(), "2147483648", "Field 0 in record 0 is not a valid int32: 2147483648");
    one([1].into(), " ", "Field 0 in record 0 is not a valid int32:  ");
    one([1i64].into(), "1.5", "Field 0 in record 0 is not a valid int64: 1.5");
    one([1.0].into(), "one", "Field 0 in record 0 is not a valid double: one");
    one([1.0f32].into(), ",1", "Expect 1 fields but have 2 in record 0");
    one(required(DType::String), "\"\"", "Field 0 is required but missing in record 0!");
    let long = "x".repeat(100);
    let shown = format!("Field 0 in record 0 is not a valid int32: {}... (100 bytes)", &long[..64]);
    one([1].into(), &long, &shown);
}

#[test]
fn quotes_that_are_refused() {
    let one = |record: &str, message: &str| {
        refused([strings(["a"])], CsvOptions::default(), &[record], message);
    };
    let unquoted = "expected no quote or line break in an unquoted field, found one at byte";
    one("a\"bc", &format!("field 0 in record 0: {unquoted} 1"));
    one("1\n", &format!("field 0 in record 0: {unquoted} 1"));
    one("a,b\rc", &format!("field 1 in record 0: {unquoted} 3"));
    let unclosed = "expected a quote at the end of the field, found none for the quote at byte";
    one("\"", &format!("field 0 in record 0: {unclosed} 0"));
    one("\"abc", &format!("field 0 in record 0: {unclosed} 0"));
    one("\"\"\"", &format!("field 0 in record 0: {unclosed} 0"));
    one("x,\"a\"\",b", &format!("field 1 in record 0: {unclosed} 2"));
    let behind = "expected a delimiter, the end or a second quote after the quote at byte";
    one("\"a\"b", &format!("field 0 in record 0: {behind} 2"));
    one("\"a\"\n", &format!("field 0 in record 0: {behind} 2"));
}

/// As TensorFlow: line breaks before a field are passed over.
#[test]
fn line_breaks_before_a_field() {
    let row = || [[1].into(), [2].into()];
    check(row(), CsvOptions::default(), &["\n3,\r\n4"], [[3].into(), [4].into()]);
    refused(row(), CsvOptions::default(), &["3,\n"], "Expect 2 fields but have 1 in record 0");
    refused(row(), CsvOptions::default(), &["\r\n"], "Expect 2 fields but have 0 in record 0");
}

#[test]
fn options_that_are_refused() {
    let refused = |defaults: &[HostTensor], options, message: &str| {
        let result = CsvDecoder::new(defaults.to_vec(), options);
        check_refused(result, ErrorKind::InvalidArgument, message);
    };
    refused(
        &[[0, 1].into()],
        CsvOptions::default(),
        "default 0: expected one element, or none for a required field, got shape [2]",
    );
    refused(
        &[0.into(), [[0]].into()],
        CsvOptions::default(),
        "default 1: expected one element, or none for a required field, got shape [1, 1]",
    );
    refused(
        &[true.into()],
        CsvOptions::default(),
        "default 0: expected f32, f64, i32, i64 or string, got bool; choose another dtype",
    );
    refused(
        &[0.into(), 0.into(), 0.into()],
        columns([0]),
        "expected as many selected columns as defaults, got 1 and 3",
    );
    for [first, second] in [[1, 0], [1, 1]] {
        refused(
            &[0.into(), 1.into()],
            columns([first, second]),
            &format!("expected selected columns that rise, got {first} before {second}"),
        );
    }
    for delim in [b'"', b'\n', b'\r'] {
        let options = CsvOptions { field_delim: delim, ..CsvOptions::default() };
        let message = format!(
            "expected a field delimiter that is neither a quote nor a line break, got {:?}",
            char::from(delim)
        );
        refused(&[0.into()], options, &message);
    }
}

#[test]
fn nothing_to_decode() {
    let decoder = decoder([[0].into(), strings([""])], CsvOptions::default());
    let columns = decoder.decode_batch(&[] as &[&str]).expect("no records");
    assert_eq!(columns, [Vec::<i32>::new().into(), strings([])]);
    let e = decoder.decode_tensor(&[1].into()).expect_err("no strings");
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
}

proptest! {
    /// What is quoted as RFC 4180 says comes back.
    #[test]
    fn quoted_fields_come_back(fields in prop::collection::vec("[a-c,\"\r\n]{1,6}", 1..5)) {
        let quoted: Vec<_> =
            fields.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect();
        let defaults = vec![required(DType::String); fields.len()];
        let decoder = CsvDecoder::new(defaults, CsvOptions::default()).expect("good options");
        let columns = decoder.decode(quoted.join(",").as_bytes()).expect("a good record");
        for (column, field) in columns.iter().zip(&fields) {
            prop_assert_eq!(&column.as_strings().expect("strings")[0], field.as_bytes());
        }
    }

    #[test]
    fn any_bytes_end(record in prop::collection::vec(any::<u8>(), 0..60), quotes in any::<bool>()) {
        let options = CsvOptions { use_quote_delim: quotes, field_delim: b'a', ..CsvOptions::default() };
        let decoder = decoder([strings([""]), [0].into()], options);
        if let Ok(columns) = decoder.decode(&record) {
            prop_assert_eq!(columns.len(), 2);
        }
    }
}
