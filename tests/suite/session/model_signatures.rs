//! Models of several signatures. TensorFlow: `saved_model_test.py`, `testSignatureDefs`, by meaning.

use std::path::PathBuf;

use convoke::prelude::*;
use convoke::{DEFAULT_SIGNATURE, ModelForm};
use convoke_tests::{Folder, devices};

fn file(folder: &Folder) -> PathBuf {
    folder.path().join("model.safetensors")
}

/// The version that a file says.
fn version(folder: &Folder) -> u64 {
    let bytes = std::fs::read(file(folder)).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let model = header["__metadata__"]["convoke.model"].as_str().unwrap();
    serde_json::from_str::<serde_json::Value>(model).unwrap()["version"].as_u64().unwrap()
}

/// `x` of two numbers, `features = x w` with `w = 2`, and `y = features + 1`.
struct Network {
    session: Session,
    x: Tensor,
    features: Tensor,
    y: Tensor,
    step: Operation,
}

fn network(session: impl FnOnce(&Graph) -> Session) -> Network {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![2]);
    let w = g.variable("w", Init::Constant(2.0), F32, [2]);
    let features = (&x * &w).named("features");
    let y = (&features + 1.0).named("y");
    let step = w.assign_add(&x).operation();
    let session = session(&g);
    session.run(&[], g.initializers()).unwrap();
    Network { session, x, features, y, step }
}

