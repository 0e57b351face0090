//! Models: a graph and its variables in one file. Semantics: TensorFlow 1.x, `python/saved_model` and
//! `python/framework/graph_util_impl.py`, by meaning.

use std::path::{Path, PathBuf};

use convoke::cases::{Case, NAMES};
use convoke::prelude::*;
use convoke::{
    BatchNorm, LoadOptions, ModelForm, QueueKind, QueueOptions, QueueRunner, RunOptions,
    SignatureSpec, TableOptions,
};
use convoke_tests::{Folder, TestDevice, compare, devices};

fn options(device: &TestDevice) -> LoadOptions {
    let session = SessionOptions {
        policy: device.policy.clone(),
        soft_placement: false,
        ..SessionOptions::default()
    };
    LoadOptions { session, ..LoadOptions::default() }
}

fn load(path: &Path, device: &TestDevice) -> SavedModel {
    SavedModel::load_with(path, &device.devices, options(device)).unwrap()
}

fn file(folder: &Folder) -> PathBuf {
    folder.path().join("model.safetensors")
}

fn bits(tensor: &HostTensor) -> (Vec<usize>, Vec<u8>) {
    (tensor.dims().to_vec(), tensor.bytes().to_vec())
}

#[track_caller]
fn assert_bits(found: &HostTensor, expected: &HostTensor, what: &str) {
    assert!(bits(found) == bits(expected), "{what}: {found} instead of {expected}");
}

/// The spec of a case: what it is fed under the placeholders' names, its value, its step.
fn spec_of(case: &Case, form: ModelForm) -> ModelSpec {
    let graph = case.graph();
    let inputs = case.feeds().map(|(name, _)| (name.clone(), graph.tensor(&name).unwrap()));
    let operations = case.step().filter(|_| form == ModelForm::Trainable);
    let signature = SignatureSpec {
        inputs: inputs.collect(),
        outputs: vec![("value".into(), case.fetch().clone())],
        operations: operations.map(|step| ("step".into(), step.clone())).into_iter().collect(),
    };
    ModelSpec { signature, form, signatures: Vec::new() }
}

#[test]
fn every_case_gives_the_same_bits_frozen_and_trainable() {
    let folder = Folder::new("cases");
    for device in devices().iter().take(2) {
        for name in NAMES {
            let by = if name.starts_with('B') { 64 } else { 16 };
            let case = Case::reduced(name, by).unwrap();
            let fed: Vec<(String, HostTensor)> =
                case.feeds().map(|(name, value)| (name, value.clone())).collect();
            let specs = [ModelForm::Frozen, ModelForm::Trainable].map(|form| spec_of(&case, form));
            let (graph, fetch) = (case.graph().clone(), case.fetch().clone());
            let step = case.step().cloned();
            let ready = case.ready(&device.devices, options(device).session).unwrap();
            let session = ready.session();
            // A program reads the variables first, so that they have settled on the device.
            ready.run().unwrap();
            let plain = || {
                let mut options = options(device);
                options.session.simplify = false;
                SavedModel::load_with(file(&folder), &device.devices, options).unwrap()
            };
            let [frozen, trainable] = specs.map(|spec| {
                session.save_model(file(&folder), &spec).unwrap();
                [load(&file(&folder), device), plain()]
            });
            let run = |session: &Session, fetch: &Tensor, step: Option<&Operation>| {
                let graph = session.graph();
                let feeds = fed.iter().map(|(name, value)| (graph.tensor(name).unwrap(), value));
                let feeds: Vec<(Tensor, &HostTensor)> = feeds.collect();
                let feeds: Vec<Feed<'_>> = feeds.iter().map(|(x, value)| x.feed(*value)).collect();
                session.run(&feeds, (fetch, step)).unwrap().0
            };
            let value =
                |model: &SavedModel| run(model.session(), model.output("value").unwrap(), None);
            // Constants are folded where variables are read, unless nothing is simplified.
            let what = format!("{name} on {}", device.name);
            assert_bits(&value(&frozen[1]), &value(&trainable[1]), &format!("{what}, frozen"));
            compare(&what, &value(&frozen[0]), &value(&trainable[0]), Some(1e-4));
            assert!(frozen[0].graph().global_variables().is_empty());
            let variables = |graph: &Graph| graph.global_variables().len();
            assert_eq!(variables(trainable[0].graph()), variables(&graph), "{name}");
            for turn in 0..3 {
                let model = &trainable[0];
                let own = model.operations().get("step");
                assert_eq!(own.is_some(), step.is_some());
                let found = run(model.session(), model.output("value").unwrap(), own);
                let expected = run(session, &fetch, step.as_ref());
                assert_bits(&found, &expected, &format!("{what}, step {turn}"));
            }
        }
    }
}

/// A network with all that keeps state: dropout, moving averages, slots of the optimizer, a count, local variables.
struct Trained {
    graph: Graph,
    x: Tensor,
    labels: Tensor,
    logits: Tensor,
    loss: Tensor,
    step: Operation,
    seen: Tensor,
}

