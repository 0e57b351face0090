//! Many threads on one session: what they compute is what one computes alone, bit for bit, and nobody waits for ever.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use convoke::prelude::*;
use convoke::{CancelToken, RunHandle, RunOptions};

use crate::{TestDevice, ramp};

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Stress {
    /// Threads, at least 1.
    pub threads: usize,
    /// Runs of each thread.
    pub runs: usize,
    /// So many runs are cancelled at a moment that is drawn beside all others, and so many alone, between two digests.
    pub cancels: usize,
    /// If nothing is done for so long, it is an error.
    pub patience: Duration,
    /// The seed of what is drawn.
    pub seed: u64,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Runs of all threads, those that were cancelled among them.
    pub runs: u64,
    /// Of those that were to be cancelled beside others, the ones that were, and changed nothing.
    pub cancelled: u64,
    /// The same of those that were alone.
    pub cancelled_alone: u64,
    /// What all took.
    pub time: Duration,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, cancelled, cancelled_alone, time } = self;
        let seconds = time.as_secs_f64();
        let alone = cancelled_alone;
        write!(
            f,
            "{runs} runs in {seconds:.1} s; cancelled {cancelled} beside others, {alone} alone"
        )
    }
}

/// How many feeds there are. They are of four shapes.
const FEEDS: usize = 16;
/// A cancelled run is waited for so long in all; most end by then.
const MOMENTS_US: u64 = 400;

fn feed(i: usize) -> (Vec<f32>, [usize; 2]) {
    let n = i % 4 + 1;
    let element = |at: usize| ((at * 37 + i * 11) % 101) as f32 / 50.0 - 1.0;
    ((0..n * 8).map(element).collect(), [n, 8])
}

/// Numbers that look drawn: the generator of Vigna, "splitmix64".
struct Drawn(u64);

impl Drawn {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Waits on this thread for a moment: not at all, or up to a few hundred microseconds.
    fn moment(&mut self) {
        match self.next() % MOMENTS_US {
            us if us < MOMENTS_US / 4 => {}
            us => thread::sleep(Duration::from_micros(us)),
        }
    }
}

/// What goes wrong: what was expected, and what came.
type Outcome<T = ()> = Result<T, String>;

fn text(error: convoke::Error) -> String {
    error.to_string()
}

/// One session with runs of every kind.
struct Runs {
    session: Session,
    x: Tensor,
    /// Two layers and a softmax.
    y: Tensor,
    limit: Tensor,
    /// The sum of the numbers below the limit, by a loop.
    sum: Tensor,
    /// Adds 1 to both variables.
    count: Operation,
    /// The same, after products of matrices.
    count_long: Operation,
    both: [Tensor; 2],
    number: Tensor,
    put: Operation,
    get: Tensor,
    left: Tensor,
    /// The bits that each feed gives to a session that nobody else uses.
    expected: Vec<Vec<u32>>,
    /// How many runs were done, and how many of them counted.
    done: AtomicU64,
    counted: AtomicU64,
    cancelled: AtomicU64,
    /// Cancellings that are left.
    cancels: AtomicU64,
    /// The sums of all numbers that were put and taken.
    numbers: [AtomicU64; 2],
}

impl Runs {
    fn new(device: &TestDevice, stress: &Stress) -> convoke::Result<Self> {
        let g = Graph::with_seed(7);
        let x = g.placeholder("x", F32, dims![None, 8]);
        let [first, second] = [[8, 16], [16, 5]].map(|sizes| g.constant(ramp(&sizes)) * 0.3);
        let y = x.matmul(&first).relu().matmul(&second).softmax(-1);
        let limit = g.placeholder("limit", I32, dims![]);
        let zeros = (g.constant(0i32), g.constant(0i32));
        let sum = g.while_loop(zeros, |(i, _)| i.less(&limit), |(i, sum)| (i + 1, sum + i)).1;
        let variables = ["a", "b"].map(|name| g.variable(name, Init::Zeros, F32, []));
        let adds = variables.each_ref().map(|variable| variable.assign_add(1.0).operation());
        let count = g.group(&adds);
        let m = g.constant(ramp(&[64, 64])) * 0.1;
        let long = (0..16).fold(x.sum(()) * &m, |y, _| y.matmul(&m).tanh());
        let adds = variables.each_ref().map(|v| v.assign_add(long.sum(()) * 0.0 + 1.0).operation());
        let count_long = g.group(&adds);
        let both = variables.each_ref().map(|variable| variable.value().clone());
        // Less room than threads, so that some wait.
        let q = g.fifo_queue("numbers", stress.threads.div_ceil(4), [(I32, dims![])]);
        let number = g.placeholder("number", I32, dims![]);
        let (put, get, left) = (q.enqueue(&[&number]), q.dequeue().remove(0), q.size());
        let alone = device.session(&g);
        let expected = (0..FEEDS).map(|i| {
            let (elements, sizes) = feed(i);
            bits(&alone.run(&[x.feed((&elements[..], sizes))], &y)?)
        });
        let expected = expected.collect::<convoke::Result<_>>()?;
        let session = device.session(&g);
        session.run(&[], g.initializers())?;
        Ok(Self {
            session,
            x,
            y,
            limit,
            sum,
            count,
            count_long,
            both,
            number,
            put,
            get,
            left,
            expected,
            done: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            cancels: AtomicU64::new(stress.cancels as u64),
            numbers: Default::default(),
        })
    }

