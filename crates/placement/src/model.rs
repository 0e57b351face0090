//! How fast devices and the links between them are, and what a piece of work costs on them.
//!
//! The default speeds are round figures for a common machine of each kind. Calibration replaces them.

use crate::{Curve, DeviceSpec};

/// A length of time in picoseconds; `u64::MAX` stands for everything above 213 days.
pub type Picoseconds = u64;

const PS_PER_SECOND: Picoseconds = 1_000_000_000_000;
/// Picoseconds in a microsecond.
const US: Picoseconds = 1_000_000;
const MEGA: u64 = 1_000_000;
const GIGA: u64 = 1_000_000_000;
/// How many threads' arithmetic the largest number of threads does.
const ARITHMETIC_THREADS: u64 = 64;
/// How many threads' bytes the largest number of threads moves.
const MEMORY_THREADS: u64 = 24;
/// Work that takes one thread no longer than this is not shared out.
const SERIAL: Picoseconds = 40 * US;

/// What sort of device it is, which decides its default speeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceKind {
    /// The host's own processor.
    Cpu,
    /// A GPU with memory of its own behind a bus.
    DiscreteGpu,
    /// A GPU that shares the host's memory.
    IntegratedGpu,
    /// A GPU driver that computes on the CPU: lavapipe, SwiftShader, WARP.
    SoftwareGpu,
}

/// Kinds of kernel that reach different shares of a device's peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Each element of the result from the elements at its place.
    Elementwise,
    /// The same with functions of several steps: exponentials, logarithms, roots, error functions.
    Function,
    /// Elements that lie side by side become one, or many become few.
    Reduce,
    /// Elements that lie apart become one: the first axes go away.
    Columns,
    /// Products with a sum of matrices.
    Contract,
    /// Products with a sum where one factor is a vector or little more, so that each element is used
    /// few times.
    Thin,
    /// Convolutions.
    Convolve,
    /// Windows over images.
    Pool,
    /// Elements change places: transpose, concat, gather.
    Move,
    /// Random elements.
    Random,
    /// All else: a user's own kernels.
    Other,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 11] = [
        Self::Elementwise,
        Self::Function,
        Self::Reduce,
        Self::Columns,
        Self::Contract,
        Self::Thin,
        Self::Convolve,
        Self::Pool,
        Self::Move,
        Self::Random,
        Self::Other,
    ];

    /// The name in reports and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Elementwise => "elementwise",
            Self::Function => "functions",
            Self::Reduce => "reduce",
            Self::Columns => "columns",
            Self::Contract => "products",
            Self::Thin => "thin products",
            Self::Convolve => "convolutions",
            Self::Pool => "pooling",
            Self::Move => "moves",
            Self::Random => "random",
            Self::Other => "other",
        }
    }
}

/// The time of each family's arithmetic, by operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rates([Curve; Family::ALL.len()]);

impl Rates {
    /// Every family at this many operations per second.
    pub fn same(per_second: u64) -> Self {
        Self::by(|_| Curve::rate(per_second))
    }

    /// Each family as `curve` says.
    pub fn by(curve: impl FnMut(Family) -> Curve) -> Self {
        Self(Family::ALL.map(curve))
    }

    /// Replaces the curve of one family.
    pub fn set(&mut self, family: Family, curve: Curve) {
        self.0[family as usize] = curve;
    }

    /// The curve of one family.
    pub fn of(&self, family: Family) -> &Curve {
        &self.0[family as usize]
    }
}

/// A device and its speeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceModel {
    /// The full name.
    pub name: DeviceSpec,
    /// The sort of device.
    pub kind: DeviceKind,
    /// The time of arithmetic.
    pub arithmetic: Rates,
    /// The time of the bytes that a kernel reads and writes.
    pub memory: Curve,
    /// What starting one kernel takes.
    pub launch: Picoseconds,
    /// What handing one segment to the device takes.
    pub submission: Picoseconds,
    /// What a run takes besides: looking up the program, binding feeds, handing out fetches. Only the
    /// host's counts, and only once.
    pub run: Picoseconds,
    /// The device's memory.
    pub memory_bytes: u64,
    /// The most buffers that one kernel binds.
    pub buffers: u32,
}