fn trained() -> Trained {
    let g = Graph::with_seed(11);
    let x = g.placeholder("x", F32, dims![None, 6]);
    let labels = g.placeholder("labels", I32, dims![None]);
    let dense = |x: &Tensor, name: &str, sizes: [usize; 2]| {
        g.scope(name, || {
            let w = g.variable("w", Init::glorot(3), F32, sizes);
            let b = g.variable("b", Init::Zeros, F32, [sizes[1]]);
            x.matmul(&w) + &b
        })
    };
    let hidden = dense(&x, "hidden", [6, 8]);
    let ones = |name| g.variable(name, Init::Constant(1.0), F32, [8]);
    let zeros = |name| g.untrained_variable(name, Init::Zeros, F32, [8]);
    let (scale, shift) = (ones("scale"), ones("shift"));
    let (mean, variance) = (zeros("mean"), zeros("variance"));
    let normalized = hidden.batch_norm_training(&scale, &shift, BatchNorm::default());
    let track = normalized.track(&mean, &variance, 0.9);
    let dropped = normalized.output.relu().dropout(0.5, 5);
    let loss = dense(&dropped, "out", [8, 3]).cross_entropy(&labels).mean(()).named("loss");
    let step = Adam::new(0.01).minimize(&loss);
    let count = g.local_variable("seen", Init::Zeros, I64, []);
    let seen = count.assign_add(1i32);
    let step = g.group(&[step, track, seen.operation()]);
    let [w, b] = ["out/w/read", "out/b/read"].map(|name| g.tensor(name).unwrap());
    let still = hidden.batch_norm(
        [scale.value(), shift.value()],
        [mean.value(), variance.value()],
        BatchNorm::default(),
    );
    let logits = (still.relu().matmul(&w) + &b).named("logits");
    Trained { graph: g, x, labels, logits, loss, step, seen: count.value().clone() }
}

fn batch(turn: usize) -> (HostTensor, HostTensor) {
    let xs = (0..24).map(|i| ((i * 7 + turn * 5) % 11) as f32 / 5.0 - 1.0).collect();
    let labels: Vec<i32> = (0..4).map(|i| ((i + turn) % 3) as i32).collect();
    (HostTensor::new(&[4, 6], xs).unwrap(), labels.into())
}

#[test]
fn training_goes_on_bit_for_bit() {
    let folder = Folder::new("training");
    for device in devices() {
        let Trained { graph, x, labels, logits, loss, step, seen } = trained();
        let session = device.session(&graph);
        session.run(&[], (&graph.initializers(), &graph.local_initializers())).unwrap();
        let train = |session: &Session,
                     x: &Tensor,
                     labels: &Tensor,
                     loss: &Tensor,
                     step: &Operation,
                     turn| {
            let (xs, ys) = batch(turn);
            let (loss, ()) = session.run(&[x.feed(&xs), labels.feed(&ys)], (loss, step)).unwrap();
            bits(&loss)
        };
        for turn in 0..5 {
            train(&session, &x, &labels, &loss, &step, turn);
        }
        let inputs = [("x", &x), ("labels", &labels)];
        let outputs = [("loss", &loss), ("logits", &logits), ("seen", &seen)];
        let spec = ModelSpec::trainable(&inputs, &outputs, &[("train", &step)]);
        session.save_model(file(&folder), &spec).unwrap();
        let model = load(&file(&folder), device);
        assert_eq!(model.form(), ModelForm::Trainable);
        let ours = |name| model.input(name).unwrap();
        let (own_loss, own_step) =
            (model.output("loss").unwrap(), model.operation("train").unwrap());
        for turn in 5..12 {
            let expected = train(&session, &x, &labels, &loss, &step, turn);
            let found = train(model.session(), ours("x"), ours("labels"), own_loss, own_step, turn);
            assert_eq!(found, expected, "step {turn} on {}", device.name);
        }
        let seen = model.session().run(&[], model.output("seen").unwrap()).unwrap();
        assert_eq!(seen.scalar::<i64>().unwrap(), 12);
        for (own, theirs) in model.graph().global_variables().iter().zip(graph.global_variables()) {
            assert_eq!(own.name(), theirs.name());
            let own = model.session().run(&[], own).unwrap();
            assert_eq!(bits(&own), bits(&session.run(&[], &theirs).unwrap()), "{}", theirs.name());
        }
        // It can be saved again, initialised anew, and restored into as the original can.
        model.session().save(folder.path().join("checkpoint.safetensors")).unwrap();
        session.restore(folder.path().join("checkpoint.safetensors")).unwrap();
        model.session().run(&[], model.graph().initializers()).unwrap();

        let frozen = ModelSpec::frozen(&[("x", &x)], &[("logits", &logits)]);
        session.save_model(file(&folder), &frozen).unwrap();
        let model = load(&file(&folder), device);
        let (xs, _) = batch(0);
        let expected = session.run(&[x.feed(&xs)], &logits).unwrap();
        let feed = model.input("x").unwrap().feed(&xs);
        let found = model.session().run(&[feed], model.output("logits").unwrap()).unwrap();
        compare(&format!("frozen on {}", device.name), &found, &expected, Some(1e-5));
        assert!(model.session().variables().is_empty());
        let names = model.graph().to_string();
        assert!(!names.contains("adam") && !names.contains("random"), "{names}");
    }
}

#[test]
fn random_operations_go_on_where_they_were() {
    let folder = Folder::new("random");
    let g = Graph::with_seed(3);
    let v = g.variable("v", Init::Zeros, F32, [2]);
    let noise = g.random_normal(&[2], F32, 1) + &v;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let draw = |session: &Session, noise: &Tensor| bits(&session.run(&[], noise).unwrap());
    let first = draw(&session, &noise);
    for spec in [
        ModelSpec::frozen(&[], &[("noise", &noise)]),
        ModelSpec::trainable(&[], &[("noise", &noise)], &[]),
    ] {
        session.save_model(file(&folder), &spec).unwrap();
        let model = SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
        let next = draw(&session, &noise);
        assert_ne!(next, first);
        assert_eq!(draw(model.session(), model.output("noise").unwrap()), next);
    }
}

