//! Models with branches, loops, assertions and readers. Semantics: TensorFlow 1.x, where control flow and readers are
//! nodes of a `GraphDef` like others (`python/framework/importer.py`), and what they have come to is no part of it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{Dim, Dims, LoadOptions, LoopOptions, ModelForm, ProducerOptions, SignatureSpec};
use convoke_tests::{Folder, TestDevice, compare, devices};

fn file(folder: &Folder) -> PathBuf {
    folder.path().join("model.safetensors")
}

fn load(folder: &Folder, device: &TestDevice) -> SavedModel {
    let session = SessionOptions {
        policy: device.policy.clone(),
        soft_placement: false,
        ..SessionOptions::default()
    };
    let options = LoadOptions { session, ..LoadOptions::default() };
    SavedModel::load_with(file(folder), &device.devices, options).unwrap()
}

fn bits(tensor: &HostTensor) -> (Vec<usize>, Vec<u8>) {
    (tensor.dims().to_vec(), tensor.bytes().to_vec())
}

/// Feeds, as every run of a model gets them.
type Fed = Vec<(&'static str, HostTensor)>;

/// What a graph gives and does, under names.
struct Built {
    graph: Graph,
    inputs: Vec<(&'static str, Tensor)>,
    outputs: Vec<(&'static str, Tensor)>,
    step: Option<Operation>,
}

impl Built {
    fn spec(&self, form: ModelForm) -> ModelSpec {
        let named = |list: &[(&str, Tensor)]| {
            list.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect()
        };
        let operations = self.step.iter().map(|step| ("step".to_owned(), step.clone()));
        let operations = operations.filter(|_| form == ModelForm::Trainable).collect();
        let (inputs, outputs) = (named(&self.inputs), named(&self.outputs));
        let signature = SignatureSpec { inputs, outputs, operations };
        ModelSpec { signature, form, signatures: Vec::new() }
    }

    fn run(&self, session: &Session, fed: &Fed) -> convoke::Result<Vec<HostTensor>> {
        let outputs: Vec<Tensor> = self.outputs.iter().map(|(_, tensor)| tensor.clone()).collect();
        run(session, &self.inputs, &outputs, self.step.as_ref(), fed)
    }
}

fn run(
    session: &Session,
    inputs: &[(&str, Tensor)],
    outputs: &[Tensor],
    step: Option<&Operation>,
    fed: &Fed,
) -> convoke::Result<Vec<HostTensor>> {
    let input = |name: &str| &inputs.iter().find(|(own, _)| *own == name).unwrap().1;
    let feeds: Vec<Feed<'_>> = fed.iter().map(|(name, value)| input(name).feed(value)).collect();
    Ok(session.run(&feeds, (outputs, step))?.0)
}

fn run_model(model: &SavedModel, built: &Built, fed: &Fed) -> convoke::Result<Vec<HostTensor>> {
    let inputs = built.inputs.iter().map(|(name, _)| (*name, model.input(name).unwrap().clone()));
    let inputs: Vec<(&str, Tensor)> = inputs.collect();
    let outputs = built.outputs.iter().map(|(name, _)| model.output(name).unwrap().clone());
    let outputs: Vec<Tensor> = outputs.collect();
    run(model.session(), &inputs, &outputs, model.operations().get("step"), fed)
}

/// Saves what was built after a run, and has the loaded model make the runs that the original makes.
fn check_trainable(what: &str, build: impl Fn() -> Built, fed: impl Fn(usize) -> Fed) {
    let folder = Folder::new("flow");
    for device in devices() {
        let built = build();
        assert!(built.graph.check().is_empty(), "{what}: {:?}", built.graph.check());
        let session = device.session(&built.graph);
        session.run(&[], (&built.graph.initializers(), &built.graph.local_initializers())).unwrap();
        built.run(&session, &fed(0)).unwrap();
        session.save_model(file(&folder), &built.spec(ModelForm::Trainable)).unwrap();
        let model = load(&folder, device);
        assert!(model.graph().check().is_empty(), "{what}: {:?}", model.graph().check());
        for turn in 1..5 {
            let expected = built.run(&session, &fed(turn)).unwrap();
            let found = run_model(&model, &built, &fed(turn)).unwrap();
            for ((found, expected), (name, _)) in found.iter().zip(&expected).zip(&built.outputs) {
                let is_same = bits(found) == bits(expected);
                let device = &device.name;
                assert!(is_same, "{what}, {name} on {device}: {found} instead of {expected}");
            }
        }
        let variables = built.graph.global_variables();
        for (own, theirs) in model.graph().global_variables().iter().zip(&variables) {
            let name = theirs.name();
            assert_eq!(own.name(), name);
            let (found, expected) =
                (model.session().run(&[], own).unwrap(), session.run(&[], theirs).unwrap());
            assert!(bits(&found) == bits(&expected), "{what}, {name} on {}", device.name);
        }
        // What was loaded can be saved as it is, and is the same again.
        let first = fs::read(file(&folder)).unwrap();
        let again = SavedModel::load(file(&folder), &device.devices).unwrap();
        let signature = SignatureSpec {
            inputs: again.inputs().clone().into_iter().collect(),
            outputs: again.outputs().clone().into_iter().collect(),
            operations: again.operations().clone().into_iter().collect(),
        };
        let spec = ModelSpec { signature, form: ModelForm::Trainable, signatures: Vec::new() };
        again.session().save_model(file(&folder), &spec).unwrap();
        assert!(fs::read(file(&folder)).unwrap() == first, "{what} on {}", device.name);
    }
}

fn numbers(n: usize, turn: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + turn * 5) % 11) as f32 / 5.0 - 1.0).collect()
}