/// What one kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Work {
    /// The kernel's family.
    pub family: Family,
    /// The same on a GPU, which shares out the sums of some products that are ordinary ones on the CPU.
    pub on_gpu: Family,
    /// The operations of that family, on the CPU.
    pub flops: u64,
    /// The same on a GPU, with those of invocations that have nothing to do: the edges of tiles.
    pub lanes: u64,
    /// The same where a driver computes on the CPU, with tiles of fewer rows.
    pub narrow: u64,
    /// Elementwise operations before and after.
    pub pointwise: u64,
    /// Functions besides, each as the exponentials that it takes as long as.
    pub functions: u64,
    /// Elementwise operations, and functions, that a GPU does besides, since each tile that loads an element computes it
    /// again.
    pub again: [u64; 2],
    /// How many kernels, this one among them, a GPU starts as one, if it binds all their buffers to it.
    pub beside: u32,
    /// The buffers that a kernel binds.
    pub buffers: u32,
    /// Bytes read and written.
    pub bytes: u64,
    /// The bytes among which they lie, if those are more: the table of a gather, the variables of a run. Caches help less
    /// there.
    pub among: u64,
}

impl Work {
    /// All operations of the host's kernel: those of its family, and elementwise ones.
    pub fn operations(&self) -> u64 {
        self.flops.saturating_add(self.pointwise).saturating_add(self.functions)
    }

    /// Nothing.
    pub const NONE: Self = Self::new(Family::Other, 0, 0);

    /// So many operations of one family, and bytes read and written.
    pub const fn new(family: Family, flops: u64, bytes: u64) -> Self {
        Self {
            family,
            on_gpu: family,
            flops,
            lanes: flops,
            narrow: flops,
            pointwise: 0,
            functions: 0,
            again: [0; 2],
            beside: 1,
            buffers: 0,
            bytes,
            among: 0,
        }
    }
}

/// What moving bytes from one device to another takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link {
    /// For one crossing, however many tensors go together.
    pub latency: Picoseconds,
    /// Bytes per second once it flows.
    pub bytes_per_second: u64,
}

impl DeviceModel {
    /// The CPU of this process with default speeds. For one thread: 60 GFLOP/s of products, 20 of
    /// convolutions, 5 of thin products, 3 of elementwise work, 2 of reductions, 1 of the rest; 10 GB/s.
    /// 0.5 us for each kernel, 1 us for a run. A segment on the CPU takes no submission.
    ///
    /// Threads get in each other's way: `n` of them do the arithmetic of `64 n / (n + 63)`, and move the
    /// bytes of `24 n / (n + 23)`, since memory has fewer channels than a large processor has cores. Work of
    /// less than 40 us is done by one.
    pub fn cpu(n_threads: usize, memory_bytes: u64) -> Self {
        let n_threads = u64::try_from(n_threads).unwrap_or(u64::MAX).max(1);
        let curve = |giga: u64| shared_out(giga * GIGA, n_threads, ARITHMETIC_THREADS);
        Self {
            name: DeviceSpec::local("CPU", 0),
            kind: DeviceKind::Cpu,
            arithmetic: Rates::by(|family| curve(cpu_giga(family))),
            memory: shared_out(10 * GIGA, n_threads, MEMORY_THREADS),
            launch: US / 2,
            submission: 0,
            run: US,
            memory_bytes,
            buffers: u32::MAX,
        }
    }

