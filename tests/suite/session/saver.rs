//! Savers by behaviour. Semantics: TensorFlow 1.x, `python/training/saver_test.py` and
//! `checkpoint_management_test.py`, by meaning.

use std::fs;
use std::path::Path;
use std::time::Duration;

use convoke::prelude::*;
use convoke::{Missing, RestoreOptions};
use convoke_tests::{Folder, devices, kind};

/// A session with `w [3]`, `b [2]` and `n`, each filled with what [`set`](Counting::set) gives.
struct Counting {
    session: Session,
    x: Tensor,
    set: Vec<Tensor>,
    variables: Vec<Variable>,
}

impl Counting {
    fn new() -> Self {
        Self::on(|g| Session::new(g, &Devices::cpu()).unwrap())
    }

    fn on(session: impl FnOnce(&Graph) -> Session) -> Self {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![]);
        let variable = |name, len: &[usize]| g.variable(name, Init::Constant(-1.0), F32, len);
        let variables = vec![variable("w", &[3]), variable("b", &[2]), variable("n", &[])];
        let set = variables.iter().map(|variable| variable.assign(&x)).collect();
        let session = session(&g);
        session.run(&[], g.initializers()).unwrap();
        Self { session, x, set, variables }
    }

    fn set(&self, value: f32) -> &Session {
        self.session.run(&[self.x.feed(value)], &self.set).unwrap();
        &self.session
    }

    /// The elements of `w`, `b` and `n`, one after the other.
    fn values(&self) -> Vec<f32> {
        let values = self.session.run(&[], &self.variables).unwrap();
        values.iter().flat_map(|value| value.to_vec::<f32>().unwrap()).collect()
    }
}

/// Saves at each step, with the step's number in all variables.
fn save(saver: &Saver, steps: &[u64]) {
    let model = Counting::new();
    for &step in steps {
        saver.save(model.set(step as f32), step).unwrap();
    }
}

fn steps(saver: &Saver) -> Vec<u64> {
    saver.checkpoints().unwrap().iter().map(|checkpoint| checkpoint.step).collect()
}

/// What is in a folder, but for the files that savers lock.
fn files(folder: &Folder) -> Vec<String> {
    folder.files().into_iter().filter(|name| !name.ends_with(".lock")).collect()
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
}

// SaverTest.testBasics
#[test]
fn the_latest_is_restored_without_initializers() {
    for device in devices() {
        let folder = Folder::new("latest");
        let saver = Saver::new(folder.path().join("model"));
        let model = Counting::on(|g| device.session(g));
        let path = saver.save(model.set(4.0), 4).unwrap();
        assert_eq!(path, folder.path().join("model-4.safetensors"));
        saver.save(model.set(5.0), 5).unwrap();
        let latest = saver.latest().unwrap().unwrap();
        assert_eq!((latest.step, latest.path), (5, folder.path().join("model-5.safetensors")));
        let other = Counting::on(|g| device.session(g));
        assert_eq!(saver.restore_latest(&other.session).unwrap(), 5);
        assert_eq!(other.values(), [5.0; 6], "{}", device.name);
        other.session.restore(path).unwrap();
        assert_eq!(other.values(), [4.0; 6], "{}", device.name);
    }
}

// MaxToKeepTest.testNonSharded
#[test]
fn the_newest_checkpoints_stay() {
    let folder = Folder::new("keep");
    let saver = Saver::new(folder.path().join("model")).max_to_keep(2);
    save(&saver, &[1, 2]);
    assert_eq!(steps(&saver), [1, 2]);
    save(&saver, &[3]);
    assert_eq!(steps(&saver), [2, 3]);
    // Saved again, 2 is the newest.
    save(&saver, &[2]);
    assert_eq!(steps(&saver), [3, 2]);
    save(&saver, &[1]);
    assert_eq!(steps(&saver), [2, 1]);
    assert_eq!(
        files(&folder),
        ["model-1.safetensors", "model-2.safetensors", "model.checkpoints.json"]
    );
    let default = Saver::new(folder.path().join("default"));
    save(&default, &[1, 2, 3, 4, 5, 6]);
    assert_eq!(steps(&default), [2, 3, 4, 5, 6]);
}

