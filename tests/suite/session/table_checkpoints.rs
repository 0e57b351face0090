//! Mutable tables in checkpoints. TensorFlow: `lookup_ops_test.py`, `MutableHashTableOpTest.testSaveRestore` and
//! `testSaveRestoreOnlyTable`, by meaning.

use std::fs;
use std::path::{Path, PathBuf};

use convoke::prelude::*;
use convoke::{
    KeptTable, Mismatch, Missing, Monitor, MutableTable, RestoreOptions, TableOptions, Unknown,
};
use convoke_tests::{Folder, devices};
use serde_json::{Value, json};

fn strings(all: &[&str]) -> HostTensor {
    HostTensor::strings(&[all.len()], all.iter().copied()).unwrap()
}

/// A session with a variable and tables of several dtypes.
struct Tables {
    session: Session,
    w: Variable,
    all: Vec<MutableTable>,
}

impl Tables {
    fn new() -> Self {
        Self::on(|g| Session::new(g, &Devices::cpu()).unwrap())
    }

    /// Tables `ids`, of strings and i64, `words`, of i64 and strings, `n`, of i32 and f32, and an empty one.
    fn on(session: impl FnOnce(&Graph) -> Session) -> Self {
        let g = Graph::new();
        let w = g.variable("w", Init::Constant(1.5), F32, [3]);
        let dtypes = [("ids", Strings, I64), ("words", I64, Strings), ("n", I32, F32)];
        let dtypes = dtypes.into_iter().chain([("none", U8, Bool)]);
        let all = dtypes.map(|(name, keys, values)| g.mutable_table(name, keys, values)).collect();
        let session = session(&g);
        session.run(&[], g.initializers()).unwrap();
        Self { session, w, all }
    }

    fn insert(&self, table: usize, keys: impl Into<HostTensor>, values: impl Into<HostTensor>) {
        let g = self.session.graph();
        let (keys, values) = (g.constant(keys), g.constant(values));
        self.session.run(&[], self.all[table].insert(&keys, &values)).unwrap();
    }

    fn filled(self) -> Self {
        self.insert(0, strings(&["one", "", "a\0b"]), [1i64, -2, i64::MAX]);
        self.insert(1, [7i64, -8], strings(&["seven", ""]));
        self.insert(2, [3i32, 4], [0.5f32, f32::INFINITY]);
        self
    }

    /// What the tables hold, as text.
    fn held(&self) -> Vec<String> {
        let export = |table: &MutableTable| {
            let (keys, values) = self.session.run(&[], table.export()).unwrap();
            let text = |tensor: &HostTensor| match tensor.as_strings() {
                Ok(strings) => format!("{strings:?}"),
                Err(_) => format!("{:?}", tensor.bytes()),
            };
            format!("{} {}", text(&keys), text(&values))
        };
        self.all.iter().map(export).collect()
    }
}

#[test]
fn a_restored_training_has_its_tables() {
    for device in devices() {
        for shards in [1, 2, 4] {
            let folder = Folder::new("tables");
            let saver = Saver::new(folder.path().join("model"));
            let saver = if shards > 1 { saver.shards(shards) } else { saver };
            let saved = Tables::on(|g| device.session(g)).filled();
            saver.save(&saved.session, 3).unwrap();
            let restored = Tables::on(|g| device.session(g));
            // What is there already goes.
            restored.insert(0, strings(&["two"]), [2i64]);
            restored.insert(3, [1u8], [true]);
            assert_eq!(saver.restore_latest(&restored.session).unwrap(), 3);
            assert_eq!(restored.held(), saved.held(), "{} {shards}", device.name);
            let digest = |tables: &Tables| tables.session.state_digest().unwrap();
            assert_eq!(digest(&restored), digest(&saved), "{}", device.name);
        }
    }
}

