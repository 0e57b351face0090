//! Variables of strings, and strings in branches, loops, steps and reports. TensorFlow: `variables_test.py`,
//! `variable_scope` with `tf.string`, `control_flow_ops_py_test.py`, by meaning.

use convoke::prelude::*;
use convoke::{LoopOptions, RunOptions, Timings};
use convoke_tests::{TestDevice, devices};

fn strings(all: &[&str]) -> HostTensor {
    HostTensor::strings(&[all.len()], all.iter().copied()).unwrap()
}

fn texts(tensor: &HostTensor) -> Vec<String> {
    let all = tensor.as_strings().unwrap().iter();
    all.map(|text| String::from_utf8(text.clone()).unwrap()).collect()
}

fn text(tensor: &HostTensor) -> String {
    assert_eq!(tensor.dims(), [0usize; 0]);
    texts(tensor).remove(0)
}

fn initialized(device: &TestDevice, g: &Graph) -> Session {
    let session = device.session(g);
    session.run(&[], g.initializers()).unwrap();
    session
}

#[test]
fn a_variable_of_strings_is_initialised_read_and_assigned() {
    for device in devices() {
        let g = Graph::new();
        let names = g.variable("names", Init::Value(strings(&["a", "b"])), Strings, [2]);
        let empty = g.variable("empty", Init::Zeros, Strings, [1, 2]);
        let turned = g.untrained_variable(
            "turned",
            Init::Tensor(g.string_join(&[&names.initialized_value(), &g.constant("!")], "")),
            Strings,
            [2],
        );
        let x = g.placeholder("x", Strings, dims![2]);
        let set = names.assign(&x);
        let later = g.after(&[&set.operation()], || g.string_join(&[&names.read()], ""));
        let same = names.assign("same");
        let session = device.session(&g);
        let error = session.run(&[], &names).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::FailedPrecondition, Some("names")));
        assert_eq!(session.uninitialized().len(), 3);
        let has = |v: &Variable| session.run(&[], v.is_initialized()).unwrap();
        assert!(!has(&names).scalar::<bool>().unwrap());
        session.run(&[], g.initializers()).unwrap();
        assert!(has(&names).scalar::<bool>().unwrap());
        assert!(session.uninitialized().is_empty());
        let (own, none, made) = session.run(&[], (&names, &empty, &turned)).unwrap();
        assert_eq!(
            (texts(&own), texts(&made)),
            (vec!["a".into(), "b".into()], vec!["a!".into(), "b!".into()])
        );
        assert_eq!(none, HostTensor::strings(&[1, 2], ["", ""]).unwrap(), "{}", device.name);
        // A read sees the start of the run, unless it follows.
        let new = HostTensor::strings(&[2], [&b"\xff\x00"[..], b""]).unwrap();
        let digest = session.state_digest().unwrap();
        let (before, stored, later) =
            session.run(&[x.feed(&new)], (names.value(), &set, &later)).unwrap();
        assert_eq!((texts(&before), &stored, &later), (vec!["a".into(), "b".into()], &new, &new));
        assert_eq!(session.run(&[], &names).unwrap(), new, "{}", device.name);
        let after = session.state_digest().unwrap();
        assert_ne!(after, digest);
        session.run(&[x.feed(&new)], &set).unwrap();
        assert_eq!(session.state_digest().unwrap(), after);
        session.run(&[], &same).unwrap();
        assert_eq!(texts(&session.run(&[], &names).unwrap()), ["same", "same"]);
        assert!(session.variables().iter().all(|v| v.device == 0), "{}", device.name);
        // A tensor that was fetched does not change.
        assert_eq!(stored, new);
    }
}

