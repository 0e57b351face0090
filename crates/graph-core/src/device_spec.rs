//! Device names, whole and partial: `/job:worker/replica:0/task:1/device:GPU:0`, `GPU:0`, `/job:x`.
//!
//! Follows TensorFlow's `device_name_utils`. Two deviations: a component that is given twice is refused,
//! and an inner scope that names another type drops the outer scope's index, so that `CPU` within
//! `GPU:1` is any CPU and not `CPU:1`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The longest part of a refused name that a message repeats.
const MAX_QUOTED: usize = 80;

/// Which devices are meant: every field that is `None` is left open.
///
/// Types are kept in upper case; job names are case-sensitive. Parses from and prints as text; what it
/// prints parses to the same spec. The spec that leaves everything open prints as `*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct DeviceSpec {
    /// The job of a cluster: `localhost` for devices of this process.
    pub job: Option<String>,
    /// The replica of the job.
    pub replica: Option<u32>,
    /// The task of the replica.
    pub task: Option<u32>,
    /// The device's type in upper case, such as `CPU` or `GPU`.
    pub device_type: Option<String>,
    /// The device's place among those of its type.
    pub index: Option<u32>,
}

/// The first field in which two specs differ, as [`DeviceSpec::combine`] reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FieldConflict {
    /// Job, replica or task, which soft placement never relaxes.
    Task,
    /// The device type.
    Type,
    /// The device index.
    Index,
}

impl DeviceSpec {
    /// The full name of a device of this process, as in `/job:localhost/replica:0/task:0/device:GPU:0`.
    pub fn local(device_type: &str, index: u32) -> Self {
        Self {
            job: Some("localhost".into()),
            replica: Some(0),
            task: Some(0),
            device_type: Some(device_type.to_ascii_uppercase()),
            index: Some(index),
        }
    }

    /// Whether every field is given, so that at most one device is meant.
    pub fn is_complete(&self) -> bool {
        self.job.is_some()
            && self.replica.is_some()
            && self.task.is_some()
            && self.device_type.is_some()
            && self.index.is_some()
    }

    /// Whether nothing is asked for, so that every device is meant.
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the device with this full name is among those that are meant.
    pub fn matches(&self, name: &DeviceSpec) -> bool {
        fn fits<T: PartialEq>(asked: &Option<T>, found: &Option<T>) -> bool {
            asked.is_none() || asked == found
        }
        fits(&self.job, &name.job)
            && fits(&self.replica, &name.replica)
            && fits(&self.task, &name.task)
            && fits(&self.device_type, &name.device_type)
            && fits(&self.index, &name.index)
    }

    /// The spec of a scope `inner` within this one: what `inner` gives overrides. An inner type that
    /// differs from the outer one drops the outer index.
    #[must_use]
    pub fn merge(&self, inner: &DeviceSpec) -> DeviceSpec {
        let retyped = inner.device_type.is_some() && inner.device_type != self.device_type;
        let outer_index = if retyped { None } else { self.index };
        DeviceSpec {
            job: inner.job.clone().or_else(|| self.job.clone()),
            replica: inner.replica.or(self.replica),
            task: inner.task.or(self.task),
            device_type: inner.device_type.clone().or_else(|| self.device_type.clone()),
            index: inner.index.or(outer_index),
        }
    }

    /// The spec that asks for what both ask for.
    ///
    /// # Errors
    /// The first field in which they conflict.
    pub fn combine(&self, other: &DeviceSpec) -> Result<DeviceSpec, FieldConflict> {
        fn both<T: PartialEq + Clone>(
            a: &Option<T>,
            b: &Option<T>,
            field: FieldConflict,
        ) -> Result<Option<T>, FieldConflict> {
            match (a, b) {
                (Some(a), Some(b)) if a != b => Err(field),
                _ => Ok(a.clone().or_else(|| b.clone())),
            }
        }
        Ok(DeviceSpec {
            job: both(&self.job, &other.job, FieldConflict::Task)?,
            replica: both(&self.replica, &other.replica, FieldConflict::Task)?,
            task: both(&self.task, &other.task, FieldConflict::Task)?,
            device_type: both(&self.device_type, &other.device_type, FieldConflict::Type)?,
            index: both(&self.index, &other.index, FieldConflict::Index)?,
        })
    }

    /// The same task, with any type and index: what soft placement falls back on.
    #[must_use]
    pub fn relaxed(&self) -> DeviceSpec {
        DeviceSpec { device_type: None, index: None, ..self.clone() }
    }

