//! What one part of a GPU copies from another, in every form.

use convoke::prelude::*;
use convoke::{DeviceOptions, RunOptions};
use convoke_tests::{devices, ramp};
use serde_json::Value;

use super::traces::{checked, sum};

#[test]
fn copies_are_told_from_what_goes_through_the_host() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![1000]);
    let v = g.device("GPU:0", || g.variable("v", Init::Constant(2.0), F32, [1000]));
    let first = g.scope("first", || g.device("GPU:0", || (&x * v.value()).tanh()));
    let last = g.scope("last", || g.device("GPU:1", || &first + v.value()));
    for device in devices().iter().skip(1) {
        let virtual_devices = vec![vec![64 << 20; 2]];
        let devices = device.open(DeviceOptions { virtual_devices, ..DeviceOptions::default() });
        let session = Session::new(&g, &devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let feeds = [x.feed(ramp(&[1000]))];
        let explanation = session.explain(&feeds, &last).unwrap();
        let run = || session.run_with(&feeds, &last, RunOptions::timed()).unwrap().1;
        let runs = [run(), run()];
        let text = explanation.to_string();
        assert_eq!(text.matches("GPU:1, a copy").count(), 2, "{text}");
        let node = explanation.node(&last).unwrap().to_string();
        assert!(node.contains("in:  first/tanh, 3.9 KiB from GPU:0 by a copy"), "{node}");
        let json: Value = serde_json::from_str(&explanation.to_json()).unwrap();
        let copies = json["crossings"].as_array().unwrap().iter().filter(|c| c["copy"] == true);
        for copy in copies.clone() {
            assert_eq!((&copy["from"], &copy["to"]), (&"GPU:0".into(), &"GPU:1".into()), "{copy}");
        }
        assert_eq!(copies.count(), 2, "{json}");
        let dot = explanation.to_dot();
        assert_eq!((dot.matches("a copy").count(), dot.matches("style=dashed").count()), (2, 2));
        assert_eq!(dot.matches("style=bold").count(), 2, "{dot}");
        let page = explanation.to_html();
        assert!(page.contains(r#""copy":true"#) && page.contains("crossing.copy"));
        let measured = explanation.measured(&runs).unwrap();
        let found = measured.measurement().unwrap();
        assert!(found.crossings.iter().all(|crossing| crossing.bytes == 4000), "{measured}");
        let text = measured.to_string();
        assert_eq!(text.matches("GPU:0 to GPU:1, a copy").count(), 2, "{text}");
        for run in &runs {
            assert_eq!((run.copies, run.copy_bytes), (2, 8000), "{run}");
            let copied = run.transfers.iter().filter(|transfer| transfer.is_copy);
            assert!(copied.clone().all(|t| !t.is_upload && &*t.from == "GPU:0"), "{run}");
            assert_eq!(copied.count(), 2);
            let events = checked(&run.to_trace());
            assert_eq!(sum(&events, "transfer", "copy", "bytes"), 8000, "{run}");
            assert_eq!(sum(&events, "transfer", "upload", "bytes"), run.upload_bytes, "{run}");
            assert_eq!(sum(&events, "transfer", "download", "bytes"), run.download_bytes, "{run}");
        }
    }
}
