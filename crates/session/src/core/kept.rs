//! What a session keeps, seen and changed from outside of runs.

use std::hash::{DefaultHasher, Hasher};
use std::sync::PoisonError;

use convoke_compiler::HOST;
use convoke_graph_core::{AlignedBytes, HostTensor, NodeId, Result};

use super::Core;

impl Core {
    /// A digest of all that is kept from run to run.
    ///
    /// # Errors
    /// The session is closed, or a device does not give its elements.
    pub fn digest(&self) -> Result<u64> {
        self.check_open()?;
        let mut hasher = DefaultHasher::new();
        let kept = self.state.lock();
        kept.hash(&mut hasher, |variable, entry| {
            #[cfg(feature = "gpu")]
            {
                let (_, variables) = self.gpus.get(entry.device.0 as usize)?;
                variables.load(variable, entry.n_bytes())
            }
            #[cfg(not(feature = "gpu"))]
            {
                let message = format!("node {} has no elements on the host", variable.0);
                Err(convoke_graph_core::Error::internal(message).with_node(&*entry.name))
            }
        })?;
        self.queues.hash(&mut hasher);
        Ok(hasher.finish())
    }

    /// Stores elements of variables, and draws of random nodes if there are any to store.
    ///
    /// # Errors
    /// The session is closed, or a device has no memory.
    pub fn set_variables(
        &self,
        values: Vec<(NodeId, HostTensor)>,
        draws: Option<Vec<(NodeId, u32)>>,
    ) -> Result<()> {
        self.check_open()?;
        let mut kept = self.state.lock();
        let mut elements = Vec::new();
        for (variable, value) in values {
            let node = self.graph.node(variable);
            let device = kept.entry(&node, HOST).device;
            // What there is no memory for is found before anything is stored.
            #[cfg(feature = "gpu")]
            if device != HOST {
                let (_, variables) = self.gpus.get(device.0 as usize)?;
                variables.buffer(node.id, value.bytes().len() as u64)?;
            }
            elements.push((node.id, device, AlignedBytes::copy_of(value.bytes())?));
        }
        for (variable, device, elements) in elements {
            if device == HOST {
                kept.store(variable, elements);
                continue;
            }
            #[cfg(feature = "gpu")]
            {
                self.gpus.get(device.0 as usize)?.1.store(variable, &elements)?;
                kept.stored_on_device(variable);
            }
        }
        if let Some(draws) = draws {
            kept.draws = draws.into_iter().collect();
        }
        Ok(())
    }

    /// Drops what is kept for the variables and queues of these containers; of all, if none is named. The default
    /// container has the empty name.
    ///
    /// # Errors
    /// The session is closed, or a device is lost. Nothing has changed then.
    pub fn reset(&self, containers: &[&str]) -> Result<()> {
        self.check_open()?;
        // Where variables move between runs, programs rely on it that nothing else changes their memory.
        let moves = &self.moves;
        let _alone =
            self.options.autotune.then(|| moves.write().unwrap_or_else(PoisonError::into_inner));
        let is_named = |container: Option<&str>| {
            containers.is_empty() || containers.contains(&container.unwrap_or_default())
        };
        let mut kept = self.state.lock();
        let graph = self.graph.snapshot();
        let entries = kept.variables.iter_mut();
        let named = entries.filter(|(id, _)| is_named(graph.node(**id).container.as_deref()));
        let named: Vec<_> = named.collect();
        #[cfg(feature = "gpu")]
        {
            let on_gpus = named.iter().filter(|(_, entry)| entry.device != HOST);
            let homes =
                on_gpus.map(|(id, entry)| Ok((**id, self.gpus.get(entry.device.0 as usize)?.1)));
            for (variable, home) in homes.collect::<Result<Vec<_>>>()? {
                home.remove(variable);
            }
        }
        for (_, entry) in named {
            entry.reset();
        }
        drop(kept);
        self.queues.reset(is_named);
        // Programs hold the memory of variables.
        self.plans().clear();
        Ok(())
    }
}