#[test]
fn what_a_graph_says_is_kept() {
    let folder = Folder::new("kept");
    let g = Graph::with_seed(5);
    let x = g.placeholder("x", F32, dims![None, 2]);
    let unused = x.named("unused");
    let v = g.container("mine", || g.device("CPU:0", || g.variable("v", Init::Zeros, F32, [2])));
    let shared = g.shared_variable("s", Init::Constant(3.0), F32, []);
    let y = g.colocate_with(&v.handle().operation(), || x.named("near")) + &v;
    let flag = v.is_initialized();
    let early = g.no_op();
    let y = g.after(&[&early], || (&y * shared.value()).named("y"));
    let epoch = g.local_variable("epoch", Init::Zeros, I32, []);
    g.collect(Collection::Named("mine".into()), &y);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let spec = ModelSpec::trainable(&[("in", &x)], &[("out", &y), ("flag", &flag)], &[]);
    session.save_model(file(&folder), &spec).unwrap();
    let model = SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
    let loaded = model.graph();
    assert_eq!(loaded.seed(), 5);
    assert!(g.operation("unused").is_ok() && loaded.operation(&unused.operation().name()).is_err());
    let node = |graph: &Graph, name: &str| graph.operation(name).unwrap().node();
    for name in ["v", "v/read", "near", "y", "x", "s"] {
        let (own, theirs) = (node(loaded, name), node(&g, name));
        assert_eq!((&own.device, &own.container), (&theirs.device, &theirs.container), "{name}");
        assert_eq!(own.facts, theirs.facts, "{name}");
        let names = |graph: &Graph, ids: &[convoke::NodeId]| -> Vec<String> {
            ids.iter().map(|&id| graph.node(id).name.to_string()).collect()
        };
        assert_eq!(names(loaded, &own.controls), names(&g, &theirs.controls), "{name}");
        assert_eq!(names(loaded, &own.colocated), names(&g, &theirs.colocated), "{name}");
    }
    assert_eq!(node(loaded, "near").colocated.len(), 1);
    assert_eq!(node(loaded, "y").controls.len(), 1);
    let mine = loaded.collection(&Collection::Named("mine".into()));
    assert_eq!(mine[0].name(), "y:0");
    assert!(mine[0].is(model.output("out").unwrap()));
    assert_eq!(loaded.trainable_variables().len(), 2);
    assert_eq!(loaded.local_variables()[0].name(), epoch.name());
    // Its local variable has no elements, as it had none.
    assert_eq!(model.session().uninitialized(), ["epoch".into()]);
    let again = loaded.shared_variable("s", Init::Zeros, F32, []);
    assert_eq!((again.name(), loaded.trainable_variables().len()), ("s".into(), 2));
    model.session().reset(&["mine"]).unwrap();
    assert!(model.session().uninitialized().contains(&"v".into()));
    for what in [model.input("out"), model.output("in")] {
        assert_eq!(what.unwrap_err().kind(), ErrorKind::NotFound);
    }
    let error = model.operation("train").unwrap_err();
    assert_eq!(error.message(), r#"no operation is named "train"; there are []"#);

    let frozen = ModelSpec::frozen(&[("in", &x)], &[("out", &y), ("flag", &flag)]);
    session.save_model(file(&folder), &frozen).unwrap();
    let model = SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
    let feed = model.input("in").unwrap().feed([[1.0f32, 2.0]]);
    let fetch = (model.output("out").unwrap(), model.output("flag").unwrap());
    let (out, flag) = model.session().run(&[feed], fetch).unwrap();
    assert_eq!(out.to_vec::<f32>().unwrap(), [3.0, 6.0]);
    assert!(flag.scalar::<bool>().unwrap());
    // The weight stands in the file under the variable's name.
    assert_eq!(node(model.graph(), "v").op.name(), "constant");
    assert_eq!(node(model.graph(), "near").colocated[..], [node(model.graph(), "v").id]);
}

#[test]
fn inputs_cut_a_frozen_model() {
    let folder = Folder::new("cut");
    let g = Graph::new();
    let options = QueueOptions { kind: QueueKind::Fifo, capacity: Some(4), shared_name: None };
    let queue = g.queue("examples", [(F32, dims![2]), (I32, dims![])], options);
    let (x, label) = (g.placeholder("x", F32, [2]), g.placeholder("label", I32, dims![]));
    let put = queue.enqueue(&[&x, &label]);
    let examples = queue.dequeue();
    let v = g.variable("v", Init::Constant(2.0), F32, [2]);
    let y = (&examples[0] * &v).named("y");
    let both = &y + examples[1].cast(F32);
    let fed = &v.value().named("fed") * 3.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let load = |spec: &ModelSpec| {
        session.save_model(file(&folder), spec).unwrap();
        SavedModel::load(file(&folder), &Devices::cpu()).unwrap()
    };
    // What is taken from the queue is fed instead, and neither queue nor label is there.
    let model = load(&ModelSpec::frozen(&[("x", &examples[0])], &[("y", &y)]));
    let feed = model.input("x").unwrap().feed([1.0f32, 2.0]);
    let found = model.session().run(&[feed], model.output("y").unwrap()).unwrap();
    assert_eq!(found.to_vec::<f32>().unwrap(), [2.0, 4.0]);
    assert_eq!(model.graph().len(), 5, "{}", model.graph());
    // Of one node some outputs may be fed, and others not.
    let model =
        load(&ModelSpec::frozen(&[("x", &examples[0])], &[("both", &both), ("x", &examples[0])]));
    assert_eq!(model.input("x").unwrap().name(), "examples_dequeue_0:0");
    assert!(model.input("x").unwrap().is(model.output("x").unwrap()));
    assert!(model.graph().operation("examples_dequeue").is_ok());
    let all = [("x", &examples[0]), ("label", &examples[1])];
    let model = load(&ModelSpec::frozen(&all, &[("both", &both)]));
    let feeds =
        [model.input("x").unwrap().feed([1.0f32, 2.0]), model.input("label").unwrap().feed(5i32)];
    let found = model.session().run(&feeds, model.output("both").unwrap()).unwrap();
    assert_eq!(found.to_vec::<f32>().unwrap(), [7.0, 9.0]);
    // A read that is fed needs no variable.
    let read = g.tensor("v/read").unwrap();
    let model = load(&ModelSpec::frozen(&[("v", &read)], &[("fed", &fed)]));
    assert!(model.graph().operation("v").is_err());
    let found = model
        .session()
        .run(&[model.input("v").unwrap().feed([1.0f32, 2.0])], model.output("fed").unwrap());
    assert_eq!(found.unwrap().to_vec::<f32>().unwrap(), [3.0, 6.0]);
    // A trainable one has the queue, empty.
    session.run(&[x.feed([1.0f32, 1.0]), label.feed(1i32)], &put).unwrap();
    let inputs = [("x", &x), ("label", &label)];
    let model = load(&ModelSpec::trainable(&inputs, &[("both", &both)], &[("put", &put)]));
    let feeds =
        [model.input("x").unwrap().feed([1.0f32, 2.0]), model.input("label").unwrap().feed(5i32)];
    model.session().run(&feeds, model.operation("put").unwrap()).unwrap();
    let found = model.session().run(&[], model.output("both").unwrap()).unwrap();
    assert_eq!(found.to_vec::<f32>().unwrap(), [7.0, 9.0]);
}

#[test]
fn what_cannot_be_a_model_is_refused_and_nothing_is_written() {
    let folder = Folder::new("refused");
    let g = Graph::new();
    let x = g.placeholder("x", F32, [2]);
    let v = g.variable("v", Init::Zeros, F32, [2]);
    let y = &x + &v;
    let changed = v.assign_add(&x);
    let wrong = x.reshape(&[3]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let refused = |spec: &ModelSpec, kind: ErrorKind, text: &str| {
        let error = session.save_model(file(&folder), spec).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(folder.files().is_empty());
    };
    let frozen = |y: &Tensor| ModelSpec::frozen(&[("x", &x)], &[("y", y)]);
    refused(&frozen(&y), ErrorKind::FailedPrecondition, "v");
    refused(&ModelSpec::trainable(&[], &[("y", &y)], &[]), ErrorKind::FailedPrecondition, "v");
    session.run(&[], g.initializers()).unwrap();
    refused(&frozen(&changed), ErrorKind::InvalidArgument, "assign_add: the outputs of a frozen");
    refused(&frozen(v.handle()), ErrorKind::InvalidArgument, "is a variable's handle");
    refused(&frozen(&wrong), ErrorKind::InvalidArgument, "reshape at ");
    let twice = ModelSpec::frozen(&[("x", &x), ("x", &y)], &[("y", &y)]);
    refused(&twice, ErrorKind::InvalidArgument, "the same name");
    let other = Graph::new().placeholder("x", F32, [2]);
    refused(&frozen(&other), ErrorKind::InvalidArgument, "belongs to another graph");
    let fails = std::sync::Arc::default();
    let slow = convoke_tests::fails_while(&x, &fails).named("custom");
    refused(&frozen(&slow), ErrorKind::Unimplemented, "slow: unsupported");
    session.save_model(file(&folder), &frozen(&y)).unwrap();
    assert_eq!(folder.files(), ["model.safetensors"]);
    session.close();
    let error = session.save_model(file(&folder), &frozen(&y)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
}

/// What tables hold is part of a model, of whatever form, and goes on from there.
#[test]
fn tables_keep_what_they_hold() {
    let strings = |all: &[&str]| HostTensor::strings(&[all.len()], all.iter().copied()).unwrap();
    for device in devices() {
        let folder = Folder::new("tables");
        let g = Graph::new();
        let (words, numbers) =
            (g.mutable_table("words", Strings, I64), g.mutable_table("n", I64, F32));
        let x = g.placeholder("x", Strings, dims![None]);
        // More than stands in the text.
        let (keys, values) = (g.range(0, 100).cast(I64), g.range(0, 100).cast(F32) * 0.5);
        let fill = numbers.insert(&keys, &values);
        let insert = words.insert(&x, &g.constant([1i64, 2]));
        let found = words.find(&x, -1i64);
        let (half, n) = (numbers.find(&found, -1.0f32), words.size());
        let session = device.session(&g);
        session.run(&[x.feed(strings(&["b", "a"]))], (&fill, &insert)).unwrap();
        let (x, outputs) = ([("x", &x)], [("found", &found), ("half", &half), ("n", &n)]);
        for form in [ModelForm::Frozen, ModelForm::Trainable] {
            let spec = match form {
                ModelForm::Frozen => ModelSpec::frozen(&x, &outputs),
                ModelForm::Trainable => ModelSpec::trainable(&x, &outputs, &[("insert", &insert)]),
            };
            session.save_model(file(&folder), &spec).unwrap();
            let model = load(&file(&folder), device);
            let output = |name| model.output(name).unwrap();
            let feeds = [model.input("x").unwrap().feed(strings(&["a", "c", "b"]))];
            let fetch = (output("found"), output("half"), output("n"));
            let (found, half, n) = model.session().run(&feeds, fetch).unwrap();
            assert_eq!(found.to_vec::<i64>().unwrap(), [2, -1, 1], "{}", device.name);
            assert_eq!(half.to_vec::<f32>().unwrap(), [1.0, -1.0, 0.5], "{}", device.name);
            assert_eq!(n.scalar::<i64>().unwrap(), 2);
            if form == ModelForm::Trainable {
                let feeds = [model.input("x").unwrap().feed(strings(&["c", "a"]))];
                model.session().run(&feeds, model.operation("insert").unwrap()).unwrap();
                let (found, n) =
                    model.session().run(&feeds, (output("found"), output("n"))).unwrap();
                assert_eq!(found.to_vec::<i64>().unwrap(), [1, 2]);
                assert_eq!(n.scalar::<i64>().unwrap(), 3);
            }
        }
    }
}

/// Values of several elements and shared tables, too. A table of one element for each key is written as before there
/// were others.
#[test]
fn tables_of_several_elements_are_kept() {
    use serde_json::json;
    let folder = Folder::new("tables_of_tensors");
    let g = Graph::new();
    let options = || TableOptions { value_dims: dims![2], shared_name: Some("s".into()) };
    let numbers = g.mutable_table_with("numbers", I64, F32, options());
    let same = g.mutable_table_with("same", I64, F32, options());
    let words = TableOptions { value_dims: dims![2], ..TableOptions::default() };
    let words = g.mutable_table_with("words", I64, Strings, words);
    let single = g.mutable_table("single", I64, F32);
    let x = g.placeholder("x", I64, dims![None]);
    let keys = g.constant([1i64, 2]);
    let texts = HostTensor::strings(&[2, 2], ["a", "b", "c", "d"]).unwrap();
    let fill = [
        numbers.insert(&keys, &g.constant([[1.0f32, 2.0], [3.0, 4.0]])),
        words.insert(&keys, &g.constant(texts)),
        single.insert(&keys, &g.constant([5.0f32, 6.0])),
    ];
    let none = HostTensor::strings(&[2], ["-", "-"]).unwrap();
    let (found, word) = (same.find(&x, [0.0f32, 0.0]), words.find(&x, none));
    let one = single.find(&x, 0.0f32);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], &fill).unwrap();
    let outputs = [("found", &found), ("word", &word), ("one", &one)];
    session.save_model(file(&folder), &ModelSpec::frozen(&[("x", &x)], &outputs)).unwrap();
    let model = SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
    let feeds = [model.input("x").unwrap().feed([2i64, 9])];
    let output = |name| model.output(name).unwrap();
    let fetch = (output("found"), output("word"), output("one"));
    let (found, word, one) = model.session().run(&feeds, fetch).unwrap();
    assert_eq!(found.to_vec::<f32>().unwrap(), [3.0, 4.0, 0.0, 0.0]);
    assert_eq!(word.as_strings().unwrap(), [b"c", b"d", b"-", b"-"]);
    assert_eq!(one.to_vec::<f32>().unwrap(), [6.0, 0.0]);
    let whole = std::fs::read(file(&folder)).unwrap();
    with_text(&folder, &whole, |m| {
        for node in m["nodes"].as_array().unwrap().iter().filter(|n| n["op"] == "table_find") {
            let attributes = node["attributes"].as_object().unwrap();
            let is_single = attributes["name"] == "single";
            assert_eq!(attributes.contains_key("value_dims"), !is_single, "{node}");
        }
    });
    for value_dims in [json!({ "dims": [3] }), json!({ "dims": [null] })] {
        with_text(&folder, &whole, |m| {
            for node in m["nodes"].as_array_mut().unwrap() {
                if node["attributes"]["name"] == "shared: s" {
                    node["attributes"]["value_dims"] = value_dims.clone();
                }
            }
        });
        SavedModel::load(file(&folder), &Devices::cpu()).map(|_| ()).unwrap_err();
    }
}

/// As many elements, but of values of other sizes than the table's.
#[test]
fn values_of_other_sizes_are_no_tables() {
    use serde_json::json;
    let folder = Folder::new("tables_of_other_sizes");
    let g = Graph::new();
    let options = TableOptions { value_dims: dims![2, 3], ..TableOptions::default() };
    let grids = g.mutable_table_with("grids", I64, F32, options);
    let one = g.constant([1i64]);
    let fill = grids.insert(&one, &g.constant(vec![1.0f32; 6]).reshape(&[1, 2, 3]));
    let grid = grids.find(&one, HostTensor::new(&[2, 3], vec![0.0f32; 6]).unwrap());
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], &fill).unwrap();
    session.save_model(file(&folder), &ModelSpec::frozen(&[], &[("grid", &grid)])).unwrap();
    let whole = std::fs::read(file(&folder)).unwrap();
    SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
    with_text(&folder, &whole, |m| {
        let tables = m["tables"].as_array_mut().unwrap();
        let grids = tables.iter_mut().find(|table| table["name"] == "grids").unwrap();
        grids["values"] = json!({ "dtype": "f32", "dims": [1, 3, 2], "bytes": "0".repeat(48) });
    });
    let error = SavedModel::load(file(&folder), &Devices::cpu()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
    let expected = "f32[2, 3] has keys i64[1] and values f32[1, 3, 2]";
    assert!(error.message().contains(expected), "{error}");
}

