//! What a run of several programs keeps to itself until it ends: variables as they were at its start and as it has left
//! them, and what it drew. At the end all of it is stored, or nothing.

use std::cell::RefCell;
use std::sync::Arc;

use convoke_compiler::flow::{Change, Held};
use convoke_compiler::{DeviceIndex, HOST};
use convoke_graph_core::{AlignedBytes, Error, ErrorKind, HostTensor, Node, NodeId, Result};
use rustc_hash::FxHashMap;

use crate::cancel::Stop;
use crate::core::Core;
use crate::drawing::{Drawing, Draws};
use crate::metadata::RunMetadata;
use crate::moment::Storing;
use crate::place::variable_bytes;
use crate::state::{Kept, NewElements, Snapshot, State, uninitialized};
use crate::sums::add_difference;

/// The variables that a run holds, and its journal.
#[derive(Clone)]
pub(crate) struct Holdings {
    variables: FxHashMap<NodeId, Holding>,
    journal: RefCell<Journal>,
}

/// A variable while a run holds it.
#[derive(Clone)]
struct Holding {
    variable: Arc<Node>,
    /// How often it was stored into and reset when the run began.
    version: u64,
    resets: u32,
    /// Where it lives.
    device: DeviceIndex,
    /// The elements at the start, if it had some that may be needed.
    before: Option<HostTensor>,
    /// The elements that the run has assigned, and how they came about.
    now: Option<(HostTensor, Change)>,
}

/// What programs are told that are only a part of a run, and tell it.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    /// Behind what it drew from random nodes.
    drawn: FxHashMap<NodeId, u32>,
    /// The nodes that it draws from.
    drawing: Arc<Drawing>,
    /// The held variables that have elements, as the run sees them.
    initialized: FxHashMap<NodeId, bool>,
    /// The other variables that it reads, as they were at its start.
    starts: FxHashMap<NodeId, Snapshot>,
}

impl Journal {
    fn new(state: &Arc<State>) -> Self {
        Self {
            drawn: FxHashMap::default(),
            drawing: Arc::new(Drawing::new(state)),
            initialized: FxHashMap::default(),
            starts: FxHashMap::default(),
        }
    }

    /// Stores what was drawn.
    fn store(&self, kept: &mut Kept) {
        self.drawn.iter().for_each(|(&node, &after)| kept.draws.drawn(node, after));
    }

    /// The first of `n` numbers of a random node that the run draws next.
    pub fn draws(&self, draws: &mut Draws, node: NodeId, n: u32) -> u32 {
        self.drawing.take(draws, node, n, self.drawn.get(&node).copied())
    }

    /// Notes that a program has drawn from a random node, up to the number before `after`.
    pub fn drawn(&mut self, node: NodeId, after: u32) {
        self.drawn.insert(node, after);
    }

    /// A variable at the start of the run, if the run reads it.
    pub fn start(&self, variable: NodeId) -> Option<&Snapshot> {
        self.starts.get(&variable)
    }

    /// Lets the elements at the start go: nothing reads them any more.
    pub fn forget_starts(&mut self) {
        self.starts.clear();
    }

    /// Whether a variable has elements, if the run holds it.
    pub fn is_initialized(&self, variable: NodeId) -> Option<bool> {
        self.initialized.get(&variable).copied()
    }
}

impl Holdings {
    /// Takes the variables that a run holds, and those that it reads besides, as they are now, all at one time.
    ///
    /// # Errors
    /// A device does not give elements.
    pub fn take(core: &Core, held: &[Held], read: &[Arc<Node>]) -> Result<Self> {
        let kept = core.state.lock();
        let needed: Vec<&Arc<Node>> =
            held.iter().filter(|held| held.is_read).map(|held| &held.variable).collect();
        let mut elements = core.elements(&kept, &needed)?;
        let mut holdings = Self::of_nothing(&core.state);
        let journal = holdings.journal.get_mut();
        for Held { variable, .. } in held {
            let entry = kept.variables.get(&variable.id);
            let holding = Holding {
                variable: variable.clone(),
                version: entry.map_or(0, |entry| entry.version),
                resets: entry.map_or(0, |entry| entry.generation().resets),
                device: entry.map_or(HOST, |entry| entry.device),
                before: elements.remove(&variable.id),
                now: None,
            };
            journal.initialized.insert(variable.id, holding.version > 0);
            holdings.variables.insert(variable.id, holding);
        }
        for node in read {
            if let Ok(start) = kept.read(node.id, &node.name) {
                journal.starts.insert(node.id, start);
            }
        }
        Ok(holdings)
    }

    /// What programs of the run are told and tell.
    pub fn journal(&self) -> &RefCell<Journal> {
        &self.journal
    }

    /// The held variables that had elements at the start of the run, in order.
    pub fn initialized(&self) -> Vec<NodeId> {
        let all = self.variables.iter().filter(|(_, holding)| holding.version > 0);
        let mut initialized: Vec<NodeId> = all.map(|(&id, _)| id).collect();
        initialized.sort_unstable();
        initialized
    }

    /// The elements of a variable at the start of the run.
    ///
    /// # Errors
    /// It had none.
    pub fn start(&self, variable: NodeId) -> Result<HostTensor> {
        self.holding(variable)?.start()
    }

    /// Whether a variable has elements as the run has left it.
    pub fn is_initialized(&self, variable: NodeId) -> bool {
        let holding = self.variables.get(&variable);
        holding.is_some_and(|holding| holding.now.is_some() || holding.version > 0)
    }