// MaxToKeepTest.testNoMaxToKeep
#[test]
fn none_is_deleted_where_all_are_kept() {
    let folder = Folder::new("all");
    let saver = Saver::new(folder.path().join("model")).max_to_keep(0);
    save(&saver, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(steps(&saver), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(files(&folder).len(), 8);
}

// KeepCheckpointEveryNHoursTest.testNonSharded
#[test]
fn one_of_each_interval_stays() {
    let folder = Folder::new("interval");
    let prefix = folder.path().join("model");
    let hour = Duration::from_secs(3600);
    let saver = Saver::new(&prefix).max_to_keep(1).keep_every(hour);
    save(&saver, &[1, 2, 3]);
    assert_eq!(steps(&saver), [1, 3], "the first stays, and the newest");
    // As if step 3 were saved an hour after step 1.
    let list = folder.path().join("model.checkpoints.json");
    let mut value: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap();
    let first = value["checkpoints"][0]["saved_unix_ms"].as_u64().unwrap();
    value["checkpoints"][1]["saved_unix_ms"] = (first + 3_600_000).into();
    fs::write(&list, value.to_string()).unwrap();
    save(&saver, &[4]);
    assert_eq!(steps(&saver), [1, 3, 4]);
    save(&saver, &[5]);
    assert_eq!(steps(&saver), [1, 3, 5]);
}

// MaxToKeepTest.testSharded, SaveRestoreShardedTest.testBasics
#[test]
fn shards_are_written_restored_and_deleted_together() {
    let folder = Folder::new("shards");
    let saver = Saver::new(folder.path().join("model")).max_to_keep(1).shards(2);
    save(&saver, &[9]);
    save(&saver, &[10]);
    let expected = [
        "model-10-00001-of-00002.safetensors",
        "model-10-00002-of-00002.safetensors",
        "model-10.safetensors.index.json",
        "model.checkpoints.json",
    ];
    assert_eq!(files(&folder), expected);
    // The largest is w with 12 bytes; b and n have 12 as well.
    let index = fs::read_to_string(folder.path().join(expected[2])).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["weight_map"]["w"], expected[0]);
    assert_eq!(index["weight_map"]["b"], expected[1]);
    assert_eq!(index["weight_map"]["n"], expected[1]);
    assert_eq!(index["metadata"]["total_size"], 24);
    let model = Counting::new();
    assert_eq!(saver.restore_latest(&model.session).unwrap(), 10);
    assert_eq!(model.values(), [10.0; 6]);
}

#[test]
fn shards_have_the_sizes_that_were_asked_for() {
    type Division = fn(Saver) -> Saver;
    // w has 12 bytes, b 8, n 4.
    let cases: [(Division, usize); 7] = [
        (|saver| saver.shard_bytes(24), 1),
        (|saver| saver.shard_bytes(12), 2),
        (|saver| saver.shard_bytes(11), 3),
        (|saver| saver.shard_bytes(0), 3),
        (|saver| saver.shards(0), 1),
        (|saver| saver.shards(2), 2),
        (|saver| saver.shards(100), 3),
    ];
    for (i, (divided, n)) in cases.into_iter().enumerate() {
        let folder = Folder::new("sizes");
        let saver = divided(Saver::new(folder.path().join("model")));
        save(&saver, &[1]);
        assert_eq!(files(&folder).len(), n + 2, "case {i}");
        let model = Counting::new();
        saver.restore_latest(&model.session).unwrap();
        assert_eq!(model.values(), [1.0; 6], "case {i}");
    }
}

#[test]
fn a_step_saved_again_replaces_all_its_files() {
    let folder = Folder::new("again");
    let prefix = folder.path().join("model");
    let model = Counting::new();
    for (i, (saver, n_files)) in [
        (Saver::new(&prefix).shards(2), 3),
        (Saver::new(&prefix).shards(3), 4),
        (Saver::new(&prefix), 1),
        (Saver::new(&prefix).shards(2), 3),
    ]
    .into_iter()
    .enumerate()
    {
        saver.save(model.set(i as f32), 7).unwrap();
        assert_eq!(files(&folder).len(), n_files + 1, "{:?}", files(&folder));
        let other = Counting::new();
        assert_eq!(saver.restore_latest(&other.session).unwrap(), 7);
        assert_eq!(other.values(), [i as f32; 6]);
    }
}

#[test]
fn a_missing_or_short_shard_is_data_loss() {
    let folder = Folder::new("shard");
    let saver = Saver::new(folder.path().join("model")).shards(2);
    save(&saver, &[1, 2]);
    let model = Counting::new();
    let index = folder.path().join("model-2.safetensors.index.json");
    let shard = folder.path().join("model-2-00002-of-00002.safetensors");
    let whole = fs::read(&shard).unwrap();
    for len in [0, 7, 8, 20, whole.len() - 1] {
        fs::write(&shard, &whole[..len]).unwrap();
        assert_eq!(kind(model.session.restore(&index)), ErrorKind::DataLoss, "{len}");
    }
    fs::remove_file(&shard).unwrap();
    let error = saver.restore_latest(&model.session).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    let text = "its shard model-2-00002-of-00002.safetensors is missing";
    assert!(error.message().contains(text), "{error}");
    assert!(error.message().contains("model-1.safetensors.index.json, of step 1"), "{error}");
    // A shard of another division.
    fs::copy(folder.path().join("model-2-00001-of-00002.safetensors"), &shard).unwrap();
    assert_eq!(kind(model.session.restore(&index)), ErrorKind::DataLoss);
    assert_eq!(model.values(), [-1.0; 6]);
}

#[test]
fn an_index_reaches_no_other_folder() {
    let folder = Folder::new("index");
    let (model, index) = (Counting::new(), folder.path().join("m.safetensors.index.json"));
    for shard in ["../m.safetensors", "/m.safetensors", "a\\\\b", "..", ""] {
        fs::write(&index, format!(r#"{{"weight_map":{{"w":"{shard}"}}}}"#)).unwrap();
        assert_eq!(kind(model.session.restore(&index)), ErrorKind::InvalidArgument, "{shard}");
    }
    for text in ["", "[]", "{}", r#"{"weight_map":[]}"#, "\u{0}"] {
        fs::write(&index, text).unwrap();
        assert_eq!(kind(model.session.restore(&index)), ErrorKind::DataLoss, "{text}");
    }
    fs::write(&index, [0xff, 0xfe]).unwrap();
    assert_eq!(kind(model.session.restore(&index)), ErrorKind::DataLoss);
}

#[test]
fn no_changed_byte_of_an_index_or_a_list_is_more_than_an_error() {
    let folder = Folder::new("bytes");
    let saver = Saver::new(folder.path().join("model")).shards(2);
    save(&saver, &[5, 6]);
    let model = Counting::new();
    for name in ["model-6.safetensors.index.json", "model.checkpoints.json"] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        for (i, mask) in (0..whole.len()).flat_map(|i| [(i, 0x01), (i, 0x20), (i, 0x80)]) {
            let mut changed = whole.clone();
            changed[i] ^= mask;
            fs::write(&path, changed).unwrap();
            let before = model.values();
            let refused = saver.restore_latest(&model.session);
            if let Err(e) = refused {
                assert!(
                    matches!(e.kind(), ErrorKind::DataLoss | ErrorKind::InvalidArgument),
                    "{e}"
                );
                assert_eq!(model.values(), before, "{name} {i} {mask}");
            }
        }
        fs::write(&path, whole).unwrap();
    }
    let mut files = files(&folder);
    assert_eq!(saver.restore_latest(&model.session).unwrap(), 6);
    assert_eq!(model.values(), [6.0; 6]);
    assert_eq!(files.split_off(6), ["model.checkpoints.json"], "restoring deletes nothing");
}

#[test]
fn a_half_written_checkpoint_is_never_the_latest() {
    let folder = Folder::new("half");
    let saver = Saver::new(folder.path().join("model")).shards(2);
    save(&saver, &[1, 2]);
    // As if the second had ended after its shards: no index, no line in the list.
    fs::remove_file(folder.path().join("model-2.safetensors.index.json")).unwrap();
    fs::remove_file(folder.path().join("model.checkpoints.json")).unwrap();
    fs::write(folder.path().join("model-3.safetensors.1.0.tmp"), "x").unwrap();
    assert_eq!(saver.latest().unwrap().unwrap().step, 1);
    let model = Counting::new();
    assert_eq!(saver.restore_latest(&model.session).unwrap(), 1);
    assert_eq!(model.values(), [1.0; 6]);
    // Saved again, it is whole, and what was left of it is gone.
    save(&saver, &[2]);
    assert_eq!(files(&folder).iter().filter(|name| name.starts_with("model-2")).count(), 3);
    assert_eq!(saver.restore_latest(&model.session).unwrap(), 2);
    assert_eq!(model.values(), [2.0; 6]);
}

// CheckpointStateTest, SaverTest.testRecoverLastCheckpoints
#[test]
fn a_missing_or_damaged_list_is_found_again_in_the_folder() {
    let folder = Folder::new("list");
    let saver = Saver::new(folder.path().join("model")).max_to_keep(3);
    save(&saver, &[10, 9, 8]);
    assert_eq!(steps(&saver), [10, 9, 8]);
    let list = folder.path().join("model.checkpoints.json");
    let good = fs::read_to_string(&list).unwrap();
    fs::remove_file(&list).unwrap();
    assert_eq!(steps(&saver), [8, 9, 10], "by number: 9 before 10");
    let cases = [
        String::new(),
        "{}".to_owned(),
        good[..good.len() / 2].to_owned(),
        good.replace("\"version\": 1", "\"version\": 2"),
        good.replace("model-9.safetensors", "../model-9.safetensors"),
        good.replace("model-9.safetensors", "other-9.safetensors"),
        good.replace("model-9.safetensors", "model-8.safetensors"),
        good.replace("\"step\": 9", "\"step\": -9"),
        r#"{"version": 1, "checkpoints": []}"#.to_owned(),
    ];
    for text in cases {
        fs::write(&list, &text).unwrap();
        assert_eq!(saver.latest().unwrap().unwrap().step, 10, "{text}");
    }
    save(&saver, &[11]);
    assert_eq!(steps(&saver), [9, 10, 11]);
    assert!(!files(&folder).contains(&"model-8.safetensors".to_owned()));
}

#[test]
fn a_damaged_list_without_checkpoints_is_data_loss() {
    let folder = Folder::new("lost");
    let saver = Saver::new(folder.path().join("model"));
    fs::write(folder.path().join("model.checkpoints.json"), "{").unwrap();
    assert_eq!(kind(saver.latest()), ErrorKind::DataLoss);
    assert_eq!(kind(saver.restore_latest(&Counting::new().session)), ErrorKind::DataLoss);
    save(&saver, &[1]);
    assert_eq!(saver.latest().unwrap().unwrap().step, 1);
}

#[test]
fn no_checkpoint_is_an_error_that_names_where_it_looked() {
    let folder = Folder::new("none");
    let model = Counting::new();
    for prefix in [folder.path().join("model"), folder.path().join("none/model")] {
        let saver = Saver::new(&prefix);
        assert_eq!(saver.latest().unwrap(), None);
        let error = saver.restore_latest(&model.session).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let text = format!("there is no checkpoint {}-STEP.safetensors", prefix.display());
        assert!(error.message().contains(&text), "{error}");
    }
}

#[test]
fn a_damaged_latest_names_the_next_older_and_changes_nothing() {
    let folder = Folder::new("damaged");
    let saver = Saver::new(folder.path().join("model"));
    save(&saver, &[1, 2, 3]);
    let model = Counting::new();
    truncate(&folder.path().join("model-3.safetensors"));
    let error = saver.restore_latest(&model.session).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(error.message().contains("the checkpoint of step 3 is lost"), "{error}");
    assert!(error.message().contains("model-2.safetensors, of step 2"), "{error}");
    fs::remove_file(folder.path().join("model-3.safetensors")).unwrap();
    fs::remove_file(folder.path().join("model-2.safetensors")).unwrap();
    let error = saver.restore_latest(&model.session).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "gone is not never saved");
    assert!(error.message().contains("model-1.safetensors, of step 1"), "{error}");
    fs::remove_file(folder.path().join("model-1.safetensors")).unwrap();
    let error = saver.restore_latest(&model.session).unwrap_err();
    assert!(error.message().ends_with("there is no older one"), "{error}");
    assert_eq!(model.values(), [-1.0; 6]);
}

// SaverTest.testInvalidPath
#[test]
fn a_save_that_fails_loses_nothing() {
    let folder = Folder::new("unwritable");
    let saver = Saver::new(folder.path().join("model")).max_to_keep(1);
    save(&saver, &[1]);
    let before = files(&folder);
    let model = Counting::new();
    // A folder where a file should go.
    for (saver, name) in [
        (saver.clone(), "model-2.safetensors"),
        (saver.clone().shards(2), "model-2.safetensors.index.json"),
    ] {
        let blocked = folder.path().join(name);
        fs::create_dir(&blocked).unwrap();
        let error = saver.save(&model.session, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains(name), "{error}");
        fs::remove_dir(&blocked).unwrap();
        assert_eq!(files(&folder), before);
    }
    assert_eq!(steps(&saver), [1]);
    let missing = Saver::new(folder.path().join("none/model"));
    assert_eq!(kind(missing.save(&model.session, 1)), ErrorKind::NotFound);
    let below_a_file = Saver::new(folder.path().join("model-1.safetensors/model"));
    assert!(below_a_file.save(&model.session, 1).is_err());
    for prefix in ["", "/", "runs/", ".."] {
        let saver = Saver::new(prefix);
        assert_eq!(kind(saver.save(&model.session, 1)), ErrorKind::InvalidArgument, "{prefix}");
        assert_eq!(kind(saver.latest()), ErrorKind::InvalidArgument, "{prefix}");
    }
}

#[test]
fn what_cannot_be_deleted_stops_no_save() {
    let folder = Folder::new("undeletable");
    let saver = Saver::new(folder.path().join("model")).max_to_keep(1);
    save(&saver, &[1]);
    let path = folder.path().join("model-1.safetensors");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    save(&saver, &[2, 3]);
    assert_eq!(steps(&saver), [3]);
    assert!(path.is_dir());
}

// SaverTest.testSomeErrors, testAllowEmpty
#[test]
fn there_must_be_variables_with_elements() {
    let folder = Folder::new("empty");
    let saver = Saver::new(folder.path().join("model"));
    let g = Graph::new();
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    assert_eq!(kind(saver.save(&session, 1)), ErrorKind::InvalidArgument);
    g.variable("v", Init::Zeros, F32, []);
    assert_eq!(kind(saver.save(&session, 1)), ErrorKind::FailedPrecondition);
    let model = Counting::new();
    let w = &model.variables[0];
    let twice = saver.clone().variables([w.clone(), w.clone()]).shards(2);
    let error = twice.save(&model.session, 1).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("w")));
    let as_index = folder.path().join("w.safetensors.index.json");
    assert_eq!(kind(model.session.save(as_index)), ErrorKind::InvalidArgument);
    let foreign = saver.variables(model.variables);
    session.run(&[], g.initializers()).unwrap();
    assert_eq!(kind(foreign.save(&session, 1)), ErrorKind::InvalidArgument);
    assert!(files(&folder).is_empty());
}

