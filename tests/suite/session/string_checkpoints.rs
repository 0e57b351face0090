//! Variables of strings in checkpoints and models.

use std::fs;
use std::path::Path;

use convoke::ErrorKind::{DataLoss, InvalidArgument, Unimplemented};
use convoke::prelude::*;
use convoke::{Mismatch, Missing, RestoreOptions, Unknown};
use convoke_tests::{Folder, devices};
use serde_json::{Value, json};

/// A session with variables of strings and of numbers, one of which is called as a part of the strings might be.
fn small(names: &str, word: &[u8]) -> (Graph, Session) {
    let g = Graph::new();
    let strings = HostTensor::strings(&[2, 2], [word, b"", b"a\0b", b"\xff\xfe"]).unwrap();
    g.variable(names, Init::Value(strings), Strings, [2, 2]);
    g.variable("w", Init::Constant(1.5), F32, [3]);
    g.variable("names/ends", Init::Value(HostTensor::from([7i64])), I64, [1]);
    g.variable("none", Init::Zeros, Strings, [0, 3]);
    g.variable("one", Init::Value("one".into()), Strings, []);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    (g, session)
}

fn words(session: &Session, name: &str) -> Vec<Vec<u8>> {
    let all = session.graph().global_variables();
    let variable = all.iter().find(|variable| variable.name() == name).unwrap();
    session.run(&[], variable).unwrap().as_strings().unwrap().to_vec()
}

#[test]
fn strings_are_saved_and_restored_whole_and_in_shards() {
    for shards in [1, 3, 9] {
        let folder = Folder::new("strings");
        let saver = Saver::new(folder.path().join("model"));
        let saver = if shards > 1 { saver.shards(shards) } else { saver };
        let (_, saved) = small("names", b"saved");
        saver.save(&saved, 1).unwrap();
        let (_, restored) = small("names", b"other and longer");
        assert_ne!(saved.state_digest().unwrap(), restored.state_digest().unwrap());
        assert_eq!(saver.restore_latest(&restored).unwrap(), 1);
        assert_eq!(saved.state_digest().unwrap(), restored.state_digest().unwrap());
        assert_eq!(words(&restored, "names"), [&b"saved"[..], b"", b"a\0b", b"\xff\xfe"]);
        assert_eq!(words(&restored, "one"), [b"one"]);
    }
}

/// Into variables that have no elements yet, on every device.
#[test]
fn strings_are_restored_in_place_of_initialisers() {
    for device in devices() {
        let folder = Folder::new("strings-new");
        let path = folder.path().join("all.safetensors");
        let (g, saved) = small("names", b"saved");
        saved.save(&path).unwrap();
        let session = device.session(&g);
        session.restore(&path).unwrap();
        assert!(session.uninitialized().is_empty());
        assert_eq!(
            session.state_digest().unwrap(),
            saved.state_digest().unwrap(),
            "{}",
            device.name
        );
    }
}

#[test]
fn strings_are_restored_in_part_and_under_other_names() {
    let folder = Folder::new("strings-part");
    let path = folder.path().join("all.safetensors");
    small("names", b"saved").1.save(&path).unwrap();
    let (g, session) = small("words", b"own");
    let error = session.restore(&path).unwrap_err();
    assert_eq!(error.kind(), InvalidArgument);
    assert!(error.message().contains("has a variable \"names\""), "{error}");
    let options = RestoreOptions {
        names: vec![("words".into(), "names".into())],
        ..RestoreOptions::default()
    };
    let report = session.restore_with(&path, &options).unwrap();
    assert_eq!(report.mapped, [("words".to_owned(), "names".to_owned())]);
    assert_eq!((report.restored.len(), report.ignored.len()), (5, 0));
    assert_eq!(words(&session, "words")[0], b"saved");
    // Only one of them.
    let (g2, session) = small("names", b"own");
    let one = g2.global_variables().into_iter().find(|v| v.name() == "one").unwrap();
    session.run(&[], one.assign("two")).unwrap();
    let options = RestoreOptions { only: vec![one], ..RestoreOptions::default() };
    let report = session.restore_with(&path, &options).unwrap();
    assert_eq!((report.restored, report.ignored.len()), (vec!["one".to_owned()], 4));
    assert_eq!(
        (words(&session, "names")[0].clone(), words(&session, "one")),
        (b"own".to_vec(), vec![b"one".to_vec()])
    );
    drop(g);
    // A saver of one variable writes it as well.
    let saver = Saver::new(folder.path().join("one")).variables([g2.global_variables()[0].clone()]);
    saver.save(&session, 4).unwrap();
    session.run(&[], g2.global_variables()[0].assign("x")).unwrap();
    saver.restore_latest(&session).unwrap();
    assert_eq!(words(&session, "names")[0], b"own");
}

#[test]
fn strings_that_do_not_fit_are_refused_kept_or_reshaped() {
    let folder = Folder::new("strings-misfit");
    let path = folder.path().join("all.safetensors");
    small("names", b"saved").1.save(&path).unwrap();
    let with = |dtype: DType, sizes: &[usize]| {
        let g = Graph::new();
        g.variable("names", Init::Zeros, dtype, sizes);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        session
    };
    let options = |mismatch| RestoreOptions {
        mismatch,
        unknown: Unknown::Ignore,
        missing: Missing::Refuse,
        ..RestoreOptions::default()
    };
    for (dtype, sizes) in [(Strings, &[3][..]), (U8, &[2, 2]), (Strings, &[4])] {
        let session = with(dtype, sizes);
        let error = session.restore_with(&path, &options(Mismatch::Refuse)).unwrap_err();
        assert_eq!((error.kind(), error.node()), (InvalidArgument, Some("names")));
        assert!(error.message().ends_with("has string[2, 2]"), "{error}");
        let error = session.restore_with(&path, &options(Mismatch::Keep)).unwrap_err();
        assert!(error.message().starts_with("nothing in "), "{error}");
    }
    let session = with(Strings, &[4]);
    session.restore_with(&path, &options(Mismatch::Reshape)).unwrap();
    assert_eq!(words(&session, "names"), [&b"saved"[..], b"", b"a\0b", b"\xff\xfe"]);
}