#[test]
fn what_variables_of_strings_refuse() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, Strings, [2]);
    let refusals = [
        (v.assign(1.0), "dtypes differ: string and f64; cast one of them"),
        (v.assign(g.constant(strings(&["a"; 3]))), "expected shape [2], got [3]"),
        (
            v.assign_add("a"),
            "assign_add and assign_sub needs a tensor of numbers, got string; cast it first",
        ),
    ];
    let scattered = v.scatter_update(g.constant([0i32]), "a");
    let message = "scatter_update needs a tensor of numbers or bool, got string; cast it first";
    for (refused, message) in refusals.into_iter().chain([(scattered, message)]) {
        assert_eq!(refused.node().error().unwrap().message(), message);
    }
    let one = g.variable("one", Init::Constant(1.0), Strings, [2]);
    let error = one.initializer().node().error().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let drawn = g.variable("drawn", Init::glorot(1), Strings, [2]);
    assert!(drawn.initializer().node().error().is_some());
}

/// A run that fails changes nothing, and two assignments swap.
#[test]
fn runs_with_strings_are_transactions() {
    for device in devices() {
        let g = Graph::new();
        let a = g.variable("a", Init::Value("1".into()), Strings, []);
        let b = g.variable("b", Init::Value("x".into()), Strings, []);
        let number = a.value().string_to_number(I32);
        let swap = [a.assign(&b), b.assign(&a)];
        let session = initialized(device, &g);
        let (one, _) = session.run(&[], (&number, &swap[..])).unwrap();
        assert_eq!(one.scalar::<i32>().unwrap(), 1);
        let (a_now, b_now) = session.run(&[], (&a, &b)).unwrap();
        assert_eq!((text(&a_now), text(&b_now)), ("x".into(), "1".into()), "{}", device.name);
        let before = session.state_digest().unwrap();
        let error = session.run(&[], (&number, &swap[..])).unwrap_err();
        assert_eq!(error.node(), Some("string_to_number"));
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
    }
}

#[test]
fn a_reset_drops_strings_and_containers_keep_theirs() {
    for device in devices() {
        let g = Graph::new();
        let one = g.container("one", || g.variable("one", Init::Value("1".into()), Strings, []));
        let two = g.variable("two", Init::Value("2".into()), Strings, []);
        let both = g.string_join(&[one.value(), two.value()], "+");
        let session = initialized(device, &g);
        assert_eq!(text(&session.run(&[], &both).unwrap()), "1+2");
        session.reset(&["one"]).unwrap();
        let error = session.run(&[], &both).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::FailedPrecondition, Some("one")));
        assert_eq!(text(&session.run(&[], &two).unwrap()), "2");
        session.run(&[], one.initializer()).unwrap();
        assert_eq!(text(&session.run(&[], &both).unwrap()), "1+2", "{}", device.name);
    }
}

#[test]
fn branches_of_strings() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Value("v".into()), Strings, []);
        let x = g.placeholder("x", Strings, dims![]);
        let other = g.constant("other");
        let y = g.cond(
            &x.equal("a"),
            || v.assign(g.string_join(&[&x, v.value()], "-")),
            || g.string_join(&[&other, &x], "+"),
        );
        let length = y.string_length();
        let session = initialized(device, &g);
        let run = |fed: &str| {
            let (y, length) = session.run(&[x.feed(fed)], (&y, &length)).unwrap();
            (text(&y), length.scalar::<i32>().unwrap())
        };
        assert_eq!(run("b"), ("other+b".into(), 7), "{}", device.name);
        assert_eq!(text(&session.run(&[], &v).unwrap()), "v");
        assert_eq!(run("a"), ("a-v".into(), 3), "{}", device.name);
        assert_eq!(text(&session.run(&[], &v).unwrap()), "a-v", "{}", device.name);
    }
}

