//! Which edges cross, for drawings.

use rustc_hash::FxHashMap;

use super::{Explanation, Origin};

/// For each tensor, its first crossing from the host and its first to the host; and those from one GPU to another.
pub(super) struct Ways {
    up: Vec<Option<usize>>,
    down: Vec<Option<usize>>,
    /// By tensor and the device that copies it.
    across: FxHashMap<(usize, usize), usize>,
}

impl Ways {
    pub(super) fn new(explanation: &Explanation) -> Self {
        let mut up = vec![None; explanation.tensors.len()];
        let mut down = up.clone();
        let mut across = FxHashMap::default();
        for (i, crossing) in explanation.crossings.iter().enumerate() {
            if crossing.is_copy() {
                across.entry((crossing.tensor, crossing.to)).or_insert(i);
                continue;
            }
            let way = if crossing.from == 0 { &mut up } else { &mut down };
            way[crossing.tensor].get_or_insert(i);
        }
        Self { up, down, across }
    }

    /// The crossing on the way of a tensor to an item, or to the caller of the run.
    pub(super) fn crossing(
        &self,
        explanation: &Explanation,
        tensor: usize,
        reader: Option<usize>,
    ) -> Option<usize> {
        let items = &explanation.items;
        let maker = match explanation.tensors[tensor].from {
            Origin::Item(item) => Some(&items[item]),
            _ => None,
        };
        let reader = reader.map(|item| &items[item]);
        let from = maker.map_or(0, |item| item.device);
        let to = reader.map_or(0, |item| item.device);
        let (up, down) = (self.up[tensor], self.down[tensor]);
        match (from == to, to) {
            (true, _) => None,
            (false, 0) => down,
            (false, _) => self.across.get(&(tensor, to)).copied().or(up).or(down),
        }
    }
}
