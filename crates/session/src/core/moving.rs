//! Tensors that go to devices and come back apart from programs: what a loop carries at first and in the end.

use std::sync::Arc;
#[cfg(feature = "gpu")]
use std::time::{Duration, Instant};

use convoke_compiler::DeviceIndex;
#[cfg(feature = "gpu")]
use convoke_compiler::HOST;
use convoke_graph_core::{HostTensor, Result};

use super::Core;
#[cfg(feature = "gpu")]
use crate::device_tensor::DeviceTensor;
#[cfg(feature = "gpu")]
use crate::devices::HOST_NAME;
use crate::feeds::FeedData;
use crate::metadata::RunMetadata;
#[cfg(feature = "gpu")]
use crate::metadata::{PhaseKind, TransferTime};

/// A tensor that is to lie on a device.
#[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "there is the host only"))]
pub(crate) struct Sent<'a> {
    pub device: DeviceIndex,
    pub tensor: Option<&'a HostTensor>,
    /// The node that gives it.
    pub name: Arc<str>,
}

impl Core {
    /// Tensors as feeds, each on its device. What goes to one device goes there in one submission.
    ///
    /// # Errors
    /// No memory, a lost device.
    pub fn send(
        &self,
        tensors: &[Sent<'_>],
        metadata: &mut RunMetadata,
    ) -> Result<Vec<Option<FeedData<'static>>>> {
        let on_host = |sent: &Sent<'_>| sent.tensor.map(|own| FeedData::Tensor(own.clone()));
        #[cfg_attr(not(feature = "gpu"), expect(unused_mut, reason = "there is the host only"))]
        let mut given: Vec<Option<FeedData<'static>>> = tensors.iter().map(on_host).collect();
        #[cfg(feature = "gpu")]
        {
            let goes = |sent: &Sent<'_>| {
                sent.device != HOST && sent.tensor.is_some_and(|own| !own.bytes().is_empty())
            };
            let mut devices: Vec<DeviceIndex> =
                tensors.iter().filter(|sent| goes(sent)).map(|sent| sent.device).collect();
            devices.sort_unstable();
            devices.dedup();
            for device in devices {
                let is_own = |sent: &&Sent<'_>| sent.device == device && goes(sent);
                let own: Vec<&HostTensor> =
                    tensors.iter().filter(is_own).filter_map(|sent| sent.tensor).collect();
                own.iter().for_each(|own| metadata.predict(own.bytes().len() as u64));
                let (start, begun) = (Instant::now(), metadata.now());
                let sent = self.gpus.send(device.0 as usize, &own)?;
                metadata.gpu_wait += start.elapsed();
                let places = given.iter_mut().zip(tensors).filter(|(_, sent)| is_own(sent));
                let names = tensors.iter().filter(is_own).map(|sent| &sent.name);
                metadata.note_moved(true, names.zip(&sent), begun);
                for ((place, _), tensor) in places.zip(sent) {
                    *place = Some(FeedData::of_tensor(tensor));
                }
            }
        }
        #[cfg(not(feature = "gpu"))]
        let _ = metadata;
        Ok(given)
    }

    /// The elements of what a run gave, with the names of the nodes that give them, on the host. What comes from one
    /// device comes in one submission.
    ///
    /// # Errors
    /// No memory, a lost device.
    pub fn receive(
        &self,
        given: &[(FeedData<'_>, Arc<str>)],
        metadata: &mut RunMetadata,
    ) -> Result<Vec<HostTensor>> {
        #[cfg(feature = "gpu")]
        {
            let mut tensors: Vec<Option<HostTensor>> = vec![None; given.len()];
            let resident = |at: &usize| given[*at].0.resident().filter(|own| own.n_bytes() > 0);
            let mut devices: Vec<&str> =
                (0..given.len()).filter_map(|at| Some(resident(&at)?.device())).collect();
            devices.sort_unstable();
            devices.dedup();
            for device in devices {
                let is_own = |at: &usize| resident(at).is_some_and(|own| own.device() == device);
                let places: Vec<usize> = (0..given.len()).filter(is_own).collect();
                let own: Vec<&DeviceTensor> = places.iter().filter_map(resident).collect();
                own.iter().for_each(|own| metadata.predict(own.n_bytes()));
                let (start, begun) = (Instant::now(), metadata.now());
                let received = DeviceTensor::all_to_host(&own)?;
                metadata.gpu_wait += start.elapsed();
                let names = places.iter().map(|&at| &given[at].1);
                metadata.note_moved(false, names.zip(own), begun);
                for (at, tensor) in places.into_iter().zip(received) {
                    tensors[at] = Some(tensor);
                }
            }
            let all = tensors.into_iter().zip(given);
            all.map(|(tensor, (data, _))| tensor.map_or_else(|| data.to_tensor(), Ok)).collect()
        }
        #[cfg(not(feature = "gpu"))]
        {
            let _ = metadata;
            given.iter().map(|(data, _)| data.to_tensor()).collect()
        }
    }
}

#[cfg(feature = "gpu")]
impl RunMetadata {
    /// Notes named tensors that went to a GPU, or came from it, in one submission that began at `begun`, if the run is
    /// recorded.
    fn note_moved<'t>(
        &mut self,
        is_upload: bool,
        tensors: impl Iterator<Item = (&'t Arc<str>, &'t DeviceTensor)>,
        begun: Option<Duration>,
    ) {
        self.submissions += 1;
        let (n_before, mut bytes) = (self.transfers.len(), 0);
        let mut on = None;
        for (name, tensor) in tensors {
            bytes += tensor.n_bytes();
            let n = if is_upload { &mut self.uploads } else { &mut self.downloads };
            *n += 1;
            let device = on.get_or_insert_with(|| Arc::<str>::from(tensor.device()));
            let Some(start) = begun else { continue };
            let (host, device) = (Arc::<str>::from(HOST_NAME), device.clone());
            let (from, to) = if is_upload { (host, device) } else { (device, host) };
            self.transfers.push(TransferTime {
                value: usize::MAX,
                segment: usize::MAX,
                tensor: name.clone(),
                shape: format!("{}{}", tensor.dtype(), tensor.shape()),
                is_upload,
                is_copy: false,
                from,
                to,
                bytes: tensor.n_bytes(),
                start,
                time: None,
            });
        }
        let n_bytes = if is_upload { &mut self.upload_bytes } else { &mut self.download_bytes };
        *n_bytes += bytes;
        let time = begun.zip(self.now()).map(|(begun, now)| now.saturating_sub(begun));
        if let [alone] = &mut self.transfers[n_before..] {
            alone.time = time;
        }
        let kind = if is_upload { PhaseKind::Submit } else { PhaseKind::Receive };
        self.note_device(kind, begun, on.as_ref(), bytes);
    }
}
