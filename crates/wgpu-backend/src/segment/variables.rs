//! The variables of one session on one device.

use std::sync::{Arc, Mutex, PoisonError};

use convoke_graph_core::{AlignedBytes, Error, NodeId};
use rustc_hash::FxHashMap;

use super::error::to_error;
use crate::gpu::{Buffer, BufferCopy, BufferUse, Download, Gpu, Pending, Submission, Upload};

/// The elements of variables, one buffer each, shared by all programs of a session on a device. A cheap handle.
///
/// A buffer is made when it is first needed, and zero until something is stored. Whether a variable is
/// initialised is the session's to know.
#[derive(Debug, Clone)]
pub struct GpuVariables {
    gpu: Gpu,
    buffers: Arc<Mutex<FxHashMap<NodeId, Buffer>>>,
}

impl GpuVariables {
    /// No variables yet.
    pub fn new(gpu: &Gpu) -> GpuVariables {
        GpuVariables { gpu: gpu.clone(), buffers: Arc::default() }
    }

    /// The buffer of a variable of `n_bytes`, made now if there is none.
    ///
    /// # Errors
    /// No memory, a lost device, or another size than when it was made.
    pub fn buffer(&self, node: NodeId, n_bytes: u64) -> Result<Buffer, Error> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = buffers.get(&node) {
            if buffer.n_bytes() != n_bytes {
                return Err(Error::invalid(format!(
                    "unsupported: a variable of {} bytes gets elements of {n_bytes} bytes; its shape on a \
                     GPU stays as it is",
                    buffer.n_bytes()
                )));
            }
            return Ok(buffer.clone());
        }
        let buffer = self.gpu.buffer("variable", n_bytes, BufferUse::Storage);
        let buffer = buffer.map_err(|e| to_error(&e))?;
        buffers.insert(node, buffer.clone());
        Ok(buffer)
    }

    /// Whether the variable has a buffer.
    pub fn contains(&self, node: NodeId) -> bool {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&node)
    }

    /// Gives the variable's memory back, once no program holds it.
    pub fn remove(&self, node: NodeId) {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }

    /// Bytes of all variables.
    pub fn n_bytes(&self) -> u64 {
        let buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.values().map(Buffer::n_bytes_padded).sum()
    }

    /// Takes a variable from another part of the same GPU, after all that was submitted before: a copy on the device.
    ///
    /// # Errors
    /// As [`Self::buffer`]. The variable then stays where it is.
    pub fn take(&self, from: &GpuVariables, node: NodeId, n_bytes: u64) -> Result<(), Error> {
        let (src, dst) = (from.buffer(node, n_bytes)?, self.buffer(node, n_bytes)?);
        let copy = BufferCopy { src: &src, src_offset: 0, dst: &dst, dst_offset: 0, size: n_bytes };
        let work = Submission { copies: &[copy], ..Submission::default() };
        match self.gpu.run(&work) {
            Ok(_) => from.remove(node),
            Err(e) => {
                self.remove(node);
                return Err(to_error(&e));
            }
        }
        Ok(())
    }

    /// Stores the elements of a variable, after all that was submitted before.
    ///
    /// # Errors
    /// As [`Self::buffer`].
    pub fn store(&self, node: NodeId, bytes: &[u8]) -> Result<(), Error> {
        self.store_all(&[(node, bytes)])
    }

    /// Stores the elements of several variables at one time, all of them or none.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub fn store_all(
        &self,
        values: &[(NodeId, impl std::ops::Deref<Target = [u8]>)],
    ) -> Result<(), Error> {
        let mut buffers = Vec::with_capacity(values.len());
        for (node, bytes) in values {
            let bytes: &[u8] = bytes;
            buffers.push((bytes, self.buffer(*node, bytes.len() as u64)?));
        }
        let uploads = buffers.iter().map(|(bytes, dst)| Upload { bytes, dst, offset: 0 });
        let uploads: Vec<Upload<'_>> = uploads.collect();
        let work = Submission { uploads: &uploads, ..Submission::default() };
        self.gpu.run(&work).map(|_| ()).map_err(|e| to_error(&e))
    }

    /// The elements of a variable, after all that was submitted before.
    ///
    /// # Errors
    /// As [`Self::buffer`]; no host memory.
    pub fn load(&self, node: NodeId, n_bytes: u64) -> Result<AlignedBytes, Error> {
        Ok(self.load_all(&[(node, n_bytes)])?.pop().unwrap_or_default())
    }

    /// The elements of several variables, each with its bytes, all at one time.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_all(&self, variables: &[(NodeId, u64)]) -> Result<Vec<AlignedBytes>, Error> {
        self.begin_load(variables)?.wait()
    }

    /// Begins to load several variables, each with its bytes: as they are after all that was submitted before, whatever
    /// is submitted while they are on their way.
    ///
    /// # Errors
    /// As [`Self::buffer`].
    pub fn begin_load(&self, variables: &[(NodeId, u64)]) -> Result<Loading, Error> {
        let buffers = variables.iter().map(|&(node, n_bytes)| self.buffer(node, n_bytes));
        let buffers: Vec<Buffer> = buffers.collect::<Result<_, _>>()?;
        let sizes = variables.iter().map(|&(_, n_bytes)| n_bytes);
        let downloads =
            buffers.iter().zip(sizes).map(|(src, size)| Download { src, offset: 0, size });
        let downloads: Vec<Download<'_>> = downloads.collect();
        let work = Submission { downloads: &downloads, ..Submission::default() };
        self.gpu.submit(&work).map(Loading).map_err(|e| to_error(&e))
    }
}

/// Elements of variables on their way to the host.
#[derive(Debug)]
#[must_use = "the elements are what `wait` gives"]
pub struct Loading(Pending);

impl Loading {
    /// The elements, in the order in which they were asked for.
    ///
    /// # Errors
    /// A lost device, or no host memory.
    pub fn wait(self) -> Result<Vec<AlignedBytes>, Error> {
        let mut loaded = Vec::new();
        let visit = &mut |_, bytes: &[u8]| loaded.push(AlignedBytes::copy_of(bytes));
        self.0.wait_with(visit).map_err(|e| to_error(&e))?;
        loaded.into_iter().collect()
    }
}
