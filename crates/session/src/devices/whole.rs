//! Adapters, each of which may be split into several devices.

use std::sync::{Arc, Mutex, PoisonError};

use convoke_graph_core::Result;
use convoke_placement::Queues;
use convoke_wgpu_backend::gpu::{Adapter, Gpu, GpuOptions};

use super::{GpuDevice, GpuSource};

/// An adapter: one wgpu device, whose parts submit to one queue.
pub(super) struct WholeGpu {
    adapter: Adapter,
    options: GpuOptions,
    opened: Mutex<Option<Gpu>>,
}

impl WholeGpu {
    /// It is opened when the first part is asked for.
    pub fn new(adapter: Adapter, options: GpuOptions) -> Self {
        Self { adapter, options, opened: Mutex::default() }
    }

    /// A part of it, with a budget of its own.
    pub fn part(&self, budget_bytes: Option<u64>) -> Result<Gpu> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(whole) = &*opened {
            return Ok(whole.part(budget_bytes));
        }
        let whole = Gpu::open(&self.adapter, &self.options);
        let whole = whole.map_err(|e| convoke_wgpu_backend::to_error(&e))?;
        Ok(opened.insert(whole).part(budget_bytes))
    }
}

/// The adapters' stable names, told apart by number where they are equal.
pub(super) fn distinct_ids(adapters: &[Adapter]) -> Vec<String> {
    let ids: Vec<String> = adapters.iter().map(|adapter| adapter.info().id()).collect();
    let distinct = |(at, id): (usize, &String)| {
        let before = ids[..at].iter().filter(|other| *other == id).count();
        let is_alone = ids.iter().filter(|other| *other == id).count() == 1;
        if is_alone { id.clone() } else { format!("{id}#{}", before + 1) }
    };
    ids.iter().enumerate().map(distinct).collect()
}

/// The GPUs, which are devices from 1 on, that are parts of one adapter submit to one queue. They come one after the
/// other.
pub(super) fn queues(gpus: &[GpuDevice]) -> Queues {
    let mut queues = Queues::default();
    for (at, pair) in gpus.windows(2).enumerate() {
        if let [GpuSource::PartOf(own), GpuSource::PartOf(next)] =
            [&pair[0].source, &pair[1].source]
            && Arc::ptr_eq(own, next)
        {
            queues.join(at + 1, at + 2);
        }
    }
    queues
}

#[cfg(test)]
mod tests {
    use crate::Devices;
    use crate::devices::Inner;

    use super::*;

    impl Devices {
        /// The GPUs of both, which are no parts of one.
        pub(crate) fn beside(self, other: Self) -> Self {
            let [mut own, other] = [self.0, other.0].map(|all| Arc::into_inner(all).unwrap());
            let Inner { infos, gpus } = other;
            for (mut info, gpu) in infos.into_iter().skip(1).zip(gpus) {
                info.name = format!("GPU:{}", own.gpus.len()).into();
                own.infos.push(info);
                own.gpus.push(gpu);
            }
            Self(Arc::new(own), self.1)
        }
    }
}