fn xs(dims: [usize; 3], turn: usize) -> HostTensor {
    HostTensor::new(&dims, numbers(dims.iter().product(), turn)).unwrap()
}

/// A recurrent network over time, its loss, and a step of training; `noisy` also drops something.
fn recurrent(time: Option<usize>, noisy: bool) -> Built {
    let g = Graph::with_seed(7);
    let x = g.placeholder("x", F32, Dims::from_iter([time.into(), Dim::Known(2), Dim::Known(3)]));
    let w = g.variable("w", Init::glorot(1), F32, [3, 4]);
    let u = g.variable("u", Init::glorot(2), F32, [4, 4]);
    let out = g.variable("out", Init::glorot(3), F32, [4, 1]);
    let state = g.fill(&[2, 4], 0.0f32);
    let (last, all) = g.scan(state, x.clone(), |s, x| {
        let next = (x.matmul(&w) + s.matmul(&u)).tanh();
        let next = if noisy { next.dropout(0.5, 3) } else { next };
        (next.clone(), next.sum(1))
    });
    let y = last.matmul(&out).named("y");
    let loss = (y.square().mean(()) + all.square().mean(())).named("loss");
    let step = Adam::new(0.05).minimize(&loss);
    Built {
        graph: g,
        inputs: vec![("x", x)],
        outputs: vec![("loss", loss), ("y", y)],
        step: Some(step),
    }
}

#[test]
fn training_of_scans_goes_on_bit_for_bit() {
    for time in [Some(5), None] {
        for noisy in [false, true] {
            let what = format!("a scan over {time:?}, noisy {noisy}");
            let length = |turn| time.unwrap_or(3 + turn % 2);
            check_trainable(
                &what,
                || recurrent(time, noisy),
                |turn| vec![("x", xs([length(turn), 2, 3], turn))],
            );
        }
    }
}

#[test]
fn a_frozen_recurrent_network_gives_the_same() {
    let folder = Folder::new("frozen");
    for device in devices().iter().take(2) {
        for time in [Some(5), None] {
            let built = recurrent(time, false);
            let session = device.session(&built.graph);
            session.run(&[], built.graph.initializers()).unwrap();
            let fed = vec![("x", xs([5, 2, 3], 1))];
            built.run(&session, &fed).unwrap();
            let y = &built.outputs[1].1;
            let expected = session.run(&[built.inputs[0].1.feed(&fed[0].1)], y).unwrap();
            let x = &built.inputs[0].1;
            let spec = ModelSpec::frozen(&[("x", x)], &[("y", y)]);
            session.save_model(file(&folder), &spec).unwrap();
            let model = load(&folder, device);
            let feed = model.input("x").unwrap().feed(&fed[0].1);
            let found = model.session().run(&[feed], model.output("y").unwrap()).unwrap();
            compare(&format!("{time:?} on {}", device.name), &found, &expected, Some(1e-5));
            assert!(model.session().variables().is_empty());
            let text = model.graph().to_string();
            assert!(!text.contains("adam") && !text.contains("gradient"), "{text}");
            let is_loop = |node: &&std::sync::Arc<convoke::Node>| node.op.name() == "while";
            let nodes = model.graph().snapshot().nodes;
            assert_eq!(nodes.iter().filter(is_loop).count(), 1, "{text}");
            // The gradient of a frozen loop is that of the constants.
            let x = model.input("x").unwrap();
            let dx = model.output("y").unwrap().sum(()).gradients(&[x]).remove(0).unwrap();
            assert!(dx.node().invalid.is_none());
        }
    }
}

