//! Errors of the device layer as the public error.

use convoke_graph_core::{Error, ErrorKind};

use crate::gpu::{GpuError, GpuErrorKind};

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