#[test]
fn what_is_said_of_variables_is_so_of_tables() {
    let folder = Folder::new("options");
    let path = folder.path().join("model.safetensors");
    let saved = Tables::new().filled();
    saved.session.save(&path).unwrap();
    let restore = |build: &dyn Fn(&Graph) -> MutableTable, options: RestoreOptions| {
        let g = Graph::new();
        let w = g.variable("w", Init::Zeros, F32, [3]);
        let table = build(&g);
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        let before = session.state_digest().unwrap();
        let report = session.restore_with(&path, &options);
        match &report {
            Ok(_) => assert_eq!(session.run(&[], &w).unwrap().to_vec::<f32>().unwrap(), [1.5; 3]),
            Err(_) => assert_eq!(session.state_digest().unwrap(), before),
        }
        let size = session.run(&[], table.size()).unwrap().scalar::<i64>().unwrap();
        report.map(|report| (report, size))
    };
    let refused = |build: &dyn Fn(&Graph) -> MutableTable, options: RestoreOptions, text: &str| {
        let error = restore(build, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    let ids = |g: &Graph| g.mutable_table("ids", Strings, I64);
    let other = |g: &Graph| g.mutable_table("other", Strings, I64);
    let wrong = |g: &Graph| g.mutable_table("ids", Strings, F32);
    let ignore = || RestoreOptions { unknown: Unknown::Ignore, ..RestoreOptions::default() };
    refused(&ids, RestoreOptions::default(), "a table \"n\" that the graph does not have");
    let (report, size) = restore(&ids, ignore()).unwrap();
    assert_eq!((report.tables, size), (vec!["ids".to_owned()], 3));
    assert_eq!(report.ignored, ["n", "none", "words"]);
    refused(&other, ignore(), "other: the file has no table \"other\"");
    let (report, size) =
        restore(&other, RestoreOptions { missing: Missing::Keep, ..ignore() }).unwrap();
    assert_eq!((report.kept_tables[0].name.as_str(), size), ("other", 0));
    assert!(report.to_string().contains("1 of 1 variables and 0 of 1 tables"), "{report}");
    refused(&wrong, ignore(), "ids: expected a table of string and f32[], and the file has one of");
    let (report, size) =
        restore(&wrong, RestoreOptions { mismatch: Mismatch::Keep, ..ignore() }).unwrap();
    assert_eq!((report.kept_tables[0].name.as_str(), size), ("ids", 0));
    let prefixes = vec![("other".to_owned(), "ids".to_owned())];
    let (report, size) = restore(&other, RestoreOptions { prefixes, ..ignore() }).unwrap();
    assert_eq!((report.tables, size), (vec!["other".to_owned()], 3));
    let two = |g: &Graph| {
        other(g);
        ids(g)
    };
    let names = vec![("other".to_owned(), "ids".to_owned())];
    let options = RestoreOptions { names, ..ignore() };
    refused(&two, options, "ids and other would both be restored from \"ids\"");
    // Only some variables: the tables stay.
    let only = vec![saved.w.clone()];
    saved.insert(0, strings(&["more"]), [5i64]);
    let held = saved.held();
    let options = RestoreOptions { only, ..RestoreOptions::default() };
    assert!(saved.session.restore_with(&path, &options).unwrap().tables.is_empty());
    assert_eq!(saved.held(), held);
}

/// `testSaveRestoreOnlyTable`; and a checkpoint of a graph without tables, which says nothing of any.
/// Of several elements for each key: into a table of other sizes nothing goes.
#[test]
fn values_of_several_elements_are_restored() {
    let folder = Folder::new("table_rows");
    let path = folder.path().join("tables.safetensors");
    let table = |sizes: convoke::Dims| {
        let g = Graph::new();
        let options = TableOptions { value_dims: sizes, ..TableOptions::default() };
        let table = g.mutable_table_with("rows", I64, F32, options);
        (Session::new(&g, &Devices::cpu()).unwrap(), g, table)
    };
    let (session, g, rows) = table(dims![2]);
    let insert = rows.insert(&g.constant([3i64]), &g.constant([[1.5f32, -2.0]]));
    session.run(&[], insert).unwrap();
    session.save(&path).unwrap();
    let (session, _, rows) = table(dims![2]);
    session.restore(&path).unwrap();
    let (_, values) = session.run(&[], rows.export()).unwrap();
    assert_eq!((values.dims(), values.to_vec::<f32>().unwrap()), (&[1, 2][..], vec![1.5, -2.0]));
    let (other, ..) = table(dims![3]);
    let error = other.restore(&path).unwrap_err();
    assert!(error.message().contains("and f32[3], and the file has one of"), "{error}");
}

#[test]
fn tables_alone_and_variables_alone() {
    let folder = Folder::new("alone");
    let path = folder.path().join("model.safetensors");
    let build = || {
        let g = Graph::new();
        let table = g.mutable_table("table", I64, F32);
        let fill = table.insert(&g.constant([1i64, 2]), &g.constant([0.5f32, 0.25]));
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        (session, fill, table.find(&g.constant([2i64, 3]), -1.0f32))
    };
    let (session, fill, _) = build();
    session.run(&[], &fill).unwrap();
    session.save(&path).unwrap();
    let (session, fill, found) = build();
    session.restore(&path).unwrap();
    let found = || session.run(&[], &found).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(found(), [0.25, -1.0]);
    let without = Session::new(&Graph::new(), &Devices::cpu()).unwrap();
    without.save(&path).unwrap();
    session.run(&[], &fill).unwrap();
    let report = session.restore_with(&path, &RestoreOptions::default()).unwrap();
    let kept = KeptTable { name: "table".into(), reason: "the file tells of no tables".into() };
    assert_eq!((&report.kept_tables[..], report.tables.len()), (&[kept][..], 0));
    assert!(report.to_string().contains("0 of 1 tables"), "{report}");
    assert_eq!(found(), [0.25, -1.0]);
    let error = Saver::new(folder.path().join("none")).save(&without, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("no variables and no tables to save"), "{error}");
}

/// `testSaveRestoreOnlyTable`, of a training that goes on.
#[test]
fn a_training_of_tables_alone_is_saved() {
    for shards in [1, 2] {
        let folder = Folder::new("only");
        let saver = Saver::new(folder.path().join("model"));
        let saver = if shards > 1 { saver.shards(shards) } else { saver };
        let build = || {
            let g = Graph::new();
            let table = g.mutable_table("table", I64, F32);
            let fill = table.insert(&g.constant([1i64, 2]), &g.constant([0.5f32, 0.25]));
            let found = table.find(&g.constant([2i64, 3]), -1.0f32);
            (g, fill, found)
        };
        let (g, fill, _) = build();
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        session.run(&[], &fill).unwrap();
        saver.save(&session, 1).unwrap();
        let (g, _, found) = build();
        let mut session = Monitor::new(&g, &Devices::cpu()).saver(saver).start().unwrap();
        assert_eq!(session.run(&[], &found).unwrap().to_vec::<f32>().unwrap(), [0.25, -1.0]);
    }
}

/// A variable may be called as the tensors of a table would be.
#[test]
fn names_do_not_clash() {
    let folder = Folder::new("names");
    let path = folder.path().join("model.safetensors");
    let build = || {
        let g = Graph::new();
        let w = g.variable("t/keys", Init::Constant(4.0), F32, [1]);
        let table = g.mutable_table("t", I64, F32);
        let fill = table.insert(&g.constant([1i64]), &g.constant([0.5f32]));
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        session.run(&[], g.initializers()).unwrap();
        (session, w, fill, table.find(&g.constant([1i64]), -1.0f32))
    };
    let (session, w, fill, _) = build();
    session.run(&[], (&fill, w.assign(HostTensor::from([9.0f32])))).unwrap();
    session.save(&path).unwrap();
    let (session, w, _, found) = build();
    session.restore(&path).unwrap();
    let (w, found) = session.run(&[], (&w, &found)).unwrap();
    assert_eq!(
        (w.to_vec::<f32>().unwrap(), found.to_vec::<f32>().unwrap()),
        (vec![9.0], vec![0.5])
    );
}

/// A small checkpoint, and a session of its graph.
fn small(path: &Path) -> (Session, Vec<u8>) {
    let g = Graph::new();
    g.variable("w", Init::Constant(1.5), F32, [2]);
    let (ids, n) = (g.mutable_table("ids", Strings, I64), g.mutable_table("n", I64, F32));
    let two = g.constant(strings(&["one", "two"]));
    let fills = (
        ids.insert(&two, &g.constant([1i64, 2])),
        n.insert(&g.constant([3i64, 4]), &g.constant([0.5f32, 0.25])),
    );
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    session.run(&[], fills).unwrap();
    session.save(path).unwrap();
    let bytes = fs::read(path).unwrap();
    session.run(&[], n.remove(&g.constant([3i64]))).unwrap();
    (session, bytes)
}

#[test]
fn no_damage_makes_it_panic_or_half_restored() {
    let folder = Folder::new("damage");
    let path = folder.path().join("model.safetensors");
    let (session, whole) = small(&path);
    let before = session.state_digest().unwrap();
    let rewrite = |bytes: &[u8]| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    };
    for length in 0..whole.len() {
        rewrite(&whole[..length]);
        assert_eq!(session.restore(&path).unwrap_err().kind(), ErrorKind::DataLoss, "{length}");
    }
    assert_eq!(session.state_digest().unwrap(), before);
    rewrite(&whole);
    session.restore(&path).unwrap();
    let mut last = session.state_digest().unwrap();
    assert_ne!(last, before);
    let mut refused = 0;
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        rewrite(&bytes);
        let restored = session.restore(&path);
        let now = session.state_digest().unwrap();
        if let Err(error) = restored {
            assert_ne!(error.kind(), ErrorKind::Internal, "bit {bit}: {error}");
            assert_eq!(now, last, "bit {bit}: {error}");
            refused += 1;
        }
        last = now;
    }
    assert!(refused > whole.len(), "{refused} of {} bits", whole.len() * 8);
}