// SaverTest.testSameName
#[test]
fn savers_of_several_names_share_a_folder() {
    let folder = Folder::new("two");
    let saver = |name: &str| Saver::new(folder.path().join(name)).max_to_keep(1);
    let savers = [saver("model"), saver("model-1"), saver("model-1.2").shards(2), saver("best")];
    for (i, saver) in savers.iter().enumerate() {
        save(saver, &[10 + i as u64]);
    }
    for (i, saver) in savers.iter().enumerate() {
        save(saver, &[20 + i as u64]);
    }
    for list in ["model.checkpoints.json", "best.checkpoints.json"] {
        fs::remove_file(folder.path().join(list)).unwrap();
    }
    for (i, saver) in savers.iter().enumerate() {
        assert_eq!(steps(saver), [20 + i as u64]);
        let model = Counting::new();
        saver.restore_latest(&model.session).unwrap();
        assert_eq!(model.values(), [20.0 + i as f32; 6]);
    }
}

// LatestCheckpointWithRelativePaths
#[test]
fn a_folder_may_move() {
    let folder = Folder::new("move");
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir(&from).unwrap();
    save(&Saver::new(from.join("model")).shards(2), &[1]);
    fs::rename(&from, &to).unwrap();
    let model = Counting::new();
    assert_eq!(Saver::new(to.join("model")).restore_latest(&model.session).unwrap(), 1);
    assert_eq!(model.values(), [1.0; 6]);
}

