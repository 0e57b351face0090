//! Clusters in a line, producers before consumers, so that a path from one to another is looked for only
//! between the two.

use rustc_hash::FxHashSet;

use super::Grouping;

/// How many clusters are looked at to find out whether one leads to another.
const SEARCH_MAX: usize = 4096;

/// An order of the clusters in which each comes after those that it reads.
pub(super) struct Line {
    /// Clusters by place; none where one was united with another.
    clusters: Vec<Option<usize>>,
    /// The place of each cluster.
    places: Vec<usize>,
}

/// Two clusters that no third comes between, and who has to make room if they become one.
pub(super) enum Room {
    /// All that read the first, up to the second: they come after both.
    After(FxHashSet<usize>),
    /// All that the second reads, back to the first: they come before both.
    Before(FxHashSet<usize>),
}

impl Line {
    /// Clusters that stand in order already.
    pub(super) fn new(n: usize) -> Self {
        Self { clusters: (0..n).map(Some).collect(), places: (0..n).collect() }
    }

    /// The two in order.
    pub(super) fn sorted(&self, a: usize, b: usize) -> (usize, usize) {
        if self.places[a] < self.places[b] { (a, b) } else { (b, a) }
    }

    /// Puts `kept` in the place of two clusters that became one.
    pub(super) fn unite(&mut self, (first, last): (usize, usize), kept: usize, room: &Room) {
        let (from, to) = (self.places[first], self.places[last]);
        let is_end = |cluster: &usize| *cluster == first || *cluster == last;
        let between: Vec<usize> =
            self.clusters[from..=to].iter().flatten().copied().filter(|c| !is_end(c)).collect();
        let (before, after): (Vec<usize>, Vec<usize>) = match room {
            Room::After(readers) => between.iter().partition(|cluster| !readers.contains(cluster)),
            Room::Before(read) => between.iter().partition(|cluster| read.contains(cluster)),
        };
        self.clusters[from..=to].fill(None);
        for (place, cluster) in (from..).zip(before.into_iter().chain([kept]).chain(after)) {
            self.clusters[place] = Some(cluster);
            self.places[cluster] = place;
        }
    }
}

impl Grouping<'_> {
    /// What has to make room if two clusters become one; none if a path through a third leads from one to the
    /// other, or if that takes too long to find out. Both ends are searched in turns, since one of the two
    /// mostly has little between it and the other.
    pub(super) fn room(&self, (first, last): (usize, usize)) -> Option<Room> {
        let place = |cluster: usize| self.line.places[cluster];
        let between = |c: &usize| place(first) < place(*c) && place(*c) < place(last);
        let mut ahead: Vec<usize> = Vec::new();
        let mut reached = FxHashSet::default();
        ahead.extend(self.after(first).filter(|c| between(c) && reached.insert(*c)));
        let mut back: Vec<usize> = Vec::new();
        let mut leading = FxHashSet::default();
        back.extend(self.before(last).filter(|c| between(c) && leading.insert(*c)));
        if reached.iter().any(|cluster| leading.contains(cluster)) {
            return None;
        }
        loop {
            let Some(one) = ahead.pop() else { return Some(Room::After(reached)) };
            let Some(other) = back.pop() else { return Some(Room::Before(leading)) };
            if reached.len() + leading.len() > SEARCH_MAX {
                return None;
            }
            for next in self.after(one) {
                if next == last || leading.contains(&next) {
                    return None;
                }
                if between(&next) && reached.insert(next) {
                    ahead.push(next);
                }
            }
            for next in self.before(other) {
                if next == first || reached.contains(&next) {
                    return None;
                }
                if between(&next) && leading.insert(next) {
                    back.push(next);
                }
            }
        }
    }
}