/// A small model of some operations, as bytes.
fn small(folder: &Folder) -> Vec<u8> {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![None, 2]);
    let w = g.variable("w", Init::Value([[1.0f32, -2.0], [0.5, 4.0]].into()), F32, [2, 2]);
    let y = x.matmul(&w).slice(&[0, 0], &[None, Some(1)]).sum(0);
    let step = w.assign_sub(0.5).operation();
    let table = g.mutable_table("table", I64, F32);
    let keys = g.constant([7i64]);
    let insert = table.insert(&keys, &g.constant([0.5f32]));
    let y = (y + table.find(&keys, 0.0f32)).named("y");
    let queue = g.fifo_queue("q", 4, [(F32, dims![])]);
    let (fill, next) = (queue.enqueue(&[&g.constant(1.5f32)]), queue.dequeue().remove(0));
    g.add_queue_runner(&QueueRunner::new(&queue, [fill]));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], (g.initializers(), &insert)).unwrap();
    let spec = ModelSpec::trainable(&[("x", &x)], &[("y", &y)], &[("step", &step)]);
    let spec = spec.with_signature("next", &[], &[("next", &next)], &[]);
    session.save_model(file(folder), &spec).unwrap();
    std::fs::read(file(folder)).unwrap()
}

/// Loads what is there, and runs it if that is a model.
fn try_out(folder: &Folder, devices: &Devices) -> convoke::Result<()> {
    let session = SessionOptions { threads: 1, ..SessionOptions::default() };
    let options = LoadOptions { session, ..LoadOptions::default() };
    let model = SavedModel::load_with(file(folder), devices, options)?;
    let feed = model.input("x")?.feed([[1.0f32, 2.0]]);
    model.session().run(&[feed], (model.output("y")?, model.operation("step")?))?;
    // Of a damaged model a queue may be another.
    let at_once = || RunOptions { fail_if_blocked: true, ..RunOptions::default() };
    for runner in model.graph().queue_runners() {
        for fill in runner.enqueues() {
            model.session().run_with(&[], fill, at_once())?;
        }
    }
    let next = model.signature("next")?.output("next")?;
    model.session().run_with(&[], next, at_once())?;
    Ok(())
}

