//! What a session keeps, seen and changed from outside of runs.

#[cfg(all(test, feature = "gpu"))]
mod tests;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, PoisonError};

use convoke_compiler::{DeviceIndex, HOST};
use convoke_graph_core::{
    AlignedBytes, Error, HostTensor, Node, NodeId, Result, TableContents, TableSpec, Variable,
};
#[cfg(feature = "gpu")]
use convoke_wgpu_backend::{GpuVariables, Loading};
use rustc_hash::FxHashMap;

use super::Core;
#[cfg(feature = "gpu")]
use crate::state::Entry;
use crate::state::{Elements, Kept, NewElements, uninitialized};

/// What a session keeps at one moment.
pub(crate) struct Moment {
    /// The elements of variables.
    pub variables: FxHashMap<NodeId, HostTensor>,
    /// How often random nodes were drawn.
    pub draws: Vec<(NodeId, u32)>,
    /// What tables hold, in the order in which they were asked for.
    pub tables: Vec<Arc<TableContents>>,
}

/// Elements of variables, of which some are on their way.
#[derive(Default)]
struct Coming {
    found: FxHashMap<NodeId, HostTensor>,
    #[cfg(feature = "gpu")]
    coming: Vec<(Vec<Arc<Node>>, Loading)>,
}

impl Coming {
    fn wait(self) -> Result<FxHashMap<NodeId, HostTensor>> {
        #[cfg_attr(not(feature = "gpu"), expect(unused_mut, reason = "all are there"))]
        let mut found = self.found;
        #[cfg(feature = "gpu")]
        for (nodes, loading) in self.coming {
            for (node, elements) in nodes.iter().zip(loading.wait()?) {
                found.insert(node.id, tensor(node, &Elements::Bytes(Arc::new(elements)))?);
            }
        }
        Ok(found)
    }
}

fn tensor(node: &Node, elements: &Elements) -> Result<HostTensor> {
    let fact = &node.facts[0];
    elements.tensor(fact.dtype, fact.shape().unwrap_or_default())
}

