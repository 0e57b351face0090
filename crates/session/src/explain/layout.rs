//! Where the boxes of a drawing go: layers from inputs to results, and within a layer near the neighbours.
//!
//! Time is linear in nodes and edges, but for sorting each layer a few times; nothing recurses.
//! Source: Sugiyama, Tagawa and Toda, 1981, for layers and barycentres; the places within a layer are the isotonic
//! regression of the wished ones, by pooling adjacent violators.

/// How often the layers are gone through, down and up in turn.
const SWEEPS: usize = 6;
/// Rows beyond which a drawing that is much higher than wide goes on in another column.
const COLUMN_MIN: usize = 40;
/// How much higher than wide, in boxes, a drawing may be.
const TALL: usize = 3;

/// The middle of each node: across in boxes, and down in rows.
pub(super) struct Layout {
    pub(super) x: Vec<f32>,
    pub(super) y: Vec<u32>,
}

/// Lays out nodes `0..n` with edges from sources to readers. Edges that close a circle are not looked at.
pub(super) fn layout(n: usize, edges: &[(u32, u32)]) -> Layout {
    let graph = Neighbours::new(n, edges);
    let layer = layers(&graph);
    let mut rows = rows(&layer);
    let mut x = vec![0.0; n];
    for row in &rows {
        row.iter().enumerate().for_each(|(i, &node)| x[node as usize] = i as f32);
    }
    for sweep in 0..SWEEPS {
        let down = sweep % 2 == 0;
        let n_rows = rows.len();
        for i in 0..n_rows {
            let at = if down { i } else { n_rows - 1 - i };
            place(&mut rows[at], &mut x, &graph, down);
        }
    }
    let mut y = vec![0; n];
    for (at, row) in rows.iter().enumerate() {
        row.iter().for_each(|&node| y[node as usize] = at as u32);
    }
    let least = x.iter().copied().fold(f32::INFINITY, f32::min);
    x.iter_mut().for_each(|x| *x -= least);
    let mut layout = Layout { x, y };
    layout.fold(rows.len());
    layout
}

/// The sources and the readers of each node.
struct Neighbours {
    sources: Lists,
    readers: Lists,
}

/// A list for each node: that of node `i` is at `first[i]..first[i + 1]`.
struct Lists {
    first: Vec<usize>,
    all: Vec<u32>,
}

impl Lists {
    fn new(n: usize, pairs: impl Iterator<Item = (u32, u32)> + Clone) -> Self {
        let mut first = vec![0; n + 1];
        pairs.clone().for_each(|(node, _)| first[node as usize + 1] += 1);
        for i in 0..n {
            first[i + 1] += first[i];
        }
        let mut next = first.clone();
        let mut all = vec![0; first[n]];
        for (node, other) in pairs {
            all[next[node as usize]] = other;
            next[node as usize] += 1;
        }
        Self { first, all }
    }

    fn of(&self, node: usize) -> &[u32] {
        &self.all[self.first[node]..self.first[node + 1]]
    }
}

impl Neighbours {
    fn new(n: usize, edges: &[(u32, u32)]) -> Self {
        let sources = Lists::new(n, edges.iter().map(|&(from, to)| (to, from)));
        Self { sources, readers: Lists::new(n, edges.iter().copied()) }
    }

    fn len(&self) -> usize {
        self.sources.first.len() - 1
    }
}

/// One below the lowest source; what has no source is just above its first reader.
fn layers(graph: &Neighbours) -> Vec<u32> {
    let n = graph.len();
    let mut layer = vec![0u32; n];
    let mut waits: Vec<usize> = (0..n).map(|node| graph.sources.of(node).len()).collect();
    let mut ready: Vec<u32> = (0..n as u32).filter(|&node| waits[node as usize] == 0).collect();
    let mut at = 0;
    while let Some(&node) = ready.get(at) {
        at += 1;
        for &reader in graph.readers.of(node as usize) {
            let reader = reader as usize;
            layer[reader] = layer[reader].max(layer[node as usize] + 1);
            waits[reader] -= 1;
            if waits[reader] == 0 {
                ready.push(reader as u32);
            }
        }
    }
    for node in (0..n).filter(|&node| graph.sources.of(node).is_empty()) {
        let first = graph.readers.of(node).iter().map(|&reader| layer[reader as usize]).min();
        layer[node] = first.map_or(0, |first| first.saturating_sub(1));
    }
    layer
}

