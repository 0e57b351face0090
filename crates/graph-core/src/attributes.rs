//! What a file keeps of an operation: its name and typed attributes, from which it can be made again.

use std::collections::BTreeMap;

use crate::{DType, Dims, HostTensor, MAX_RANK, OpError};

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
#[non_exhaustive]
pub enum Attribute {
    Bool(bool),
    /// From the least `i64` to the greatest `u64`.
    Int(i128),
    Float(f64),
    Text(String),
    DType(DType),
    Dims(Dims),
    Tensor(HostTensor),
    /// Of values that are no lists.
    List(Vec<Attribute>),
}

/// An operation as a file keeps it: see [`Op::encode`](crate::Op::encode).
#[derive(Debug, Clone, PartialEq)]
pub struct Attributes {
    operation: String,
    values: BTreeMap<String, Attribute>,
}

impl Attributes {
    /// Of an operation of this name, without attributes yet.
    pub fn of(operation: impl Into<String>) -> Self {
        Self { operation: operation.into(), values: BTreeMap::new() }
    }

    /// With one more; it replaces one of the same name.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Attribute>) -> Self {
        self.values.insert(name.into(), value.into());
        self
    }

    /// With one more, if there is a value.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl Into<Attribute>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The name under which the operation is kept.
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// All attributes, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attribute)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The attribute of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.values.get(name)
    }

    /// A bool.
    ///
    /// # Errors
    /// There is no such attribute.
    pub fn bool(&self, name: &str) -> Result<bool, OpError> {
        match self.get(name) {
            Some(Attribute::Bool(value)) => Ok(*value),
            other => Err(self.misfit(name, "a bool", other)),
        }
    }

    /// An integer.
    ///
    /// # Errors
    /// There is no such attribute, or `T` does not hold it.
    pub fn int<T: TryFrom<i128>>(&self, name: &str) -> Result<T, OpError> {
        let value = self.get(name);
        value.and_then(int).ok_or_else(|| self.misfit(name, "an integer in range", value))
    }

    /// Some integers.
    ///
    /// # Errors
    /// As [`Self::int`], for each.
    pub fn ints<T: TryFrom<i128>>(&self, name: &str) -> Result<Vec<T>, OpError> {
        let value = self.get(name);
        let all = match value {
            Some(Attribute::List(values)) => values.iter().map(int).collect(),
            _ => None,
        };
        all.ok_or_else(|| self.misfit(name, "a list of integers in range", value))
    }

    /// So many integers.
    ///
    /// # Errors
    /// As [`Self::ints`]; another number of them.
    pub fn array<T: TryFrom<i128>, const N: usize>(&self, name: &str) -> Result<[T; N], OpError> {
        let misfit = |_| self.misfit(name, "a list of another length", self.get(name));
        self.ints(name)?.try_into().map_err(misfit)
    }

    /// An axis from the front.
    ///
    /// # Errors
    /// As [`Self::int`]; a tensor does not have so many.
    pub fn axis(&self, name: &str) -> Result<usize, OpError> {
        let axis: i64 = self.int(name)?;
        let axis = usize::try_from(axis).ok().filter(|&axis| axis < MAX_RANK);
        axis.ok_or_else(|| self.misfit(name, "an axis from the front", self.get(name)))
    }

    /// A float.
    ///
    /// # Errors
    /// There is no such attribute.
    pub fn float(&self, name: &str) -> Result<f64, OpError> {
        match self.get(name) {
            Some(Attribute::Float(value)) => Ok(*value),
            other => Err(self.misfit(name, "a float", other)),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// There is no such attribute.
    pub fn text(&self, name: &str) -> Result<&str, OpError> {
        match self.get(name) {
            Some(Attribute::Text(value)) => Ok(value),
            other => Err(self.misfit(name, "a text", other)),
        }
    }

    /// A dtype.
    ///
    /// # Errors
    /// There is no such attribute.
    pub fn dtype(&self, name: &str) -> Result<DType, OpError> {
        match self.get(name) {
            Some(Attribute::DType(value)) => Ok(*value),
            other => Err(self.misfit(name, "a dtype", other)),
        }
    }

    /// Dimensions.
    ///
    /// # Errors
    /// There is no such attribute, or what is known of the sizes is out of range.
    pub fn dims(&self, name: &str) -> Result<Dims, OpError> {
        match self.get(name) {
            Some(Attribute::Dims(value)) => value.clone().checked(),
            other => Err(self.misfit(name, "dimensions", other)),
        }
    }

    /// A tensor; a handle to its elements.
    ///
    /// # Errors
    /// There is no such attribute.
    pub fn tensor(&self, name: &str) -> Result<HostTensor, OpError> {
        match self.get(name) {
            Some(Attribute::Tensor(value)) => Ok(value.clone()),
            other => Err(self.misfit(name, "a tensor", other)),
        }
    }

    /// The values of a list.
    ///
    /// # Errors
    /// There is no such attribute.
    pub fn list(&self, name: &str) -> Result<&[Attribute], OpError> {
        match self.get(name) {
            Some(Attribute::List(values)) => Ok(values),
            other => Err(self.misfit(name, "a list", other)),
        }
    }

    fn misfit(&self, name: &str, expected: &str, found: Option<&Attribute>) -> OpError {
        let operation = &self.operation;
        let found = match found {
            None => "there is none".to_owned(),
            Some(Attribute::List(values)) => format!("it is a list of {}", values.len()),
            Some(other) => format!("it is {other:?}"),
        };
        OpError::Invalid(format!("{operation:?} needs {expected} as {name:?}, and {found}"))
    }
}

fn int<T: TryFrom<i128>>(value: &Attribute) -> Option<T> {
    match value {
        Attribute::Int(value) => T::try_from(*value).ok(),
        _ => None,
    }
}

macro_rules! conversions {
    ($($from:ty => $variant:ident),* $(,)?) => {
        $(impl From<$from> for Attribute {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

conversions! {
    bool => Bool, i32 => Int, u32 => Int, i64 => Int, u64 => Int, f64 => Float, &str => Text,
    String => Text, DType => DType, Dims => Dims, HostTensor => Tensor,
}

impl From<usize> for Attribute {
    fn from(value: usize) -> Self {
        Self::Int(value as i128)
    }
}

impl<T: Into<Attribute>> FromIterator<T> for Attribute {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<Attribute>> From<Vec<T>> for Attribute {
    fn from(values: Vec<T>) -> Self {
        values.into_iter().collect()
    }
}

impl<T: Into<Attribute>, const N: usize> From<[T; N]> for Attribute {
    fn from(values: [T; N]) -> Self {
        values.into_iter().collect()
    }
}
