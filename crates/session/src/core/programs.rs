//! How a plan gets the program for a run's feeds: one that is there, or a new one.

use std::sync::{Arc, PoisonError, RwLockReadGuard};
use std::time::Instant;

use convoke_compiler::{CompileOptions, DeviceIndex, GroupLimits, InputFact, compile};
use convoke_graph_core::{Error, ErrorKind, Result};

use super::{Core, Planned, ProgramKey};
use crate::autotune::Tuning;
use crate::budget;
use crate::executor::{Compiled, Failure, Refused};
use crate::feeds::FeedData;
use crate::metadata::{PhaseKind, RunMetadata};
use crate::place::Placing;
use crate::recent::{Current, Recent};

/// What is known of feeds, and where they are.
struct Inputs {
    facts: Vec<InputFact>,
    homes: Vec<DeviceIndex>,
}

impl Core {
    /// Frees the memory of programs that no run uses at the moment; where there is none, forgets the programs,
    /// whose constants take memory too. True if there was anything.
    pub fn free_caches(&self) -> bool {
        let mut plans: Vec<Arc<Planned>> = self.plans().values().cloned().collect();
        plans.extend(self.partial.before());
        let steps = self.partial.steps();
        let all = |each: &mut dyn FnMut(&Planned)| {
            let steps = steps.iter().filter_map(|step| step.planned.as_ref());
            plans.iter().map(|planned| &**planned).chain(steps).for_each(|own| own.for_each(each));
        };
        let mut is_freed = self.gpus.shrink();
        all(&mut |planned| {
            for compiled in planned.programs().values() {
                is_freed |= compiled.shrink();
            }
        });
        if is_freed {
            return true;
        }
        all(&mut |planned| {
            let mut programs = planned.programs();
            is_freed |= programs.len() > 0;
            programs.clear();
        });
        is_freed
    }

