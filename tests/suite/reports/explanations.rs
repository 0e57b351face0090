//! Explanations: asked about a node, in their forms, and with measured times.

use convoke::{Explanation, ItemKind, prelude::*};
use convoke_tests::{devices, ramp};
use serde_json::Value;

use super::{ROWS, Staged};

fn explained(staged: &Staged) -> Explanation {
    staged.session.explain(&staged.feeds(), &staged.y).unwrap()
}

#[test]
fn a_node_tells_its_device_and_reasons() {
    for device in devices() {
        let staged = Staged::new(device);
        let explanation = explained(&staged);
        // A node in the middle of a group, and the handle of its tensor, with and without the number.
        let node = explanation.node("exact/sin").unwrap();
        let [item] = node.items() else { panic!("{node}") };
        let item = &explanation.items()[*item];
        assert_eq!((item.kind, &*explanation.devices()[item.device]), (ItemKind::Kernel, "CPU:0"));
        assert!(item.nodes.iter().any(|node| &**node == "exact/sin"), "{item:?}");
        assert_eq!(explanation.node("exact/sin:0").unwrap().to_string(), node.to_string());
        let last = explanation.node(&staged.y).unwrap();
        assert_eq!(last.to_string(), explanation.node("last/tanh").unwrap().to_string());
        if device.devices.list().len() > 1 {
            let text = node.to_string();
            assert!(text.contains("GPU:0: excluded, unsupported"), "{text}");
            // 6 rows of 4 floats come, and go on.
            assert!(text.contains("in:  first/matmul, 96 B from GPU:0"), "{text}");
            assert!(text.contains("out: exact/cast_1, 96 B to GPU:0"), "{text}");
            assert_eq!(node.crossings().count(), 2, "{text}");
            assert_eq!(node.reason().unwrap().decision.tag(), "only-kernel");
        } else {
            assert_eq!(node.reason().unwrap().decision.tag(), "only-device");
        }
        let variable = explanation.node("w").unwrap();
        assert_eq!(explanation.items()[variable.items()[0]].kind, ItemKind::Variable);
    }
}

#[test]
fn nodes_for_which_nothing_runs_say_so() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None, 4]);
    let y = g.scope("turned", || x.transpose()) + 1.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let explanation = session.explain(&[x.feed([[1.0f32; 4]; 2])], &y).unwrap();
    let text = |name: &str| explanation.node(name).unwrap().to_string();
    assert!(text("turned/transpose").contains("nothing runs for it; a view"), "{explanation}");
    assert!(text("constant").contains("nothing runs for it; a constant"), "{explanation}");
    assert!(text("x").contains("nothing runs for it; fed"), "{explanation}");
    let error = explanation.node("turned/transpos").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("near names are turned/transpose"), "{error}");
    let none = session.explain(&[], ()).unwrap();
    let error = none.node(&"long name ".repeat(1000)).unwrap_err();
    assert!(error.message().ends_with("the run needs no nodes"), "{error}");
}

#[test]
fn json_has_what_the_text_has() {
    for device in devices() {
        let staged = Staged::new(device);
        let explanation = explained(&staged);
        let json: Value = serde_json::from_str(&explanation.to_json()).unwrap();
        assert_eq!(json["version"], 1);
        let items = json["items"].as_array().unwrap();
        assert_eq!(items.len(), explanation.items().len());
        for (i, item) in items.iter().enumerate() {
            assert_eq!(item["id"], i);
            assert_eq!(item["why"], explanation.why(i));
            let candidates = item["candidates"].as_array().unwrap();
            assert_eq!(candidates.len(), device.devices.list().len());
            let chosen = candidates.iter().find(|c| c["device"] == item["device"]).unwrap();
            assert_eq!(chosen["cost_us"], item["cost_us"]);
            assert!(chosen["excluded"].is_null() && item["rule"].is_string(), "{item}");
        }
        // Every end of an edge is an item, and what has one is no feed.
        for tensor in json["tensors"].as_array().unwrap() {
            let from = &tensor["from"];
            assert_eq!(from.is_null(), tensor["origin"] != "item", "{tensor}");
            let ends = tensor["to"].as_array().unwrap().iter().chain(Some(from));
            let mut ends = ends.filter(|end| !end.is_null());
            assert!(ends.all(|end| end.as_u64().unwrap() < items.len() as u64), "{tensor}");
        }
        let total =
            |field: &str| -> f64 { items.iter().map(|item| item[field].as_f64().unwrap()).sum() };
        let devices = json["devices"].as_array().unwrap();
        let compute: f64 = devices.iter().map(|d| d["compute_us"].as_f64().unwrap()).sum();
        assert!((total("cost_us") - compute).abs() < 1e-6 * compute, "{json}");
        let node = explanation.node("exact/sin").unwrap().to_json();
        let node: Value = serde_json::from_str(&node).unwrap();
        assert_eq!(node["items"][0], items[explanation.node("exact/sin").unwrap().items()[0]]);
    }
}

