//! Restoring a part, under other names, into a changed graph; and what is refused. Semantics: TensorFlow 1.x,
//! `python/training/saver_test.py`, by meaning.

use std::path::{Path, PathBuf};

use convoke::prelude::*;
use convoke::{Error, Mismatch, Missing, RestoreOptions, Unknown};
use convoke_tests::{Folder, devices};

/// A session whose variables are filled, each with its number.
fn session(variables: &[(&str, f64, &[usize])]) -> (Session, Vec<Variable>) {
    let (session, variables) = blank(variables);
    session.run(&[], session.graph().initializers()).unwrap();
    (session, variables)
}

/// A session whose variables have no elements yet.
fn blank(variables: &[(&str, f64, &[usize])]) -> (Session, Vec<Variable>) {
    let g = Graph::new();
    let variable = |&(name, value, sizes): &(&str, f64, &[usize])| {
        g.variable(name, Init::Constant(value), F32, sizes)
    };
    let variables = variables.iter().map(variable).collect();
    (Session::new(&g, &Devices::cpu()).unwrap(), variables)
}

fn saved(folder: &Folder, variables: &[(&str, f64, &[usize])]) -> PathBuf {
    let path = folder.path().join("model.safetensors");
    session(variables).0.save(&path).unwrap();
    path
}

fn values(session: &Session, variables: &[Variable]) -> Vec<Vec<f32>> {
    let values = session.run(&[], variables).unwrap();
    values.iter().map(|value| value.to_vec().unwrap()).collect()
}

fn pairs(names: &[(&str, &str)]) -> Vec<(String, String)> {
    names.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect()
}

fn refusal(session: &Session, path: &Path, options: &RestoreOptions) -> Error {
    session.restore_with(path, options).unwrap_err()
}

#[test]
fn strict_restore_reports_what_it_restored() {
    let folder = Folder::new("strict");
    let path = saved(&folder, &[("v", 1.0, &[2]), ("w", 2.0, &[])]);
    let (session, variables) = blank(&[("v", 0.0, &[2]), ("w", 0.0, &[])]);
    let report = session.restore_with(&path, &RestoreOptions::default()).unwrap();
    assert_eq!(values(&session, &variables), [vec![1.0, 1.0], vec![2.0]]);
    assert_eq!(report.restored, ["v", "w"]);
    assert!(report.mapped.is_empty() && report.kept.is_empty() && report.ignored.is_empty());
    assert_eq!(report.to_string(), format!("restored 2 of 2 variables from {}", path.display()));
}

// SaverTest.testBasicsWithListOfVariables
#[test]
fn only_the_listed_variables_are_restored() {
    for device in devices() {
        let folder = Folder::new("only");
        let path = saved(&folder, &[("v", 1.0, &[2]), ("w", 2.0, &[]), ("x", 3.0, &[])]);
        let g = Graph::new();
        let v = g.variable("v", Init::Constant(8.0), F32, [2]);
        let w = g.variable("w", Init::Constant(9.0), F32, []);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        assert_eq!(session.run(&[], &(&v * 1.0)).unwrap().to_vec::<f32>().unwrap(), [8.0, 8.0]);
        let options = RestoreOptions { only: vec![v.clone()], ..Default::default() };
        let report = session.restore_with(&path, &options).unwrap();
        assert_eq!(report.restored, ["v"]);
        assert_eq!(report.ignored, ["w", "x"]);
        let (v, w) = session.run(&[], (&(&v * 1.0), &(&w * 1.0))).unwrap();
        assert_eq!(v.to_vec::<f32>().unwrap(), [1.0, 1.0], "{}", device.name);
        assert_eq!(w.to_vec::<f32>().unwrap(), [9.0], "{}", device.name);
    }
}

// SaveRestoreWithVariableNameMap.testNonReshape
#[test]
fn names_and_prefixes_map_to_names_in_the_file() {
    let folder = Folder::new("map");
    let path = saved(
        &folder,
        &[("v0", 1.0, &[]), ("bert/w", 2.0, &[]), ("bert/b", 3.0, &[]), ("pool/b", 4.0, &[])],
    );
    let (session, variables) = blank(&[
        ("first", 0.0, &[]),
        ("body/w", 0.0, &[]),
        ("body/b", 0.0, &[]),
        ("body/pool/b", 0.0, &[]),
    ]);
    let options = RestoreOptions {
        names: pairs(&[("first", "v0")]),
        prefixes: pairs(&[("body/", "bert/"), ("body/pool", "pool")]),
        ..Default::default()
    };
    let report = session.restore_with(&path, &options).unwrap();
    assert_eq!(values(&session, &variables), [[1.0], [2.0], [3.0], [4.0]]);
    let expected =
        [("first", "v0"), ("body/w", "bert/w"), ("body/b", "bert/b"), ("body/pool/b", "pool/b")];
    assert_eq!(report.mapped, pairs(&expected));
    assert_eq!(report.to_string().lines().nth(1), Some("  first from v0"));
}