#[test]
fn gradients_without_what_they_are_of_are_kept() {
    // Of a branch in a loop, the way back has its own, whose bodies use what the way there has.
    let folder = Folder::new("gradients");
    let g = Graph::with_seed(2);
    let x = g.placeholder("x", F32, [4, 3]);
    let w = g.variable("w", Init::glorot(4), F32, [3, 3]);
    let (last, _) = g.scan(g.fill(&[3], 0.5f32), x.clone(), |s, x| {
        let a = s.expand_dims(0).matmul(&w).squeeze(&[0]) + x;
        let y = g.cond(&a.sum(()).greater(0.0), || a.tanh() * s, || &a * 0.5 + x);
        (y, ())
    });
    let dx = last.square().sum(()).gradients(&[&x]).remove(0).unwrap();
    let again = dx.square().sum(()).gradients(&[&x, w.value()]);
    let (dx2, dw2) = (again[0].clone().unwrap(), again[1].clone().unwrap());
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let values = HostTensor::new(&[4, 3], numbers(12, 3)).unwrap();
    for (name, y) in [("dx", &dx), ("dx2", &dx2), ("dw2", &dw2)] {
        let expected = session.run(&[x.feed(&values)], y).unwrap();
        for spec in [
            ModelSpec::frozen(&[("x", &x)], &[("y", y)]),
            ModelSpec::trainable(&[("x", &x)], &[("y", y)], &[]),
        ] {
            session.save_model(file(&folder), &spec).unwrap();
            let model = SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
            let feed = model.input("x").unwrap().feed(&values);
            let found = model.session().run(&[feed], model.output("y").unwrap()).unwrap();
            let what = format!("{name}, {:?}", spec.form);
            compare(&what, &found, &expected, Some(1e-4));
            if spec.form == ModelForm::Trainable {
                assert_eq!(bits(&found), bits(&expected), "{what}");
            }
        }
    }
}

/// Loops in loops with branches, in which variables change, something is drawn, and something must be true.
fn nested() -> Built {
    let g = Graph::with_seed(5);
    let x = g.placeholder("x", F32, [3]);
    let n = g.placeholder("n", I32, dims![]);
    let count = g.untrained_variable("count", Init::Zeros, I32, []);
    let total = g.variable("total", Init::Zeros, F32, [3]);
    let start = (g.constant(0i32), x.clone());
    let options = LoopOptions { max_iterations: Some(20), ..LoopOptions::default() };
    let (i, y) = g.while_loop_with(
        start,
        |(i, _)| i.less(&n),
        |(i, y)| {
            let is_small = y.square().sum(()).less(1e6);
            let check = g.assert(&is_small, "y is small", &[y]);
            let inner = (g.constant(0i32), g.after(&[&check], || y * 1.0));
            let (_, y) = g.while_loop(
                inner,
                |(j, _)| j.less(3),
                |(j, y)| {
                    let first = y.slice(&[0], &[Some(1)]).sum(());
                    let y = g.cond(
                        &first.greater(0.0),
                        || y - g.random_uniform(&[3], F32, 1),
                        || g.after(&[&count.assign_add(1i32).operation()], || y + 0.75),
                    );
                    (j + 1, y)
                },
            );
            let add = total.assign_add(&y).operation();
            (i + 1, g.after(&[&add], || y * 1.0))
        },
        options,
    );
    Built {
        graph: g,
        inputs: vec![("x", x), ("n", n)],
        outputs: vec![("i", i), ("y", y)],
        step: None,
    }
}

