//! Pages: whole, harmless, and drawn by a browser.

use convoke::prelude::*;
use convoke_tests::devices;

use super::Staged;
use super::browser::{Page, attribute};

/// Opens a page, whose script must end without an error and draw so many boxes at once.
fn check(html: &str, fragment: &str, boxes: usize) -> Option<String> {
    let dom = Page::new(html).open(fragment)?;
    assert_eq!(attribute(&dom, "data-error"), None);
    assert_eq!(attribute(&dom, "data-boxes"), Some(&*boxes.to_string()));
    Some(dom)
}

#[test]
fn a_page_needs_nothing_else() {
    let staged = Staged::new(&devices()[0]);
    let html = staged.session.explain(&staged.feeds(), &staged.y).unwrap().to_html();
    for outside in ["http:", "https:", "src=", "@import", "url(", "<link"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert_eq!(html.matches("<script").count(), html.matches("</script").count());
}

#[test]
fn a_small_graph_is_drawn_with_its_reasons() {
    for device in devices() {
        let staged = Staged::new(device);
        let explanation = staged.session.explain(&staged.feeds(), &staged.y).unwrap();
        let explanation = explanation.measured([&staged.run()]).unwrap();
        // Besides the items, what is fed and what is fetched.
        let boxes = explanation.items().len() + 2;
        let Some(dom) = check(&explanation.to_html(), "#exact/sin", boxes) else { continue };
        // The address chose a node: its reasons are shown.
        let item = explanation.node("exact/sin").unwrap().items()[0];
        let selected = attribute(&dom, "data-selected").unwrap();
        assert!(selected.starts_with(&*explanation.items()[item].name), "{selected}");
        let why = format!("on CPU:0: {}", explanation.why(item));
        assert!(dom.contains(&why), "{why}");
        assert!(dom.contains("measured"), "the measured column");
    }
}

#[test]
fn names_do_no_harm() {
    let g = Graph::new();
    let evil = "</script><b>bold</b><img onerror=alert(1)><!--";
    let x = g.placeholder(evil, F32, [2]);
    let y = g.scope("\"'&\u{2028}\u{202e}", || &x + 1.0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let explanation = session.explain(&[x.feed([1.0f32, 2.0])], &y).unwrap();
    let name = x.operation().name();
    assert_eq!(name, evil, "names are kept as they are");
    let html = explanation.to_html();
    assert!(!html.contains("</script><b>") && !html.contains("<!--"));
    assert!(html.contains(r"\u003c/script>\u003cb>"));
    let Some(dom) = check(&html, &format!("#{}", "%3C/script%3E"), 3) else { return };
    // Shown as text.
    assert!(dom.contains("&lt;/script&gt;&lt;b&gt;bold"), "the name of what was chosen");
    assert!(!dom.contains("<b>bold") && !dom.contains("<img"));
}

#[test]
fn a_page_answers_pointer_wheel_and_keys() {
    let staged = Staged::new(&devices()[0]);
    let explanation = staged.session.explain(&staged.feeds(), &staged.y).unwrap();
    let boxes = explanation.items().len() + 2;
    let drive = concat!("<script>\n", include_str!("drive.js"), "</script>\n</body>");
    let html = explanation.to_html().replace("</body>", drive);
    let Some(dom) = check(&html, "", boxes) else { return };
    assert_eq!(attribute(&dom, "data-driven"), Some("1111111"));
}

/// 50 columns of 100 sums of neighbours.
fn grid() -> (Graph, Tensor, Vec<Tensor>) {
    let g = Graph::new();
    let x = g.placeholder("x", F32, [4]);
    let mut row: Vec<Tensor> = (0..50).map(|i| &x + i as f32).collect();
    for _ in 1..100 {
        row = (0..50).map(|i| &row[i] + &row[(i + 1) % 50]).collect();
    }
    (g, x, row)
}

#[test]
fn five_thousand_nodes_are_drawn() {
    let (g, x, row) = grid();
    let options = SessionOptions { fuse: false, simplify: false, ..Default::default() };
    let session = Session::with_options(&g, &Devices::cpu(), options).unwrap();
    let explanation = session.explain(&[x.feed([1.0f32; 4])], &row).unwrap();
    assert_eq!(explanation.items().len(), 5000);
    let start = std::time::Instant::now();
    let html = explanation.to_html();
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    // 50 boxes for what is fetched, and one for what is fed.
    let Some(dom) = check(&html, "", 5051) else { return };
    let lines: usize = attribute(&dom, "data-lines").unwrap().parse().unwrap();
    // Each of 99 rows reads two of the row above; the first reads x, the last is fetched.
    assert_eq!(lines, 99 * 100 + 50 + 50);
    let milliseconds: u64 = attribute(&dom, "data-milliseconds").unwrap().parse().unwrap();
    assert!(milliseconds < 3000, "the first drawing took {milliseconds} ms");
}