/// Strings that are carried, captured, sliced and collected; also beside numbers, in a body that has work for a GPU.
#[test]
fn loops_of_strings() {
    for device in devices() {
        let g = Graph::new();
        let n = g.placeholder("n", I32, dims![]);
        let mark = g.placeholder("mark", Strings, dims![]);
        let start = (g.constant(0i32), g.constant("<"), g.constant([[1.0f32, 2.0]; 2]));
        let (_, line, x) = g.while_loop(
            start,
            |(i, ..)| i.less(&n),
            |(i, line, x)| (i + 1, g.string_join(&[line, &mark, &i.as_string()], ""), x * 2.0),
        );
        let words = g.placeholder("words", Strings, dims![None, 2]);
        let (last, all) = g.scan(g.constant(""), words.clone(), |before, row| {
            let joined = row.reduce_join((), false, "&");
            let both = g.string_join(&[before, &joined], ";");
            (both.clone(), (both, joined))
        });
        let lengths = g.map(words.clone(), |row| row.string_length());
        // What decides whether there is another is computed of strings.
        let grown = g.while_loop(
            g.constant("ab"),
            |text| text.string_length().less(20),
            |text| g.string_join(&[text, text], ""),
        );
        let session = initialized(device, &g);
        for (count, expected) in [(0, "<"), (1, "<.0"), (3, "<.0.1.2")] {
            let feeds = [n.feed(count), mark.feed(".")];
            let (line, x) = session.run(&feeds, (&line, &x)).unwrap();
            assert_eq!(text(&line), expected, "{}", device.name);
            let scale = f32::from(2u16.pow(count as u32));
            assert_eq!(x.to_vec::<f32>().unwrap(), [scale, 2.0 * scale, scale, 2.0 * scale]);
        }
        let fed = HostTensor::strings(&[3, 2], ["a", "b", "", "cc", "d", ""]).unwrap();
        let fetches = (&last, &all.0, &all.1, &lengths);
        let (last, both, joined, lengths) = session.run(&[words.feed(&fed)], fetches).unwrap();
        assert_eq!(text(&last), ";a&b;&cc;d&", "{}", device.name);
        assert_eq!(texts(&both), [";a&b", ";a&b;&cc", ";a&b;&cc;d&"]);
        assert_eq!(texts(&joined), ["a&b", "&cc", "d&"]);
        assert_eq!(lengths.to_vec::<i32>().unwrap(), [1, 1, 0, 2, 1, 0]);
        let none = HostTensor::strings(&[0, 2], [""; 0]).unwrap();
        let (last, joined) = session.run(&[words.feed(&none)], (fetches.0, fetches.2)).unwrap();
        assert_eq!((text(&last), joined.dims()), (String::new(), &[0][..]), "{}", device.name);
        assert_eq!(text(&session.run(&[], &grown).unwrap()), "ab".repeat(16));
    }
}

#[test]
fn arrays_and_variables_of_strings_in_loops() {
    for device in devices() {
        let g = Graph::new();
        let log = g.variable("log", Init::Value("".into()), Strings, []);
        let (_, array) = g.while_loop_with(
            (g.constant(0i32), g.tensor_array(3, Strings, &[2])),
            |(i, _)| i.less(2),
            |(i, array)| {
                let told = log.assign(g.string_join(&[&log.read(), &i.as_string()], "/"));
                let pair = g.stack(&[&i.as_string(), &told], 0);
                (i + 1, array.write(i, &pair))
            },
            LoopOptions::default(),
        );
        let all = array.stack();
        let session = initialized(device, &g);
        let all = session.run(&[], &all).unwrap();
        assert_eq!(all, HostTensor::strings(&[3, 2], ["0", "/0", "1", "/0/1", "", ""]).unwrap());
        assert_eq!(text(&session.run(&[], &log).unwrap()), "/0/1", "{}", device.name);
    }
}

#[test]
fn partial_runs_of_strings() {
    for device in devices() {
        let g = Graph::new();
        let v = g.variable("v", Init::Value("v".into()), Strings, []);
        let [a, b] = ["a", "b"].map(|name| g.placeholder(name, Strings, dims![]));
        let first = g.string_join(&[&a, v.value()], "");
        let set = v.assign(&first);
        let second = g.string_join(&[&first, &b], "");
        let session = initialized(device, &g);
        let mut run = session.partial_run(&[&a, &b], (&set, &second)).unwrap();
        assert_eq!(text(&run.run(&[a.feed("1")], &set).unwrap()), "1v");
        assert_eq!(text(&session.run(&[], &v).unwrap()), "v", "{}", device.name);
        assert_eq!(text(&run.run(&[b.feed("2")], &second).unwrap()), "1v2");
        assert_eq!(text(&session.run(&[], &v).unwrap()), "1v", "{}", device.name);
    }
}