/// Some file systems wait for the disk where a file is cut and written again, but not for a new one.
fn rewrite(folder: &Folder, bytes: &[u8]) {
    std::fs::remove_file(file(folder)).unwrap();
    std::fs::write(file(folder), bytes).unwrap();
}

#[test]
fn no_damage_makes_it_panic() {
    let folder = Folder::new("damage");
    let whole = small(&folder);
    let devices = Devices::cpu();
    try_out(&folder, &devices).unwrap();
    for length in 0..whole.len() {
        rewrite(&folder, &whole[..length]);
        let error = try_out(&folder, &devices).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{length}: {error}");
    }
    let mut refused = 0;
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        rewrite(&folder, &bytes);
        if let Err(error) = try_out(&folder, &devices) {
            assert_ne!(error.kind(), ErrorKind::Internal, "bit {bit}: {error}");
            refused += 1;
        }
    }
    assert!(refused > whole.len(), "{refused} of {} bits", whole.len() * 8);
}

/// Writes a model with another text of its graph.
fn with_note(folder: &Folder, whole: &[u8], change: impl Fn(&mut String)) {
    let start = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&whole[8..start]).unwrap();
    let note = &mut header["__metadata__"]["convoke.model"];
    let mut text = note.as_str().unwrap().to_owned();
    change(&mut text);
    *note = text.into();
    let header = header.to_string();
    let n = (header.len() as u64).to_le_bytes();
    let bytes = [&n, header.as_bytes(), &whole[start..]].concat();
    std::fs::write(file(folder), bytes).unwrap();
}