    /// GPU number `index` of this process with its kind's default speeds:
    ///
    /// | | products | elementwise | reduce, thin | the rest | memory | launch | submission |
    /// |---|---|---|---|---|---|---|---|
    /// | discrete | 5 TFLOP/s | 2 T | 1 T | 500 G | 300 GB/s | 8 us | 40 us |
    /// | integrated | 800 GFLOP/s | 300 G | 150 G | 80 G | 40 GB/s | 8 us | 40 us |
    /// | software | 1.5 GFLOP/s | 0.4 G | 0.4 G | 0.3 G | 1 GB/s | 60 us | 130 us |
    ///
    /// A `kind` of CPU gives a second CPU device with one thread's speeds.
    pub fn gpu(kind: DeviceKind, index: u32, memory_bytes: u64) -> Self {
        let (mega, bytes_per_second, launch, submission) = match kind {
            DeviceKind::Cpu => {
                let name = DeviceSpec::local("CPU", index);
                return Self { name, ..Self::cpu(1, memory_bytes) };
            }
            DeviceKind::DiscreteGpu => {
                ([5_000_000, 2_000_000, 1_000_000, 500_000], 300 * GIGA, 8 * US, 40 * US)
            }
            DeviceKind::IntegratedGpu => {
                ([800_000, 300_000, 150_000, 80_000], 40 * GIGA, 8 * US, 40 * US)
            }
            // About what llvmpipe reaches on two cores.
            DeviceKind::SoftwareGpu => ([1500, 400, 400, 300], GIGA, 60 * US, 130 * US),
        };
        let rate = |family| Curve::rate(gpu_mega(mega, family) * MEGA);
        Self {
            name: DeviceSpec::local("GPU", index),
            kind,
            arithmetic: Rates::by(rate),
            memory: Curve::rate(bytes_per_second),
            launch,
            submission,
            run: 0,
            memory_bytes,
            buffers: u32::MAX,
        }
    }

    /// What `work` takes here: its launch, then whichever of arithmetic and memory takes longer on a GPU,
    /// and both on a processor, whose threads wait for memory themselves.
    pub fn cost(&self, work: &Work) -> Picoseconds {
        let family = if self.kind == DeviceKind::Cpu { work.family } else { work.on_gpu };
        let own = self.arithmetic.of(family).time(self.operations(work));
        let arithmetic = own.saturating_add(self.pointwise(work));
        let memory = self.memory(work);
        let both = if self.overlaps() {
            arithmetic.max(memory)
        } else {
            arithmetic.saturating_add(memory)
        };
        self.launch(work).saturating_add(both)
    }

    /// What starting `work` takes here: its part, where a GPU starts others together with it.
    fn launch(&self, work: &Work) -> Picoseconds {
        if self.kind == DeviceKind::Cpu {
            return self.launch;
        }
        // One is for what all kernels of a GPU look at.
        let fit = self.buffers.saturating_sub(1) / work.buffers.max(1);
        self.launch / Picoseconds::from(work.beside.min(fit).max(1))
    }

    /// Whether other work goes on while some waits for memory.
    fn overlaps(&self) -> bool {
        matches!(self.kind, DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu)
    }

    /// What `work` takes but for its launch and the operations of its family: the rest is that of its arithmetic.
    pub fn besides(&self, work: &Work) -> Picoseconds {
        let memory = if self.overlaps() { 0 } else { self.memory(work) };
        self.pointwise(work).saturating_add(memory)
    }

    /// What reading and writing takes here.
    fn memory(&self, work: &Work) -> Picoseconds {
        // What a driver makes of a kernel takes longer than a cache that misses, but for elements that lie apart.
        let is_slow = self.kind == DeviceKind::SoftwareGpu && work.family != Family::Move;
        if work.among <= work.bytes || is_slow {
            return self.memory.time(work.bytes);
        }
        let all = u128::from(self.memory.time(work.among)) * u128::from(work.bytes);
        Picoseconds::try_from(all / u128::from(work.among)).unwrap_or(Picoseconds::MAX)
    }

    /// The operations of its family that `work` takes here.
    pub fn operations(&self, work: &Work) -> u64 {
        match self.kind {
            DeviceKind::Cpu => work.flops,
            DeviceKind::SoftwareGpu => work.narrow,
            DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu => work.lanes,
        }
    }

    /// What the elementwise part of `work` takes here.
    pub fn pointwise(&self, work: &Work) -> Picoseconds {
        let [simple, functions] = if self.kind == DeviceKind::Cpu { [0; 2] } else { work.again };
        let simple = work.pointwise.saturating_add(simple);
        let functions = work.functions.saturating_add(functions);
        let simple = self.arithmetic.of(Family::Elementwise).time(simple);
        simple.saturating_add(self.arithmetic.of(Family::Function).time(functions))
    }
}

