//! The printer: one line for each node.

use std::fmt;

use crate::{Graph, GraphSnapshot, Node};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.snapshot())
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph {} of {} nodes", self.id(), self.len())
    }
}

/// `%3 logits = matmul %0 %2 : f32[s0, 10]`, then device, controls and refusals where there are any.
impl fmt::Display for GraphSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.nodes.iter().try_for_each(|node| writeln!(f, "{}", Line(node)))
    }
}

struct Line<'a>(&'a Node);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.0;
        write!(f, "%{} {} = {}", node.id.0, node.name, node.op.name())?;
        for input in &node.inputs {
            write!(f, " %{}", input.node.0)?;
            if input.index > 0 {
                write!(f, ".{}", input.index)?;
            }
        }
        for (i, fact) in node.facts.iter().enumerate() {
            write!(f, "{} {fact}", if i == 0 { " :" } else { "," })?;
        }
        if let Some(device) = &node.device {
            write!(f, " on {device}")?;
        }
        for control in &node.controls {
            write!(f, " after %{}", control.0)?;
        }
        match &node.invalid {
            Some(reason) => write!(f, " refused: {reason}"),
            None => Ok(()),
        }
    }
}

impl Graph {
    /// The graph in Graphviz's DOT language: one box for each node, dashed arrows for controls.
    pub fn to_dot(&self) -> String {
        use std::fmt::Write;
        let mut dot = String::from("digraph {\n  rankdir=TB; node [shape=box];\n");
        for node in self.snapshot().nodes.iter() {
            let facts: Vec<String> = node.facts.iter().map(ToString::to_string).collect();
            let label = format!("{}\n{} {}", node.name, node.op.name(), facts.join(", "));
            // Writing into a string does not fail.
            let _ = writeln!(dot, "  n{} [label={label:?}];", node.id.0);
            for input in &node.inputs {
                let _ = writeln!(dot, "  n{} -> n{};", input.node.0, node.id.0);
            }
            for control in &node.controls {
                let _ = writeln!(dot, "  n{} -> n{} [style=dashed];", control.0, node.id.0);
            }
        }
        dot.push_str("}\n");
        dot
    }
}