fn with_text(folder: &Folder, whole: &[u8], change: impl Fn(&mut serde_json::Value)) {
    with_note(folder, whole, |text| {
        let mut model = serde_json::from_str(text).unwrap();
        change(&mut model);
        *text = model.to_string();
    });
}

/// A length that nothing in the graph shows is checked by counting, on every device.
#[test]
fn a_loop_that_says_a_wrong_length_fails() {
    use serde_json::json;
    for device in devices() {
        let folder = Folder::new("wrong_length");
        let g = Graph::new();
        let (x, n) = (g.placeholder("x", F32, dims![4]), g.placeholder("n", I32, dims![]));
        let start = (g.constant(0i32), x.clone());
        let y = g.while_loop(start, |(i, _)| i.less(&n), |(i, x)| (i + 1, x + 1.0)).1;
        let spec = ModelSpec::frozen(&[("x", &x), ("n", &n)], &[("y", &y)]);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        session.save_model(file(&folder), &spec).unwrap();
        let whole = std::fs::read(file(&folder)).unwrap();
        with_text(&folder, &whole, |model| {
            let nodes = model["nodes"].as_array_mut().unwrap();
            let own = nodes.iter_mut().find(|node| node["op"] == "while").unwrap();
            own["attributes"]["trips"] = json!(5000);
            own["attributes"]["size"] = json!({ "dims": [5000] });
        });
        let session = SessionOptions { policy: device.policy.clone(), ..Default::default() };
        let options = LoadOptions { session, ..Default::default() };
        let model = SavedModel::load_with(file(&folder), &device.devices, options).unwrap();
        let run = |n: i32| {
            let feeds = [("x", HostTensor::from(vec![0.0f32; 4])), ("n", HostTensor::from(n))];
            let feeds = feeds.iter().map(|(name, value)| model.input(name).unwrap().feed(value));
            let feeds: Vec<Feed<'_>> = feeds.collect();
            model.session().run(&feeds, model.output("y").unwrap())
        };
        let error = run(7).unwrap_err();
        let says = "makes 7 iterations, and its graph says 5000";
        assert!(error.message().contains(says), "{}: {error}", device.name);
        let y = run(5000).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [5000.0; 4], "{}", device.name);
    }
}