/// Default GFLOP/s of one thread.
fn cpu_giga(family: Family) -> u64 {
    match family {
        Family::Contract => 60,
        Family::Convolve => 20,
        Family::Thin => 5,
        Family::Elementwise => 3,
        Family::Reduce | Family::Columns | Family::Pool => 2,
        Family::Move | Family::Function | Family::Random | Family::Other => 1,
    }
}

/// The default of a family among those of products, elementwise work, reductions, and the rest.
fn gpu_mega([products, elementwise, reduce, rest]: [u64; 4], family: Family) -> u64 {
    match family {
        Family::Contract | Family::Convolve => products,
        Family::Elementwise => elementwise,
        Family::Reduce | Family::Columns | Family::Thin | Family::Pool => reduce,
        Family::Move | Family::Function | Family::Random | Family::Other => rest,
    }
}

/// What one thread does `per_second`, shared out to `n`, which are worth less than `most` of them.
fn shared_out(per_second: u64, n: u64, most: u64) -> Curve {
    let speed = u128::from(per_second) * u128::from(n) * u128::from(most);
    let speed = speed / (u128::from(n) + u128::from(most - 1));
    let speed = u64::try_from(speed).unwrap_or(u64::MAX);
    let serial = per_second / (PS_PER_SECOND / SERIAL);
    let shared = speed / (PS_PER_SECOND / (2 * SERIAL));
    let points = if n == 1 {
        [(per_second, PS_PER_SECOND); 2]
    } else {
        [(serial, SERIAL), (shared, 2 * SERIAL)]
    };
    Curve::through(points).unwrap_or_else(|| Curve::rate(per_second))
}

impl Link {
    /// The default link between two kinds of device: 12 GB/s and 15 us between the CPU and a discrete
    /// GPU, 20 GB/s and 10 us to an integrated one, 5 GB/s and 10 us to a software one. Between two
    /// GPUs a tensor goes through the host: latencies add up, and so does the time for each byte. For parts of one GPU
    /// see [`Self::on`].
    pub fn between(from: DeviceKind, to: DeviceKind) -> Self {
        match (Self::to_host(from), Self::to_host(to)) {
            (None, None) => Self { latency: US / 10, bytes_per_second: 20 * GIGA },
            (Some(link), None) | (None, Some(link)) => link,
            (Some(a), Some(b)) => a.then(&b),
        }
    }

    /// A copy on one device: a launch, and each byte is read and written.
    pub fn on(device: &DeviceModel) -> Self {
        Self { latency: device.launch, bytes_per_second: device.memory.per_second() / 2 }
    }

    /// The shorter latency and the more bytes per second of both.
    pub(crate) fn or_faster(&self, other: &Link) -> Self {
        Self {
            latency: self.latency.min(other.latency),
            bytes_per_second: self.bytes_per_second.max(other.bytes_per_second),
        }
    }

    fn to_host(kind: DeviceKind) -> Option<Self> {
        let (latency, bytes_per_second) = match kind {
            DeviceKind::Cpu => return None,
            DeviceKind::DiscreteGpu => (15 * US, 12 * GIGA),
            DeviceKind::IntegratedGpu => (10 * US, 20 * GIGA),
            DeviceKind::SoftwareGpu => (10 * US, 5 * GIGA),
        };
        Some(Self { latency, bytes_per_second })
    }

    /// One link after the other, the second starting when the first is through.
    pub fn then(&self, next: &Link) -> Self {
        let (a, b) = (u128::from(self.bytes_per_second), u128::from(next.bytes_per_second));
        let through = (a * b).checked_div(a + b).unwrap_or(0);
        Self {
            latency: self.latency.saturating_add(next.latency),
            bytes_per_second: u64::try_from(through).unwrap_or(u64::MAX),
        }
    }

    /// The time that the bytes take, without the latency.
    pub fn bytes_time(&self, n_bytes: u64) -> Picoseconds {
        Curve::line(n_bytes, self.bytes_per_second)
    }

    /// The time of a crossing by itself.
    pub fn cost(&self, n_bytes: u64) -> Picoseconds {
        self.latency.saturating_add(self.bytes_time(n_bytes))
    }
}