// SaverTest.testBasicsWithListOfVariables
#[test]
fn a_saver_of_some_variables_leaves_the_others() {
    let folder = Folder::new("some");
    let prefix = folder.path().join("model");
    let model = Counting::new();
    let saver = Saver::new(&prefix).variables([model.variables[1].clone()]);
    saver.save(model.set(3.0), 3).unwrap();
    model.set(4.0);
    assert_eq!(saver.restore_latest(&model.session).unwrap(), 3);
    assert_eq!(model.values(), [4.0, 4.0, 4.0, 3.0, 3.0, 4.0]);
    let all = Saver::new(&prefix);
    assert_eq!(kind(all.restore_latest(&model.session)), ErrorKind::InvalidArgument);
    let options = RestoreOptions { missing: Missing::Keep, ..Default::default() };
    let (latest, report) = all.restore_latest_with(&model.session, &options).unwrap();
    assert_eq!((latest.step, &report.restored[..]), (3, &["b".to_owned()][..]));
    assert_eq!(report.kept.len(), 2);
}

/// `model.checkpoints.lock` is what savers of other processes lock.
#[test]
fn who_saves_waits_for_another_process_that_does() {
    let folder = Folder::new("locked");
    let saver = Saver::new(folder.path().join("model"));
    save(&saver, &[1]);
    let other = fs::File::open(folder.path().join("model.checkpoints.lock")).unwrap();
    other.lock().unwrap();
    std::thread::scope(|scope| {
        let saving = scope.spawn(|| save(&saver, &[2]));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(steps(&saver), [1]);
        assert!(!saving.is_finished());
        other.unlock().unwrap();
        saving.join().unwrap();
    });
    assert_eq!(steps(&saver), [1, 2]);
}

#[test]
fn threads_may_save_under_one_prefix() {
    let folder = Folder::new("threads");
    let saver = Saver::new(folder.path().join("model")).max_to_keep(3).shards(2);
    std::thread::scope(|scope| {
        for i in 0..4u64 {
            let saver = &saver;
            scope.spawn(move || save(saver, &[i, i + 100, 7]));
        }
    });
    assert_eq!(steps(&saver).len(), 3);
    assert_eq!(files(&folder).len(), 3 * 3 + 1, "{:?}", files(&folder));
    for checkpoint in saver.checkpoints().unwrap() {
        let model = Counting::new();
        model.session.restore(checkpoint.path).unwrap();
        assert_eq!(model.values(), [checkpoint.step as f32; 6]);
    }
}