#[test]
fn each_signature_has_names_of_its_own() {
    for device in devices() {
        let folder = Folder::new("signatures");
        let n = network(|g| device.session(g));
        for form in [ModelForm::Frozen, ModelForm::Trainable] {
            let spec = ModelSpec::frozen(&[("x", &n.x)], &[("y", &n.y)]);
            let spec = spec
                .with_signature("head", &[("in", &n.features)], &[("y", &n.y)], &[])
                .with_signature("features", &[("in", &n.x)], &[("f", &n.features)], &[]);
            let spec = match form {
                ModelForm::Frozen => spec,
                ModelForm::Trainable => ModelSpec { form, ..spec }.with_signature(
                    "train",
                    &[("by", &n.x)],
                    &[],
                    &[("step", &n.step)],
                ),
            };
            n.session.save_model(file(&folder), &spec).unwrap();
            assert_eq!(version(&folder), 3);
            let session = SessionOptions { policy: device.policy.clone(), ..Default::default() };
            let options = convoke::LoadOptions { session, ..Default::default() };
            let model = SavedModel::load_with(file(&folder), &device.devices, options).unwrap();
            let names: Vec<&str> = model.signatures().map(|(name, _)| name).collect();
            assert_eq!(names[..3], [DEFAULT_SIGNATURE, "features", "head"]);
            assert_eq!(names.len(), if form == ModelForm::Frozen { 3 } else { 4 });
            let run = |name: &str, input: &str, output: &str| {
                let found = model.run(name, &[(input, [1.0f32, 10.0].into())]).unwrap();
                assert_eq!(found.keys().collect::<Vec<_>>(), [output]);
                found[output].to_vec::<f32>().unwrap()
            };
            // `features` is what `head` is fed, and computed for the others.
            assert_eq!(run(DEFAULT_SIGNATURE, "x", "y"), [3.0, 21.0], "{}", device.name);
            assert_eq!(run("head", "in", "y"), [2.0, 11.0], "{}", device.name);
            assert_eq!(run("features", "in", "f"), [2.0, 20.0], "{}", device.name);
            assert!(model.signature(DEFAULT_SIGNATURE).unwrap().input("x").is_ok());
            if form == ModelForm::Trainable {
                let error = model.run("train", &[("by", [1.0f32, 1.0].into())]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
                assert!(error.message().contains("run its operations [\"step\"]"), "{error}");
                let train = model.signature("train").unwrap();
                let feed = train.input("by").unwrap().feed([1.0f32, 1.0]);
                model.session().run(&[feed], train.operation("step").unwrap()).unwrap();
                assert_eq!(run("features", "in", "f"), [3.0, 30.0], "{}", device.name);
            }
            let missing = |error: convoke::Error, text: &str| {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                assert!(error.message().contains(text), "{error}");
            };
            missing(model.signature("tail").unwrap_err(), "no signature is named \"tail\"");
            missing(model.run("tail", &[]).unwrap_err(), "[\"serving_default\", \"features\", ");
            let feeds = [("x", [1.0f32, 1.0].into())];
            missing(model.run("head", &feeds).unwrap_err(), "no input is named \"x\"; there are");
        }
    }
}

/// What all signatures feed is cut off, and what one computes is not.
#[test]
fn what_one_signature_computes_is_kept() {
    let folder = Folder::new("cut");
    let n = network(|g| Session::new(g, &Devices::cpu()).unwrap());
    let load = |spec: &ModelSpec| {
        n.session.save_model(file(&folder), spec).unwrap();
        SavedModel::load(file(&folder), &Devices::cpu()).unwrap()
    };
    let head = ModelSpec::frozen(&[("f", &n.features)], &[("y", &n.y)]);
    let again = head.clone().with_signature("again", &[("g", &n.features)], &[("z", &n.y)], &[]);
    for spec in [&head, &again] {
        let model = load(spec);
        assert!(model.graph().operation("w").is_err(), "{}", model.graph());
        assert!(model.graph().operation("x").is_err(), "{}", model.graph());
    }
    // To be fetched it has to be computed.
    let fetched =
        head.clone().with_signature("features", &[("x", &n.x)], &[("f", &n.features)], &[]);
    assert!(load(&fetched).graph().operation("w").is_ok());
    // What is fed and fetched is not.
    let passed = head.with_signature("pass", &[("f", &n.features)], &[("f", &n.features)], &[]);
    assert!(load(&passed).graph().operation("w").is_err());
}

#[test]
fn names_of_signatures_are_refused_twice() {
    let folder = Folder::new("names");
    let n = network(|g| Session::new(g, &Devices::cpu()).unwrap());
    let spec = || ModelSpec::frozen(&[("x", &n.x)], &[("y", &n.y)]);
    let refused = |spec: ModelSpec, text: &str| {
        let error = n.session.save_model(file(&folder), &spec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains(text), "{error}");
        assert!(folder.files().is_empty());
    };
    let default = spec().with_signature(DEFAULT_SIGNATURE, &[], &[("y", &n.y)], &[]);
    refused(default, "\"serving_default\" is the signature of the model's own");
    let twice = spec().with_signature("a", &[], &[("y", &n.y)], &[]);
    let twice = twice.with_signature("a", &[], &[("y", &n.y)], &[]);
    refused(twice, "two signatures are named \"a\"");
    let same = spec().with_signature("a", &[], &[("y", &n.y), ("y", &n.x)], &[]);
    refused(same, "signature \"a\": two inputs, outputs or operations have the same name");
    let other = Graph::new().placeholder("x", F32, [2]);
    let foreign = spec().with_signature("a", &[("x", &other)], &[("y", &n.y)], &[]);
    refused(foreign, "signature \"a\": \"x\" belongs to another graph");
}

/// One signature is written as it was before there were several.
#[test]
fn a_model_of_one_signature_has_the_first_version() {
    let folder = Folder::new("first");
    let n = network(|g| Session::new(g, &Devices::cpu()).unwrap());
    n.session
        .save_model(file(&folder), &ModelSpec::frozen(&[("x", &n.x)], &[("y", &n.y)]))
        .unwrap();
    assert_eq!(version(&folder), 1);
    let model = SavedModel::load(file(&folder), &Devices::cpu()).unwrap();
    assert_eq!(model.signatures().count(), 1);
    let found = model.run(DEFAULT_SIGNATURE, &[("x", [1.0f32, 2.0].into())]).unwrap();
    assert_eq!(found["y"].to_vec::<f32>().unwrap(), [3.0, 5.0]);
}
