//! Tensors that go to devices and come back apart from programs: what a loop carries at first and in the end.

use convoke_compiler::DeviceIndex;
#[cfg(feature = "gpu")]
use convoke_compiler::HOST;
use convoke_graph_core::{HostTensor, Result};

use super::Core;
use crate::feeds::FeedData;
use crate::metadata::RunMetadata;

impl Core {
    /// Tensors as feeds, each on its device. What goes to one device goes there in one submission.
    ///
    /// # Errors
    /// No memory, a lost device.
    pub fn send(
        &self,
        tensors: &[(DeviceIndex, Option<&HostTensor>)],
        metadata: &mut RunMetadata,
    ) -> Result<Vec<Option<FeedData<'static>>>> {
        let on_host = |(_, tensor): &(DeviceIndex, Option<&HostTensor>)| {
            tensor.map(|tensor| FeedData::Tensor(tensor.clone()))
        };
        #[cfg_attr(not(feature = "gpu"), expect(unused_mut, reason = "there is the host only"))]
        let mut sent: Vec<Option<FeedData<'static>>> = tensors.iter().map(on_host).collect();
        #[cfg(feature = "gpu")]
        {
            let goes = |(device, tensor): &(DeviceIndex, Option<&HostTensor>)| {
                *device != HOST && tensor.is_some_and(|tensor| !tensor.bytes().is_empty())
            };
            let mut devices: Vec<DeviceIndex> =
                tensors.iter().filter(|pair| goes(pair)).map(|pair| pair.0).collect();
            devices.sort_unstable();
            devices.dedup();
            for device in devices {
                let is_own =
                    |pair: &&(DeviceIndex, Option<&HostTensor>)| pair.0 == device && goes(pair);
                let own: Vec<&HostTensor> =
                    tensors.iter().filter(is_own).filter_map(|pair| pair.1).collect();
                let places = sent.iter_mut().zip(tensors).filter(|(_, pair)| is_own(pair));
                for ((place, _), tensor) in places.zip(self.gpus.send(device.0 as usize, &own)?) {
                    *place = Some(FeedData::of_tensor(tensor));
                }
                metadata.submissions += 1;
                metadata.uploads += own.len() as u64;
                let bytes = own.iter().map(|tensor| tensor.bytes().len() as u64);
                metadata.upload_bytes += bytes.sum::<u64>();
            }
        }
        #[cfg(not(feature = "gpu"))]
        let _ = metadata;
        Ok(sent)
    }

    /// The elements of what a run gave, on the host.
    ///
    /// # Errors
    /// No memory, a lost device.
    pub fn receive(&self, data: &FeedData<'_>, metadata: &mut RunMetadata) -> Result<HostTensor> {
        if let Some(tensor) = data.resident() {
            let some = u64::from(tensor.n_bytes() > 0);
            metadata.submissions += some;
            metadata.downloads += some;
            metadata.download_bytes += tensor.n_bytes();
        }
        data.to_tensor()
    }
}