    /// The runs of a thread.
    fn thread(&self, n: usize, mut drawn: Drawn) -> Outcome {
        let mut at = 0;
        while at < n {
            let n_runs = match drawn.next() % 8 {
                0..=2 => self.compute(drawn.next() as usize % FEEDS, at % 2 == 0)?,
                3 => self.repeat((drawn.next() % 6) as i32)?,
                4 => self.add()?,
                5 => self.look()?,
                6 => self.put_and_get(drawn.next() as i32 & 0xffff)?,
                _ => self.cancel(&mut drawn)?,
            };
            self.done.fetch_add(n_runs, Ordering::Relaxed);
            at += n_runs as usize;
        }
        Ok(())
    }

    fn compute(&self, i: usize, submits: bool) -> Outcome<u64> {
        let (elements, sizes) = feed(i);
        let feeds = [self.x.feed((&elements[..], sizes))];
        let y = match submits {
            true => self.session.submit(&feeds, &self.y, RunOptions::default()).wait(),
            false => self.session.run(&feeds, &self.y),
        };
        let got = y.and_then(|y| bits(&y)).map_err(text)?;
        match got == self.expected[i] {
            true => Ok(1),
            false => {
                Err(format!("feed {i}: expected the bits {:x?}, got {got:x?}", self.expected[i]))
            }
        }
    }

    fn repeat(&self, limit: i32) -> Outcome<u64> {
        let sum = self.session.run(&[self.limit.feed(limit)], &self.sum);
        let (sum, expected) = (sum.and_then(|sum| sum.scalar::<i32>()), limit * (limit - 1) / 2);
        match sum.map_err(text)? {
            sum if sum == expected => Ok(1),
            sum => Err(format!("a loop of {limit}: expected {expected}, got {sum}")),
        }
    }

    fn add(&self) -> Outcome<u64> {
        self.session.run(&[], &self.count).map_err(text)?;
        self.counted.fetch_add(1, Ordering::Relaxed);
        Ok(1)
    }

    /// Both variables as one run sees them.
    fn look(&self) -> Outcome<u64> {
        let both = self.session.run(&[], &self.both).map_err(text)?;
        let [a, b] = both.map(|value| value.scalar::<f32>());
        match (a.map_err(text)?, b.map_err(text)?) {
            (a, b) if a == b => Ok(1),
            (a, b) => Err(format!("two variables of one run: {a} and {b}")),
        }
    }

    fn put_and_get(&self, number: i32) -> Outcome<u64> {
        self.session.run(&[self.number.feed(number)], &self.put).map_err(text)?;
        self.numbers[0].fetch_add(number as u64, Ordering::Relaxed);
        let got = self.session.run(&[], &self.get).and_then(|got| got.scalar::<i32>());
        self.numbers[1].fetch_add(got.map_err(text)? as u64, Ordering::Relaxed);
        Ok(2)
    }

    /// A run that counts, cancelled at a moment that is drawn as long as there are such runs to be made.
    fn cancel(&self, drawn: &mut Drawn) -> Outcome<u64> {
        let less = |left: u64| left.checked_sub(1);
        if self.cancels.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_err() {
            return self.add();
        }
        match self.counts_unless_cancelled(drawn)? {
            true => self.counted.fetch_add(1, Ordering::Relaxed),
            false => self.cancelled.fetch_add(1, Ordering::Relaxed),
        };
        Ok(1)
    }

    /// Whether the run was faster than its cancelling.
    fn counts_unless_cancelled(&self, drawn: &mut Drawn) -> Outcome<bool> {
        let token = CancelToken::new();
        let options = RunOptions { cancel: Some(token.clone()), ..RunOptions::default() };
        let feeds = [self.x.feed([[1.0f32; 8]])];
        let run: RunHandle<&Operation> = self.session.submit(&feeds, &self.count_long, options);
        drawn.moment();
        match drawn.next() % 2 {
            0 => token.cancel(),
            _ => run.cancel(),
        }
        match run.wait() {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::Cancelled => Ok(false),
            Err(e) => Err(text(e)),
        }
    }

