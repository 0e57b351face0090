//! Runs with branches, loops and assertions, explained part by part.

use convoke::prelude::*;
use convoke::{Explanation, LoopOptions, RunOptions, StepWork, Trips};
use convoke_tests::{TestDevice, devices};
use expect_test::{Expect, expect};
use serde_json::Value;

use super::browser::{Page, attribute};

/// A session on the CPU alone, one kernel after the other.
fn session(g: &Graph) -> Session {
    Session::new(g, &Devices::cpu()).unwrap()
}

/// Compares the tree, without programs' tables and figures of the cost model.
#[track_caller]
fn check(explanation: &Explanation, expected: Expect) {
    let text = explanation.to_string();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('|'));
    let plain = lines.map(|line| match line.split_once(": predicted ") {
        Some((title, _)) => format!("{title}: predicted"),
        None => match (line.rsplit_once(", "), line.ends_with(" a trip")) {
            (Some((title, _)), true) => format!("{title}, .. a trip"),
            _ => line.to_owned(),
        },
    });
    let plain: Vec<String> = plain.collect();
    expected.assert_eq(&(plain.join("\n") + "\n"));
}

fn json(explanation: &Explanation) -> Value {
    serde_json::from_str(&explanation.to_json()).unwrap()
}

/// A branch with a program on one side, which asks for what is fed.
struct Chosen {
    g: Graph,
    x: Tensor,
    y: Tensor,
}

impl Chosen {
    fn new() -> Self {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let big = g.scope("ask", || x.sum(()).greater(1.0));
        let chosen = g.scope("choose", || g.cond(&big, || (&x * 2.0).tanh(), || x.clone()));
        let y = g.scope("end", || chosen.exp());
        Self { g, x, y }
    }
}