#[test]
fn slips_in_a_map_are_refused() {
    let folder = Folder::new("slips");
    let path = saved(&folder, &[("v", 1.0, &[]), ("w", 2.0, &[])]);
    let (session, variables) = session(&[("v", 7.0, &[]), ("w", 8.0, &[])]);
    let cases = [
        (pairs(&[("vv", "v")]), vec![], "the map names \"vv\""),
        (vec![], pairs(&[("scope/", "")]), "the map has the prefix \"scope/\""),
        (pairs(&[("v", "w")]), vec![], "v and w would both be restored from \"w\""),
    ];
    for (names, prefixes, text) in cases {
        let options = RestoreOptions { names, prefixes, ..Default::default() };
        let error = refusal(&session, &path, &options);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(text), "{error}");
    }
    let (_, foreign) = blank(&[("v", 0.0, &[])]);
    let error = refusal(&session, &path, &RestoreOptions { only: foreign, ..Default::default() });
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("v")));
    assert_eq!(values(&session, &variables), [[7.0], [8.0]]);
}

#[test]
fn a_changed_graph_takes_what_fits_and_says_the_rest() {
    let folder = Folder::new("changed");
    let path = saved(&folder, &[("body", 1.0, &[2]), ("head", 2.0, &[3]), ("old", 3.0, &[])]);
    let model: &[(&str, f64, &[usize])] =
        &[("body", 7.0, &[2]), ("head", 8.0, &[5]), ("new", 9.0, &[])];
    let options = RestoreOptions {
        missing: Missing::Keep,
        unknown: Unknown::Ignore,
        mismatch: Mismatch::Keep,
        ..Default::default()
    };
    let (session, variables) = session(model);
    let report = session.restore_with(&path, &options).unwrap();
    assert_eq!(values(&session, &variables), [vec![1.0; 2], vec![8.0; 5], vec![9.0]]);
    assert_eq!(report.restored, ["body"]);
    assert_eq!(report.ignored, ["old"]);
    let expected = format!(
        "restored 1 of 3 variables from {}\n  kept head: the file has F32[3]\n  kept new: the file has no \"new\"\n  \
         ignored old",
        path.display()
    );
    assert_eq!(report.to_string(), expected);

    let (blank, variables) = blank(model);
    let report = blank.restore_with(&path, &options).unwrap();
    assert_eq!(report.kept.iter().map(|kept| kept.is_initialized).collect::<Vec<_>>(), [false; 2]);
    let line = "  kept new, without elements; run its initializer: the file has no \"new\"";
    assert_eq!(report.to_string().lines().nth(2), Some(line));
    assert_eq!(blank.run(&[], &variables[2]).unwrap_err().kind(), ErrorKind::FailedPrecondition);
}

#[test]
fn each_difference_is_refused_unless_it_is_allowed() {
    let folder = Folder::new("refused");
    let path = saved(&folder, &[("body", 1.0, &[2]), ("head", 2.0, &[3]), ("old", 3.0, &[])]);
    let (session, variables) =
        session(&[("body", 7.0, &[2]), ("head", 8.0, &[5]), ("new", 9.0, &[])]);
    let strict = RestoreOptions::default();
    let unknown = refusal(&session, &path, &strict);
    assert!(unknown.message().contains("has a variable \"old\" that the graph does not have"));
    let missing =
        refusal(&session, &path, &RestoreOptions { unknown: Unknown::Ignore, ..strict.clone() });
    assert_eq!((missing.kind(), missing.node()), (ErrorKind::InvalidArgument, Some("new")));
    assert!(missing.message().contains("it has body, head, old"), "{missing}");
    let options = RestoreOptions { unknown: Unknown::Ignore, missing: Missing::Keep, ..strict };
    for mismatch in [Mismatch::Refuse, Mismatch::Reshape] {
        let error = refusal(&session, &path, &RestoreOptions { mismatch, ..options.clone() });
        assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("head")));
        assert!(error.message().contains("expected f32[5]"), "{error}");
        assert!(error.message().contains("F32[3]"), "{error}");
    }
    assert_eq!(values(&session, &variables), [vec![7.0; 2], vec![8.0; 5], vec![9.0]]);
}

