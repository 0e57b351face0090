//! Errors of the device layer as the public error.

use convoke_graph_core::{Error, ErrorKind};

use crate::gpu::{GpuError, GpuErrorKind};

/// Why a segment is not compiled.
#[derive(Debug)]
pub enum CompileError {
    /// The driver, or wgpu before it, refuses the kernel of groups of the program.
    Kernel {
        /// The groups' indices.
        groups: Vec<u32>,
        /// What it says.
        reason: String,
    },
    /// Anything else.
    Other(Error),
}

impl From<Error> for CompileError {
    fn from(error: Error) -> CompileError {
        CompileError::Other(error)
    }
}

impl From<CompileError> for Error {
    fn from(error: CompileError) -> Error {
        match error {
            CompileError::Kernel { reason, .. } => Error::new(ErrorKind::Internal, reason),
            CompileError::Other(error) => error,
        }
    }
}

/// The public error of a device error.
pub fn to_error(error: &GpuError) -> Error {
    let kind = match error.kind() {
        GpuErrorKind::OutOfMemory | GpuErrorKind::LimitExceeded => ErrorKind::ResourceExhausted,
        GpuErrorKind::Lost | GpuErrorKind::Open => ErrorKind::Unavailable,
        GpuErrorKind::Timeout => ErrorKind::DeadlineExceeded,
        GpuErrorKind::Validation | GpuErrorKind::Internal | GpuErrorKind::Shader => {
            ErrorKind::Internal
        }
    };
    Error::new(kind, error.to_string())
}
