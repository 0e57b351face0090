//! Places for a problem that does not fit its devices' memory as it would be cheapest.
//!
//! Two ways to make room: cuts in which bytes cost more and more on devices, so that what gains least for its
//! bytes leaves first; and shares of what is on a device that is too full, the first or the last in the order
//! in which it runs, which go to another device as a whole, like the stages of a pipeline.

use crate::Picoseconds;
use crate::choose::Search;
use crate::problem::{HOST, Problem};

/// The most that a byte costs, in picoseconds.
const MAX_RATE: Picoseconds = 1 << 40;
/// How many shares of a device's bytes are tried.
const N_SHARES: u64 = 16;

/// Looks for places with less above the memory there is.
pub(crate) fn search(search: &mut Search<'_>) {
    let bytes = class_bytes(search);
    cuts(search, &bytes);
    if search.best.score.excess > 0 {
        shares(search, &bytes);
    }
}

fn cuts(search: &mut Search<'_>, bytes: &[u64]) {
    let problem = search.problem;
    let is_limited = |d: usize| d != HOST && problem.devices[d].memory_bytes != u64::MAX;
    let mut rate: Picoseconds = 1;
    while rate < MAX_RATE {
        for (a, b) in pairs(problem) {
            let own = |bytes: u64, d: usize| {
                if is_limited(d) { bytes.saturating_mul(rate) } else { 0 }
            };
            let penalty: Vec<[Picoseconds; 2]> =
                bytes.iter().map(|&bytes| [own(bytes, a), own(bytes, b)]).collect();
            let places = search.cut(&search.best.places, a, b, &penalty);
            search.try_places(places);
        }
        rate *= 4;
    }
}

/// Moves the first or last so many sixteenths of what is on a device to another.
fn shares(search: &mut Search<'_>, bytes: &[u64]) {
    let rank = ranks(search);
    for (a, b) in pairs(search.problem) {
        for (from, to) in [(a, b), (b, a)] {
            let start = search.best.places.clone();
            let movable = |&class: &usize| start[class] == from && search.classes.legal(class, to);
            let mut own: Vec<usize> = (0..start.len()).filter(movable).collect();
            own.sort_by_key(|&class| (rank[class], class));
            let all = own.iter().fold(0u64, |sum, &class| sum.saturating_add(bytes[class]));
            for share in 1..N_SHARES {
                let until = (u128::from(all) * u128::from(share) / u128::from(N_SHARES)) as u64;
                let (mut first, mut last, mut sum) = (start.clone(), start.clone(), 0u64);
                for &class in &own {
                    sum = sum.saturating_add(bytes[class]);
                    if sum <= until {
                        first[class] = to;
                    } else {
                        last[class] = to;
                    }
                }
                search.try_places(first);
                search.try_places(last);
            }
        }
    }
}

fn pairs(problem: &Problem) -> impl Iterator<Item = (usize, usize)> + use<> {
    (1..problem.devices.len()).flat_map(|b| (0..b).map(move |a| (a, b)))
}

/// When each class runs first, or for resources, when what reads or writes them does.
fn ranks(search: &Search<'_>) -> Vec<usize> {
    let problem = search.problem;
    let mut position = vec![usize::MAX; problem.items.len()];
    for (at, item) in search.pricer.order().sequence().into_iter().enumerate() {
        if !problem.items[item].is_resource {
            position[item] = at;
        }
    }
    let mut rank = vec![usize::MAX; search.classes.len()];
    for (item, &at) in position.iter().enumerate() {
        let class = search.classes.of(item);
        rank[class] = rank[class].min(at);
    }
    for tensor in &problem.tensors {
        let items = || tensor.consumers.iter().copied().chain(tensor.producer.item());
        let first = items().map(|item| position[item]).min().unwrap_or(usize::MAX);
        for item in items().filter(|&item| problem.items[item].is_resource) {
            let class = search.classes.of(item);
            rank[class] = rank[class].min(first);
        }
    }
    rank
}

/// The bytes of the tensors that each class makes or reads.
fn class_bytes(search: &Search<'_>) -> Vec<u64> {
    let mut bytes = vec![0u64; search.classes.len()];
    for tensor in &search.problem.tensors {
        for item in tensor.consumers.iter().copied().chain(tensor.producer.item()) {
            let sum = &mut bytes[search.classes.of(item)];
            *sum = sum.saturating_add(tensor.bytes);
        }
    }
    bytes
}