#[test]
fn a_branch_has_parts_of_which_one_runs() {
    let Chosen { g, x, y } = Chosen::new();
    let session = session(&g);
    let explanation = session.explain(&[x.feed([1.0f32; 4])], &y).unwrap();
    check(
        &explanation,
        expect![[r#"
        3 programs, and between them what the data decides
        program 0: predicted
          takes x f32[4], 16 B
          gives ask/greater bool[], 1 B
        branch choose/cond: one of 2 parts
          takes ask/greater bool[], 1 B
          takes x f32[4], 16 B
          gives choose/cond f32[4], 16 B
          part 0: nothing runs
          part 1
            program 1: predicted
              takes x f32[4], 16 B
              gives choose/tanh f32[4], 16 B
        program 2: predicted
          takes choose/cond f32[4], 16 B
          gives end/exp f32[4], 16 B
    "#]],
    );
    assert!(explanation.items().is_empty());
    let parts = explanation.parts().unwrap();
    assert_eq!(parts.known().count(), parts.programs.len());
    // All programs are predicted, the dearer branch counts.
    let whole = parts.predicted(&parts.whole).unwrap();
    assert_eq!(explanation.predicted().as_nanos() as u64, whole / 1000);
    let node = explanation.node("end/exp").unwrap();
    assert!(node.to_string().contains("end/exp at tests/"), "{node}");
    let error = explanation.node("end/ex").unwrap_err();
    assert!(error.message().contains("near names are end/exp"), "{error}");
    // Each program is explained as if it were a run.
    let text = explanation.to_string();
    assert!(text.contains("  | memory of a run on CPU:0"), "{text}");
}

#[test]
fn loops_say_how_often_they_go_round() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![3]);
    let rows = g.placeholder("rows", F32, dims![None, 3]);
    let [until, scanned] = [
        g.scope("until", || g.while_loop(x.clone(), |x| x.sum(()).less(100.0), |x| x * 2.0 + 1.0)),
        g.scope("over", || {
            let (_, sums) = g.scan(x.clone(), rows.clone(), |sum, row| {
                let next = (sum + row).tanh();
                (next.clone(), next)
            });
            sums
        }),
    ];
    let session = session(&g);
    let feeds = [x.feed([1.0f32; 3]), rows.feed([[1.0f32; 3]; 5])];
    let explanation = session.explain(&feeds, (&until, &scanned)).unwrap();
    check(
        &explanation,
        expect![[r#"
        3 programs, and between them what the data decides
        program 0: predicted
          takes x f32[3], 12 B
          gives until/less bool[], 1 B
        loop until/while: until the data says so, .. a trip
          takes until/less bool[], 1 B
          takes x f32[3], 12 B
          gives until/while f32[3], 12 B
          program 1: predicted
            takes carried 0 of until/while f32[3], 12 B
            gives until/add f32[3], 12 B
            gives until/less_1 bool[], 1 B
        loop over/while: 5 trips, .. a trip
          takes x f32[3], 12 B
          takes rows f32[5, 3], 60 B
          gives over/while:1 f32[5, 3], 60 B
          program 2: predicted
            takes carried 0 of over/while f32[3], 12 B
            takes slice 0 of over/while f32[3], 12 B
            gives over/tanh f32[3], 12 B
    "#]],
    );
    let parts = explanation.parts().unwrap();
    let loops: Vec<Trips> = parts
        .whole
        .steps
        .iter()
        .filter_map(|step| match &step.work {
            StepWork::Loop(_, trips, _) => Some(*trips),
            _ => None,
        })
        .collect();
    assert!(loops.contains(&Trips::Unknown) && loops.contains(&Trips::Known(5)), "{loops:?}");
}

#[test]
fn loops_on_gpus_say_what_stays_there() {
    for device in devices().iter().filter(|device| device.devices.list().len() > 1) {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![64, 64]);
        let counted = g.scope("counted", || {
            let start = (g.constant(0i32), x.clone());
            g.while_loop(start, |(i, _)| i.less(10_000), |(i, x)| (i + 1, x + 0.25)).1
        });
        let until = g
            .scope("until", || g.while_loop(x.clone(), |x| x.sum(()).less(1e6), |x| x * 2.0 + 1.0));
        let session = device.session(&g);
        let zeros = HostTensor::new(&[64, 64], vec![0.0f32; 4096]).unwrap();
        let explanation = session.explain(&[x.feed(&zeros)], (&counted, &until)).unwrap();
        let parts = explanation.parts().unwrap();
        let step = |name: &str| {
            let is_it = |node: &convoke::StepNode| node.name.starts_with(name);
            parts.whole.steps.iter().find(|step| step.node().is_some_and(is_it)).unwrap()
        };
        let (first, second) = (step("counted"), step("until"));
        let StepWork::Loop(_, trips, _) = &first.work else { panic!("{first:?}") };
        assert_eq!(*trips, Trips::Known(10_000), "{}", device.name);
        let [first, second] = [first, second].map(|step| step.stays.clone().unwrap());
        assert_eq!((first.trips, second.trips), (Some(128), Some(1)), "{}", device.name);
        assert_eq!(first.devices, ["GPU:0".into()], "{}", device.name);
        let text = explanation.to_string();
        let said = "a trip, 128 in a program; what is carried stays on GPU:0";
        assert!(text.contains(said), "{text}");
        let said = "a trip, each its own program; what is carried stays on GPU:0";
        assert!(text.contains(said), "{text}");
        let steps = json(&explanation)["part"]["steps"].clone();
        let stays = steps.as_array().unwrap().iter().map(|step| step["stays"].clone());
        let programs: Vec<Value> = stays.map(|stays| stays["trips_a_program"].clone()).collect();
        assert!(programs.contains(&Value::from(128)), "{programs:?}");
        // A run that was timed fits, though its programs are many trips.
        let (_, metadata) =
            session.run_with(&[x.feed(&zeros)], (&counted, &until), RunOptions::timed()).unwrap();
        assert!(explanation.measured([&metadata]).is_ok(), "{}", device.name);
        let alone = session.explain(&[x.feed(&zeros)], &counted).unwrap();
        let (_, metadata) =
            session.run_with(&[x.feed(&zeros)], &counted, RunOptions::timed()).unwrap();
        assert!(alone.measured([&metadata]).is_ok(), "{}", device.name);
        // One of another loop alone does not, though none of its programs is one trip.
        let other = g.scope("other", || {
            let start = (g.constant(0i32), x.clone());
            g.while_loop(start, |(i, _)| i.less(9_000), |(i, x)| (i + 1, x.tanh() - 0.25)).1
        });
        let (_, metadata) =
            session.run_with(&[x.feed(&zeros)], &other, RunOptions::timed()).unwrap();
        let error = alone.measured([&metadata]).unwrap_err();
        assert!(error.message().contains("another program"), "{}: {error}", device.name);
    }
}

/// How many trips are one program is known when a loop begins, where a program before it or another loop says so.
#[test]
fn loops_on_gpus_whose_length_a_run_finds_stay_there() {
    for device in devices().iter().filter(|device| device.devices.list().len() > 1) {
        let g = Graph::new();
        let (x, n) = (g.placeholder("x", F32, dims![8]), g.placeholder("n", I32, dims![]));
        let limit = &n * 3;
        let counted = g.scope("counted", || {
            let start = (g.constant(0i32), x.clone());
            g.while_loop(start, |(i, _)| i.less(&limit), |(i, x)| (i + 1, x + 0.25)).1
        });
        let until =
            g.scope("until", || g.while_loop(x.clone(), |x| x.sum(()).less(1e6), |x| x * 2.0));
        let back = until.sum(()).gradients(&[&x])[0].clone().unwrap();
        let session = device.session(&g);
        let feeds = [x.feed([1.0f32; 8]), n.feed(1000)];
        let trips = |y: &Tensor| -> Vec<Option<u64>> {
            let explanation = session.explain(&feeds, y).unwrap();
            let steps = &explanation.parts().unwrap().whole.steps;
            steps.iter().filter_map(|step| Some(step.stays.as_ref()?.trips)).collect()
        };
        assert_eq!(trips(&counted), [None], "{}", device.name);
        assert_eq!(trips(&back), [Some(1), None], "{}", device.name);
        let text = session.explain(&feeds, &counted).unwrap().to_string();
        assert!(text.contains("as many in a program as pay when the loop begins"), "{text}");
        let (_, metadata) = session.run_with(&feeds, &counted, RunOptions::default()).unwrap();
        assert!(metadata.submissions < 200, "{} on {}", metadata.submissions, device.name);
    }
}

#[test]
fn what_only_a_run_knows_is_said() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![2]);
    let options = LoopOptions { invariants: vec![Some(dims![None])], ..Default::default() };
    let grown = g.scope("grow", || {
        g.while_loop_with(x.clone(), |x| x.sum(()).less(10.0), |x| g.concat(&[x, x], 0), options)
    });
    let y = g.scope("end", || (&grown * 2.0).tanh());
    let sure = g.assert(&y.sum(()).greater(0.0), "positive", &[&y]);
    let session = session(&g);
    let explanation = session.explain(&[x.feed([1.0f32; 2])], (&y, &sure)).unwrap();
    check(
        &explanation,
        expect![[r#"
        3 programs, and between them what the data decides
        program 0: predicted
          takes x f32[2], 8 B
          gives grow/less bool[], 1 B
        loop grow/while: until the data says so, .. a trip
          takes grow/less bool[], 1 B
          takes x f32[2], 8 B
          gives grow/while, whose shape only a run knows
          program 1: predicted
            takes carried 0 of grow/while f32[2], 8 B
            gives grow/concat f32[4], 16 B
            gives grow/less_1 bool[], 1 B
        program 2: not known before a run: the shape of grow/while is
          takes grow/while, whose shape only a run knows
          gives end/tanh, whose shape only a run knows
          gives greater bool[], 1 B
        assertion assert
          takes greater bool[], 1 B
          takes end/tanh, whose shape only a run knows
    "#]],
    );
    // What is known is summed up: one trip of the loop, and what asks whether it runs.
    let known: u128 = explanation
        .parts()
        .unwrap()
        .known()
        .map(|(_, program)| program.predicted().as_nanos())
        .sum();
    let predicted = explanation.predicted().as_nanos();
    assert!(known > 0 && predicted.abs_diff(known) <= 2, "{predicted} of {known}");
    // The places of the others stay, when one program is not known.
    let z = g.scope("late", || (&grown * 2.0).cast(I64).cast(F32).sum(()).cos());
    let again = g.while_loop(z, |z| z.less(-2.0), |z| z.sqrt());
    let feeds = [x.feed([1.0f32; 2])];
    let later = session.explain(&feeds, &again).unwrap();
    let expected: Vec<usize> = later.parts().unwrap().known().map(|(at, _)| at).collect();
    let places: Vec<usize> =
        session.programs(&feeds, &again).unwrap().into_iter().map(|(at, _)| at).collect();
    assert_eq!(places, expected);
    assert!(places.iter().enumerate().any(|(own, at)| own != *at), "{later}");
    let json = json(&explanation);
    assert!(json["predicted_us"].is_null(), "{json}");
    let unknown: Vec<&Value> =
        json["programs"].as_array().unwrap().iter().filter(|p| !p["unknown"].is_null()).collect();
    assert_eq!(unknown.len(), 1, "{json}");
    // It runs all the same.
    let y = session.run(&[x.feed([1.0f32; 2])], &y).unwrap();
    assert_eq!(y.dims(), [16]);
}

/// A branch in a loop, with a variable that the loop assigns and an assertion.
fn nested(g: &Graph) -> (Tensor, Tensor, Operation) {
    let x = g.placeholder("x", F32, dims![4]);
    let v = g.variable("v", Init::Constant(1.0), F32, [4]);
    let (y, end) = g.scope("rounds", || {
        g.while_loop(
            (x.clone(), g.constant(0i32)),
            |(_, i)| i.less(3),
            |(x, i)| {
                let x = g.scope("side", || {
                    g.cond(&x.sum(()).greater(5.0), || x - v.value(), || (x * 2.0).tanh())
                });
                (x, i + 1)
            },
        )
    });
    let checked = g.scope("check", || g.assert(&end.equal(3), "three rounds", &[&end]));
    (x, y, checked)
}

#[test]
fn json_has_parts_in_parts() {
    let g = Graph::new();
    let (x, y, checked) = nested(&g);
    for device in devices() {
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let feeds = [x.feed([1.0f32; 4])];
        let explanation = session.explain(&feeds, (&y, &checked)).unwrap();
        let json = json(&explanation);
        let steps = json["part"]["steps"].as_array().unwrap();
        let kinds: Vec<&str> = steps.iter().map(|step| step["kind"].as_str().unwrap()).collect();
        assert!(kinds.contains(&"loop") && kinds.contains(&"assertion"), "{kinds:?}");
        let round = steps.iter().find(|step| step["kind"] == "loop").unwrap();
        let body = &round["parts"][0];
        assert!(body["predicted_us"].as_f64().unwrap() > 0.0, "{body}");
        let inner = body["steps"].as_array().unwrap();
        let side = inner.iter().find(|step| step["kind"] == "branch").unwrap();
        assert_eq!(side["parts"].as_array().unwrap().len(), 2);
        assert!(side["location"].as_str().unwrap().contains("parts.rs:"), "{side}");
        // Whoever takes something that a step gave names it by the same number.
        let given: Vec<&Value> =
            inner.iter().flat_map(|step| step["gives"].as_array().unwrap()).collect();
        let taken = side["takes"].as_array().unwrap();
        assert!(
            taken.iter().any(|taken| given.iter().any(|given| given["id"] == taken["id"])),
            "{body}"
        );
        // Each program is as a run's, with its own items.
        for program in json["programs"].as_array().unwrap() {
            assert!(program["items"].is_array() && program["measured"].is_null(), "{program}");
        }
        let devices = explanation.devices();
        assert_eq!(devices.len(), device.devices.list().len());
    }
}

#[test]
fn programs_are_measured_each_time_that_they_run() {
    let g = Graph::new();
    let (x, y, checked) = nested(&g);
    for device in devices() {
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let feeds = [x.feed([1.0f32; 4])];
        let run = || session.run_with(&feeds, (&y, &checked), RunOptions::timed()).unwrap().1;
        run();
        let runs = [run(), run()];
        let explanation = session.explain(&feeds, (&y, &checked)).unwrap();
        let measured = explanation.measured(&runs).unwrap();
        assert_eq!(measured.measurement().unwrap().runs, 2);
        let parts = measured.parts().unwrap();
        let times: Vec<usize> =
            parts.known().map(|(_, own)| own.measurement().map_or(0, |own| own.runs)).collect();
        // What a trip asks runs three times in each run; of the sides, one or the other.
        assert_eq!(times.iter().max(), Some(&6), "{}: {times:?}\n{measured}", device.name);
        let text = measured.to_string();
        assert!(text.contains("measured in 2 runs: "), "{text}");
        assert!(text.contains("| measured in 6 runs: "), "{text}");
        let plain = session.explain(&[], g.initializers()).unwrap();
        assert!(plain.measured(&runs).is_err());
        let untimed = session.run_with(&feeds, &y, RunOptions::default()).unwrap().1;
        let error = explanation.measured([&untimed]).unwrap_err();
        assert!(error.message().contains("Timings::Nodes"), "{error}");
    }
}

/// Steps are nodes, too, and what one gives to another is not given to the run.
#[test]
fn nodes_are_looked_for_in_steps() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![3]);
    let y = g.scope("until", || g.while_loop(x.clone(), |x| x.sum(()).less(100.0), |x| x * 2.0));
    let sure = g.scope("check", || g.assert(&y.sum(()).greater(0.0), "positive", &[&y]));
    let z = g.scope("end", || y.exp());
    let session = session(&g);
    let feeds = [x.feed([1.0f32; 3])];
    let explanation = session.explain(&feeds, &y).unwrap();
    let node = explanation.node(&y).unwrap();
    assert_eq!(node.step().unwrap().kind(), "loop");
    assert!(node.items().is_empty() && node.absent().is_none());
    let text = node.to_string();
    assert!(text.starts_with("until/while at tests/"), "{text}");
    assert!(
        text.contains("loop, a step of the run") && text.contains("  gives until/while"),
        "{text}"
    );
    let json: Value = serde_json::from_str(&node.to_json()).unwrap();
    assert_eq!((&json["step"]["kind"], &json["absent"]), (&"loop".into(), &Value::Null));
    let explanation = session.explain(&feeds, (&z, &sure)).unwrap();
    assert_eq!(explanation.node(&y).unwrap().step().unwrap().kind(), "loop");
    assert_eq!(explanation.node(&sure).unwrap().step().unwrap().kind(), "assertion");
    // Of the programs, one is given what the loop gives, and none but the caller's is fed.
    let parts = explanation.parts().unwrap();
    let why = |name: &str| {
        let all = parts.known().flat_map(|(_, program)| program.absent());
        let all: Vec<&str> = all.filter(|node| &*node.name == name).map(|node| node.why).collect();
        assert!(!all.is_empty(), "{name}");
        all
    };
    assert!(why("until/while").iter().all(|why| *why == "given by an earlier step of the run"));
    assert!(why("x").iter().all(|why| *why == "fed: it is given to the run"));
    assert!(explanation.node(&x).unwrap().to_string().contains("given to the run"));
    let error = explanation.node("check/asser").unwrap_err();
    assert!(error.message().contains("near names are check/assert"), "{error}");
}