#[test]
fn loops_with_effects_go_on_where_they_were() {
    let fed = |turn: usize| -> Fed {
        let n = HostTensor::from(1 + turn as i32);
        vec![("x", numbers(3, turn).into()), ("n", n)]
    };
    check_trainable("loops in loops", nested, fed);
    // What must be true is still checked, and changes nothing.
    let folder = Folder::new("assert");
    let built = nested();
    let session = Session::new(&built.graph, &Devices::cpu()).unwrap();
    session.run(&[], built.graph.initializers()).unwrap();
    session.save_model(file(&folder), &built.spec(ModelForm::Trainable)).unwrap();
    let model = SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
    let fed = vec![("x", [1e4f32, 0.0, 0.0].into()), ("n", 2i32.into())];
    let error = run_model(&model, &built, &fed).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("assertion failed: y is small; f32[3] [10000, 0, 0]"));
    let total = model.graph().tensor("total/read").unwrap();
    assert_eq!(model.session().run(&[], &total).unwrap().to_vec::<f32>().unwrap(), [0.0; 3]);
    // A frozen model changes nothing.
    let error = session.save_model(file(&folder), &built.spec(ModelForm::Frozen)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("which changes a variable"), "{error}");
}

/// A branch that captures two tensors and reads a variable, and loops of known and unknown length.
fn branches() -> Built {
    let g = Graph::new();
    let x = g.placeholder("x", F32, [2]);
    let p = g.placeholder("p", Bool, dims![]);
    let v = g.variable("v", Init::Constant(1.5), F32, []);
    let twice = &x * 2.0;
    let y = g.cond(&p, || &x * &v, || (&twice + &x).identity());
    let same = g.cond(&p, || x.clone(), || twice.clone());
    let start = (g.constant(0i32), y.clone());
    let (_, known) = g.while_loop(start, |(i, _)| i.less(4), |(i, z)| (i + 1, z * &v));
    let start = g.constant(1.0f32);
    let limit = x.sum(());
    let power = g.while_loop(start, |z| z.less(&limit), |z| z * 2.0);
    let loss = known.sum(());
    let step = Sgd::new(0.01).minimize(&loss);
    Built {
        graph: g,
        inputs: vec![("x", x), ("p", p)],
        outputs: vec![("y", y), ("same", same), ("known", known), ("power", power)],
        step: Some(step),
    }
}

#[test]
fn branches_and_loops_are_kept() {
    let fed = |turn: usize| -> Fed {
        let x = [turn as f32 + 0.5, 1.0];
        vec![("x", x.into()), ("p", turn.is_multiple_of(2).into())]
    };
    check_trainable("branches and loops", branches, fed);
    let folder = Folder::new("branches");
    let built = branches();
    let session = Session::new(&built.graph, &Devices::cpu()).unwrap();
    session.run(&[], built.graph.initializers()).unwrap();
    session.save_model(file(&folder), &built.spec(ModelForm::Frozen)).unwrap();
    let model = SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
    let run = |p: bool| {
        let fed = vec![("x", [1.0f32, 2.0].into()), ("p", p.into())];
        let found = run_model(&model, &built, &fed).unwrap();
        found.iter().map(|tensor| tensor.to_vec::<f32>().unwrap()).collect::<Vec<_>>()
    };
    let known = |y: f32| y * 1.5 * 1.5 * 1.5 * 1.5;
    let found = run(true);
    assert_eq!(found[..2], [vec![1.5, 3.0], vec![1.0, 2.0]]);
    assert_eq!(found[2..], [vec![known(1.5), known(3.0)], vec![4.0]]);
    assert_eq!(run(false)[..2], [vec![3.0, 6.0], vec![2.0, 4.0]]);
}

#[test]
fn what_lies_inside_of_a_body_is_no_part_of_a_spec() {
    let folder = Folder::new("inside");
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let p = g.placeholder("p", Bool, dims![]);
    let mut inside = None;
    let y = g.cond(
        &p,
        || {
            let y = &x * 2.0;
            inside = Some(y.clone());
            y
        },
        || x.clone(),
    );
    let inside = inside.unwrap();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for spec in [
        ModelSpec::frozen(&[("x", &inside)], &[("y", &y)]),
        ModelSpec::frozen(&[("x", &x)], &[("y", &inside)]),
        ModelSpec::trainable(&[], &[("y", &y)], &[("op", &inside.operation())]),
    ] {
        let error = session.save_model(file(&folder), &spec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("lies inside of a branch or loop"), "{error}");
    }
    // What is captured may be fed instead.
    let z = &x * 3.0;
    let y = g.cond(&p, || &z + &x, || z.clone());
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let spec = ModelSpec::frozen(&[("z", &z), ("x", &x), ("p", &p)], &[("y", &y)]);
    session.save_model(file(&folder), &spec).unwrap();
    let model = SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
    let input = |name| model.input(name).unwrap();
    let run = |p: bool| {
        let feeds = [input("z").feed(5.0f32), input("x").feed(1.0f32), input("p").feed(p)];
        model.session().run(&feeds, model.output("y").unwrap()).unwrap().scalar::<f32>().unwrap()
    };
    assert_eq!((run(true), run(false)), (6.0, 5.0));
}

