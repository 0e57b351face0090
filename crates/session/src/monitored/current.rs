//! How a session begins, and how it ends with its threads.

use std::time::Duration;

use convoke_graph_core::{Feed, Graph, NodeId, Operation, Result};
use convoke_input::Coordinator;

use crate::checkpoint::RestoreOptions;
use crate::devices::Devices;
use crate::saver::Saver;
use crate::session::{Session, SessionOptions};

/// How long a thread has to end whose run the close has cut off.
const CUT_OFF: Duration = Duration::from_secs(1);

/// A session and its threads.
pub(super) struct Current {
    pub session: Session,
    pub coordinator: Coordinator,
}

/// What sessions are made from.
pub(super) struct Start<'h> {
    pub graph: Graph,
    devices: Devices,
    pub options: SessionOptions,
    pub saver: Option<Saver>,
    pub restore: RestoreOptions,
    /// What initialisers are fed.
    pub init_feeds: Vec<Feed<'static>>,
    pub init: Option<Init<'h>>,
    pub grace: Duration,
    /// The variables, global and local, and what initialises them.
    variables: Vec<(NodeId, Operation)>,
}

/// What to do with a session that was initialised.
type Init<'h> = Box<dyn FnMut(&Session) -> Result<()> + 'h>;

impl Start<'_> {
    pub fn new(graph: &Graph, devices: &Devices) -> Self {
        Self {
            graph: graph.clone(),
            devices: devices.clone(),
            options: SessionOptions::default(),
            saver: None,
            restore: RestoreOptions::default(),
            init_feeds: Vec::new(),
            init: None,
            grace: Coordinator::GRACE,
            variables: Vec::new(),
        }
    }

    /// Notes the variables that the graph has.
    pub fn find_variables(&mut self) {
        let all = [self.graph.global_variables(), self.graph.local_variables()].concat();
        let initial =
            |v: &convoke_graph_core::Variable| (v.handle().output().node, v.initializer().clone());
        self.variables = all.iter().map(initial).collect();
    }

    /// A session whose variables have elements.
    pub fn session(&mut self) -> Result<Current> {
        let session = Session::with_options(&self.graph, &self.devices, self.options.clone())?;
        let latest = self.saver.as_ref().map(Saver::latest).transpose()?.flatten();
        if let (Some(saver), Some(_)) = (&self.saver, &latest) {
            let (checkpoint, report) = saver.restore_latest_with(&session, &self.restore)?;
            tracing::info!("restored step {} from {}", checkpoint.step, checkpoint.path.display());
            for table in &report.kept_tables {
                tracing::warn!("a table is not restored and stays as it is: {table}");
            }
        }
        let kept = session.state().lock();
        let without = self.variables.iter().filter(|(id, _)| !kept.is_initialized(*id));
        let initial: Vec<Operation> = without.map(|(_, initial)| initial.clone()).collect();
        drop(kept);
        if !initial.is_empty() {
            session.run(&self.init_feeds, initial)?;
        }
        if let (Some(init), None) = (&mut self.init, latest) {
            init(&session)?;
        }
        session.check_initialized()?;
        Ok(Current { session, coordinator: Coordinator::new() })
    }
}

impl Current {
    /// Stops and joins the threads, and closes the session, which cuts off those that wait in a run of it.
    ///
    /// # Errors
    /// That for which a thread has failed.
    pub fn stop(self, grace: Duration) -> Result<()> {
        self.coordinator.request_stop();
        // Who is late may not be so after the close.
        let _joined = self.coordinator.join(grace);
        self.session.close();
        match (self.coordinator.check(), self.coordinator.join(CUT_OFF)) {
            (Ok(()), Err(late)) => {
                tracing::warn!("{late}");
                Ok(())
            }
            (failed, _) => failed,
        }
    }
}