/// What comes from queues has the shape that the queue says.
#[test]
fn what_queues_give_has_a_shape() {
    let g = Graph::new();
    let queue = g.fifo_queue("queue", 9, [(F32, dims![2])]);
    let taken = queue.dequeue().remove(0);
    let y = g.cond(&taken.sum(()).greater(0.0), || taken.exp(), || taken.tanh());
    let explanation = session(&g).explain(&[], &y).unwrap();
    assert_eq!(explanation.parts().unwrap().known().count(), 3, "{explanation}");
    assert!(explanation.to_string().contains("takes queue_dequeue f32[2], 8 B"), "{explanation}");
}

/// A run of other parts is not measured in silence.
#[test]
fn runs_of_other_parts_are_refused() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![3]);
    let y = g.while_loop(x.clone(), |x| x.sum(()).less(100.0), |x| x * 2.0);
    let z = g.while_loop(x.clone(), |x| x.max(()).less(100.0), |x| x.exp() + 1.0);
    let session = session(&g);
    let feeds = [x.feed([1.0f32; 3])];
    let timed = |y: &Tensor| session.run_with(&feeds, y, RunOptions::timed()).unwrap().1;
    let (own, other) = (timed(&y), timed(&z));
    let explanation = session.explain(&feeds, &y).unwrap();
    explanation.measured([&own]).unwrap();
    for runs in [vec![&other], vec![&own, &other]] {
        let error = explanation.measured(runs).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains("another program"), "{error}");
    }
}

