//! Functions of the host as operations: lookup tables, decoding of strings, functions of your own. TensorFlow:
//! `lookup_ops_test.py`, `py_func_test.py`, `decode_raw_op_test.py`, `decode_csv_op_test.py`, by meaning.

use convoke::input::{CsvDecoder, CsvOptions, DecodeExt, Endian};
use convoke::prelude::*;
use convoke::{ErrorKind, LookupTable, ModelSpec, SavedModel};
use convoke_tests::{Folder, devices};

fn strings(texts: &[&str]) -> HostTensor {
    HostTensor::strings(&[texts.len()], texts.iter().map(|text| text.as_bytes())).unwrap()
}

#[test]
fn a_table_of_strings_gives_values_or_the_default() {
    for device in devices() {
        let g = Graph::new();
        let table =
            LookupTable::new(strings(&["brain", "salad", "surgery"]), [0i64, 1, 2]).unwrap();
        let words = g.placeholder("words", Strings, dims![None]);
        let ids = table.lookup(&words, -1i64);
        let session = device.session(&g);
        let fed = strings(&["brain", "salad", "tank", "brain"]);
        let (ids_, size) = session.run(&[words.feed(&fed)], (&ids, g.table_size(&table))).unwrap();
        assert_eq!(ids_.to_vec::<i64>().unwrap(), [0, 1, -1, 0], "{}", device.name);
        assert_eq!(size.scalar::<i64>().unwrap(), 3);
        // Into an embedding on the device.
        let rows = g.variable("rows", Init::Constant(0.5), F32, [3, 4]);
        let sum = rows.value().gather(ids.maximum(g.constant(0i64)).cast(I32), 0).sum(());
        session.run(&[], g.initializers()).unwrap();
        let sum = session.run(&[words.feed(&fed)], &sum).unwrap().scalar::<f32>().unwrap();
        assert_eq!(sum, 8.0, "{}", device.name);
    }
}

#[test]
fn a_table_of_integers_of_any_shape() {
    let g = Graph::new();
    let table = LookupTable::new([3i64, -7], strings(&["three", "minus seven"])).unwrap();
    let keys = g.constant([[3i64, -7], [0, 3]]);
    let names = table.lookup(&keys, strings(&["unknown"]));
    let names = Session::new(&g, &Devices::cpu()).unwrap().run(&[], &names).unwrap();
    assert_eq!(names.dims(), [2, 2]);
    let texts: Vec<&[u8]> = names.as_strings().unwrap().iter().map(Vec::as_slice).collect();
    assert_eq!(texts, [&b"three"[..], b"minus seven", b"unknown", b"three"]);
}

#[test]
fn tables_refuse_what_does_not_fit() {
    let message = |t: convoke::Result<LookupTable>| t.unwrap_err().message().to_owned();
    assert_eq!(message(LookupTable::new([1i64, 1], [5i64, 6])), "the key 1 has two values");
    assert!(LookupTable::new([1i64, 1], [5i64, 5]).is_ok());
    assert_eq!(
        message(LookupTable::new([1i64, 2], [5i64])),
        "expected a list of keys and a value for each, got [2] and [1]"
    );
    assert_eq!(
        message(LookupTable::new([1.0f32], [5i64])),
        "expected keys of integers or strings, got f32"
    );
    let g = Graph::new();
    let table = LookupTable::new([1i64], [5i64]).unwrap();
    let refused = |y: &Tensor| y.node().error().unwrap().message().to_owned();
    assert_eq!(
        refused(&table.lookup(&g.constant(1i32), 0i64)),
        "expected keys of i64, as the table has, got i32"
    );
    let wrong = table.lookup(&g.constant(1i64), 0.0f32);
    assert!(!g.check().is_empty() && wrong.node().invalid.is_some());
}

#[test]
fn a_table_is_saved_with_its_model() {
    let g = Graph::new();
    let table = LookupTable::new(strings(&["a", "b"]), [1.5f32, 2.5]).unwrap();
    let words = g.placeholder("words", Strings, dims![None]);
    let y = table.lookup(&words, 0.0f32) * 2.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let folder = Folder::new("a_table_is_saved");
    let path = folder.path().join("model.safetensors");
    let spec = ModelSpec::frozen(&[("words", &words)], &[("y", &y)]);
    session.save_model(&path, &spec).unwrap();
    let model = SavedModel::load(&path, &Devices::cpu()).unwrap();
    let feeds = [model.input("words").unwrap().feed(strings(&["b", "?", "a"]))];
    let y = model.session().run(&feeds, model.output("y").unwrap()).unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [5.0, 0.0, 3.0]);
}