// SaverTest's `reshape=True`.
#[test]
fn as_many_elements_of_another_shape_are_taken_in_order() {
    let folder = Folder::new("reshape");
    let path = folder.path().join("model.safetensors");
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, F32, [2, 3]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let x = g.placeholder("x", F32, [2, 3]);
    session.run(&[x.feed([[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]])], &v.assign(&x)).unwrap();
    session.save(&path).unwrap();
    let (session, variables) = blank(&[("v", 0.0, &[3, 2])]);
    let options = RestoreOptions { mismatch: Mismatch::Reshape, ..Default::default() };
    session.restore_with(&path, &options).unwrap();
    let value = session.run(&[], &variables[0]).unwrap();
    assert_eq!(value.dims(), [3, 2]);
    assert_eq!(value.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
}

#[test]
fn a_file_of_which_nothing_fits_is_refused_whatever_is_allowed() {
    let folder = Folder::new("nothing");
    let path = saved(&folder, &[("a", 1.0, &[])]);
    let (session, variables) = session(&[("b", 7.0, &[])]);
    let options = RestoreOptions {
        missing: Missing::Keep,
        unknown: Unknown::Ignore,
        mismatch: Mismatch::Keep,
        ..Default::default()
    };
    let error = refusal(&session, &path, &options);
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().ends_with("fits: the variables are b, and it has a"), "{error}");
    assert_eq!(values(&session, &variables), [[7.0]]);
}

#[test]
fn a_report_has_at_most_fifteen_lines() {
    let folder = Folder::new("lines");
    let names: Vec<String> = (0..20).map(|i| format!("v{i}")).collect();
    let all: Vec<(&str, f64, &[usize])> =
        names.iter().map(|name| (&**name, 1.0, &[][..])).collect();
    let path = saved(&folder, &all);
    for (n, last) in [(14, "  ignored v9"), (15, "  and 2 more"), (19, "  and 6 more")] {
        let (session, _) = blank(&all[n..]);
        let options = RestoreOptions { unknown: Unknown::Ignore, ..Default::default() };
        let text = session.restore_with(&path, &options).unwrap().to_string();
        assert_eq!(text.lines().count(), 15, "{text}");
        assert_eq!(text.lines().last(), Some(last), "{text}");
    }
}

#[test]
fn random_operations_go_on_after_a_whole_restore_only() {
    let folder = Folder::new("random");
    let path = folder.path().join("model.safetensors");
    let model = || {
        let g = Graph::new();
        let v = g.variable("v", Init::Zeros, F32, []);
        let noise = g.random_uniform(&[4], F32, 5);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        (session, v, noise)
    };
    let draw = |session: &Session, noise: &Tensor| {
        session.run(&[], noise).unwrap().to_vec::<f32>().unwrap()
    };
    let (session, _, noise) = model();
    let first = draw(&session, &noise);
    session.save(&path).unwrap();
    let second = draw(&session, &noise);
    assert_ne!(first, second);
    let (whole, _, noise) = model();
    whole.restore(&path).unwrap();
    assert_eq!(draw(&whole, &noise), second);
    let (part, v, noise) = model();
    part.restore_with(&path, &RestoreOptions { only: vec![v], ..Default::default() }).unwrap();
    assert_eq!(draw(&part, &noise), first);

    let (other, _) = blank(&[("v", 0.0, &[])]);
    assert_eq!(other.restore(&path).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let options = RestoreOptions { unknown: Unknown::Ignore, ..Default::default() };
    assert_eq!(other.restore_with(&path, &options).unwrap().ignored.len(), 1);
}

/// A safetensors file of this header and these elements.
fn laid_out(header: &str, elements: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), elements].concat()
}

#[test]
fn headers_that_promise_too_much_are_damaged() {
    let folder = Folder::new("headers");
    let path = folder.path().join("model.safetensors");
    let (session, variables) = session(&[("v", 7.0, &[])]);
    let entry = |dtype: &str, shape: &str, end: &str| {
        laid_out(
            &format!(r#"{{"v":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#),
            &[0; 4],
        )
    };
    let cases = [
        entry("U8", "[18446744073709551615]", "18446744073709551615"),
        entry("U8", "[18446744073709551607]", "18446744073709551607"),
        entry("F32", "[4611686018427387904]", "4"),
        entry("F32", "[2]", "8"),
        entry("F32", "[]", "3"),
        [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
        [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(),
        laid_out(r#"{"v":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, &[0; 5]),
        laid_out("[]", &[]),
        laid_out("", &[]),
    ];
    for (i, bytes) in cases.iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        let error = session.restore(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataLoss, "case {i}: {error}");
    }
    assert_eq!(values(&session, &variables), [[7.0]]);
    std::fs::write(&path, entry("F32", "[]", "4")).unwrap();
    session.restore(&path).unwrap();
    assert_eq!(values(&session, &variables), [[0.0]]);
}
