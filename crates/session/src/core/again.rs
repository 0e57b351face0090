//! Runs with branches and loops, made anew where other runs come between.

use std::cell::Cell;
use std::time::Duration;

use convoke_graph_core::{ErrorKind, HostTensor, Result};

use super::{Core, Flowing, Request};
use crate::flow;
use crate::holding::Holdings;
use crate::metadata::RunMetadata;
use crate::queues::Puts;

/// How often a run with branches or loops begins anew where other runs move its variables.
const FLOW_ATTEMPTS: u32 = 16;

/// The same where others have stored into what it stores: each time another run has succeeded.
const OVERTAKEN_ATTEMPTS: u32 = 1024;

/// A run that is overtaken makes way for a moment, longer each time up to the second, so that others come to an end.
const MAKES_WAY: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];

impl Core {
    /// Runs branches and loops; anew if a variable has moved or was reset between looking at it and a program's run, or others
    /// have stored into one that it stores into. Nothing, if the run waits and holds no thread meanwhile.
    pub(super) fn run_flow(
        &self,
        flow: &Flowing,
        request: &Request<'_>,
        mut held: Option<&mut Holdings>,
        check: flow::Check<'_>,
        metadata: &mut RunMetadata,
    ) -> Result<Option<Vec<HostTensor>>> {
        let first = Cell::new([1; 2]);
        let n_attempts = request.parks.map_or(&first, |parks| &parks.marks.n_attempts);
        loop {
            let run = flow::run(self, flow, request, held.as_deref_mut(), check, metadata);
            let is_overtaken = metadata.is_overtaken;
            let mut n = n_attempts.get();
            let (own, most) = match is_overtaken {
                true => (&mut n[1], OVERTAKEN_ATTEMPTS),
                false => (&mut n[0], FLOW_ATTEMPTS),
            };
            match run {
                Err(e)
                    if e.kind() == ErrorKind::Aborted
                        && *own < most
                        && !metadata.stores
                        && !request.puts.is_some_and(Puts::is_outdated) =>
                {
                    // Others that it waits for may wait for these tables.
                    drop(request.puts.and_then(Puts::give_up));
                    metadata.begin_again(request);
                    if is_overtaken {
                        let [step, longest] = MAKES_WAY;
                        std::thread::sleep((step * *own).min(longest));
                    }
                    *own += 1;
                    n_attempts.set(n);
                }
                run => return run,
            }
        }
    }
}