impl Core {
    /// A digest of all that is kept from run to run.
    ///
    /// # Errors
    /// The session is closed, or a device does not give its elements.
    pub fn digest(&self) -> Result<u64> {
        let _at_work = self.enter()?;
        let mut hasher = DefaultHasher::new();
        let _looking = self.moments.look();
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
                Err(Error::internal(message).with_node(&*entry.name))
            }
        })?;
        self.queues.hash(&mut hasher);
        Ok(hasher.finish())
    }

    /// The elements of a variable, wherever it lives.
    ///
    /// # Errors
    /// It has none, or the device does not give them.
    pub fn elements_of(&self, kept: &Kept, node: &Arc<Node>) -> Result<HostTensor> {
        kept.read(node.id, &node.name)?;
        let elements = self.elements(kept, &[node])?.remove(&node.id);
        elements.ok_or_else(|| Error::internal("a variable is not kept").with_node(&*node.name))
    }

    /// The elements of those of some variables that have some, all at one time. `kept` is not changed meanwhile.
    ///
    /// # Errors
    /// A device does not give them.
    pub fn elements(
        &self,
        kept: &Kept,
        nodes: &[&Arc<Node>],
    ) -> Result<FxHashMap<NodeId, HostTensor>> {
        self.begin_elements(kept, nodes)?.wait()
    }

    /// As [`Self::elements`], without waiting for devices: what comes later makes no difference to what they give.
    ///
    /// # Errors
    /// As [`Self::elements`].
    fn begin_elements(&self, kept: &Kept, nodes: &[&Arc<Node>]) -> Result<Coming> {
        let mut begun = Coming::default();
        let mut elsewhere: FxHashMap<DeviceIndex, Vec<&Arc<Node>>> = FxHashMap::default();
        for &node in nodes {
            let entry = kept.variables.get(&node.id).filter(|entry| entry.version > 0);
            let Some(entry) = entry else { continue };
            match &entry.elements {
                Some(elements) if entry.device == HOST => {
                    begun.found.insert(node.id, tensor(node, elements)?);
                }
                _ => elsewhere.entry(entry.device).or_default().push(node),
            }
        }
        for (device, nodes) in elsewhere {
            #[cfg(feature = "gpu")]
            {
                let (_, variables) = self.gpus.get(device.0 as usize)?;
                let bytes =
                    |node: &&Arc<Node>| kept.variables.get(&node.id).map_or(0, Entry::n_bytes);
                let all: Vec<(NodeId, u64)> =
                    nodes.iter().map(|node| (node.id, bytes(node))).collect();
                let nodes = nodes.into_iter().cloned().collect();
                begun.coming.push((nodes, variables.begin_load(&all)?));
            }
            #[cfg(not(feature = "gpu"))]
            {
                let _ = (device, nodes);
                return Err(Error::internal("a variable has no elements on the host"));
            }
        }
        Ok(begun)
    }

    /// What is kept of variables and tables, and what was drawn, all at one time. Variables without elements are left
    /// out if they `may_lack` them.
    ///
    /// # Errors
    /// The session is closed, a variable was refused or has no elements, a device does not give them, or two tables of
    /// one name differ.
    pub fn moment(
        &self,
        variables: &[Variable],
        tables: &[Arc<TableSpec>],
        may_lack: impl Fn(NodeId) -> bool,
    ) -> Result<Moment> {
        let _at_work = self.enter()?;
        let nodes: Vec<Arc<Node>> = variables.iter().map(|v| v.handle().node()).collect();
        if let Some(error) = nodes.iter().find_map(|node| node.error()) {
            return Err(error);
        }
        let looking = self.moments.look();
        let kept = self.state.lock();
        let lacks = |node: &&Arc<Node>| !(kept.is_initialized(node.id) || may_lack(node.id));
        if let Some(node) = nodes.iter().find(lacks) {
            return Err(self.located(uninitialized(&node.name)));
        }
        let begun = self.begin_elements(&kept, &nodes.iter().collect::<Vec<_>>())?;
        let draws = kept.draws.counts.iter().map(|(&node, &count)| (node, count)).collect();
        let tables = self.queues.table_contents(tables)?;
        drop(kept);
        drop(looking);
        Ok(Moment { variables: begun.wait()?, draws, tables })
    }

    /// Sees to it that variables have memory where they live.
    ///
    /// # Errors
    /// A device has none.
    pub fn make_room<'a>(
        &self,
        kept: &mut Kept,
        nodes: impl Iterator<Item = &'a Arc<Node>>,
    ) -> Result<()> {
        for node in nodes {
            let entry = kept.entry(node, HOST);
            #[cfg(feature = "gpu")]
            if entry.device != HOST {
                let (_, variables) = self.gpus.get(entry.device.0 as usize)?;
                variables.buffer(node.id, entry.n_bytes())?;
            }
            #[cfg(not(feature = "gpu"))]
            let _ = entry;
        }
        Ok(())
    }

    /// Stores elements of variables where they live, all of them or none. What a lost device had is gone all the same.
    ///
    /// # Errors
    /// A device does not take them.
    pub fn store_all(&self, kept: &mut Kept, values: Vec<(NodeId, NewElements)>) -> Result<()> {
        let mut by_device: BTreeMap<DeviceIndex, Vec<(NodeId, AlignedBytes)>> = BTreeMap::new();
        // What cannot fail comes last.
        let mut on_host = Vec::new();
        for (variable, elements) in values {
            let device = kept.variables.get(&variable).map_or(HOST, |entry| entry.device);
            match (device, elements) {
                (HOST, elements) => on_host.push((variable, elements)),
                (device, NewElements::Bytes(bytes)) => {
                    by_device.entry(device).or_default().push((variable, bytes));
                }
                (_, NewElements::Strings(_)) => {
                    return Err(Error::internal("a variable of strings is not on the host"));
                }
            }
        }
        #[cfg(feature = "gpu")]
        self.store_on_gpus(kept, &by_device)?;
        for (variable, elements) in on_host {
            kept.store(variable, elements);
        }
        Ok(())
    }

    /// Stores elements of variables on GPUs. If one fails, the others get back what they had.
    #[cfg(feature = "gpu")]
    fn store_on_gpus(
        &self,
        kept: &mut Kept,
        by_device: &BTreeMap<DeviceIndex, Vec<(NodeId, AlignedBytes)>>,
    ) -> Result<()> {
        let mut undo: Vec<(GpuVariables, Vec<(NodeId, AlignedBytes)>)> = Vec::new();
        let mut store = |device: DeviceIndex, values: &[(NodeId, AlignedBytes)]| {
            let (_, variables) = self.gpus.get(device.0 as usize)?;
            let before = match by_device.len() {
                0 | 1 => Vec::new(),
                _ => {
                    let had =
                        values.iter().map(|(id, _)| *id).filter(|id| kept.is_initialized(*id));
                    let bytes = |id: NodeId| kept.variables.get(&id).map_or(0, Entry::n_bytes);
                    let had: Vec<(NodeId, u64)> = had.map(|id| (id, bytes(id))).collect();
                    let elements = variables.load_all(&had)?;
                    had.into_iter().map(|(id, _)| id).zip(elements).collect()
                }
            };
            variables.store_all(values)?;
            undo.push((variables, before));
            Ok(())
        };
        let stored: Result<()> =
            by_device.iter().try_for_each(|(&device, values)| store(device, values));
        if let Err(error) = stored {
            for (variables, before) in undo {
                // A device that does not take it is lost itself.
                let _ = variables.store_all(&before);
            }
            return Err(error);
        }
        for (variable, _) in by_device.values().flatten() {
            kept.stored_on_device(*variable);
        }
        Ok(())
    }

    /// Stores elements of variables, what tables hold, and draws of random nodes if there are any to store: between two
    /// runs, all of it or nothing.
    ///
    /// # Errors
    /// The session is closed, a device has no memory, or a device is lost.
    pub fn set(
        &self,
        values: Vec<(NodeId, HostTensor)>,
        draws: Option<Vec<(NodeId, u32)>>,
        tables: Vec<(Arc<TableSpec>, TableContents)>,
    ) -> Result<()> {
        let _at_work = self.enter()?;
        let nodes: Vec<Arc<Node>> =
            values.iter().map(|(variable, _)| self.graph.node(*variable)).collect();
        let copies = values.iter().map(|(id, value)| Ok((*id, NewElements::of(value)?)));
        let copies: Vec<(NodeId, NewElements)> = copies.collect::<Result<_>>()?;
        let _looking = self.moments.look();
        let mut kept = self.state.lock();
        // What there is no memory for is found before anything is stored.
        self.make_room(&mut kept, nodes.iter())?;
        self.store_all(&mut kept, copies)?;
        if let Some(draws) = draws {
            kept.draws.counts = draws.into_iter().collect();
        }
        self.queues.set_tables(tables);
        Ok(())
    }

    /// Drops what is kept for the variables, queues, readers and tables of these containers, between two runs; of all,
    /// if none is named. The default container has the empty name.
    ///
    /// # Errors
    /// The session is closed, or a device is lost. Nothing has changed then.
    pub fn reset(&self, containers: &[&str]) -> Result<()> {
        let _at_work = self.enter()?;
        // Where variables move between runs, programs rely on it that nothing else changes their memory.
        let moves = &self.moves;
        let _alone =
            self.options.autotune.then(|| moves.write().unwrap_or_else(PoisonError::into_inner));
        let is_named = |container: Option<&str>| {
            containers.is_empty() || containers.contains(&container.unwrap_or_default())
        };
        let _looking = self.moments.look();
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
        self.queues.reset(is_named);
        drop(kept);
        // Programs hold the memory of variables.
        self.forget_plans();
        Ok(())
    }
}
