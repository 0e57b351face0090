//! An explanation as a graph for Graphviz.

use std::fmt::Write;

use convoke_placement::{Bytes, Time};

use super::measured::picoseconds;
use super::ways::Ways;
use super::{Explanation, ItemKind, Origin};

/// Light fills, one for each device in turn; the host is first.
const FILLS: [&str; 6] = ["#dbe9f9", "#fbe3c8", "#dff2d8", "#f6d9e6", "#e6defa", "#f7f3c6"];

/// The beginning of a drawing.
pub(super) const HEAD: &str = "digraph placement {\n  rankdir=TB;\n  node [shape=box, style=\"filled,rounded\", \
     fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\", fontsize=10];\n";

impl Explanation {
    /// The graph in Graphviz's language: a cluster for each device, bold edges with bytes and time for what
    /// crosses, dashed ones for what one GPU copies from another. `dot -Tsvg` draws it. Of a run with parts, clusters for branches, loops and programs, one in the other.
    pub fn to_dot(&self) -> String {
        let mut dot = String::new();
        // Writing into a string does not fail.
        let _ = match &self.parts {
            Some(parts) => parts.write_dot(&mut dot),
            None => {
                dot.push_str(HEAD);
                self.write_dot(&mut dot, "").and_then(|()| writeln!(dot, "}}"))
            }
        };
        dot
    }

    /// The boxes and lines, whose names begin with `own`.
    pub(super) fn write_dot(&self, dot: &mut String, own: &str) -> std::fmt::Result {
        for (device, name) in self.devices.iter().enumerate() {
            let fill = FILLS[device % FILLS.len()];
            writeln!(dot, "  subgraph cluster_{own}{device} {{\n    label={};", quoted(name))?;
            for (i, item) in self.items.iter().enumerate().filter(|(_, i)| i.device == device) {
                let shape = if item.kind == ItemKind::Variable { "cylinder" } else { "box" };
                writeln!(
                    dot,
                    "    {own}i{i} [label={}, tooltip={}, shape={shape}, fillcolor={}];",
                    quoted(&self.dot_label(i)),
                    quoted(&self.why(i)),
                    quoted(fill),
                )?;
            }
            writeln!(dot, "  }}")?;
        }
        let ways = Ways::new(self);
        for (t, tensor) in self.tensors.iter().enumerate() {
            // Constants are everywhere where they are read, and their boxes would hide the rest.
            if tensor.from == Origin::Constant {
                continue;
            }
            let from = match tensor.from {
                Origin::Item(item) => format!("{own}i{item}"),
                _ => {
                    let label = quoted(&format!("{}\n{}", tensor.name, tensor.from.text()));
                    writeln!(dot, "  {own}t{t} [label={label}, shape=ellipse, fillcolor=white];")?;
                    format!("{own}t{t}")
                }
            };
            for &to in &tensor.to {
                writeln!(dot, "  {from} -> {own}i{to} [{}];", self.dot_edge(t, Some(to), &ways))?;
            }
            if tensor.is_fetched {
                writeln!(dot, "  {own}f{t} [label=\"fetch\", shape=ellipse, fillcolor=white];")?;
                writeln!(dot, "  {from} -> {own}f{t} [{}];", self.dot_edge(t, None, &ways))?;
            }
        }
        Ok(())
    }

    fn dot_label(&self, index: usize) -> String {
        let item = &self.items[index];
        if item.kind == ItemKind::Variable {
            return item.name.to_string();
        }
        let more = match item.nodes.len() {
            0 | 1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let measured = self.measured.as_ref().and_then(|m| *m.items.get(index)?);
        let measured = measured.map(|t| format!(", measured {}", Time(picoseconds(t))));
        let cost = Time(item.cost);
        format!("{}{more}\n{}, {cost}{}", item.name, item.family(), measured.unwrap_or_default())
    }

    /// An edge's attributes: to an item, or to the caller.
    fn dot_edge(&self, tensor: usize, to: Option<usize>, ways: &Ways) -> String {
        let bytes = Bytes(self.tensors[tensor].bytes);
        match ways.crossing(self, tensor, to).and_then(|i| self.crossings.get(i)) {
            Some(crossing) => {
                let time = Time(crossing.time);
                let (how, style) =
                    if crossing.is_copy() { (", a copy", "dashed") } else { ("", "bold") };
                format!(
                    "label=\"{bytes}{how}\\n{time}\", style={style}, penwidth=3, color=\"#c0392b\""
                )
            }
            None => format!("label=\"{bytes}\", color=\"#888888\""),
        }
    }
}

/// A string as Graphviz reads it.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
