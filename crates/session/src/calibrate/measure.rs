//! Which probes are run on a device, in which order, and how large they grow.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::ControlFlow;
use std::time::Instant;

use convoke_graph_core::{Error, ErrorKind, Result};
use convoke_placement::{DeviceKind, Family, Picoseconds};

use super::graphs::{self, CHAIN};
use super::probe::{Bench, Probe, Timed};
use super::{Progress, Report};

/// No probe is begun that is expected to take longer than this.
const LONGEST: Picoseconds = 150_000_000_000;
/// How often in a pass crossings of next to nothing are timed.
const LINK_ROUNDS: usize = 3;
/// Elements of what stands for no work.
pub(super) const TINY: usize = 16;
/// Elements of what shows a link's speed.
pub(super) const LINK_ELEMENTS: usize = 1 << 20;

/// A series of probes that grow, and what their time says.
pub(super) struct Series {
    name: &'static str,
    probe: fn(usize) -> Result<Probe>,
    /// The sizes, growing.
    sizes: &'static [usize],
    /// How many times the work grows from one to the next.
    growth: u64,
    /// Whose curve it is; `None` for that of memory.
    pub family: Option<Family>,
}

/// Those that others build on come first.
pub(super) const SERIES: [Series; 11] = [
    Series {
        name: "memory",
        probe: graphs::sum_of_two,
        sizes: &[1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22],
        growth: 4,
        family: None,
    },
    Series {
        name: "arithmetic",
        probe: graphs::arithmetic,
        // Larger ones would show the memory's speed.
        sizes: &[1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20],
        growth: 4,
        family: Some(Family::Elementwise),
    },
    Series {
        name: "functions",
        probe: graphs::functions,
        sizes: &[1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20],
        growth: 4,
        family: Some(Family::Function),
    },
    Series {
        name: "reductions of rows",
        probe: graphs::rows,
        sizes: &[1 << 3, 1 << 6, 1 << 9, 1 << 12],
        growth: 8,
        family: Some(Family::Reduce),
    },
    Series {
        name: "reductions of columns",
        probe: graphs::columns,
        sizes: &[1 << 3, 1 << 6, 1 << 9, 1 << 12],
        growth: 8,
        family: Some(Family::Columns),
    },
    Series {
        name: "products",
        probe: graphs::product,
        sizes: &[32, 64, 128, 256, 512, 1024],
        growth: 8,
        family: Some(Family::Contract),
    },
    Series {
        name: "thin products",
        probe: graphs::thin_product,
        sizes: &[1 << 6, 1 << 8, 1 << 10, 1 << 12, 1 << 14],
        growth: 4,
        family: Some(Family::Thin),
    },
    Series {
        name: "convolutions",
        probe: graphs::convolution,
        sizes: &[1, 4, 16],
        growth: 4,
        family: Some(Family::Convolve),
    },
    Series {
        name: "pooling",
        probe: graphs::pooling,
        sizes: &[1, 4, 16],
        growth: 4,
        family: Some(Family::Pool),
    },
    Series {
        name: "gathers",
        probe: graphs::gather,
        sizes: &[1 << 6, 1 << 9, 1 << 12, 1 << 15],
        growth: 8,
        family: Some(Family::Move),
    },
    Series {
        name: "random numbers",
        probe: graphs::random,
        sizes: &[1 << 10, 1 << 14, 1 << 18, 1 << 20],
        growth: 16,
        family: Some(Family::Random),
    },
];

/// What is probed. Probes that others build on come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// One small kernel.
    One,
    /// That and [`CHAIN`] more.
    Chain,
    /// Next to no work, and nothing that crosses.
    Least,
    /// A run on the CPU that does next to nothing.
    Run,
    /// A size of a series, by their places.
    Series(usize, usize),
    /// An addition to [`TINY`] or [`LINK_ELEMENTS`] resident elements.
    Resident(Amount),
    /// To fed ones.
    Fed(Amount),
    /// To resident ones, fetched.
    Fetched(Amount),
    /// Next to no work, of what is fed, fetched.
    Both,
}

/// How much crosses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Amount {
    Few,
    Many,
}

/// What the probes took.
pub(super) type Samples = BTreeMap<Key, Timed>;

/// Adds the times of a probe to those that are there.
fn add(samples: &mut Samples, key: Key, timed: Timed) {
    match samples.entry(key) {
        Entry::Vacant(entry) => _ = entry.insert(timed),
        Entry::Occupied(mut entry) => entry.get_mut().times.extend(timed.times),
    }
}