/// The nodes of each layer; a layer that is far wider than the drawing should be takes several rows.
fn rows(layer: &[u32]) -> Vec<Vec<u32>> {
    let n_layers = layer.iter().max().map_or(0, |&last| last as usize + 1);
    let mut layers: Vec<Vec<u32>> = vec![Vec::new(); n_layers];
    for (node, &layer) in layer.iter().enumerate() {
        layers[layer as usize].push(node as u32);
    }
    let widest = ((layer.len() as f64).sqrt() as usize).max(12);
    let mut rows = Vec::with_capacity(n_layers);
    for nodes in layers {
        let n_rows = nodes.len().div_ceil(widest);
        for first in 0..n_rows {
            // Neighbours in a layer stay above each other.
            rows.push(nodes.iter().skip(first).step_by(n_rows).copied().collect());
        }
    }
    rows
}

/// Puts the nodes of a row near the middle of their sources, or of their readers, at least one box apart.
fn place(row: &mut Vec<u32>, x: &mut [f32], graph: &Neighbours, down: bool) {
    let wish = |node: u32| {
        let near = if down { &graph.sources } else { &graph.readers }.of(node as usize);
        let sum: f32 = near.iter().map(|&other| x[other as usize]).sum();
        if near.is_empty() { x[node as usize] } else { sum / near.len() as f32 }
    };
    let mut wishes: Vec<(f32, u32)> = row.iter().map(|&node| (wish(node), node)).collect();
    wishes.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Without the boxes' own width the places only have to rise: runs that would fall share their mean.
    let mut blocks: Vec<(f32, usize)> = Vec::with_capacity(wishes.len());
    for (i, &(wish, _)) in wishes.iter().enumerate() {
        let mut block = (wish - i as f32, 1);
        while let Some(&(mean, count)) = blocks.last().filter(|(mean, _)| *mean > block.0) {
            let total = mean * count as f32 + block.0 * block.1 as f32;
            block = (total / (count + block.1) as f32, count + block.1);
            blocks.pop();
        }
        blocks.push(block);
    }
    let means = blocks.iter().flat_map(|&(mean, count)| std::iter::repeat_n(mean, count));
    for ((i, mean), &(_, node)) in means.enumerate().zip(&wishes) {
        x[node as usize] = mean + i as f32;
    }
    row.clear();
    row.extend(wishes.into_iter().map(|(_, node)| node));
}

impl Layout {
    /// A drawing that is far too high goes on at the top, in another column.
    fn fold(&mut self, n_rows: usize) {
        let widest = self.x.iter().copied().fold(0.0f32, f32::max);
        let width = widest as usize + 2;
        if n_rows < COLUMN_MIN || n_rows < TALL * width {
            return;
        }
        // As many rows as there are boxes across.
        let height = ((n_rows * width) as f64).sqrt().ceil() as usize;
        let height = height.max(COLUMN_MIN) as u32;
        for (x, y) in self.x.iter_mut().zip(&mut self.y) {
            *x += (*y / height) as f32 * width as f32;
            *y %= height;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_apart(layout: &Layout) {
        let places = layout.y.iter().zip(&layout.x);
        let mut places: Vec<(u32, f32)> = places.map(|(&y, &x)| (y, x)).collect();
        places.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        for pair in places.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            assert!(pair[1].1 - pair[0].1 > 0.99, "{pair:?}");
        }
    }

    #[test]
    fn readers_are_below_their_sources_and_boxes_apart() {
        // Two sources, a diamond, and a source that only its end reads.
        let edges = [(0, 2), (1, 2), (2, 3), (2, 4), (3, 5), (4, 5), (6, 5)];
        let layout = layout(7, &edges);
        assert_eq!(layout.y, [0, 0, 1, 2, 2, 3, 2]);
        check_apart(&layout);
        // The diamond's top is in the middle of the sources.
        assert!((layout.x[2] - (layout.x[0] + layout.x[1]) / 2.0).abs() < 0.6, "{:?}", layout.x);
    }

    #[test]
    fn nothing_and_circles_are_laid_out() {
        assert!(layout(0, &[]).x.is_empty());
        check_apart(&layout(3, &[(0, 1), (1, 0), (1, 2), (2, 2)]));
    }

    #[test]
    fn wide_and_deep_graphs_stay_near_a_square() {
        let n = 5000u32;
        let chain: Vec<(u32, u32)> = (1..n).map(|i| (i - 1, i)).collect();
        let star: Vec<(u32, u32)> = (1..n).map(|i| (0, i)).collect();
        for edges in [chain, star, Vec::new()] {
            let layout = layout(n as usize, &edges);
            let width = layout.x.iter().copied().fold(0.0, f32::max);
            let height = layout.y.iter().copied().max().unwrap_or(0) as f32;
            assert!(width < 260.0 && height < 260.0, "{width} by {height}");
            check_apart(&layout);
        }
    }
}
