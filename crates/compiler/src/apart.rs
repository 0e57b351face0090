//! Why work that hands on a value is not one kernel: what grouping ran into.

use std::fmt;

use convoke_graph_core::Shape;
use rustc_hash::FxHashMap;

use crate::{Group, Kernel, Value, ValueId, head, tail};

/// Why a value goes through memory from one kernel to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Apart {
    /// The kernel that reads it takes no work in front.
    Reader,
    /// The kernel that computes it takes no work behind.
    Writer,
    /// A fetch or a variable needs it as well.
    Kept,
    /// Several kernels read it, and the one that computes it stores only what one of them makes of it.
    Readers(usize),
    /// The kernel that reads it does more than elementwise work, and so does the one that computes it.
    Kernels,
    /// It is read by the work behind another kernel.
    Behind,
    /// The kernel that computes it stores so many values.
    Stores(usize),
    /// Devices would compute each element so often where it is loaded: the operations that takes, and the most that
    /// are better than memory.
    Again {
        /// How often.
        times: u64,
        /// The operations.
        cost: u64,
        /// The most.
        most: u64,
    },
    /// The two ask for different devices.
    Devices,
    /// The two are to share devices with different nodes, or only one of them is.
    Company,
    /// The two go over different shapes.
    Shapes(Shape, Shape),
    /// The reader sees it in another order, or an element more than once.
    Order,
    /// The buffers that one kernel would bind, and the most that there may be.
    Buffers(usize, usize),
    /// The operations that one kernel would do, and the most that there may be.
    Operations(usize, usize),
    /// The values that one kernel would need at one time, and the most that there may be.
    Registers(usize, usize),
    /// The reductions that one kernel would do, and the most that there may be.
    Reductions(usize, usize),
    /// The elements of a row, and the most that one kernel reduces in one pass with others.
    LongRows(usize, usize),
    /// What is added up in the order in which it lies is a kernel with nothing but what it is of.
    Columns,
    /// Both can refuse what they are given, and a kernel tells one error.
    Errors,
    /// Not all devices compute with the dtypes of both.
    DTypes,
    /// Other work comes between the two: it needs what the one computes, and the other needs it.
    Between,
}

impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reader => f.write_str("the kernel that reads it takes no work in front"),
            Self::Writer => f.write_str("the kernel that computes it takes no work behind"),
            Self::Kept => f.write_str("a fetch or a variable needs it too"),
            Self::Readers(n) => write!(f, "{n} kernels read it"),
            Self::Kernels => f.write_str("both ends are more than elementwise work"),
            Self::Behind => f.write_str("the work behind another kernel reads it"),
            Self::Stores(n) => write!(f, "the kernel that computes it stores {n} values"),
            Self::Again { times, cost, most } => write!(
                f,
                "it would be computed {times} times, which takes {cost} operations an element and saves {most}"
            ),
            Self::Devices => f.write_str("its two ends ask for different devices"),
            Self::Company => f.write_str("its two ends are to be with different nodes"),
            Self::Shapes(one, other) => write!(f, "its two ends go over {one} and {other}"),
            Self::Order => f.write_str("it is read in another order or more than once"),
            Self::Buffers(n, most) => write!(f, "one kernel would bind {n} buffers of {most}"),
            Self::Operations(n, most) => {
                write!(f, "one kernel would do {n} operations of at most {most}")
            }
            Self::Registers(n, most) => {
                write!(f, "one kernel would need {n} values at one time of at most {most}")
            }
            Self::Reductions(n, most) => {
                write!(f, "one kernel would do {n} reductions of at most {most}")
            }
            Self::LongRows(n, most) => {
                write!(f, "its rows have {n} elements, and one kernel takes {most}")
            }
            Self::Columns => f.write_str("columns are added up with nothing but what feeds them"),
            Self::Errors => f.write_str("both ends check what they are given"),
            Self::DTypes => f.write_str("some devices lack a dtype of one end"),
            Self::Between => f.write_str("other work comes between its two ends"),
        }
    }
}

/// For each value that goes through memory from kernel to kernel, why: what grouping `found`, or else that one
/// of its ends is work of its own.
pub(crate) fn gaps(
    groups: &[Group],
    values: &[Value],
    found: &FxHashMap<ValueId, Apart>,
) -> Vec<(ValueId, Apart)> {
    // For each value, whether each kernel that reads it takes work in front.
    let mut read: FxHashMap<ValueId, bool> = FxHashMap::default();
    for group in groups {
        for input in &group.inputs {
            *read.entry(input.value).or_insert(true) &= head::takes_heads(&group.kernel);
        }
    }
    let mut gaps = Vec::new();
    for group in groups {
        let takes_work_behind = group.tail.is_some()
            || tail::has_store(group)
            || (matches!(group.kernel, Kernel::Elementwise(_) | Kernel::Rows(_))
                && !group.has_strings(values));
        for value in &group.outputs {
            let Some(&takes_work_in_front) = read.get(value) else { continue };
            let alone = match (takes_work_behind, takes_work_in_front) {
                (false, _) => Apart::Writer,
                (true, true) => Apart::Kernels,
                (true, false) => Apart::Reader,
            };
            gaps.push((*value, found.get(value).unwrap_or(&alone).clone()));
        }
    }
    gaps
}
