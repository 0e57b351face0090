//! Attributes of operations as JSON. Numbers, bools, texts and lists are themselves; the rest is an object of one key.

use std::fmt::Write;

use convoke_graph_core::{
    Attribute, Attributes, DType, Dim, Dims, Error, ErrorKind, HostTensor, Result, Shape,
};
use serde_json::{Map, Value, json};

/// Tensors of so many bytes or fewer stand in the text.
const INLINE_MAX_BYTES: usize = 64;

/// Where larger tensors go: gives the name under which one is kept.
pub(super) type Put<'a> = &'a mut dyn FnMut(&str, &HostTensor) -> String;

/// Where they come from.
pub(super) type Take<'a> = &'a mut dyn FnMut(&str) -> Result<HostTensor>;

pub(super) fn damaged(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::DataLoss, what)
}

/// The attributes of the node `node`.
///
/// # Errors
/// A number that is out of range.
pub(super) fn to_json(
    attributes: &Attributes,
    node: &str,
    put: Put<'_>,
) -> Result<Map<String, Value>> {
    attributes
        .iter()
        .map(|(name, value)| Ok((name.to_owned(), value_to_json(value, node, put)?)))
        .collect()
}

fn value_to_json(value: &Attribute, node: &str, put: Put<'_>) -> Result<Value> {
    Ok(match value {
        Attribute::List(values) => {
            let values = values.iter().map(|value| match value {
                Attribute::List(_) => Err(Error::invalid("an attribute is a list of lists")),
                value => scalar_to_json(value, node, put),
            });
            Value::Array(values.collect::<Result<_>>()?)
        }
        value => scalar_to_json(value, node, put)?,
    })
}

fn scalar_to_json(value: &Attribute, node: &str, put: Put<'_>) -> Result<Value> {
    Ok(match value {
        Attribute::Bool(value) => json!(value),
        Attribute::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
            (Ok(value), _) => json!(value),
            (_, Ok(value)) => json!(value),
            _ => return Err(Error::invalid(format!("the attribute {value} is out of range"))),
        },
        // Text of a float may be read as another.
        Attribute::Float(value) => json!({ "float": hex(&value.to_be_bytes()) }),
        Attribute::Text(value) => json!(value),
        Attribute::DType(value) => json!({ "dtype": value.name() }),
        Attribute::Dims(Dims::UnknownRank) => json!({ "dims": null }),
        Attribute::Dims(Dims::Known(dims)) => {
            let dims: Vec<Value> = dims.iter().map(dim_to_json).collect();
            json!({ "dims": dims })
        }
        Attribute::Tensor(tensor) => json!({ "tensor": tensor_to_json(tensor, node, put) }),
        other => {
            let message = format!("unsupported: an attribute {other:?}");
            return Err(Error::new(ErrorKind::Unimplemented, message));
        }
    })
}

fn dim_to_json(dim: &Dim) -> Value {
    match dim {
        Dim::Known(size) => json!(size),
        Dim::Symbol(symbol) => json!(format!("s{symbol}")),
        Dim::Unknown => Value::Null,
    }
}

/// A tensor; a large one under a name like that of `node`.
pub(super) fn tensor_to_json(tensor: &HostTensor, node: &str, put: Put<'_>) -> Value {
    let (dtype, dims) = (tensor.dtype().name(), tensor.dims());
    if let Ok(strings) = tensor.as_strings() {
        let strings: Vec<String> = strings.iter().map(|string| hex(string)).collect();
        return json!({ "dtype": dtype, "dims": dims, "strings": strings });
    }
    if tensor.bytes().len() <= INLINE_MAX_BYTES {
        return json!({ "dtype": dtype, "dims": dims, "bytes": hex(tensor.bytes()) });
    }
    json!(put(node, tensor))
}

/// The attributes of an operation.
///
/// # Errors
/// What is no attribute.
pub(super) fn from_json(
    operation: &str,
    values: &Map<String, Value>,
    take: Take<'_>,
) -> Result<Attributes> {
    let mut attributes = Attributes::of(operation);
    for (name, value) in values {
        let value = match value {
            Value::Array(values) => {
                let values = values.iter().map(|value| scalar_from_json(value, take));
                Attribute::List(values.collect::<Result<_>>()?)
            }
            value => scalar_from_json(value, take)?,
        };
        attributes = attributes.with(name, value);
    }
    Ok(attributes)
}

