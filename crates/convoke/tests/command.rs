//! The command as people and scripts run it: output, exit codes, and what bad input gets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use flate2::{Compression, write::GzEncoder};
use serde_json::Value;

/// A folder that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("convoke-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// IDX files of 64 and 20 images of 8x8 in 10 classes; those for training are gzipped.
    fn with_images() -> Self {
        let dir = Self::new();
        for (name, n, zip) in [("train", 64u32, true), ("t10k", 20, false)] {
            let pixels = (0..n * 64).map(|i| ((i / 64 % 10) * 20 + i % 7) as u8);
            let mut images: Vec<u8> =
                [0x803, n, 8, 8].iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
            images.extend(pixels);
            let mut labels: Vec<u8> =
                [0x801, n].iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
            labels.extend((0..n).map(|i| (i % 10) as u8));
            for (kind, bytes) in [("images-idx3", images), ("labels-idx1", labels)] {
                let name = format!("{name}-{kind}-ubyte");
                if zip {
                    let file = fs::File::create(dir.file(&format!("{name}.gz"))).unwrap();
                    let mut encoder = GzEncoder::new(file, Compression::fast());
                    encoder.write_all(&bytes).unwrap();
                    encoder.finish().unwrap();
                } else {
                    fs::write(dir.file(&name), bytes).unwrap();
                }
            }
        }
        dir
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn convoke(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_convoke")).args(args).output().unwrap()
}

/// What the command prints; it must exit with 0.
#[track_caller]
fn printed(args: &[&str]) -> String {
    let output = convoke(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the command complains of; it must exit with `code`.
#[track_caller]
fn refused(args: &[&str], code: i32) -> String {
    let output = convoke(args);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    errors
}

#[track_caller]
fn json(args: &[&str]) -> Value {
    serde_json::from_str(&printed(args)).unwrap()
}

#[test]
fn training_shows_its_stages_in_order() {
    let dir = Dir::new();
    let checkpoint = dir.file("a.safetensors");
    let args = ["train", "--device", "cpu", "--epochs", "1", "--checkpoint", &checkpoint];
    let text = printed(&args);
    let stages =
        ["devices\n", "CPU:0", "placement\n", "test accuracy", "time:", "host", "checkpoint"];
    let mut rest = text.as_str();
    for stage in stages {
        let at = rest.find(stage);
        assert!(at.is_some(), "{stage:?} is not in its place in\n{text}");
        rest = &rest[at.unwrap()..];
    }
    assert!(text.contains("on 359 held-out images"), "{text}");
    assert!(fs::metadata(checkpoint).unwrap().len() > 0);
}

#[test]
fn a_trained_model_classifies_without_what_trained_it() {
    let dir = Dir::new();
    let (model, checkpoint) = (dir.file("model.safetensors"), dir.file("a.safetensors"));
    let args = ["train", "--device", "cpu", "--epochs", "1", "--json", "--checkpoint", &checkpoint];
    let told = json(&[&args[..], &["--save-model", &model]].concat());
    let model = convoke::SavedModel::load(&model, &convoke::Devices::cpu()).unwrap();
    let images = convoke::data::digits().unwrap().test;
    let rows: Vec<usize> = (0..images.len()).collect();
    let (mut pixels, mut labels) = (vec![0.0; rows.len() * images.row_len()], vec![0; rows.len()]);
    images.write_batch(&rows, &mut pixels, &mut labels).unwrap();
    let feed = model.input("images").unwrap().feed((&pixels[..], [rows.len(), images.row_len()]));
    let found = model.output("logits").unwrap().argmax(-1);
    let found = model.session().run(&[feed], &found).unwrap().to_vec::<i32>().unwrap();
    let right = found.iter().zip(&labels).filter(|(found, label)| found == label).count();
    assert_eq!((told["accuracy"].as_f64().unwrap() * rows.len() as f64).round(), right as f64);
}

#[test]
fn one_object_tells_everything_and_training_goes_on() {
    let dir = Dir::new();
    let checkpoint = dir.file("a.safetensors");
    let base = ["train", "--device", "cpu", "--epochs", "1", "--json", "--checkpoint", &checkpoint];
    let first = json(&base);
    assert_eq!(first["losses"].as_array().unwrap().len(), 45, "1438 images in batches of 32");
    assert!(first["accuracy"].as_f64().unwrap() > 0.5);
    assert!(first["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(first["devices"][0]["name"], "CPU:0");
    assert_eq!(first["transfers"]["uploads"], 0);
    assert_eq!(first["counters"]["steps"], 45);
    assert_eq!(json(&base)["losses"], first["losses"], "a seed gives the same losses");

    let resumed = json(&[&base[..], &["--resume"]].concat());
    let last = |run: &Value| run["losses"].as_array().unwrap()[44].as_f64().unwrap();
    assert!(last(&resumed) < last(&first));
}

#[test]
fn images_of_ones_own() {
    let dir = Dir::with_images();
    let (data, checkpoint) = (format!("fashion-mnist={}", dir.0.display()), dir.file("a"));
    for model in ["mlp", "cnn"] {
        let run = json(&[
            "train",
            "--device",
            "cpu",
            "--data",
            &data,
            "--model",
            model,
            "--epochs",
            "2",
            "--batch",
            "16",
            "--json",
            "--checkpoint",
            &checkpoint,
        ]);
        assert_eq!(run["losses"].as_array().unwrap().len(), 8, "{model}");
    }
    fs::write(dir.file("t10k-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 20, 5]).unwrap();
    let error = refused(&["train", "--device", "cpu", "--data", &data], 1);
    let expected = "t10k-labels-idx1-ubyte: expected 20 bytes of labels at byte 8, found 1";
    assert!(error.contains(expected), "{error}");
    fs::remove_file(dir.file("train-images-idx3-ubyte.gz")).unwrap();
    let error = refused(&["train", "--device", "cpu", "--data", &data], 1);
    assert!(error.contains("train-images-idx3-ubyte"), "{error}");
}

#[test]
fn wrong_usage_exits_with_2_and_failures_with_1() {
    for args in [
        &["train", "--model", "transformer"][..],
        &["train", "--data", "imagenet"],
        &["train", "--epochs", "0"],
        &["paint"],
        &[],
    ] {
        assert!(!refused(args, 2).is_empty());
    }
    let error = refused(&["train", "--device", "no such card"], 1);
    assert!(error.contains("no such card"), "{error}");
    let error = refused(&["train", "--device", "cpu", "--resume", "--checkpoint", "/nowhere/x"], 1);
    assert!(error.contains("/nowhere/x"), "{error}");
}

#[test]
fn a_gpu_is_not_a_software_adapter() {
    let named = std::env::var("CONVOKE_TEST_ADAPTERS").unwrap_or_default();
    if !named.contains("llvmpipe") || printed(&["devices", "--json"]).contains("DiscreteGpu") {
        return eprintln!("skipped: needs llvmpipe and no hardware GPU");
    }
    let error = refused(&["train", "--device", "gpu"], 1);
    assert!(error.contains("llvmpipe"), "{error}");
    let text = printed(&["devices"]);
    assert!(text.contains("CPU:0"), "{text}");
}

#[test]
fn help_and_reports() {
    for args in [&["--help"][..], &["train", "--help"], &["bench", "--help"], &["--version"]] {
        assert!(!printed(args).is_empty());
    }
    let text = printed(&["explain", "--model", "cnn", "--device", "cpu"]);
    assert!(text.contains("conv1") && text.contains("CPU:0"), "{text}");
    let rows = json(&["bench", "--case", "A", "--device", "cpu", "--json"]);
    assert_eq!((&rows[0]["case"], &rows[0]["device"]), (&"A".into(), &"CPU:0".into()));
    for key in [
        "median_us",
        "min_us",
        "runs",
        "dispatches",
        "barriers",
        "submissions",
        "transfers",
        "kernel_bytes",
        "peak_bytes",
        "overhead_us",
    ] {
        assert!(rows[0][key].is_number(), "{key}: {rows}");
    }
}

#[test]
fn predictions_stand_beside_what_runs_take() {
    for (wrong, why) in [
        (&["bench", "--seconds=-1"][..], "0 to 86400 seconds"),
        (&["bench", "--seconds", "NaN"], "0 to 86400 seconds"),
        (&["bench", "--seconds", "1e300"], "0 to 86400 seconds"),
        (&["bench", "--seconds", "long"], "a number of seconds"),
        (&["bench", "--calibrate"], "--predict"),
        (&["bench", "--predict", "--calibrate", "--autotune"], "--autotune"),
        (&["bench", "--predict", "--calibrate", "--device", "auto"], "for one device"),
    ] {
        let error = refused(wrong, 2);
        assert!(error.contains(why), "{wrong:?}: {error}");
    }
    if !cfg!(target_os = "linux") {
        return eprintln!("skipped: elsewhere the user's own calibrations would be written");
    }
    let dir = Dir::new();
    let row = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
        command.args(["bench", "--predict", "--case", "A", "--seconds", "0.01", "--json"]);
        let output = command.env("XDG_CACHE_HOME", &dir.0).args(more).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |key: &str| rows[0][key].as_f64().unwrap();
        let ratio = number("predicted_us") / number("usual_us");
        assert!((number("ratio") - ratio).abs() < 1e-6 * ratio, "{rows}");
        number("predicted_us")
    };
    // The default speeds are 0.5 us for a kernel and 1 for a run.
    let default = row(&["--device", "cpu"]);
    assert!((1.5..2.0).contains(&default), "{default}");
    let measured = row(&["--device", "cpu", "--calibrate"]);
    assert!(measured != default, "{default}");
    // It is kept.
    assert_eq!(row(&["--device", "cpu"]), measured);
}

#[test]
fn explanations_come_in_every_form() {
    let dir = Dir::new();
    let whole = json(&explain_with(&["--json", "--batch", "8"]));
    assert_eq!((&whole["version"], &whole["measured"]), (&1.into(), &Value::Null));
    let matmul = json(&explain_with(&["--json", "--node", "dense1/matmul", "--measure"]));
    assert_eq!(matmul["items"][0]["rule"], "only-device");
    assert!(matmul["items"][0]["measured_us"].as_f64().unwrap() > 0.0, "{matmul}");
    let text = printed(&explain_with(&["--case", "D64", "--node", "exp"]));
    assert!(text.contains("on CPU:0: the only device"), "{text}");
    assert!(printed(&explain_with(&["--case", "a", "--dot"])).starts_with("digraph"));

    let (page, trace) = (dir.file("page.html"), dir.file("trace.json"));
    let files = ["--case", "A", "--measure", "--html", &page, "--trace", &trace];
    assert_eq!(printed(&explain_with(&files)), "");
    assert!(fs::read_to_string(&page).unwrap().ends_with("</html>\n"));
    assert!(kernels_in(&trace) >= 7);

    assert!(refused(&explain_with(&["--case", "Z"]), 2).contains("there are A, B256"));
    assert!(refused(&explain_with(&["--case", "A", "--model", "cnn"]), 2).contains("--model"));
    assert!(refused(&explain_with(&["--trace", &trace]), 2).contains("--measure"));
    assert!(refused(&explain_with(&["--node", "dense1/matmull"]), 1).contains("dense1/matmul"));
    let nowhere = dir.file("no/page.html");
    let error = refused(&explain_with(&["--html", &nowhere]), 1);
    assert!(error.contains(&format!("can't write {nowhere}")), "{error}");
}

fn explain_with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["explain", "--device", "cpu"], more].concat()
}

/// The number of kernels in a trace that `--trace` wrote.
fn kernels_in(path: &str) -> usize {
    let trace: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    events.iter().filter(|event| event["cat"] == "kernel").count()
}

#[test]
fn training_and_benches_write_traces() {
    let dir = Dir::with_images();
    let (data, trace) = (format!("fashion-mnist={}", dir.0.display()), dir.file("trace.json"));
    let checkpoint = dir.file("a");
    let train = ["train", "--device", "cpu", "--data", &data, "--epochs", "1", "--quiet"];
    printed(&[&train[..], &["--checkpoint", &checkpoint, "--trace", &trace]].concat());
    // 64 images are two batches.
    let text = fs::read_to_string(&trace).unwrap();
    assert!(text.contains("\"step 2\"") && !text.contains("\"step 3\""));
    assert!(kernels_in(&trace) > 5);
    let bench = ["bench", "--device", "cpu", "--case", "A", "--seconds", "0.01"];
    printed(&[&bench[..], &["--trace", &trace]].concat());
    assert_eq!(kernels_in(&trace), 3, "one kernel in each of three runs");
    refused(&[&bench[..], &["--trace", &dir.file("no/trace.json")]].concat(), 1);
}
