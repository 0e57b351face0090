//! How fast devices and the links between them are, and what a piece of work costs on them.
//!
//! The default speeds are round figures for a common machine of each kind. Calibration replaces them.

use crate::DeviceSpec;

/// A length of time in picoseconds; `u64::MAX` stands for everything above 213 days.
pub type Picoseconds = u64;

const PS_PER_SECOND: u128 = 1_000_000_000_000;
/// Picoseconds in a microsecond.
const US: Picoseconds = 1_000_000;
const GIGA: u64 = 1_000_000_000;
/// More threads than this no longer bring the CPU more memory bandwidth.
const MAX_BANDWIDTH_THREADS: u64 = 8;

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
    /// Many elements become one.
    Reduce,
    /// Products with a sum: matmul, convolution.
    Contract,
    /// Elements change places: transpose, concat, gather.
    Move,
    /// All else: random, sort, scan.
    Other,
}

/// Operations per second for each [`Family`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rates {
    /// For [`Family::Elementwise`].
    pub elementwise: u64,
    /// For [`Family::Reduce`].
    pub reduce: u64,
    /// For [`Family::Contract`].
    pub contract: u64,
    /// For [`Family::Move`].
    pub moves: u64,
    /// For [`Family::Other`].
    pub other: u64,
}

impl Rates {
    /// The rate of one family.
    pub fn of(&self, family: Family) -> u64 {
        match family {
            Family::Elementwise => self.elementwise,
            Family::Reduce => self.reduce,
            Family::Contract => self.contract,
            Family::Move => self.moves,
            Family::Other => self.other,
        }
    }

    /// Every rate times `n`.
    fn times(self, n: u64) -> Self {
        Self {
            elementwise: self.elementwise.saturating_mul(n),
            reduce: self.reduce.saturating_mul(n),
            contract: self.contract.saturating_mul(n),
            moves: self.moves.saturating_mul(n),
            other: self.other.saturating_mul(n),
        }
    }

    /// Rates in GFLOP/s.
    const fn giga(elementwise: u64, reduce: u64, contract: u64, moves: u64, other: u64) -> Self {
        Self {
            elementwise: elementwise * GIGA,
            reduce: reduce * GIGA,
            contract: contract * GIGA,
            moves: moves * GIGA,
            other: other * GIGA,
        }
    }
}

/// A device and its speeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceModel {
    /// The full name.
    pub name: DeviceSpec,
    /// The sort of device.
    pub kind: DeviceKind,
    /// Operations per second of each kernel family.
    pub flops_per_second: Rates,
    /// Bytes per second that a kernel reads and writes.
    pub bytes_per_second: u64,
    /// What starting one kernel takes.
    pub launch: Picoseconds,
    /// What handing one segment to the device takes.
    pub submission: Picoseconds,
    /// The device's memory.
    pub memory_bytes: u64,
}