/// A loop that goes round on the host without a look-up is measured trip by trip as well.
#[test]
fn quick_loops_are_measured() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![3]);
    let y = g.while_loop(x.clone(), |x| x.sum(()).less(100.0), |x| x * 2.0);
    let session = session(&g);
    let feeds = [x.feed([1.0f32; 3])];
    let (_, run) = session.run_with(&feeds, &y, RunOptions::timed()).unwrap();
    let measured = session.explain(&feeds, &y).unwrap().measured([&run]).unwrap();
    let parts = measured.parts().unwrap();
    let most = parts.known().filter_map(|(_, own)| own.measurement()).map(|own| own.runs).max();
    // 3, 6, 12, 24, 48, 96, 192.
    assert_eq!(most, Some(6), "{measured}");
}

#[test]
fn graphs_have_clusters_in_clusters() {
    let g = Graph::new();
    let (x, y, checked) = nested(&g);
    let explanation = session(&g).explain(&[x.feed([1.0f32; 4])], (&y, &checked)).unwrap();
    let dot = explanation.to_dot();
    assert_eq!(dot.matches('{').count(), dot.matches('}').count(), "{dot}");
    assert_eq!(dot.matches("digraph").count(), 1);
    let depth = |needle: &str| {
        let before = &dot[..dot.find(needle).unwrap()];
        before.matches('{').count() - before.matches('}').count()
    };
    // digraph, loop, body, branch: within it, its parts.
    assert!(dot.contains("label=\"loop rounds/"), "{dot}");
    assert_eq!(depth("label=\"loop rounds/"), 2, "{dot}");
    assert_eq!(depth("label=\"branch rounds/side/"), 4, "{dot}");
    let n_programs = explanation.parts().unwrap().programs.len();
    for at in 0..n_programs {
        assert!(dot.contains(&format!("label=\"program {at}: predicted")), "{dot}");
        assert!(dot.contains(&format!("subgraph cluster_p{at}_0 {{")), "{dot}");
    }
    // Values go from step to step.
    assert!(dot.contains(" -> s"), "{dot}");
}