    /// The program for these feeds, whose variables stay where they are as long as what comes with it is kept.
    ///
    /// # Errors
    /// What compiling refuses.
    pub fn current(
        &self,
        planned: &Planned,
        data: &[FeedData<'_>],
        recent: Option<&Recent>,
        metadata: &mut RunMetadata,
    ) -> Result<(Current, Option<RwLockReadGuard<'_, ()>>)> {
        let mut compiled = self.compiled(planned, data, recent, metadata)?;
        // Nothing moves variables from here on; where something has, there is another program.
        let mut stays = self.options.autotune.then(|| self.read_moves());
        while stays.is_some() && !compiled.is_current(&self.state) {
            drop(stays.take());
            compiled = self.compiled(planned, data, recent, metadata)?;
            stays = Some(self.read_moves());
        }
        Ok((compiled, stays))
    }

    /// The program for these feeds.
    ///
    /// # Errors
    /// What compiling refuses.
    pub fn compiled(
        &self,
        planned: &Planned,
        data: &[FeedData<'_>],
        recent: Option<&Recent>,
        metadata: &mut RunMetadata,
    ) -> Result<Current> {
        if let Some(compiled) = recent.and_then(|recent| recent.get(data, &self.gpus))
            && compiled.is_current(&self.state)
            && !compiled.is_stale()
        {
            metadata.program_cached = true;
            return Ok(compiled);
        }
        let key = planned.key(data, &self.gpus)?;
        let compiled = self.looked_up(planned, data, key.clone(), metadata)?;
        if let Some(recent) = recent {
            recent.set(key, compiled.clone());
        }
        Ok(Current::Found(compiled))
    }

    /// The program of a key: one that is there, or a new one.
    fn looked_up(
        &self,
        planned: &Planned,
        data: &[FeedData<'_>],
        key: ProgramKey,
        metadata: &mut RunMetadata,
    ) -> Result<Arc<Compiled>> {
        let before = planned.programs().get(&key);
        if let Some(compiled) = &before
            && compiled.is_current(&self.state)
            && !compiled.is_stale()
        {
            metadata.program_cached = true;
            return Ok(compiled.clone());
        }
        let facts = data.iter().zip(&planned.plan.shape_feeds);
        let facts = facts.map(|(data, &keeps)| {
            let contents = keeps.then(|| data.to_tensor()).transpose()?;
            let donated = matches!(data, FeedData::Given(..)).then(|| self.gpus.home(data));
            Ok(InputFact { shape: data.shape().clone(), contents, donated })
        });
        let facts: Vec<InputFact> = facts.collect::<Result<_>>()?;
        let homes = data.iter().map(|data| self.gpus.home(data)).collect();
        let inputs = Inputs { facts, homes };
        let mut refused: Vec<Refused> = Vec::new();
        let stale = before.as_ref().filter(|before| before.is_stale());
        if let Some(before) = stale {
            match self.compile_anew(planned, &inputs, before, metadata) {
                Some(compiled) => {
                    planned.programs().replace(key, compiled.clone());
                    return Ok(compiled);
                }
                None if before.is_current(&self.state) => return Ok(before.clone()),
                None => {}
            }
        }
        loop {
            let error = match self.compile(planned, &inputs, &refused, before.as_deref(), metadata)
            {
                Ok(compiled) => {
                    let compiled = Arc::new(compiled);
                    planned.programs().replace(key, compiled.clone());
                    return Ok(compiled);
                }
                Err(Failure::Error(error)) => return Err(error),
                Err(Failure::Refused(error)) => error,
            };
            let Refused { device, node, reason, .. } = &error;
            let device = self.devices.list().get(*device).map_or("?", |info| &*info.name);
            if !self.options.soft_placement {
                let error = Error::new(ErrorKind::Unimplemented, format!("unsupported: {reason}"));
                return Err(error.with_node(&**node).with_device(device));
            }
            tracing::warn!(
                "{device} has no kernel for {node}, so that it runs elsewhere: {reason}"
            );
            refused.push(error);
        }
    }

    /// The program that its runs suggest instead of a stale one; nothing if it can't be had. The stale one is not
    /// stale any more then.
    fn compile_anew(
        &self,
        planned: &Planned,
        inputs: &Inputs,
        before: &Compiled,
        metadata: &mut RunMetadata,
    ) -> Option<Arc<Compiled>> {
        let _alone = self.moves.write().unwrap_or_else(PoisonError::into_inner);
        match self.compile(planned, inputs, &[], Some(before), metadata) {
            Ok(compiled) => Some(Arc::new(compiled)),
            Err(failure) => {
                let reason = match failure {
                    Failure::Refused(refused) => refused.reason,
                    Failure::Error(error) => error.to_string(),
                };
                tracing::warn!("what runs took suggests another placement, which fails: {reason}");
                if let Some(tuning) = &before.tuning {
                    tuning.give_up();
                }
                None
            }
        }
    }

    /// A program with its kernels, not on devices that refused them. There may have been one `before` it.
    fn compile(
        &self,
        planned: &Planned,
        inputs: &Inputs,
        refused: &[Refused],
        before: Option<&Compiled>,
        metadata: &mut RunMetadata,
    ) -> std::result::Result<Compiled, Failure> {
        let (start, begun) = (Instant::now(), metadata.now());
        let placing = Placing {
            devices: &self.devices,
            graph: &planned.graph,
            plan: &planned.plan,
            homes: &inputs.homes,
            state: &self.state,
            options: &self.options,
            threads: self.threads.len(),
            known: &self.known,
            unsettles: before.is_some_and(Compiled::is_stale),
            refused,
            grown: &self.grown,
            placed: std::cell::OnceCell::new(),
        };
        let limits =
            if self.options.fuse { self.devices.group_limits() } else { GroupLimits::SINGLE };
        let simplify = self.options.simplify;
        let place = |unplaced: &convoke_compiler::Unplaced<'_>| placing.place(unplaced);
        let mut program = compile(
            &planned.plan,
            &inputs.facts,
            &CompileOptions { limits, simplify, place: &place },
        )?;
        let homes = placing.placed.get().map(|placed| placed.homes.clone()).unwrap_or_default();
        let host = (self.options.host_budget_bytes, self.threads.len());
        budget::fit(&mut program, host, &self.gpus, &homes)?;
        metadata.planning += start.elapsed();
        metadata.note(PhaseKind::Compile, begun);
        let (start, begun) = (Instant::now(), metadata.now());
        let feeds = &planned.plan.signature.feeds;
        let mut compiled = Compiled::new(program, &planned.graph, feeds, &self.gpus)?;
        compiled.generations = placing.settle(&compiled.program, &self.gpus)?;
        compiled.placed = placing.placed.into_inner();
        compiled.tuning = self.options.autotune.then(|| {
            let before = before.and_then(|b| Some((b.tuning.as_ref()?, b.is_placed_as(&compiled))));
            before.map_or_else(Tuning::default, |(tuning, is_same)| tuning.next(is_same))
        });
        metadata.preparing += start.elapsed();
        metadata.note(PhaseKind::Prepare, begun);
        Ok(compiled)
    }
}