    /// The short form within a task: `GPU:0`, `GPU`, or the whole name where there is no type.
    pub fn short(&self) -> String {
        match (&self.device_type, self.index) {
            (Some(device_type), Some(index)) => format!("{device_type}:{index}"),
            (Some(device_type), None) => device_type.clone(),
            _ => self.to_string(),
        }
    }

    /// Reads one component, the text between two slashes.
    fn read_component(&mut self, component: &str, first: bool) -> Result<(), Misread> {
        let (key, value) = component.split_once(':').unwrap_or((component, ""));
        match key.to_ascii_lowercase().as_str() {
            "job" => set(&mut self.job, read_word(value)?),
            "replica" => set(&mut self.replica, read_number(value)?),
            "task" => set(&mut self.task, read_number(value)?),
            "device" => self.read_device(value),
            "cpu" | "gpu" => self.read_device(component),
            "*" if first && value.is_empty() => Ok(()),
            _ => Err(Misread::Unknown),
        }
    }

    /// Reads a type and perhaps an index, as in `GPU:0`, `gpu`, `*` or `GPU:*`.
    fn read_device(&mut self, text: &str) -> Result<(), Misread> {
        if self.device_type.is_some() || self.index.is_some() {
            return Err(Misread::Repeated);
        }
        let (device_type, index) = text.split_once(':').unwrap_or((text, "*"));
        self.device_type = read_word(device_type)?.map(|word| word.to_ascii_uppercase());
        self.index = read_number(index)?;
        Ok(())
    }
}

/// Why a component was refused.
enum Misread {
    Unknown,
    Repeated,
    Word,
    Number,
}

fn set<T>(field: &mut Option<T>, value: Option<T>) -> Result<(), Misread> {
    if field.is_some() {
        return Err(Misread::Repeated);
    }
    *field = value;
    Ok(())
}

/// A letter, then letters, digits, `_` and `-`; `*` is `None`.
fn read_word(text: &str) -> Result<Option<String>, Misread> {
    if text == "*" {
        return Ok(None);
    }
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let goes_on = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if starts && goes_on { Ok(Some(text.to_owned())) } else { Err(Misread::Word) }
}

/// Decimal digits that fit a `u32`; `*` is `None`.
fn read_number(text: &str) -> Result<Option<u32>, Misread> {
    if text == "*" {
        return Ok(None);
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Misread::Number);
    }
    text.parse().map(Some).map_err(|_| Misread::Number)
}

impl FromStr for DeviceSpec {
    type Err = Error;

    /// Reads a name. The empty text and `*` leave everything open.
    ///
    /// # Errors
    /// `InvalidArgument` with the text, the part that was not understood, and what is expected.
    fn from_str(text: &str) -> Result<Self> {
        let mut spec = Self::default();
        if text.is_empty() {
            return Ok(spec);
        }
        let rest = text.strip_prefix('/').unwrap_or(text);
        for (i, component) in rest.split('/').enumerate() {
            spec.read_component(component, i == 0).map_err(|why| misread(text, component, &why))?;
        }
        Ok(spec)
    }
}

fn misread(text: &str, component: &str, why: &Misread) -> Error {
    let problem = match why {
        Misread::Unknown => "is not a known part",
        Misread::Repeated => "gives again what an earlier part gave",
        Misread::Word => "needs a name of letters, digits, `_` and `-` that starts with a letter",
        Misread::Number => "needs a number below 4294967296",
    };
    Error::invalid(format!(
        "malformed device specification '{}': '{}' {problem}; expected something like \
         '/job:localhost/replica:0/task:0/device:GPU:0', 'GPU:0', 'CPU' or '/job:worker', \
         with '*' for any",
        shortened(text),
        shortened(component),
    ))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_open() {
            return f.write_str("*");
        }
        if let Some(job) = &self.job {
            write!(f, "/job:{job}")?;
        }
        if let Some(replica) = self.replica {
            write!(f, "/replica:{replica}")?;
        }
        if let Some(task) = self.task {
            write!(f, "/task:{task}")?;
        }
        if self.device_type.is_none() && self.index.is_none() {
            return Ok(());
        }
        write!(f, "/device:{}", self.device_type.as_deref().unwrap_or("*"))?;
        match self.index {
            Some(index) => write!(f, ":{index}"),
            None => Ok(()),
        }
    }
}