/// A cycle over two nodes: each is the other's input.
fn go_round(m: &mut serde_json::Value) {
    let nodes = m["nodes"].as_array_mut().unwrap();
    let at = |op: &str| nodes.iter().position(|node| node["op"] == op).unwrap();
    let (matmul, slice) = (at("matmul"), at("slice"));
    assert_eq!(nodes[slice]["inputs"][0], serde_json::json!([matmul, 0]));
    nodes[matmul]["inputs"][0] = serde_json::json!([slice, 0]);
}

#[test]
fn a_hostile_graph_is_refused() {
    use serde_json::{Value, json};
    let folder = Folder::new("hostile");
    let whole = small(&folder);
    let refused = |kind: ErrorKind, text: &str, change: &dyn Fn(&mut Value)| {
        with_text(&folder, &whole, change);
        let error = try_out(&folder, &Devices::cpu()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    with_text(&folder, &whole, |_| {});
    try_out(&folder, &Devices::cpu()).unwrap();
    use ErrorKind::{DataLoss, InvalidArgument, Unimplemented};
    refused(Unimplemented, "unsupported: version 5", &|m| m["version"] = json!(5));
    refused(DataLoss, "no version", &|m| *m = json!([]));
    refused(DataLoss, "no list \"nodes\"", &|m| m["nodes"] = json!(3));
    refused(DataLoss, "there is no form \"other\"", &|m| m["form"] = json!("other"));
    refused(Unimplemented, "x: ", &|m| m["nodes"][0]["op"] = json!("conv7d"));
    refused(InvalidArgument, "w/read: ", &|m| m["nodes"][2]["op"] = json!("matmul"));
    refused(InvalidArgument, "w/read: ", &|m| m["nodes"][2]["inputs"] = json!([[2, 0]]));
    refused(InvalidArgument, "matmul: ", &go_round);
    refused(InvalidArgument, "w/read: ", &|m| m["nodes"][2]["controls"] = json!([7]));
    refused(DataLoss, "w/read: ", &|m| m["nodes"][2]["inputs"] = json!([[-1, 0]]));
    refused(DataLoss, "w/read: ", &|m| m["nodes"][2]["inputs"] = json!([0]));
    refused(InvalidArgument, "w: ", &|m| m["nodes"][1]["attributes"]["more"] = json!(1));
    refused(InvalidArgument, "w: ", &|m| {
        m["nodes"][1]["attributes"]["dims"] =
            json!({ "dims": [4_000_000_000u64, 4_000_000_000u64] });
    });
    // It would take a terabyte, and has no elements of that size.
    refused(DataLoss, "w: ", &|m| {
        for node in m["nodes"].as_array_mut().unwrap() {
            if node["name"] == "w" {
                node["attributes"]["dims"] = json!({ "dims": [2, 200_000_000_000u64] });
            }
        }
        m["nodes"].as_array_mut().unwrap().truncate(3);
        for list in ["collections", "shared", "draws", "queue_runners"] {
            m[list] = json!([]);
        }
        for named in ["inputs", "outputs", "operations", "signatures"] {
            m[named] = json!({});
        }
    });
    refused(DataLoss, "no tensor \"none\"", &|m| m["variables"][0][1] = json!("none"));
    refused(DataLoss, "x: ", &|m| m["variables"][0][0] = json!(0));
    refused(DataLoss, "none 4000000000", &|m| m["operations"]["step"] = json!(4_000_000_000u32));
    refused(DataLoss, "\"y\" is no tensor", &|m| m["outputs"]["y"] = json!([1, 0]));
    refused(DataLoss, "x: ", &|m| m["draws"] = json!([[0, 1]]));
    refused(InvalidArgument, "symbol s0", &|m| m["symbols"] = json!(0));
    refused(DataLoss, "expected a number", &|m| m["symbols"] = json!(u64::MAX));
    // Deeper than any model: what reads it must not recurse that far.
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for text in [deep.as_str(), "", "{", "null", "{\"version\": 1e99}"] {
        with_note(&folder, &whole, |note| *note = text.to_owned());
        let error = try_out(&folder, &Devices::cpu()).unwrap_err();
        assert_eq!(error.kind(), DataLoss, "{error}");
    }
}

#[test]
fn hostile_tables_are_refused() {
    use ErrorKind::DataLoss;
    use serde_json::{Value, json};
    let folder = Folder::new("hostile_tables");
    let whole = small(&folder);
    let refused = |kind: ErrorKind, text: &str, change: &dyn Fn(&mut Value)| {
        with_text(&folder, &whole, change);
        let error = try_out(&folder, &Devices::cpu()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    refused(DataLoss, "no table \"other\"", &|m| m["tables"][0]["name"] = json!("other"));
    refused(DataLoss, "no table \"table\"", &|m| {
        let twice = m["tables"][0].clone();
        m["tables"].as_array_mut().unwrap().push(twice);
    });
    refused(DataLoss, "has keys i64[1] and values i64[1]", &|m| {
        m["tables"][0]["values"] = m["tables"][0]["keys"].clone();
    });
    let two = json!({ "dtype": "i64", "dims": [2], "bytes": "07".to_owned() + &"0".repeat(14) + "07" + &"0".repeat(14) });
    refused(DataLoss, "has keys i64[2] and values f32[1]", &|m| {
        m["tables"][0]["keys"] = two.clone();
    });
    refused(DataLoss, "has a key twice", &|m| {
        m["tables"][0]["keys"] = two.clone();
        m["tables"][0]["values"] = json!({ "dtype": "f32", "dims": [2], "bytes": "0".repeat(16) });
    });
    refused(DataLoss, "has no values", &|m| {
        m["tables"][0].as_object_mut().unwrap().remove("values");
    });
    refused(DataLoss, "no list \"tables\"", &|m| m["tables"] = json!(1));
}

#[test]
fn hostile_runners_and_signatures_are_refused() {
    use ErrorKind::{DataLoss, InvalidArgument, NotFound};
    use serde_json::{Value, json};
    let folder = Folder::new("hostile_runners");
    let whole = small(&folder);
    let refused = |kind: ErrorKind, text: &str, change: &dyn Fn(&mut Value)| {
        with_text(&folder, &whole, change);
        let error = try_out(&folder, &Devices::cpu()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    let runner = |m: &Value, what: &str| m["queue_runners"][0][what].clone();
    refused(InvalidArgument, "uses node 4000000000, and there are", &|m| {
        m["queue_runners"][0]["enqueues"] = json!([4_000_000_000u32]);
    });
    refused(InvalidArgument, "more than 4096 threads", &|m| {
        let fill = runner(m, "enqueues")[0].clone();
        m["queue_runners"][0]["enqueues"] = json!(vec![fill; 4097]);
    });
    refused(InvalidArgument, "expected what closes a queue, got x", &|m| {
        m["queue_runners"][0]["close"] = json!(0);
    });
    refused(InvalidArgument, "expected what closes a queue and cancels", &|m| {
        m["queue_runners"][0]["cancel"] = runner(m, "close");
    });
    refused(
        InvalidArgument,
        "x is run by the runner of queue 'q', and puts nothing into it",
        &|m| {
            m["queue_runners"][0]["enqueues"] = json!([0]);
        },
    );
    refused(InvalidArgument, "puts nothing into it", &|m| {
        let at = runner(m, "enqueues")[0].as_u64().unwrap() as usize;
        m["nodes"][at]["attributes"]["name"] = json!("r");
    });
    refused(InvalidArgument, "closes queue 'q' or 'r'", &|m| {
        let at = runner(m, "cancel").as_u64().unwrap() as usize;
        m["nodes"][at]["attributes"]["name"] = json!("r");
    });
    refused(DataLoss, "expected a number", &|m| m["queue_runners"][0]["close"] = json!("q"));
    refused(DataLoss, "no list \"enqueues\"", &|m| m["queue_runners"] = json!([3]));
    refused(DataLoss, "no list \"queue_runners\"", &|m| m["queue_runners"] = json!({}));
    refused(DataLoss, "no object \"signatures\"", &|m| m["signatures"] = json!([]));
    refused(DataLoss, "no object \"operations\"", &|m| m["signatures"]["next"] = json!({}));
    refused(DataLoss, "two signatures \"serving_default\"", &|m| {
        m["signatures"]["serving_default"] = m["signatures"]["next"].clone();
    });
    refused(DataLoss, "\"next\" is no tensor", &|m| {
        m["signatures"]["next"]["outputs"]["next"] = json!([1, 0]);
    });
    refused(DataLoss, "none 4000000000", &|m| {
        m["signatures"]["next"]["operations"] = json!({ "step": 4_000_000_000u32 });
    });
    refused(NotFound, "no signature is named \"next\"; there are [\"serving_default\"]", &|m| {
        m.as_object_mut().unwrap().remove("signatures");
    });
}

#[test]
fn a_hostile_list_of_bodies_is_refused() {
    use ErrorKind::{DataLoss, InvalidArgument};
    use serde_json::{Value, json};
    let folder = Folder::new("bodies");
    let whole = small(&folder);
    let refused = |kind: ErrorKind, text: &str, change: &dyn Fn(&mut Value)| {
        with_text(&folder, &whole, change);
        let error = try_out(&folder, &Devices::cpu()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    refused(DataLoss, "no list \"bodies\"", &|m| m["bodies"] = json!(0));
    refused(DataLoss, "expected a number", &|m| m["bodies"] = json!([-1]));
    refused(InvalidArgument, "body 1 does not come before body 1", &|m| m["bodies"] = json!([1]));
    refused(InvalidArgument, "w: ", &|m| m["nodes"][1]["body"] = json!(1));
    // What lies inside of a body is neither fed nor fetched.
    let inside = |m: &mut Value| {
        m["bodies"] = json!([0]);
        for node in m["nodes"].as_array_mut().unwrap() {
            if node["name"] == "y" {
                node["body"] = json!(1);
            }
        }
    };
    refused(DataLoss, "\"y\" is no tensor of the graph", &inside);
}

#[test]
fn other_files_are_no_models() {
    let folder = Folder::new("others");
    let g = Graph::new();
    g.variable("w", Init::Zeros, F32, [2]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    session.save(file(&folder)).unwrap();
    let error = SavedModel::load(file(&folder), &Devices::cpu()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("it has no model; if it is a checkpoint"), "{error}");
    let error = SavedModel::load(folder.path().join("none"), &Devices::cpu()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = SavedModel::load(folder.path(), &Devices::cpu()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

/// The weights of a trainable model are a checkpoint, too.
#[test]
fn the_variables_of_a_model_can_be_restored() {
    let folder = Folder::new("restored");
    let _ = small(&folder);
    let g = Graph::new();
    let w = g.variable("w", Init::Zeros, F32, [2, 2]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    session.restore(file(&folder)).unwrap();
    let found = session.run(&[], &w).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(found, [1.0, -2.0, 0.5, 4.0]);
}