/// Counts a pass: however often it timed a probe, that is one time more, the median.
pub(super) fn count(samples: &mut Samples, own: Samples) {
    for (key, mut timed) in own {
        timed.times.sort_unstable();
        let median = timed.times.get(timed.times.len() / 2).copied();
        timed.times = median.into_iter().collect();
        add(samples, key, timed);
    }
}

/// How many steps a pass has, for progress.
pub(super) const STEPS: usize = SERIES.len() + 2;

/// A pass over all probes. What is broken off is no part of the samples.
pub(super) struct Pass<'a, 'r> {
    pub bench: &'a Bench,
    pub kind: DeviceKind,
    /// When only what is still missing is measured; `None` is never.
    pub until: Option<Instant>,
    pub report: &'a mut Report<'r>,
    pub samples: &'a mut Samples,
    /// Of this pass: some probes are timed several times.
    pub own: Samples,
    /// Steps that are done, and of how many.
    pub done: usize,
    pub of: usize,
}

impl Pass<'_, '_> {
    /// Goes through all probes.
    ///
    /// # Errors
    /// `Cancelled` if the report breaks it off; what the device refuses.
    pub fn run(mut self) -> Result<()> {
        self.launches()?;
        self.done += 1;
        for (at, series) in SERIES.iter().enumerate() {
            self.series(at, series)?;
            self.done += 1;
        }
        if self.kind != DeviceKind::Cpu {
            self.links()?;
        }
        count(self.samples, self.own);
        Ok(())
    }

    /// What is known of a probe.
    fn known(&self, key: Key) -> Option<&Timed> {
        self.own.get(&key).or_else(|| self.samples.get(&key))
    }

    fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Times a probe, if the report agrees and there is time to do it again.
    fn time(
        &mut self,
        key: Key,
        what: &'static str,
        probe: fn(usize) -> Result<Probe>,
        size: usize,
    ) -> Result<()> {
        if self.known(key).is_some() && self.is_late() {
            return Ok(());
        }
        match (self.report)(&Progress { what, done: self.done, of: self.of }) {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(()) => {
                return Err(Error::new(ErrorKind::Cancelled, "the calibration was broken off"));
            }
        }
        let probe = probe(size)?;
        let timed = match key {
            Key::Run => self.bench.on_host().time(&probe)?,
            _ => self.bench.time(&probe)?,
        };
        add(&mut self.own, key, timed);
        Ok(())
    }

    fn launches(&mut self) -> Result<()> {
        const WHAT: &str = "launches";
        self.time(Key::One, WHAT, graphs::chain, 1)?;
        self.time(Key::Chain, WHAT, graphs::chain, 1 + CHAIN)?;
        self.time(Key::Least, WHAT, graphs::sum_of_two, TINY)?;
        self.time(Key::Run, WHAT, graphs::smallest, 0)
    }

    /// Times the probes of a series until one takes too long.
    fn series(&mut self, at: usize, series: &Series) -> Result<()> {
        let mut expected: Picoseconds = 0;
        for (i, &size) in series.sizes.iter().enumerate() {
            let late = self.is_late() || expected > LONGEST;
            if late && i > 0 {
                break;
            }
            match self.time(Key::Series(at, i), series.name, series.probe, size) {
                Err(error) if error.kind() == ErrorKind::ResourceExhausted => break,
                timed => timed?,
            }
            let timed = self.known(Key::Series(at, i));
            expected = timed.map_or(0, Timed::usual).saturating_mul(series.growth);
        }
        Ok(())
    }

    /// Those of next to nothing several times: what a link takes then is a small difference of them.
    fn links(&mut self) -> Result<()> {
        let few = std::iter::repeat_n((Amount::Few, TINY), LINK_ROUNDS);
        for (amount, n) in few.chain([(Amount::Many, LINK_ELEMENTS)]) {
            self.time(Key::Least, "links", graphs::sum_of_two, TINY)?;
            self.time(Key::Both, "links", graphs::smallest, 0)?;
            self.time(Key::Resident(amount), "links", graphs::sum_of_two, n)?;
            self.time(Key::Fed(amount), "links", graphs::fed, n)?;
            self.time(Key::Fetched(amount), "links", graphs::fetched, n)?;
        }
        Ok(())
    }
}
