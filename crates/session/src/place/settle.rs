//! Where variables stay: one that no program has read yet moves to where the first one wants it.

#[cfg(feature = "gpu")]
use std::sync::Arc;

use convoke_compiler::{DeviceIndex, HOST, Program, Source};
use convoke_graph_core::{Error, NodeId, Result};
use rustc_hash::FxHashSet;

use super::Placing;
use crate::autotune::MOVES_MAX;
use crate::devices::Gpus;
#[cfg(feature = "gpu")]
use crate::state::Elements;
use crate::state::{Entry, Generation};

impl Placing<'_> {
    /// Notes the variables of a program with their devices. One that no program has read yet moves to
    /// where this one wants it; one that this one reads stays there from now on.
    ///
    /// Gives the generation of each of the program's variables.
    pub(crate) fn settle(&self, program: &Program, gpus: &Gpus) -> Result<Vec<Generation>> {
        let mut kept = self.state.lock();
        // What leaves makes room for what comes.
        for &(variable, device) in &program.variables {
            let entry = kept.entry(self.graph.node(variable), device);
            if entry.device != device && entry.version > 0 {
                if !move_directly(variable, entry, device, gpus)? {
                    bring_home(variable, entry, gpus)?;
                }
                entry.moves += 1;
            }
        }
        let inputs = program.groups.iter().flat_map(|group| &group.inputs);
        let read = inputs.filter_map(|input| match program.value(input.value).source {
            Source::Variable(variable) => Some(variable),
            _ => None,
        });
        let read: FxHashSet<NodeId> = read.collect();
        let mut generations = Vec::with_capacity(program.variables.len());
        for &(variable, device) in &program.variables {
            let entry = kept.entry(self.graph.node(variable), device);
            if entry.device != device && entry.version > 0 {
                send(variable, entry, device, gpus)?;
            }
            entry.device = device;
            // Without elements there is nothing to read yet: such a run fails and decides nothing. Nor does one that
            // only fetches the variable, unless it has gone to and fro.
            let is_used = read.contains(&variable) || entry.moves >= MOVES_MAX;
            entry.settled |= entry.version > 0 && is_used;
            generations.push(entry.generation());
        }
        Ok(generations)
    }
}

/// Moves a variable to another part of its GPU. False if they are none.
fn move_directly(
    variable: NodeId,
    entry: &mut Entry,
    to: DeviceIndex,
    gpus: &Gpus,
) -> Result<bool> {
    #[cfg(feature = "gpu")]
    {
        let parts = [entry.device, to].map(|device| device.0 as usize);
        if gpus.queues().is_direct(parts[0], parts[1]) {
            let [(_, from), (_, into)] = [gpus.get(parts[0])?, gpus.get(parts[1])?];
            into.take(&from, variable, entry.n_bytes())?;
            entry.device = to;
            return Ok(true);
        }
    }
    let _ = (variable, entry, to, gpus);
    Ok(false)
}

/// Brings a variable's elements to the host, and gives its memory elsewhere back.
fn bring_home(variable: NodeId, entry: &mut Entry, gpus: &Gpus) -> Result<()> {
    if entry.device == HOST {
        return Ok(());
    }
    #[cfg(feature = "gpu")]
    {
        let (_, from) = gpus.get(entry.device.0 as usize)?;
        let elements = from.load(variable, entry.n_bytes())?;
        entry.elements = Some(Elements::Bytes(Arc::new(elements)));
        entry.device = HOST;
        from.remove(variable);
        Ok(())
    }
    #[cfg(not(feature = "gpu"))]
    {
        let _ = (variable, gpus);
        Err(Error::internal("there is only one device to live on"))
    }
}

/// Sends the elements of a variable on the host to a device.
fn send(variable: NodeId, entry: &mut Entry, to: DeviceIndex, gpus: &Gpus) -> Result<()> {
    #[cfg(feature = "gpu")]
    {
        let n_bytes = entry.n_bytes() as usize;
        let elements = entry.elements.as_ref().and_then(|elements| elements.bytes().get(..n_bytes));
        let elements =
            elements.ok_or_else(|| Error::internal("a variable without its elements"))?;
        gpus.get(to.0 as usize)?.1.store(variable, elements)?;
        entry.elements = None;
        Ok(())
    }
    #[cfg(not(feature = "gpu"))]
    {
        let _ = (variable, entry, to, gpus);
        Err(Error::internal("there is only one device to live on"))
    }
}