/// Puts another note of strings into a file.
fn with_note(path: &Path, whole: &[u8], change: &dyn Fn(&mut Value)) {
    let start = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&whole[8..start]).unwrap();
    let note = &mut header["__metadata__"]["convoke.strings"];
    let mut strings: Value = serde_json::from_str(note.as_str().unwrap()).unwrap();
    change(&mut strings);
    *note = strings.to_string().into();
    let header = header.to_string();
    let n = (header.len() as u64).to_le_bytes();
    fs::write(path, [&n, header.as_bytes(), &whole[start..]].concat()).unwrap();
}

#[test]
fn damaged_strings_change_nothing() {
    let folder = Folder::new("strings-damaged");
    let path = folder.path().join("all.safetensors");
    let (_, session) = small("names", b"saved");
    session.save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let (_, session) = small("names", b"own");
    let before = session.state_digest().unwrap();
    let refused = |kind: ErrorKind, text: &str| {
        let error = session.restore(&path).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(session.state_digest().unwrap(), before);
    };
    let noted = |change: &dyn Fn(&mut Value)| with_note(&path, &whole, change);
    noted(&|note| note["version"] = json!(2));
    refused(Unimplemented, "has version 2 of strings; this reads 1");
    noted(&|note| *note = json!([]));
    refused(DataLoss, "its note of strings has no version");
    noted(&|note| note["strings"] = json!(1));
    refused(DataLoss, "its note of strings names none");
    noted(&|note| note["strings"][0]["place"] = json!({ "tensor": "w" }));
    refused(DataLoss, "its note of strings names none");
    noted(&|note| note["strings"][1] = note["strings"][0].clone());
    refused(DataLoss, "a variable of strings twice");
    noted(&|note| note["strings"][0]["place"]["ends"] = json!("nowhere"));
    refused(DataLoss, "\"nowhere\", of a variable, is not there");
    noted(&|note| note["strings"][0]["place"]["ends"] = json!("w"));
    refused(InvalidArgument, "names/ends_");
    noted(&|note| note["strings"][0]["name"] = json!("w"));
    refused(DataLoss, "it has \"w\" of strings and of numbers");
    // What ends where it does not.
    let start = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&whole[8..start]).unwrap();
    let at = start + header["names/ends_"]["data_offsets"][0].as_u64().unwrap() as usize;
    for ends in [[9u64, 5, 8, 10], [5, 5, 8, 11], [5, 5, 8, 9], [u64::MAX, 5, 8, 10]] {
        let mut all = whole.clone();
        all[at..at + 32].copy_from_slice(&ends.map(u64::to_le_bytes).concat());
        fs::write(&path, all).unwrap();
        refused(DataLoss, "the strings of a variable end where they do not");
    }
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    refused(DataLoss, "");
    fs::write(&path, &whole).unwrap();
    session.restore(&path).unwrap();
    assert_eq!(words(&session, "names")[0], b"saved");
}

/// A trainable model goes on from its strings, and a frozen one has them as constants.
#[test]
fn models_keep_variables_of_strings() {
    for device in devices() {
        let folder = Folder::new("strings-model");
        let path = folder.path().join("model.safetensors");
        let g = Graph::new();
        let x = g.placeholder("x", Strings, dims![2]);
        let log = g.variable("log", Init::Zeros, Strings, [2]);
        let y = g.string_join(&[log.value(), &x], ",");
        let short = y.substr(0i32, 2i32);
        let step = log.assign(&y);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        let fed = HostTensor::strings(&[2], [&b"\xff"[..], b"b\0"]).unwrap();
        session.run(&[x.feed(&fed)], &step).unwrap();
        let outputs = [("y", &y), ("short", &short)];
        let (expected, part) = session.run(&[x.feed(&fed)], (&y, &short)).unwrap();
        assert_eq!(expected.as_strings().unwrap(), [&b",\xff,\xff"[..], b",b\0,b\0"]);
        let trainable =
            ModelSpec::trainable(&[("x", &x)], &outputs, &[("step", &step.operation())]);
        for spec in [ModelSpec::frozen(&[("x", &x)], &outputs), trainable] {
            session.save_model(&path, &spec).unwrap();
            let model = SavedModel::load(&path, &device.devices).unwrap();
            let given = model.run("serving_default", &[("x", fed.clone())]).unwrap();
            assert_eq!((&given["y"], &given["short"]), (&expected, &part), "{}", device.name);
        }
        let model = SavedModel::load(&path, &device.devices).unwrap();
        let own = model.input("x").unwrap().feed(&fed);
        model.session().run(&[own], model.operation("step").unwrap()).unwrap();
        let given = model.run("serving_default", &[("x", fed.clone())]).unwrap();
        assert_eq!(given["y"].as_strings().unwrap()[0], b",\xff,\xff,\xff", "{}", device.name);
    }
}
