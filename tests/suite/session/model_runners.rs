//! Queue runners of models. TensorFlow: `meta_graph_test.py` and `queue_runner_test.py`, by meaning, where a meta graph
//! keeps the runners of the collection `QUEUE_RUNNERS`.

use std::path::PathBuf;

use convoke::input::Coordinator;
use convoke::prelude::*;
use convoke::{ModelForm, ProducerOptions, QueueRunner};
use convoke_tests::{Folder, GRACE};

fn file(folder: &Folder) -> PathBuf {
    folder.path().join("model.safetensors")
}

fn names(graph: &Graph) -> Vec<String> {
    graph.queue_runners().iter().map(|runner| runner.name().to_owned()).collect()
}

/// Saves what `outputs` need, and loads it.
fn kept(session: &Session, form: ModelForm, spec: ModelSpec) -> SavedModel {
    let folder = Folder::new("runners");
    session.save_model(file(&folder), &ModelSpec { form, ..spec }).unwrap();
    SavedModel::load(file(&folder), &Devices::cpu()).unwrap()
}

const FORMS: [ModelForm; 2] = [ModelForm::Frozen, ModelForm::Trainable];

/// `QueueRunnerTest.testStartQueueRunners`, of a graph that was read from a file.
#[test]
fn a_loaded_model_fills_its_queues() {
    let g = Graph::new();
    let other = g.fifo_queue("other", 4, [(F32, dims![])]);
    g.add_queue_runner(&QueueRunner::new(&other, [other.enqueue(&[&g.constant(1.0f32)])]));
    let options = ProducerOptions { epochs: Some(2), capacity: 2, ..ProducerOptions::default() };
    let words = g.string_input_producer("words", ["a", "b", "c"], options);
    let sink = g.fifo_queue("sink", 1, [(Strings, dims![])]);
    let moves = || sink.enqueue(&[&words.dequeue()[0]]);
    let runner = QueueRunner::new(&sink, [moves(), moves()]);
    g.add_queue_runner(&runner);
    let word = sink.dequeue().remove(0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    // What a queue holds is not kept, nor which epochs were put.
    session.run(&[], &g.queue_runners()[1].enqueues()[0]).unwrap();
    for form in FORMS {
        let model = kept(&session, form, ModelSpec::frozen(&[], &[("word", &word)]));
        // `words` fills `sink`; nobody uses `other`.
        assert_eq!(names(model.graph()), ["words", "sink"]);
        let own = &model.graph().queue_runners()[1];
        assert_eq!((own.queue().spec(), own.enqueues().len()), (sink.spec(), 2));
        assert_eq!(own.close().name(), runner.close().name());
        assert_eq!(own.cancel().name(), runner.cancel().name());
        let coordinator = Coordinator::new();
        assert_eq!(model.session().start_queue_runners(&coordinator).unwrap(), 3);
        let next = || model.session().run(&[], model.output("word").unwrap());
        let mut found: Vec<Vec<u8>> =
            (0..6).map(|_| next().unwrap().as_strings().unwrap()[0].clone()).collect();
        found.sort();
        assert_eq!(found, [b"a", b"a", b"b", b"b", b"c", b"c"]);
        assert_eq!(next().unwrap_err().kind(), ErrorKind::OutOfRange);
        coordinator.join(GRACE).unwrap();
    }
}

/// A model without queues has no runners, and one whose queue is fed instead has neither.
#[test]
fn runners_of_queues_that_a_model_lacks_are_left_out() {
    let g = Graph::new();
    let queue = g.fifo_queue("q", 4, [(F32, dims![])]);
    g.add_queue_runner(&QueueRunner::new(&queue, [queue.enqueue(&[&g.constant(1.0f32)])]));
    let x = queue.dequeue().remove(0);
    let y = &x * 2.0;
    let z = g.constant(3.0f32) + 1.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for form in FORMS {
        let without = kept(&session, form, ModelSpec::frozen(&[], &[("z", &z)]));
        assert!(names(without.graph()).is_empty());
        let fed = kept(&session, form, ModelSpec::frozen(&[("x", &x)], &[("y", &y)]));
        let is_cut = form == ModelForm::Frozen;
        assert_eq!(names(fed.graph()).len(), usize::from(!is_cut));
        let whole = kept(&session, form, ModelSpec::frozen(&[], &[("y", &y)]));
        assert_eq!(names(whole.graph()), ["q"]);
        // Another use of the model may need it, all the same.
        let spec = ModelSpec::frozen(&[("x", &x)], &[("y", &y)]);
        let both = kept(&session, form, spec.with_signature("next", &[], &[("y", &y)], &[]));
        assert_eq!(names(both.graph()), ["q"]);
    }
}

/// What no model can have is left out, and the rest is saved.
#[test]
fn runners_that_cannot_be_kept_are_left_out() {
    let g = Graph::new();
    let queue = |name: &str| g.fifo_queue(name, 4, [(F32, dims![])]);
    let (called, counted, fed) = (queue("called"), queue("counted"), queue("fed"));
    let draws = g.host_function("draw", &[], [(F32, dims![])], |_| Ok(vec![1.0f32.into()]));
    g.add_queue_runner(&QueueRunner::new(&called, [called.enqueue(&[&draws[0]])]));
    let v = g.untrained_variable("v", Init::Zeros, F32, []);
    g.add_queue_runner(&QueueRunner::new(&counted, [counted.enqueue(&[&v.assign_add(1.0)])]));
    let c = g.constant(2.0f32) + v.value();
    g.add_queue_runner(&QueueRunner::new(&fed, [fed.enqueue(&[&c])]));
    let all = [&called, &counted, &fed].map(|queue| queue.dequeue().remove(0));
    let sum = &all[0] + &all[1] + &all[2];
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let spec = || ModelSpec::frozen(&[("c", &c)], &[("sum", &sum)]);
    let model = kept(&session, ModelForm::Trainable, spec());
    assert_eq!(names(model.graph()), ["counted", "fed"]);
    let model = kept(&session, ModelForm::Frozen, spec());
    assert!(names(model.graph()).is_empty());
    let model = kept(&session, ModelForm::Frozen, ModelSpec::frozen(&[], &[("sum", &sum)]));
    assert_eq!(names(model.graph()), ["fed"]);
}

/// What the model keeps for its outputs may need an input, and a runner has none.
#[test]
fn a_runner_that_needs_an_input_through_an_output_is_left_out() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let features = &x * 2.0;
    let y = &features + 1.0;
    let queue = g.fifo_queue("q", 4, [(F32, dims![])]);
    g.add_queue_runner(&QueueRunner::new(&queue, [queue.enqueue(&[&y])]));
    let z = queue.dequeue().remove(0);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let spec =
        |name: &str, input: &Tensor| ModelSpec::frozen(&[(name, input)], &[("y", &y), ("z", &z)]);
    let model = kept(&session, ModelForm::Frozen, spec("f", &features));
    assert!(names(model.graph()).is_empty());
    // There it feeds nobody: the runner has what it needs, as in the graph itself.
    let model = kept(&session, ModelForm::Trainable, spec("f", &features));
    assert_eq!(names(model.graph()), ["q"]);
    let model = kept(&session, ModelForm::Frozen, spec("x", &x));
    assert_eq!(names(model.graph()), ["q"]);
}