/// A small model with a branch in a loop, as bytes.
fn small(folder: &Folder) -> Vec<u8> {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let v = g.variable("v", Init::Constant(1.5), F32, []);
    let start = (g.constant(0i32), x.clone());
    let (_, y) = g.while_loop(
        start,
        |(i, y)| i.less(3) & y.less(9.0),
        |(i, y)| (i + 1, g.cond(&y.less(2.0), || y * &v, || y + &x)),
    );
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let spec = ModelSpec::trainable(&[("x", &x)], &[("y", &y)], &[]);
    session.save_model(file(folder), &spec).unwrap();
    fs::read(file(folder)).unwrap()
}

#[test]
fn no_damage_of_bodies_makes_it_panic() {
    let folder = Folder::new("damage");
    let whole = small(&folder);
    let devices = Devices::cpu();
    let try_out = || -> convoke::Result<f32> {
        // A loop of which a bit says that it goes on for ever is stopped.
        let timeout = Some(Duration::from_millis(300));
        let session = SessionOptions { threads: 1, timeout, ..SessionOptions::default() };
        let options = LoadOptions { session, ..LoadOptions::default() };
        let model = SavedModel::load_with(file(&folder), &devices, options)?;
        let feed = model.input("x")?.feed(1.0f32);
        model.session().run(&[feed], model.output("y")?)?.scalar::<f32>()
    };
    // 1, 1.5, 2.25, 3.25.
    assert_eq!(try_out().unwrap(), 3.25);
    let rewrite = |bytes: &[u8]| {
        fs::remove_file(file(&folder)).unwrap();
        fs::write(file(&folder), bytes).unwrap();
    };
    for length in 0..whole.len() {
        rewrite(&whole[..length]);
        let error = try_out().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{length}: {error}");
    }
    let mut refused = 0;
    // Every third, by which every bit of a byte has its turn.
    for bit in (0..whole.len() * 8).step_by(3) {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        rewrite(&bytes);
        if let Err(error) = try_out() {
            assert_ne!(error.kind(), ErrorKind::Internal, "bit {bit}: {error}");
            refused += 1;
        }
    }
    assert!(refused > whole.len() / 3, "{refused} of {} bits", whole.len() * 8 / 3);
}

#[test]
fn readers_and_producers_are_kept() {
    let folder = Folder::new("readers");
    let lines = folder.path().join("lines.txt");
    fs::write(&lines, "head\none\ntwo\nthree\n").unwrap();
    let g = Graph::with_seed(1);
    let names = [lines.to_str().unwrap().to_owned()];
    let options = ProducerOptions { epochs: Some(3), ..ProducerOptions::default() };
    let queue = g.string_input_producer("files", names, options);
    let reader = g.text_line_reader("reader", 1);
    let (_, line) = reader.read(&queue);
    let produced = reader.num_records_produced();
    let fill = g.queue_runners()[0].enqueues()[0].clone();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let text = |session: &Session, line: &Tensor| {
        session.run(&[], line).unwrap().as_strings().unwrap()[0].to_vec()
    };
    session.run(&[], &fill).unwrap();
    assert_eq!(text(&session, &line), b"one");
    let outputs = [("line", &line), ("produced", &produced)];
    let spec = ModelSpec::trainable(&[], &outputs, &[("fill", &fill)]);
    session.save_model(file(&folder), &spec).unwrap();
    let model = SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
    // Nothing has been read, and all epochs are there again.
    let own = |name: &str| model.output(name).unwrap();
    let counted = |model: &SavedModel| {
        model.session().run(&[], own("produced")).unwrap().scalar::<i64>().unwrap()
    };
    assert_eq!(counted(&model), 0);
    for epoch in 0..3 {
        model.session().run(&[], model.operation("fill").unwrap()).unwrap();
        for expected in ["one", "two", "three"] {
            let found = text(model.session(), own("line"));
            assert_eq!(found, expected.as_bytes(), "epoch {epoch}");
        }
    }
    assert_eq!(counted(&model), 9);
    let error = model.session().run(&[], model.operation("fill").unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    assert_eq!(text(&session, &line), b"two");
}
