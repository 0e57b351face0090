//! What GPUs have made, so that a run can say what it made of that.

use super::Gpus;

/// What GPUs have made so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Made {
    /// Bytes of buffers.
    pub(crate) bytes: u64,
    /// Pipelines.
    pub(crate) pipelines: u64,
    /// Pipelines that were wanted and there already.
    pub(crate) found: u64,
    /// Bytes of the buffers that exist.
    pub(crate) alive: u64,
}

impl Gpus {
    /// What the session's open GPUs have made so far.
    pub(crate) fn made(&self) -> Made {
        #[cfg(feature = "gpu")]
        if self.devices.list().len() >= 2 {
            let variables = self.variables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let opened = variables.keys().filter_map(|&index| self.devices.gpu(index).ok());
            return opened.fold(Made::default(), |made, gpu| {
                let counters = gpu.counters();
                Made {
                    bytes: made.bytes + counters.buffer_bytes_created,
                    pipelines: made.pipelines + counters.pipelines_created,
                    found: made.found + counters.pipelines_found,
                    alive: made.alive + counters.bytes_alive,
                }
            });
        }
        Made::default()
    }
}