/// A runner does not keep a model from being saved that has no use for what the runner lacks.
#[test]
fn a_runner_that_lacks_what_it_needs_is_left_out() {
    let g = Graph::new();
    let queue = |name: &str| g.fifo_queue(name, 4, [(F32, dims![])]);
    let (empty, idle, own) = (queue("empty"), queue("idle"), queue("own"));
    let v = g.untrained_variable("v", Init::Constant(1.0), F32, []);
    g.add_queue_runner(&QueueRunner::new(&empty, [empty.enqueue(&[v.value()])]));
    // It fills another queue than the one it closes.
    let one = g.constant(1.0f32);
    g.add_queue_runner(&QueueRunner::new(&idle, [own.enqueue(&[&one]), idle.enqueue(&[&one])]));
    let both = g.group(&[own.enqueue(&[&one]), idle.enqueue(&[&one])]);
    g.add_queue_runner(&QueueRunner::new(&own, [both]));
    // Runs choose the queue, and what closes it does not say which.
    let chosen = g.select_queue(&g.constant(0i32), &[&own]);
    g.add_queue_runner(&QueueRunner::new(&chosen, [chosen.enqueue(&[&one])]));
    let all = [&empty, &idle, &own].map(|queue| queue.dequeue().remove(0));
    let sum = &all[0] + &all[1] + &all[2];
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let spec = || ModelSpec::frozen(&[], &[("sum", &sum)]);
    let model = kept(&session, ModelForm::Frozen, spec());
    assert_eq!(names(model.graph()), ["own"]);
    session.run(&[], g.initializers()).unwrap();
    for form in FORMS {
        let model = kept(&session, form, spec());
        assert_eq!(names(model.graph()), ["empty", "own"]);
    }
}
