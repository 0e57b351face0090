//! Records of comma-separated values as tensors, one for each column, as TensorFlow's `DecodeCSV`.
//!
//! Fields follow RFC 4180. Source: TensorFlow's `core/kernels/decode_csv_op.cc`. Numbers are read as
//! Rust reads them, so a plus sign is taken and hexadecimal floats are not.

mod fields;

use std::str::FromStr;

use convoke_graph_core::ops::text::{parse_number, shown};
use convoke_graph_core::{DType, Element, Error, HostTensor, Result};

use fields::Fields;

/// How records are split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvOptions {
    /// What stands between two fields.
    pub field_delim: u8,
    /// Whether a field may stand in double quotes; if not, they are characters as others.
    pub use_quote_delim: bool,
    /// Another text that means the default, beside the empty field.
    pub na_value: Vec<u8>,
    /// Which fields to decode, from 0 and rising; none means all.
    pub select_cols: Vec<usize>,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self {
            field_delim: b',',
            use_quote_delim: true,
            na_value: Vec::new(),
            select_cols: Vec::new(),
        }
    }
}

/// Decodes records of the same columns.
#[derive(Debug, Clone)]
pub struct CsvDecoder {
    defaults: Vec<HostTensor>,
    options: CsvOptions,
}

impl CsvDecoder {
    /// A decoder with one column for each of `record_defaults`. A default has the column's dtype (f32,
    /// f64, i32, i64 or string) and one element, or none where the field is required.
    ///
    /// # Errors
    /// A default of another dtype, of more elements or of a rank above 1; selected columns that are not
    /// as many as the defaults or do not rise; a delimiter that is a quote or a line break.
    pub fn new(record_defaults: Vec<HostTensor>, options: CsvOptions) -> Result<Self> {
        for (column, default) in record_defaults.iter().enumerate() {
            check_default(column, default)?;
        }
        check_options(record_defaults.len(), &options)?;
        Ok(Self { defaults: record_defaults, options })
    }

    /// The dtype of each column.
    pub fn dtypes(&self) -> impl Iterator<Item = DType> {
        self.defaults.iter().map(HostTensor::dtype)
    }

    /// One record: a scalar for each column.
    ///
    /// # Errors
    /// The record has another number of fields, a quote is out of place, a field is not of its column's
    /// dtype, or a required one is missing.
    pub fn decode(&self, record: &[u8]) -> Result<Vec<HostTensor>> {
        self.decode_as(&[], &[record])
    }

    /// n records: a tensor of shape `[n]` for each column.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_batch(&self, records: &[impl AsRef<[u8]>]) -> Result<Vec<HostTensor>> {
        self.decode_as(&[records.len()], records)
    }

    /// Strings of any shape: a tensor of that shape for each column.
    ///
    /// # Errors
    /// As [`Self::decode`], or `records` are no strings.
    pub fn decode_tensor(&self, records: &HostTensor) -> Result<Vec<HostTensor>> {
        self.decode_as(records.dims(), records.as_strings()?)
    }

    fn decode_as(&self, dims: &[usize], records: &[impl AsRef<[u8]>]) -> Result<Vec<HostTensor>> {
        let mut columns =
            self.defaults.iter().map(|d| Column::new(d.dtype())).collect::<Result<Vec<_>>>()?;
        for (idx, record) in records.iter().enumerate() {
            self.decode_record(idx, record.as_ref(), &mut columns)?;
        }
        columns.into_iter().map(|column| column.finish(dims)).collect()
    }

    fn decode_record(&self, idx: usize, record: &[u8], columns: &mut [Column]) -> Result<()> {
        let selected = &self.options.select_cols;
        let mut found = 0;
        for (number, field) in Fields::new(record, &self.options).enumerate() {
            let field = field.map_err(|fault| fault.at(number, idx))?;
            if !selected.is_empty() && selected.get(found) != Some(&number) {
                continue;
            }
            if let (Some(column), Some(default)) =
                (columns.get_mut(found), self.defaults.get(found))
            {
                let missing = field.is_empty() || *field == *self.options.na_value;
                let value = Some(&*field).filter(|_| !missing);
                column.push(value, default, Place { field: found, record: idx })?;
            }
            found += 1;
            if found == selected.len() {
                break;
            }
        }
        let expected = columns.len();
        if found == expected {
            return Ok(());
        }
        Err(Error::invalid(format!("Expect {expected} fields but have {found} in record {idx}")))
    }
}

