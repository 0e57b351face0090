//! The nodes of a graph: a list that only grows, of which a copy costs next to nothing.

use std::ops::Index;
use std::sync::Arc;

use crate::Node;

/// Nodes in one block.
const BLOCK: usize = 256;

/// Nodes by id. Copies share the blocks that are full, so that a snapshot of a large graph is cheap.
#[derive(Debug, Clone, Default)]
pub struct NodeList {
    full: Vec<Arc<[Arc<Node>]>>,
    last: Vec<Arc<Node>>,
}

impl NodeList {
    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.full.len() * BLOCK + self.last.len()
    }

    /// True if there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The nodes in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.full.iter().flat_map(|block| block.iter()).chain(&self.last)
    }

    /// Puts another node in the place of one that there is.
    pub(crate) fn replace(&mut self, at: usize, node: Arc<Node>) {
        let own = match self.full.get_mut(at / BLOCK) {
            Some(block) => Arc::make_mut(block).get_mut(at % BLOCK),
            None => self.last.get_mut(at % BLOCK),
        };
        if let Some(own) = own {
            *own = node;
        }
    }

    pub(crate) fn push(&mut self, node: Arc<Node>) {
        self.last.push(node);
        if self.last.len() == BLOCK {
            self.full.push(std::mem::take(&mut self.last).into());
        }
    }
}

impl Index<usize> for NodeList {
    type Output = Arc<Node>;

    fn index(&self, at: usize) -> &Arc<Node> {
        match self.full.get(at / BLOCK) {
            Some(block) => &block[at % BLOCK],
            None => &self.last[at - self.full.len() * BLOCK],
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{DType, Graph};

    #[test]
    fn a_copy_stays_as_it_was_while_the_list_grows() {
        let g = Graph::new();
        let mut snapshots = Vec::new();
        for i in 0..600 {
            if i % 100 == 0 || i == 256 {
                snapshots.push((i, g.snapshot()));
            }
            g.placeholder(&format!("x{i}"), DType::F32, [1]);
        }
        for (n, snapshot) in snapshots {
            assert_eq!(snapshot.nodes.len(), n);
            assert_eq!(snapshot.nodes.is_empty(), n == 0);
            let names: Vec<String> = snapshot.nodes.iter().map(|n| n.name.to_string()).collect();
            assert_eq!(names, (0..n).map(|i| format!("x{i}")).collect::<Vec<_>>());
            assert!((0..n).all(|i| *snapshot.nodes[i].name == names[i]));
        }
    }

    #[test]
    fn a_node_is_replaced_in_one_copy_only() {
        let g = Graph::new();
        for i in 0..300 {
            g.placeholder(&format!("x{i}"), DType::F32, [1]);
        }
        let before = g.snapshot();
        let mut after = before.clone();
        for at in [0, 255, 256, 299, 300] {
            after.nodes.replace(at, before.nodes[7].clone());
        }
        assert_eq!(after.nodes.len(), 300);
        for i in 0..300 {
            let is_replaced = [0, 255, 256, 299].contains(&i);
            let name = if is_replaced { "x7".to_owned() } else { format!("x{i}") };
            assert_eq!(*after.nodes[i].name, *name);
            assert_eq!(*before.nodes[i].name, *format!("x{i}"));
        }
    }
}