#[test]
fn a_page_lists_parts_and_draws_a_program() {
    let g = Graph::new();
    let (x, y, checked) = nested(&g);
    let explanation = session(&g).explain(&[x.feed([1.0f32; 4])], (&y, &checked)).unwrap();
    let html = explanation.to_html();
    let n = explanation.parts().unwrap().programs.len();
    let Some(dom) = Page::new(&html).open("") else { return };
    assert_eq!(attribute(&dom, "data-error"), None);
    assert!(dom.contains("Parts of the run"), "the tree");
    assert!(dom.contains("<b>loop rounds/"), "the loop");
    assert!(dom.contains("<b>branch rounds/side/"), "the branch in it");
    assert!(dom.contains(&format!("program 0 of {n}: ")), "the program that is drawn");
    assert!(dom.contains(&format!("href=\"#program={}\"", n - 1)), "the way to the others");
    // Another program by its number, and by a node of it.
    let dom = Page::new(&html).open(&format!("#program={}", n - 1)).unwrap();
    assert_eq!(attribute(&dom, "data-error"), None);
    assert!(dom.contains(&format!("program {} of {n}: ", n - 1)));
    let dom = Page::new(&html).open("#tanh").unwrap();
    assert_eq!(attribute(&dom, "data-error"), None);
    assert!(attribute(&dom, "data-selected").unwrap().contains("tanh"), "the node");
}