/// What one kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Work {
    /// The kernel's family.
    pub family: Family,
    /// Arithmetic operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
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
    /// The CPU of this process with default speeds: for each thread 60 GFLOP/s of products, 3 of
    /// elementwise work, 2 of reductions, 1 of the rest; 8 GB/s for each of up to 8 threads; 0.5 us
    /// for each kernel. A segment on the CPU takes no submission.
    pub fn cpu(n_threads: usize, memory_bytes: u64) -> Self {
        let n_threads = u64::try_from(n_threads).unwrap_or(u64::MAX).max(1);
        Self {
            name: DeviceSpec::local("CPU", 0),
            kind: DeviceKind::Cpu,
            flops_per_second: Rates::giga(3, 2, 60, 1, 1).times(n_threads),
            bytes_per_second: 8 * GIGA * n_threads.min(MAX_BANDWIDTH_THREADS),
            launch: US / 2,
            submission: 0,
            memory_bytes,
        }
    }

    /// GPU number `index` of this process with its kind's default speeds:
    ///
    /// | | products | elementwise | reduce | move, other | memory | launch | submission |
    /// |---|---|---|---|---|---|---|---|
    /// | discrete | 5 TFLOP/s | 2 T | 1 T | 500 G | 300 GB/s | 8 us | 40 us |
    /// | integrated | 800 GFLOP/s | 300 G | 150 G | 80 G | 40 GB/s | 8 us | 40 us |
    /// | software | 1.5 GFLOP/s | 0.4 G | 0.4 G | 0.3 G | 1 GB/s | 60 us | 130 us |
    ///
    /// A `kind` of CPU gives a second CPU device with one thread's speeds.
    pub fn gpu(kind: DeviceKind, index: u32, memory_bytes: u64) -> Self {
        let (rates, bytes_per_second, launch, submission) = match kind {
            DeviceKind::Cpu => {
                let name = DeviceSpec::local("CPU", index);
                return Self { name, ..Self::cpu(1, memory_bytes) };
            }
            DeviceKind::DiscreteGpu => {
                (Rates::giga(2000, 1000, 5000, 500, 500), 300 * GIGA, 8 * US, 40 * US)
            }
            DeviceKind::IntegratedGpu => {
                (Rates::giga(300, 150, 800, 80, 80), 40 * GIGA, 8 * US, 40 * US)
            }
            DeviceKind::SoftwareGpu => (SOFTWARE_RATES, GIGA, 60 * US, 130 * US),
        };
        Self {
            name: DeviceSpec::local("GPU", index),
            kind,
            flops_per_second: rates,
            bytes_per_second,
            launch,
            submission,
            memory_bytes,
        }
    }

    /// What `work` takes here: the launch, then whichever of arithmetic and memory takes longer.
    pub fn cost(&self, work: &Work) -> Picoseconds {
        let arithmetic = time_for(work.flops, self.flops_per_second.of(work.family));
        let memory = time_for(work.bytes, self.bytes_per_second);
        self.launch.saturating_add(arithmetic.max(memory))
    }
}

/// About what llvmpipe reaches on two cores.
const SOFTWARE_RATES: Rates = Rates {
    elementwise: 400_000_000,
    reduce: 400_000_000,
    contract: 1_500_000_000,
    moves: 300_000_000,
    other: 300_000_000,
};

impl Link {
    /// The default link between two kinds of device: 12 GB/s and 15 us between the CPU and a discrete
    /// GPU, 20 GB/s and 10 us to an integrated one, 5 GB/s and 10 us to a software one. Between two
    /// GPUs a tensor goes through the host: latencies add up, and so does the time for each byte.
    pub fn between(from: DeviceKind, to: DeviceKind) -> Self {
        match (Self::to_host(from), Self::to_host(to)) {
            (None, None) => Self { latency: US / 10, bytes_per_second: 20 * GIGA },
            (Some(link), None) | (None, Some(link)) => link,
            (Some(a), Some(b)) => a.then(&b),
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
    fn then(&self, next: &Link) -> Self {
        let (a, b) = (u128::from(self.bytes_per_second), u128::from(next.bytes_per_second));
        let through = (a * b).checked_div(a + b).unwrap_or(0);
        Self {
            latency: self.latency.saturating_add(next.latency),
            bytes_per_second: u64::try_from(through).unwrap_or(u64::MAX),
        }
    }

    /// The time that the bytes take, without the latency.
    pub fn bytes_time(&self, n_bytes: u64) -> Picoseconds {
        time_for(n_bytes, self.bytes_per_second)
    }

    /// The time of a crossing by itself.
    pub fn cost(&self, n_bytes: u64) -> Picoseconds {
        self.latency.saturating_add(self.bytes_time(n_bytes))
    }
}

/// How long `amount` takes at `per_second`, rounded up; a rate of 0 never gets there.
fn time_for(amount: u64, per_second: u64) -> Picoseconds {
    if amount == 0 {
        return 0;
    }
    if per_second == 0 {
        return Picoseconds::MAX;
    }
    let time = (u128::from(amount) * PS_PER_SECOND).div_ceil(u128::from(per_second));
    Picoseconds::try_from(time).unwrap_or(Picoseconds::MAX)
}