fn check_default(column: usize, default: &HostTensor) -> Result<()> {
    Column::new(default.dtype()).map_err(|e| {
        Error::invalid(format!("default {column}: {}; choose another dtype", e.message()))
    })?;
    if default.len() > 1 || default.dims().len() > 1 {
        return Err(Error::invalid(format!(
            "default {column}: expected one element, or none for a required field, got shape {}",
            default.shape()
        )));
    }
    Ok(())
}

fn check_options(n_columns: usize, options: &CsvOptions) -> Result<()> {
    let (delim, selected) = (options.field_delim, &options.select_cols);
    if matches!(delim, b'\n' | b'\r') || (delim == b'"' && options.use_quote_delim) {
        return Err(Error::invalid(format!(
            "expected a field delimiter that is neither a quote nor a line break, got {:?}",
            char::from(delim)
        )));
    }
    if !selected.is_empty() && selected.len() != n_columns {
        return Err(Error::invalid(format!(
            "expected as many selected columns as defaults, got {} and {n_columns}",
            selected.len()
        )));
    }
    match selected.windows(2).find(|pair| pair[0] >= pair[1]) {
        None => Ok(()),
        Some(pair) => Err(Error::invalid(format!(
            "expected selected columns that rise, got {} before {}",
            pair[0], pair[1]
        ))),
    }
}

/// Which field of which record, in messages.
#[derive(Clone, Copy)]
struct Place {
    field: usize,
    record: usize,
}

/// What was decoded of a column so far.
enum Column {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    Strings(Vec<Vec<u8>>),
}

impl Column {
    fn new(dtype: DType) -> Result<Self> {
        Ok(match dtype {
            DType::F32 => Self::F32(Vec::new()),
            DType::F64 => Self::F64(Vec::new()),
            DType::I32 => Self::I32(Vec::new()),
            DType::I64 => Self::I64(Vec::new()),
            DType::String => Self::Strings(Vec::new()),
            other => {
                let message = format!("expected f32, f64, i32, i64 or string, got {other}");
                return Err(Error::invalid(message));
            }
        })
    }

    fn push(&mut self, value: Option<&[u8]>, default: &HostTensor, place: Place) -> Result<()> {
        match self {
            Self::F32(column) => column.push(number(value, default, place)?),
            Self::F64(column) => column.push(number(value, default, place)?),
            Self::I32(column) => column.push(number(value, default, place)?),
            Self::I64(column) => column.push(number(value, default, place)?),
            Self::Strings(column) => {
                let default = default.as_strings()?.first().map(Vec::as_slice);
                column.push(value.or(default).ok_or_else(|| missing(place))?.to_vec());
            }
        }
        Ok(())
    }

    fn finish(self, dims: &[usize]) -> Result<HostTensor> {
        match self {
            Self::F32(column) => HostTensor::new(dims, column),
            Self::F64(column) => HostTensor::new(dims, column),
            Self::I32(column) => HostTensor::new(dims, column),
            Self::I64(column) => HostTensor::new(dims, column),
            Self::Strings(column) => HostTensor::strings(dims, column),
        }
    }
}

/// An element that a field can be, under TensorFlow's name for it.
trait Number: Element + FromStr {
    const NAME: &str;
}

impl Number for f32 {
    const NAME: &str = "float";
}

impl Number for f64 {
    const NAME: &str = "double";
}

impl Number for i32 {
    const NAME: &str = "int32";
}

impl Number for i64 {
    const NAME: &str = "int64";
}

fn number<T: Number>(value: Option<&[u8]>, default: &HostTensor, place: Place) -> Result<T> {
    let Some(value) = value else {
        return default.as_slice::<T>()?.first().copied().ok_or_else(|| missing(place));
    };
    parse_number(value).ok_or_else(|| {
        let (Place { field, record }, name, shown) = (place, T::NAME, shown(value));
        Error::invalid(format!("Field {field} in record {record} is not a valid {name}: {shown}"))
    })
}

fn missing(Place { field, record }: Place) -> Error {
    Error::invalid(format!("Field {field} is required but missing in record {record}!"))
}