/// The note of tables of an index is a text.
#[test]
fn a_damaged_index_is_refused() {
    let folder = Folder::new("index");
    let saver = Saver::new(folder.path().join("model")).shards(2);
    let saved = Tables::new().filled();
    let path = saver.save(&saved.session, 1).unwrap();
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for key in ["convoke.tables", "convoke.draws"] {
        let whole = index["metadata"][key].take();
        assert!(whole.is_string());
        for wrong in [json!(1), json!(null), json!({ "version": 1, "tables": [] })] {
            index["metadata"][key] = wrong;
            fs::write(&path, index.to_string()).unwrap();
            let error = saved.session.restore(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
            assert!(error.message().contains(&format!("note \"{key}\" is no text")), "{error}");
        }
        index["metadata"][key] = whole;
    }
}

#[test]
fn hostile_tables_are_refused() {
    use ErrorKind::{DataLoss, Unimplemented};
    let folder = Folder::new("hostile");
    let path: PathBuf = folder.path().join("model.safetensors");
    let (session, whole) = small(&path);
    let start = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&whole[8..start]).unwrap();
    // Where a tensor's bytes are.
    let place = |name: &str| start + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let before = session.state_digest().unwrap();
    let refused = |kind: ErrorKind, text: &str| {
        let error = session.restore(&path).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(session.state_digest().unwrap(), before);
    };
    let with_note = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        let note = &mut header["__metadata__"]["convoke.tables"];
        let mut tables: Value = serde_json::from_str(note.as_str().unwrap()).unwrap();
        change(&mut tables);
        *note = tables.to_string().into();
        let header = header.to_string();
        let n = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&n, header.as_bytes(), &whole[start..]].concat()).unwrap();
    };
    with_note(&|note| note["version"] = json!(2));
    refused(Unimplemented, "unsupported: ");
    with_note(&|note| *note = json!([]));
    refused(DataLoss, "has no version");
    with_note(&|note| note["tables"] = json!(1));
    refused(DataLoss, "names none");
    with_note(&|note| note["tables"][0]["keys"] = json!({ "tensor": 3 }));
    refused(DataLoss, "names none");
    with_note(&|note| note["tables"][1] = note["tables"][0].clone());
    refused(DataLoss, "a table twice");
    with_note(&|note| note["tables"][0]["keys"]["bytes"] = json!("none"));
    refused(DataLoss, "\"none\", of a table, is not there");
    with_note(&|note| {
        note["tables"][0]["keys"] = json!({ "bytes": "ids/keys/ends", "ends": "ids/keys" });
    });
    refused(DataLoss, "has another dtype");
    // What is no table's is a variable's.
    with_note(&|note| note["tables"][1]["values"]["tensor"] = json!("w"));
    refused(ErrorKind::InvalidArgument, "has a variable \"n/values\"");
    let with_bytes = |name: &str, offset: usize, bytes: &[u8]| {
        let mut all = whole.clone();
        let at = place(name) + offset;
        all[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, all).unwrap();
    };
    for ends in [[4u64, 3], [3, 7], [3, 5], [u64::MAX, 6]] {
        with_bytes("ids/keys/ends", 0, &ends.map(u64::to_le_bytes).concat());
        refused(DataLoss, "end where they do not");
    }
    with_bytes("ids/keys", 0, b"twotwo");
    refused(DataLoss, "has a key twice");
    with_bytes("n/keys", 0, &4u64.to_le_bytes());
    refused(DataLoss, "has a key twice");
    fs::write(&path, &whole).unwrap();
    session.restore(&path).unwrap();
    assert_ne!(session.state_digest().unwrap(), before);
}