    /// Runs that are cancelled while there are no others: the digest tells whether they have changed anything.
    fn cancel_alone(&self, n: usize, mut drawn: Drawn) -> Outcome<u64> {
        let mut cancelled = 0;
        let mut before = self.session.state_digest().map_err(text)?;
        for _ in 0..n {
            let counts = self.counts_unless_cancelled(&mut drawn)?;
            self.counted.fetch_add(u64::from(counts), Ordering::Relaxed);
            let after = self.session.state_digest().map_err(text)?;
            if (before == after) == counts {
                return Err(format!("a run that counted is {counts}: {before:x}, then {after:x}"));
            }
            before = after;
            cancelled += u64::from(!counts);
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(cancelled)
    }

    /// That nothing was lost and nothing is left.
    fn check(&self) -> Outcome {
        let expected = self.counted.load(Ordering::Relaxed) as f32;
        let both = self.session.run(&[], &self.both).map_err(text)?;
        for value in both {
            let value = value.scalar::<f32>().map_err(text)?;
            if value != expected {
                return Err(format!("expected {expected} counted runs, got {value}"));
            }
        }
        let left = self.session.run(&[], &self.left).and_then(|left| left.scalar::<i32>());
        let left = left.map_err(text)?;
        let [put, got] = self.numbers.each_ref().map(|sum| sum.load(Ordering::Relaxed));
        if left != 0 || put != got || !self.session.waiting().is_empty() {
            return Err(format!("{left} elements are left; put {put} in all, took {got}"));
        }
        Ok(())
    }
}

fn bits(tensor: &HostTensor) -> convoke::Result<Vec<u32>> {
    Ok(tensor.to_vec::<f32>()?.into_iter().map(f32::to_bits).collect())
}

impl Stress {
    /// How many runs there are to be, about.
    pub fn n_runs(&self) -> u64 {
        (self.threads * self.runs + self.cancels) as u64
    }

    /// Does all of it on a device. `progress` is called now and then with the number of runs that are done.
    ///
    /// # Errors
    /// What was wrong. If nothing is done any more, its threads are left behind.
    pub fn run(&self, device: &TestDevice, progress: impl Fn(u64)) -> Outcome<Figures> {
        let begun = Instant::now();
        let runs = Arc::new(Runs::new(device, self).map_err(text)?);
        let (stress, own) = (*self, runs.clone());
        let worker = thread::spawn(move || stress.work(&own));
        let (mut n, mut since) = (0, Instant::now());
        while !worker.is_finished() {
            thread::sleep(Duration::from_millis(20));
            let done = runs.done.load(Ordering::Relaxed);
            progress(done);
            if done != n {
                (n, since) = (done, Instant::now());
            } else if since.elapsed() > self.patience {
                let waiting: Vec<String> =
                    runs.session.waiting().iter().map(|run| format!("\n{run}")).collect();
                let (time, waiting) = (self.patience, waiting.concat());
                return Err(format!("nothing was done for {time:?}; done {n}; waiting:{waiting}"));
            }
        }
        let cancelled_alone = worker.join().map_err(|_| "a thread panicked".to_owned())??;
        Ok(Figures {
            runs: runs.done.load(Ordering::Relaxed),
            cancelled: runs.cancelled.load(Ordering::Relaxed),
            cancelled_alone,
            time: begun.elapsed(),
        })
    }
    /// All threads, then the runs that are cancelled alone.
    fn work(&self, runs: &Runs) -> Outcome<u64> {
        thread::scope(|scope| {
            let thread = |i: usize| {
                let drawn = Drawn(self.seed.wrapping_add(i as u64 + 1));
                scope.spawn(move || {
                    let done = runs.thread(self.runs, drawn);
                    // The others may wait for what this one would have put.
                    done.inspect_err(|_| runs.session.close())
                })
            };
            let threads: Vec<_> = (0..self.threads).map(thread).collect();
            let done = threads.into_iter().map(|thread| match thread.join() {
                Ok(done) => done,
                Err(_) => Err("a thread panicked".to_owned()),
            });
            let done: Vec<Outcome> = done.collect();
            // The first to fail has closed the session for the others.
            let is_first = |error: &String| !error.contains("closed");
            let mut errors: Vec<String> = done.into_iter().filter_map(Result::err).collect();
            errors.sort_by_key(|error| !is_first(error));
            errors.into_iter().next().map_or(Ok(()), Err)
        })?;
        runs.check()?;
        let cancelled = runs.cancel_alone(self.cancels, Drawn(self.seed))?;
        runs.check()?;
        Ok(cancelled)
    }
}
