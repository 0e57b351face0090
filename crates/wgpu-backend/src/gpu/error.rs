//! What the device layer answers when it can't do what it was asked.

use std::time::Duration;

/// The class of a [`GpuError`], for callers that map it to their own codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GpuErrorKind {
    /// A request that breaks a rule of this layer or of wgpu.
    Validation,
    /// The budget or the driver has no memory left; freeing some helps.
    OutOfMemory,
    /// A fault of the driver, of wgpu or of this layer.
    Internal,
    /// The device is gone; everything on it has to be rebuilt.
    Lost,
    /// The deadline passed.
    Timeout,
    /// A size above what the device can do; freeing memory doesn't help.
    LimitExceeded,
    /// A shader that doesn't parse, doesn't validate or doesn't compile.
    Shader,
    /// An adapter that gives no device.
    Open,
}

/// What went wrong on a device, with the numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The adapter refused to make a device.
    #[error(
        "adapter {adapter:?} gives no device: {reason}; choose another device, or update its driver"
    )]
    Open {
        /// The adapter's name.
        adapter: String,
        /// What the driver or wgpu said.
        reason: String,
    },
    /// The device is gone. Nothing computed on it since its last finished run can be trusted.
    #[error("device lost: {reason}; reopen the device and restore what was on it")]
    Lost {
        /// What the driver or wgpu said.
        reason: String,
    },
    /// The budget or the driver's memory doesn't suffice.
    #[error(
        "out of device memory: asked for {asked} bytes with {in_use} in use{}; free tensors, use \
         smaller batches or raise the budget",
        .budget.map(|n| format!(" of a budget of {n}")).unwrap_or_default()
    )]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes in use on this device when it was asked.
        in_use: u64,
        /// The budget in bytes, where there is one.
        budget: Option<u64>,
    },
    /// Something larger than the device can take.
    #[error("{limit} is {max} on this device, got {got}; split the work or choose another device")]
    LimitExceeded {
        /// wgpu's name of the limit.
        limit: &'static str,
        /// What the device can take.
        max: u64,
        /// What was asked for.
        got: u64,
    },
    /// A shader that was refused. The message is naga's and keeps the file's line numbers.
    #[error("shader {label:?} was refused: {message}")]
    Shader {
        /// The pipeline's label.
        label: String,
        /// What naga, wgpu or the driver said.
        message: String,
    },
    /// A request that breaks a rule of this layer or of wgpu.
    #[error("invalid {what}: {message}")]
    Validation {
        /// What was asked for: "upload", "bind group", …
        what: &'static str,
        /// What was expected and what came.
        message: String,
    },
    /// A fault of the driver, of wgpu or of this layer.
    #[error("internal fault of the device layer: {message}; please report it")]
    Internal {
        /// What is known.
        message: String,
    },
    /// The deadline passed. If `submitted`, the device still works on the commands and may still write
    /// to the buffers that they name.
    #[error(
        "deadline passed after {waited:?}{}; allow more time or submit less work",
        if *.submitted { ", while the device was computing" } else { ", before the work was submitted" }
    )]
    Timeout {
        /// Time since the submission was handed over.
        waited: Duration,
        /// Whether the device had already got the commands.
        submitted: bool,
    },
}

impl GpuError {
    /// The class of this error.
    pub fn kind(&self) -> GpuErrorKind {
        match self {
            GpuError::Open { .. } => GpuErrorKind::Open,
            GpuError::Lost { .. } => GpuErrorKind::Lost,
            GpuError::OutOfMemory { .. } => GpuErrorKind::OutOfMemory,
            GpuError::LimitExceeded { .. } => GpuErrorKind::LimitExceeded,
            GpuError::Shader { .. } => GpuErrorKind::Shader,
            GpuError::Validation { .. } => GpuErrorKind::Validation,
            GpuError::Internal { .. } => GpuErrorKind::Internal,
            GpuError::Timeout { .. } => GpuErrorKind::Timeout,
        }
    }

    pub(super) fn validation(what: &'static str, message: impl Into<String>) -> GpuError {
        GpuError::Validation { what, message: message.into() }
    }

    pub(super) fn internal(message: impl Into<String>) -> GpuError {
        GpuError::Internal { message: message.into() }
    }

    /// Refuses `got` above `max`.
    pub(super) fn check_limit(limit: &'static str, max: u64, got: u64) -> Result<(), GpuError> {
        if got > max { Err(GpuError::LimitExceeded { limit, max, got }) } else { Ok(()) }
    }
}

/// What a caught panic said.
pub(super) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).trim().to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.trim().to_owned()
    } else {
        "a panic without a message".to_owned()
    }
}