    /// The elements of a variable as the run has left them; zeros for one that may have none.
    ///
    /// # Errors
    /// It has none.
    pub fn now(&self, variable: NodeId, is_optional: bool) -> Result<HostTensor> {
        let holding = self.holding(variable)?;
        match &holding.now {
            Some((now, _)) => Ok(now.clone()),
            None if is_optional && holding.before.is_none() => {
                let fact = &holding.variable.facts[0];
                HostTensor::zeros(fact.dtype, fact.shape().unwrap_or_default())
            }
            None => holding.start(),
        }
    }

    /// Notes that the run gives a variable these elements.
    pub fn change(&mut self, variable: NodeId, now: HostTensor, change: Change) {
        self.journal.get_mut().initialized.insert(variable, true);
        if let Some(holding) = self.variables.get_mut(&variable) {
            let before = holding.now.take().map(|(_, before)| before);
            holding.now = Some((now, before.map_or(change, |before| before.then(change))));
        }
    }

    fn of_nothing(state: &Arc<State>) -> Self {
        Self { variables: FxHashMap::default(), journal: RefCell::new(Journal::new(state)) }
    }

    /// Lets go of all, at the end of the run.
    pub fn let_go(&mut self, state: &Arc<State>) {
        *self = Self::of_nothing(state);
    }

    /// Whether any variable that the run holds lives on a GPU.
    pub fn lie_on_gpus(&self) -> bool {
        self.variables.values().any(|holding| holding.device != HOST)
    }

    fn holding(&self, variable: NodeId) -> Result<&Holding> {
        let missing = || Error::internal(format!("node {} is not held", variable.0));
        self.variables.get(&variable).ok_or_else(missing)
    }

    /// Whether the run has taken the next number of a variable.
    pub fn counts(&self) -> bool {
        let mut all = self.variables.values();
        all.any(|holding| matches!(holding.now, Some((_, Change::Counted))))
    }

    /// Notes what came from devices when it was taken, and went back when it was stored.
    pub fn note_crossings(&self, metadata: &mut RunMetadata) {
        let away = self.variables.values().filter(|holding| holding.device != HOST);
        for Holding { variable, before, now, .. } in away {
            for _ in before.iter().chain(now.iter().map(|(now, _)| now)) {
                metadata.predict(variable_bytes(variable));
            }
            if let Some(before) = before {
                metadata.downloads += 1;
                metadata.download_bytes += before.bytes().len() as u64;
            }
            if let Some((now, _)) = now {
                metadata.uploads += 1;
                metadata.upload_bytes += now.bytes().len() as u64;
            }
        }
    }

    /// Stores what was assigned and drawn, as the last step but for what `storing` knows of.
    ///
    /// # Errors
    /// Others have stored meanwhile what can't be brought together with it; a device has no memory or is lost; what
    /// `stop` says. Nothing is stored then.
    pub fn store(&self, core: &Core, storing: &Storing<'_>, stop: &Stop<'_>) -> Result<()> {
        let stored = self.try_store(core, storing, stop);
        if stored.is_err() {
            storing.end();
        }
        stored
    }

    fn try_store(&self, core: &Core, storing: &Storing<'_>, stop: &Stop<'_>) -> Result<()> {
        let changed = self.variables.values().filter(|holding| holding.now.is_some());
        let journal = self.journal.borrow();
        if changed.clone().next().is_none() && journal.drawn.is_empty() {
            return Ok(());
        }
        if !storing.has_begun() {
            // A variable may have settled on a GPU since the run began.
            let home = |kept: &Kept, holding: &Holding| {
                kept.variables.get(&holding.variable.id).map_or(holding.device, |own| own.device)
            };
            let kept = core.state.lock();
            let is_away = changed.clone().any(|holding| home(&kept, holding) != HOST);
            drop(kept);
            match is_away {
                true => storing.begin_alone(Some(stop))?,
                false => storing.begin_if_it_goes_on(Some(stop))?,
            }
        }
        let mut kept = core.state.lock();
        // A closed session has freed what it kept.
        core.check_still_open()?;
        core.make_room(&mut kept, changed.clone().map(|holding| &holding.variable))?;
        let mut ready = Vec::new();
        for holding in changed {
            if let Some(elements) = holding.to_store(core, &mut kept)? {
                ready.push((holding.variable.id, elements));
            }
        }
        core.store_all(&mut kept, ready)?;
        journal.store(&mut kept);
        Ok(())
    }
}

impl Holding {
    fn start(&self) -> Result<HostTensor> {
        if self.version == 0 {
            return Err(uninitialized(&self.variable.name));
        }
        let missing = || Error::internal("elements are not held").with_node(&*self.variable.name);
        self.before.clone().ok_or_else(missing)
    }

    /// What is stored into the variable, if anything is: what a run stores into one that was reset is lost.
    ///
    /// # Errors
    /// Others have stored meanwhile what can't be brought together with it; the variable was reset, and counts anew.
    fn to_store(&self, core: &Core, kept: &mut Kept) -> Result<Option<NewElements>> {
        let Self { variable, before, now, .. } = self;
        let Some((now, change)) = now else { return Ok(None) };
        let entry = kept.entry(variable, HOST);
        let is_reset = entry.generation().resets != self.resets;
        if is_reset && *change != Change::Counted {
            return Ok(None);
        }
        let is_other = is_reset || entry.version != self.version;
        match (change, before) {
            (Change::Changed | Change::Counted, _) if is_other => {
                let message =
                    "others have stored into the variable or reset it meanwhile; run again";
                Err(Error::new(ErrorKind::Aborted, message).with_node(&*variable.name))
            }
            (Change::Moved, Some(before)) if is_other => {
                let current = core.elements_of(kept, variable)?;
                let mut bytes = AlignedBytes::copy_of(current.bytes())?;
                add_difference(now.dtype(), &mut bytes, before.bytes(), now.bytes())?;
                Ok(Some(NewElements::Bytes(bytes)))
            }
            _ => NewElements::of(now).map(Some),
        }
    }
}
