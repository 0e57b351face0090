//! The one public error, its kinds, and why an operation refuses its inputs.

use std::any::Any;
use std::fmt;
use std::panic::Location;

use crate::{DType, Dims, Shape};

/// `Result` with Convoke's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// TensorFlow's canonical codes. `docs/errors.md` says when each is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The run was cancelled.
    Cancelled,
    /// An argument is wrong, whatever the state of the system.
    InvalidArgument,
    /// The deadline passed first.
    DeadlineExceeded,
    /// A name, file or device does not exist.
    NotFound,
    /// What was to be made exists.
    AlreadyExists,
    /// Memory, or another limited thing, is used up.
    ResourceExhausted,
    /// The system is not in the state that the call needs: an uninitialised variable, a closed session.
    FailedPrecondition,
    /// The run was given up, for instance because of a conflict.
    Aborted,
    /// There is nothing more: an input or a count is at its end.
    OutOfRange,
    /// The operation is not implemented here.
    Unimplemented,
    /// An invariant of Convoke is broken: always a bug.
    Internal,
    /// A device is lost or not reachable.
    Unavailable,
    /// Stored data is damaged.
    DataLoss,
    /// The system does not let this process do it.
    PermissionDenied,
    /// Who asks is not known. For sessions of other machines; nothing here gives it.
    Unauthenticated,
    /// Something else said what is wrong, in a way that tells no kind.
    Unknown,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 16] = [
        Self::Cancelled,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::PermissionDenied,
        Self::Unauthenticated,
        Self::Unknown,
    ];

    /// The kind of this name, as `{:?}` writes it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| format!("{kind:?}") == name)
    }
}

/// What went wrong: a kind to match on, a message for people, and where.
#[derive(Clone, thiserror::Error)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    node: Option<String>,
    device: Option<String>,
    at: Option<&'static Location<'static>>,
}

impl Error {
    /// An error of `kind` with a lower-case message that says what was expected and what came.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), node: None, device: None, at: None }))
    }

    /// An [`ErrorKind::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// An [`ErrorKind::Internal`]: a broken invariant.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An [`ErrorKind::Unknown`]: a function of the user, which is `what`, panicked.
    pub fn panicked(what: impl fmt::Display, payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("no message");
        Self::new(ErrorKind::Unknown, format!("{what} panicked: {text}"))
    }

    /// Names the node, unless one is named.
    #[must_use]
    pub fn with_node(mut self, node: impl Into<String>) -> Self {
        self.0.node.get_or_insert_with(|| node.into());
        self
    }

    /// Names the device, unless one is named.
    #[must_use]
    pub fn with_device(mut self, device: impl Into<String>) -> Self {
        self.0.device.get_or_insert_with(|| device.into());
        self
    }

    /// Names the caller's line, unless one is named.
    #[must_use]
    pub fn with_location(mut self, at: &'static Location<'static>) -> Self {
        self.0.at.get_or_insert(at);
        self
    }

    /// TensorFlow's canonical code.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was expected, what came, and what to do.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The node's name, where one is to blame.
    pub fn node(&self) -> Option<&str> {
        self.0.node.as_deref()
    }

    /// The device's name, where one is to blame.
    pub fn device(&self) -> Option<&str> {
        self.0.device.as_deref()
    }

    /// The caller's line: where the node was built.
    pub fn location(&self) -> Option<&'static Location<'static>> {
        self.0.at
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = &self.0.node {
            write!(f, "{node}")?;
            if let Some(at) = self.0.at {
                write!(f, " at {}:{}:{}", at.file(), at.line(), at.column())?;
            }
            if let Some(device) = &self.0.device {
                write!(f, " on {device}")?;
            }
            f.write_str(": ")?;
        } else if let Some(device) = &self.0.device {
            write!(f, "{device}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

/// Why an operation refuses its inputs. Carries the numbers, so that nobody has to parse the text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are named in the message")]
#[non_exhaustive]
pub enum OpError {
    #[error("expected {expected} inputs, got {found}")]
    Arity { expected: usize, found: usize },
    #[error("axis {axis} is out of range for rank {rank}")]
    Axis { axis: i64, rank: usize },
    #[error("axis {axis} is given twice")]
    RepeatedAxis { axis: i64 },
    #[error("shapes {lhs} and {rhs} do not broadcast together")]
    Broadcast { lhs: Dims, rhs: Dims },
    #[error("{what} needs a tensor of {expected}, got {found}; cast it first")]
    DType { what: &'static str, expected: &'static str, found: DType },
    #[error("dtypes differ: {lhs} and {rhs}; cast one of them")]
    DTypes { lhs: DType, rhs: DType },
    #[error("expected rank {expected}, got shape {found}")]
    Rank { expected: usize, found: Dims },
    #[error("inner sizes differ: {lhs} times {rhs}")]
    Inner { lhs: Dims, rhs: Dims },
    #[error("expected shape {expected}, got {found}")]
    Shape { expected: Dims, found: Dims },
    #[error("cannot reshape {from}, which has {from_len} elements, to {to}")]
    Reshape { from: Dims, from_len: usize, to: String },
    #[error("the sizes {dims:?} overflow: a tensor has at most {max} elements")]
    Overflow { dims: Vec<usize>, max: usize },
    #[error("rank {found} is above the limit of {max}")]
    RankLimit { found: usize, max: usize },
    #[error(
        "the graph has all the {max} {what} that it may have; Graph::set_limits lets it have more"
    )]
    GraphLimit { what: &'static str, max: usize },
    #[error("{what} {value} is out of range: expected {expected}")]
    Range { what: &'static str, value: i64, expected: String },
    #[error("index {index} at position {position} is out of range for an axis of {size}")]
    Index { index: i64, position: usize, size: usize },
    #[error("expected {expected} elements for shape {shape}, got {found}")]
    Length { expected: usize, found: usize, shape: Shape },
    #[error("the graph is finalized; build everything before finalize()")]
    Finalized,
    #[error("unsupported: {0}")]
    Unsupported(String),
    #[error("{0}")]
    Invalid(String),
    #[error("input {0} is invalid")]
    InvalidInput(String),
    #[error("built on {node} at {}:{}:{}: {reason}", at.file(), at.line(), at.column())]
    BuiltOn { node: String, at: &'static Location<'static>, reason: Box<OpError> },
}

impl OpError {
    /// The canonical code of this refusal.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Finalized => ErrorKind::FailedPrecondition,
            Self::Unsupported(_) => ErrorKind::Unimplemented,
            Self::GraphLimit { .. } => ErrorKind::ResourceExhausted,
            Self::BuiltOn { reason, .. } => reason.kind(),
            _ => ErrorKind::InvalidArgument,
        }
    }
}

impl From<OpError> for Error {
    fn from(e: OpError) -> Self {
        Error::new(e.kind(), e.to_string())
    }
}

/// For definitions that compute with host tensors.
impl From<Error> for OpError {
    fn from(e: Error) -> Self {
        Self::Invalid(e.message().to_owned())
    }
}