/// As TensorFlow's operations on strings, which have kernels for the CPU only.
#[test]
fn strings_that_ask_for_a_gpu_are_refused_or_placed_on_the_host() {
    for device in devices().iter().filter(|d| d.devices.list().len() > 1) {
        let g = Graph::new();
        let v = g.device("GPU:0", || g.variable("v", Init::Value("v".into()), Strings, []));
        let x = g.placeholder("x", Strings, dims![]);
        let y = g.device("GPU:0", || g.string_join(&[&x, &x], "+"));
        let both = g.string_join(&[&y, v.value()], "");
        let hard = SessionOptions { soft_placement: false, ..SessionOptions::default() };
        let session = Session::with_options(&g, &device.devices, hard).unwrap();
        for (error, name) in [
            (session.run(&[x.feed("a")], &y).unwrap_err(), "string_join"),
            (session.run(&[], v.initializer()).unwrap_err(), "v"),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert_eq!(error.node(), Some(name));
            assert!(error.message().contains("strings"), "{error}");
        }
        let session = Session::new(&g, &device.devices).unwrap();
        session.run(&[], g.initializers()).unwrap();
        assert_eq!(text(&session.run(&[x.feed("a")], &both).unwrap()), "a+av", "{}", device.name);
        assert_eq!(session.variables()[0].device, 0);
    }
}

/// Of numbers and strings in one run: what each kernel was, and where.
#[test]
fn reports_of_strings() {
    for device in devices() {
        let g = Graph::new();
        let names = g.variable("names", Init::Value(strings(&["a", "b"])), Strings, [2]);
        let x = g.placeholder("x", F32, dims![2]);
        let sums = (&x * 2.0 + 1.0).as_string();
        let y = g.string_join(&[names.value(), &sums], "=");
        let flags = y.equal("b=5.000000").cast(F32) * 2.0;
        let session = initialized(device, &g);
        let feeds = [x.feed([1.0f32, 2.0])];
        let explanation = session.explain(&feeds, (&y, &flags)).unwrap();
        for part in ["string_join", "as_string", "names"] {
            assert!(explanation.to_string().contains(part), "{explanation}");
        }
        assert!(explanation.node("string_join").unwrap().to_string().contains("CPU:0"));
        let json = explanation.to_json();
        assert!(json.contains("string_join"));
        assert!(
            explanation.to_html().contains("string_join")
                && explanation.to_dot().contains("string_join")
        );
        let options = RunOptions { timings: Timings::Nodes, ..RunOptions::default() };
        let ((y, flags), metadata) = session.run_with(&feeds, (&y, &flags), options).unwrap();
        assert_eq!(texts(&y), ["a=3.000000", "b=5.000000"], "{}", device.name);
        assert_eq!(flags.to_vec::<f32>().unwrap(), [0.0, 2.0]);
        let joins: Vec<_> = metadata.nodes.iter().filter(|n| n.kernel == "string_join").collect();
        assert_eq!(joins.len(), 1, "{}", device.name);
        assert_eq!(joins[0].shapes, "string[2], string[2] -> string[2]");
        assert_eq!(&*joins[0].device, "CPU:0");
    }
}

/// Repeated runs of one program, and runs by several threads, share nothing of what each computes.
#[test]
fn calls_of_strings_are_their_own() {
    let g = Graph::new();
    let x = g.placeholder("x", Strings, dims![None]);
    let y = g.string_join(&[&x, &x.string_length().as_string()], ":");
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (session, x, y) = (&session, &x, &y);
            scope.spawn(move || {
                for i in 0..50 {
                    let word = "w".repeat(thread * 7 + i % 5);
                    let fed = strings(&vec![word.as_str(); i % 4]);
                    let given = session.run(&[x.feed(&fed)], y).unwrap();
                    let expected = vec![format!("{word}:{}", word.len()); i % 4];
                    assert_eq!(texts(&given), expected);
                }
            });
        }
    });
}
