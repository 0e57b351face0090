//! How long an amount of work takes, by measured points.

use crate::Picoseconds;

const PS_PER_SECOND: Picoseconds = 1_000_000_000_000;

/// The time of an amount of work: a line through points that were measured, so that what is slow when it
/// is small, or no longer fits a cache, costs what it does.
///
/// More never takes less. Below the first point the time is in proportion to it, and so it is beyond the
/// last. Times are rounded up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Curve {
    /// Amounts above 0 that rise, with times that do not fall; at least one.
    points: Vec<(u64, Picoseconds)>,
}

impl Curve {
    /// A straight line. A rate of 0 never gets anywhere.
    pub fn rate(per_second: u64) -> Self {
        let point = match per_second {
            0 => (1, Picoseconds::MAX),
            _ => (per_second, PS_PER_SECOND),
        };
        Self { points: vec![point] }
    }

    /// The time of an amount at a rate, as [`Self::rate`] has it.
    pub(crate) fn line(amount: u64, per_second: u64) -> Picoseconds {
        match (amount, per_second) {
            (0, _) => 0,
            (_, 0) => Picoseconds::MAX,
            _ => proportional(amount, (per_second, PS_PER_SECOND)),
        }
    }

    /// Through amounts and their times, in any order. `None` if there is no amount above 0.
    ///
    /// A measurement that is slower than one of more work was disturbed, and gives way to it. What grows
    /// faster beyond the last point than up to it is not known.
    pub fn through(points: impl IntoIterator<Item = (u64, Picoseconds)>) -> Option<Self> {
        let mut points: Vec<(u64, Picoseconds)> =
            points.into_iter().filter(|&(amount, _)| amount > 0).collect();
        points.sort_unstable();
        points.dedup_by_key(|&mut (amount, _)| amount);
        let mut least = Picoseconds::MAX;
        for (_, time) in points.iter_mut().rev() {
            least = least.min(*time);
            *time = least;
        }
        (!points.is_empty()).then_some(Self { points })
    }

    /// The points, amounts rising.
    pub fn points(&self) -> &[(u64, Picoseconds)] {
        &self.points
    }

    /// The time of an amount.
    pub fn time(&self, amount: u64) -> Picoseconds {
        let after = self.points.partition_point(|&(known, _)| known < amount);
        let (Some(&first), Some(&last)) = (self.points.first(), self.points.last()) else {
            return 0;
        };
        match (after.checked_sub(1), self.points.get(after)) {
            (None, _) => proportional(amount, first),
            (Some(_), None) => proportional(amount, last),
            (Some(before), Some(&(to, high))) => {
                let (from, low) = self.points[before];
                low.saturating_add(proportional(amount - from, (to - from, high - low)))
            }
        }
    }

    /// The amount that the last point does in a second: the speed of large work.
    pub fn per_second(&self) -> u64 {
        let Some(&(amount, time)) = self.points.last() else { return 0 };
        let rate = u128::from(amount) * u128::from(PS_PER_SECOND) / u128::from(time.max(1));
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

/// The time of `amount` where `known` takes `time`, rounded up.
fn proportional(amount: u64, (known, time): (u64, Picoseconds)) -> Picoseconds {
    let time = (u128::from(amount) * u128::from(time)).div_ceil(u128::from(known.max(1)));
    Picoseconds::try_from(time).unwrap_or(Picoseconds::MAX)
}
