//! An explanation as one page for a browser, which needs nothing else.

use serde_json::{Value, json};

use super::layout::layout;
use super::ways::Ways;
use super::{Explanation, ItemKind, Origin};

/// All before the data.
const BEFORE: &str = concat!(
    include_str!("page/head.html"),
    "<style>\n",
    include_str!("page/style.css"),
    "</style>\n",
    include_str!("page/body.html"),
    "<script id=\"data\" type=\"application/json\">",
);
/// All after the data.
const AFTER: &str = concat!(
    "</script>\n<script>\n",
    include_str!("page/script.js"),
    "</script>\n</body>\n</html>\n",
);

/// The boxes and lines of the drawing.
#[derive(Default)]
struct Drawing {
    /// What each box is, and the number of its item or tensor.
    nodes: Vec<(&'static str, usize)>,
    ends: Vec<(u32, u32)>,
    /// For each line, its tensor and its crossing.
    tensors: Vec<(usize, Option<usize>)>,
}

impl Explanation {
    /// The graph with its reasons as one HTML page that needs no network: drawn by device, with what crosses in bold,
    /// to be searched, zoomed and moved; a click shows the reasons of a box. Of a run with parts, the page lists them as a
    /// tree, and draws one program at a time.
    pub fn to_html(&self) -> String {
        let data = match &self.parts {
            Some(parts) => self.parts_json(parts, Self::drawn_json),
            None => self.drawn_json(),
        };
        // Nothing in the data can end its element or begin a comment.
        let data = data.to_string().replace('<', "\\u003c");
        [BEFORE, &data, AFTER].concat()
    }

    fn drawn_json(&self) -> Value {
        let mut data = self.json();
        if let Some(data) = data.as_object_mut() {
            data.insert("drawing".into(), self.drawing().json());
        }
        data
    }

    /// Boxes for items, for what is fed, and for where results go: fetches, and stores into variables.
    fn drawing(&self) -> Drawing {
        let mut drawing = Drawing::default();
        for (i, item) in self.items.iter().enumerate() {
            let kind = if item.kind == ItemKind::Variable { "variable" } else { "kernel" };
            drawing.nodes.push((kind, i));
        }
        let ways = Ways::new(self);
        for (t, tensor) in self.tensors.iter().enumerate() {
            let from = match tensor.from {
                Origin::Item(item) => item,
                // Constants do not cross in a run, and their lines would hide those that do.
                Origin::Constant if !tensor.is_fetched => continue,
                _ => drawing.node("source", t),
            };
            for &reader in &tensor.to {
                let to = match self.items[reader].kind {
                    ItemKind::Variable => drawing.node("store", reader),
                    _ => reader,
                };
                drawing.edge(from, to, t, ways.crossing(self, t, Some(reader)));
            }
            if tensor.is_fetched {
                let to = drawing.node("fetch", t);
                drawing.edge(from, to, t, ways.crossing(self, t, None));
            }
        }
        drawing
    }
}

impl Drawing {
    fn node(&mut self, kind: &'static str, index: usize) -> usize {
        self.nodes.push((kind, index));
        self.nodes.len() - 1
    }

    fn edge(&mut self, from: usize, to: usize, tensor: usize, crossing: Option<usize>) {
        self.ends.push((from as u32, to as u32));
        self.tensors.push((tensor, crossing));
    }

    /// `nodes`: kind, item or tensor, x in boxes, y in rows; `edges`: from, to, tensor, crossing or null.
    fn json(&self) -> Value {
        let places = layout(self.nodes.len(), &self.ends);
        let places = places.x.into_iter().zip(places.y);
        let nodes = self.nodes.iter().zip(places);
        let nodes = nodes.map(|((kind, index), (x, y))| json!([kind, index, rounded(x), y]));
        let edges = self.ends.iter().zip(&self.tensors);
        let edges =
            edges.map(|((from, to), (tensor, crossing))| json!([from, to, tensor, crossing]));
        json!({ "nodes": nodes.collect::<Vec<_>>(), "edges": edges.collect::<Vec<_>>() })
    }
}

/// A hundredth of a box is less than a pixel or two.
fn rounded(x: f32) -> f64 {
    f64::from((x * 100.0).round()) / 100.0
}