#[test]
fn programs_of_parts_are_given() {
    let Chosen { g, x, y } = Chosen::new();
    let session = session(&g);
    let feeds = [x.feed([1.0f32; 4])];
    let programs = session.programs(&feeds, &y).unwrap();
    let explanation = session.explain(&feeds, &y).unwrap();
    assert_eq!(programs.len(), explanation.parts().unwrap().programs.len());
    let (at, first) = &programs[0];
    assert_eq!(*at, 0);
    assert!(first.to_string().contains("Sum after 0 axes"), "{first}");
    let error = session.program(&feeds, &y).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    assert!(error.message().contains("Session::programs"), "{error}");
    // A plain run has one.
    let [(0, one)] = &session.programs(&feeds, &x * 3.0).unwrap()[..] else {
        panic!("one program")
    };
    assert_eq!(one.to_string(), session.program(&feeds, &x * 3.0).unwrap().to_string());
}

/// Explaining makes the programs that a run then has.
#[test]
fn a_run_after_it_makes_no_program() {
    for device in devices().iter().map(TestDevice::alone) {
        let g = Graph::new();
        let (x, y, checked) = nested(&g);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let feeds = [x.feed([1.0f32; 4])];
        session.explain(&feeds, (&y, &checked)).unwrap();
        let fetch = (&y, &checked);
        let (_, run) = session.run_with(&feeds, fetch, RunOptions::default()).unwrap();
        assert!(run.program_cached, "{}: {run}", device.name);
    }
}