#[test]
fn graphviz_gets_clusters_and_bold_crossings() {
    for device in devices() {
        let staged = Staged::new(device);
        let explanation = explained(&staged);
        let dot = explanation.to_dot();
        let clusters = dot.matches("subgraph cluster_").count();
        assert_eq!(clusters, device.devices.list().len());
        assert_eq!(dot.matches("style=bold").count(), explanation.crossings().len(), "{dot}");
        assert_eq!(dot.matches('{').count(), dot.matches('}').count());
    }
    let g = Graph::new();
    let x = g.placeholder("a\"b\\c", F32, [2]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let dot = session.explain(&[x.feed([1.0f32, 2.0])], &(&x + 1.0)).unwrap().to_dot();
    assert!(dot.contains(r#"[label="a\"b\\c\nfeed""#), "{dot}");
}

#[test]
fn what_crosses_is_what_was_predicted_to_the_byte() {
    for device in devices().iter().skip(1) {
        let staged = Staged::new(device);
        let runs = [staged.run(), staged.run(), staged.run()];
        let explanation = explained(&staged);
        // x, the first product, the f64 stage's result and the last product, in floats.
        let sizes = [ROWS * 8 * 4, ROWS * 4 * 4, ROWS * 4 * 4, ROWS * 2 * 4];
        let predicted: Vec<u64> = explanation.crossings().iter().map(|c| c.bytes).collect();
        assert_eq!(predicted, sizes.map(|size| size as u64), "{explanation}");
        let transfers = &explanation.prediction().transfers;
        assert_eq!(transfers.iter().map(|t| t.bytes).sum::<u64>(), predicted.iter().sum::<u64>());
        let measured = explanation.measured(&runs).unwrap();
        let found = measured.measurement().unwrap();
        let bytes: Vec<u64> = found.crossings.iter().map(|c| c.bytes).collect();
        assert_eq!(bytes, predicted, "{measured}");
        for run in &runs {
            let all = run.upload_bytes + run.download_bytes;
            assert_eq!(all, predicted.iter().sum::<u64>(), "{run}");
        }
        // What the host copies can be told.
        assert!(found.crossings[1].time.is_some(), "{measured}");
    }
}

#[test]
fn measured_times_stand_beside_predicted_ones() {
    for device in devices() {
        let staged = Staged::new(device);
        let run = staged.run();
        let explanation = explained(&staged);
        let measured = explanation.measured([&run]).unwrap();
        let found = measured.measurement().unwrap();
        assert_eq!((found.runs, found.wall), (1, run.wall));
        let host = measured.node("exact/sin").unwrap().items()[0];
        let time = found.items[host].unwrap();
        let node = run.nodes.iter().find(|n| n.nodes == measured.items()[host].nodes).unwrap();
        assert_eq!(time, node.time);
        // The devices' sums are those of their items.
        let on_host =
            measured.items().iter().zip(&found.items).filter(|(item, _)| item.device == 0);
        let sum: std::time::Duration = on_host.filter_map(|(_, time)| *time).sum();
        assert_eq!(found.devices[0], Some(sum));
        let text = measured.to_string();
        assert!(
            text.contains("measured in 1 run:") && text.contains("measured/predicted"),
            "{text}"
        );
        let json: Value = serde_json::from_str(&measured.to_json()).unwrap();
        let us = json["items"][host]["measured_us"].as_f64().unwrap();
        assert!((us - time.as_nanos() as f64 / 1e3).abs() < 1e-3, "{us} {time:?}");
        assert_eq!(json["measured"]["runs"], 1);

        let refused = |runs: &[convoke::RunMetadata]| {
            let error = explanation.measured(runs).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            error.to_string()
        };
        assert!(refused(&[]).contains("got none"));
        let plain = staged.session.run_with(&staged.feeds(), &staged.y, Default::default());
        assert!(refused(&[plain.unwrap().1]).contains("Timings::Nodes"));
        let timed = convoke::RunOptions::timed();
        let other = staged.session.run_with(&staged.feeds(), &staged.x.sum(()), timed).unwrap().1;
        assert!(refused(&[other]).contains("another program"));
    }
}

#[test]
fn what_two_segments_of_a_device_share_does_not_cross_for_it() {
    for device in devices().iter().skip(1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, [5, 8]);
        let w = g.constant(ramp(&[8, 4]));
        let v = g.constant(ramp(&[4, 4]));
        let first = g.scope("first", || x.matmul(&w));
        let exact = g.scope("exact", || (first.cast(F64).sin() * 2.0).cast(F32));
        let last = g.scope("last", || exact.matmul(&v) + &first);
        let session = device.session_with(&g, SessionOptions::default());
        let timed = convoke::RunOptions::timed();
        let feeds = [x.feed(ramp(&[5, 8]))];
        let run = session.run_with(&feeds, &last, timed).unwrap().1;
        let explanation = session.explain(&feeds, &last).unwrap().measured([&run]).unwrap();
        let crossings: Vec<(&str, usize, usize, u64)> = explanation
            .crossings()
            .iter()
            .map(|c| (&*explanation.tensors()[c.tensor].name, c.from, c.to, c.bytes))
            .collect();
        // 5 rows of 8 floats, then of 4. The first product goes down for the host, and the GPU has it.
        let (up, down) = ((0, 1), (1, 0));
        let expected = [
            ("x", up, 160),
            ("first/matmul", down, 80),
            ("exact/cast_1", up, 80),
            ("last/add", down, 80),
        ];
        for (name, (from, to), bytes) in expected {
            assert!(crossings.contains(&(name, from, to, bytes)), "{name} of {crossings:?}");
        }
        assert_eq!(crossings.len(), expected.len(), "{crossings:?}");
        let found = &explanation.measurement().unwrap().crossings;
        let bytes: Vec<u64> = found.iter().map(|crossing| crossing.bytes).collect();
        assert_eq!(bytes, crossings.iter().map(|c| c.3).collect::<Vec<_>>());
        assert_eq!(run.upload_bytes + run.download_bytes, bytes.iter().sum::<u64>());
        // Each crossing is an edge.
        assert_eq!(explanation.to_dot().matches("style=bold").count(), 4);
    }
}

#[test]
fn what_is_computed_again_says_so() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, [64, 64]);
    let doubled = g.scope("doubled", || &x * 2.0);
    let wide = doubled.matmul(g.constant(ramp(&[64, 256])));
    let narrow = wide.matmul(g.constant(ramp(&[256, 64])));
    let y = g.scope("last", || (narrow + &doubled).sum(()));
    let session = |budget: u64| {
        let options = SessionOptions { host_budget_bytes: budget, ..Default::default() };
        Session::with_options(&g, &Devices::cpu(), options).unwrap()
    };
    let feeds = [x.feed(ramp(&[64, 64]))];
    // 64x64 floats are 16 KiB: the wide product with what it is of takes 5 of them, 6 if that is kept.
    let small = 64 * 64 * 4;
    let kinds = |session: &Session| -> Vec<ItemKind> {
        let explanation = session.explain(&feeds, &y).unwrap();
        explanation.items().iter().map(|item| item.kind).collect()
    };
    assert!(!kinds(&session(6 * small + 4)).contains(&ItemKind::Again));
    let tight = session(5 * small + 4);
    assert!(kinds(&tight).contains(&ItemKind::Again));
    let timed = convoke::RunOptions::timed();
    let run = tight.run_with(&feeds, &y, timed).unwrap().1;
    let explanation = tight.explain(&feeds, &y).unwrap().measured([&run]).unwrap();
    let node = explanation.node("doubled/mul").unwrap();
    let [first, again] = node.items() else { panic!("{node}") };
    assert!(explanation.why(*again).starts_with("computed again rather than kept"), "{node}");
    let found = explanation.measurement().unwrap();
    let times = [*first, *again].map(|item| found.items[item].unwrap());
    let nodes = run.nodes.iter().filter(|n| n.nodes == explanation.items()[*first].nodes);
    assert_eq!(times.iter().sum::<std::time::Duration>(), nodes.map(|n| n.time).sum());
}