#[test]
fn functions_of_the_host_take_and_give_any_dtype() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![None]);
        let v = g.variable("v", Init::Zeros, F32, []);
        let texts = g.host_function(
            "text",
            &[&(&x * 2.0)],
            [(Strings, dims![None]), (I32, dims![])],
            |inputs| {
                let xs = inputs[0].to_vec::<f32>()?;
                if xs.iter().any(|x| x.is_nan()) {
                    return Err(convoke::Error::invalid("not a number"));
                }
                let n = xs.len();
                let texts = HostTensor::strings(&[n], xs.iter().map(|x| x.to_string()))?;
                Ok(vec![texts, HostTensor::from(n as i32)])
            },
        );
        let step = v.assign_add(texts[1].cast(F32));
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let (text, n, now) =
            session.run(&[x.feed([0.5f32, 1.25])], (&texts[0], &texts[1], &step)).unwrap();
        assert_eq!(text, strings(&["1", "2.5"]), "{}", device.name);
        assert_eq!(n.scalar::<i32>().unwrap(), 2);
        assert_eq!(now.scalar::<f32>().unwrap(), 2.0);
        let before = session.state_digest().unwrap();
        let error = session.run(&[x.feed([f32::NAN])], &step).unwrap_err();
        assert_eq!((error.message(), error.node()), ("not a number", Some("text")));
        assert!(error.location().is_some());
        assert_eq!(session.state_digest().unwrap(), before, "{}", device.name);
    }
}

#[test]
fn a_function_gives_what_it_says() {
    let g = Graph::new();
    let x = g.constant([1.0f32, 2.0]);
    let y = g.host_function("half", &[&x], [(F32, dims![2])], |_| Ok(vec![HostTensor::from(1i32)]));
    let error = Session::new(&g, &Devices::cpu()).unwrap().run(&[], &y).unwrap_err();
    assert_eq!(error.message(), "the function says that it gives f32[2], and gives i32[]");
    assert!(y[0].gradients(&[&x])[0].is_none());
}

/// A panic is an error of the run, with its text, the function's node and line; the session goes on.
#[test]
fn a_function_that_panics_fails_the_run() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![]);
    let count = g.variable("count", Init::Constant(0.0), F32, []);
    let half = |x: &[HostTensor]| match x[0].scalar::<f32>()? {
        x if x < 0.0 => panic!("{x} is below zero"),
        x => Ok(vec![HostTensor::from(x / 2.0)]),
    };
    let y = g.host_function("half", &[&x], [(F32, dims![])], half).remove(0);
    let step = count.assign_add(&y);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let before = session.state_digest().unwrap();
    let error = session.run(&[x.feed(-1.5)], &step).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::Unknown, Some("half")), "{error}");
    assert_eq!(error.message(), "the function half panicked: -1.5 is below zero");
    assert!(error.to_string().contains("calls.rs"), "{error}");
    assert_eq!(session.state_digest().unwrap(), before);
    assert_eq!(session.run(&[x.feed(3.0)], &step).unwrap().scalar::<f32>().unwrap(), 1.5);
}

#[test]
fn functions_run_in_branches_and_loops() {
    let g = Graph::new();
    let n = g.placeholder("n", I32, dims![]);
    let shout = |x: &Tensor| {
        let all = |inputs: &[HostTensor]| {
            let all = inputs[0].as_strings()?.iter().map(|s| [s, &b"!"[..]].concat());
            Ok(vec![HostTensor::strings(inputs[0].dims(), all)?])
        };
        g.host_function("shout", &[x], [(Strings, dims![1])], all).remove(0)
    };
    let start = (g.constant(0i32), g.constant(strings(&["hey"])));
    let (_, text) = g.while_loop(start, |(i, _)| i.less(&n), |(i, text)| (i + 1, shout(text)));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    assert_eq!(session.run(&[n.feed(3)], &text).unwrap(), strings(&["hey!!!"]));
    assert_eq!(session.run(&[n.feed(0)], &text).unwrap(), strings(&["hey"]));
}

#[test]
fn strings_are_decoded_in_the_graph() {
    for device in devices() {
        let g = Graph::new();
        let records = g.placeholder("records", Strings, dims![None]);
        let pixels = records.decode_raw(U8, Endian::Little).cast(F32) / 255.0;
        let session = device.session(&g);
        let bytes: [&[u8]; 2] = [&[0, 255, 51], &[102, 0, 255]];
        let fed = HostTensor::strings(&[2], bytes).unwrap();
        let pixels = session.run(&[records.feed(&fed)], &pixels).unwrap();
        assert_eq!(pixels.dims(), [2, 3]);
        let expected = [0.0f32, 1.0, 0.2, 0.4, 0.0, 1.0];
        for (got, expected) in pixels.to_vec::<f32>().unwrap().iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{}", device.name);
        }
        let defaults = vec![HostTensor::from([0.0f32]), HostTensor::from([7i32])];
        let decoder = CsvDecoder::new(defaults, CsvOptions::default()).unwrap();
        let columns = records.decode_csv(decoder);
        let fed = strings(&["1.5,2", "-3,"]);
        let columns = session.run(&[records.feed(&fed)], &columns).unwrap();
        assert_eq!(columns[0].to_vec::<f32>().unwrap(), [1.5, -3.0]);
        assert_eq!(columns[1].to_vec::<i32>().unwrap(), [2, 7]);
    }
}