fn scalar_from_json(value: &Value, take: Take<'_>) -> Result<Attribute> {
    let unknown = || damaged(format!("there is no attribute {}", brief(value)));
    Ok(match value {
        Value::Bool(value) => Attribute::Bool(*value),
        Value::String(value) => Attribute::Text(value.clone()),
        Value::Number(value) => {
            let value = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
            Attribute::Int(value.ok_or_else(unknown)?)
        }
        Value::Object(object) => match object.iter().next().filter(|_| object.len() == 1) {
            Some((key, value)) => match (key.as_str(), value) {
                ("float", Value::String(text)) => {
                    let bytes = unhex(text)?.try_into().map_err(|_| unknown())?;
                    Attribute::Float(f64::from_be_bytes(bytes))
                }
                ("dtype", value) => Attribute::DType(dtype_from_json(value)?),
                ("dims", Value::Null) => Attribute::Dims(Dims::UnknownRank),
                ("dims", Value::Array(dims)) => {
                    let dims = dims.iter().map(dim_from_json).collect::<Result<_>>()?;
                    Attribute::Dims(Dims::Known(dims))
                }
                ("tensor", value) => Attribute::Tensor(tensor_from_json(value, take)?),
                _ => return Err(unknown()),
            },
            None => return Err(unknown()),
        },
        Value::Null | Value::Array(_) => return Err(unknown()),
    })
}

fn dtype_from_json(value: &Value) -> Result<DType> {
    let all = DType::NUMERIC.into_iter().chain([DType::String]);
    let found = all.into_iter().find(|dtype| value.as_str() == Some(dtype.name()));
    found.ok_or_else(|| damaged(format!("there is no dtype {}", brief(value))))
}

fn dim_from_json(value: &Value) -> Result<Dim> {
    let dim = match value {
        Value::Null => Some(Dim::Unknown),
        Value::String(text) => {
            text.strip_prefix('s').and_then(|symbol| symbol.parse().ok()).map(Dim::Symbol)
        }
        value => value.as_u64().and_then(|size| usize::try_from(size).ok()).map(Dim::Known),
    };
    dim.ok_or_else(|| damaged(format!("there is no size {}", brief(value))))
}

/// # Errors
/// What is no tensor.
pub(super) fn tensor_from_json(value: &Value, take: Take<'_>) -> Result<HostTensor> {
    if let Some(name) = value.as_str() {
        return take(name);
    }
    let lacks = || damaged(format!("{} is no tensor", brief(value)));
    let dtype = dtype_from_json(value.get("dtype").ok_or_else(lacks)?)?;
    let dims = value.get("dims").and_then(Value::as_array).ok_or_else(lacks)?;
    let size = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
    let dims: Vec<usize> = dims.iter().map(size).collect::<Option<_>>().ok_or_else(lacks)?;
    let shape = Shape::new(&dims).map_err(|e| damaged(e.to_string()))?;
    let tensor = match (value.get("bytes"), value.get("strings")) {
        (Some(Value::String(text)), None) => HostTensor::copy_of(dtype, shape, &unhex(text)?),
        (None, Some(Value::Array(strings))) if dtype == DType::String => {
            let string = |value: &Value| unhex(value.as_str().ok_or_else(lacks)?);
            HostTensor::strings(&dims, strings.iter().map(string).collect::<Result<Vec<_>>>()?)
        }
        _ => return Err(lacks()),
    };
    tensor.map_err(|e| damaged(e.message()))
}

/// The beginning of a value's text.
pub(super) fn brief(value: &Value) -> String {
    let text = match value {
        Value::Array(values) => return format!("a list of {}", values.len()),
        Value::Object(values) => return format!("an object of {}", values.len()),
        value => value.to_string(),
    };
    text.chars().take(40).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let byte = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    };
    let bytes = text.as_bytes().chunks(2).map(byte).collect::<Option<_>>();
    bytes.ok_or_else(|| damaged("bytes are an even number of hexadecimal digits"))
}
