//! A training that is killed in the middle goes on from its newest checkpoint: the example `tfrecords`, as a process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use convoke::prelude::*;
use convoke_tests::Folder;

const STEPS: u64 = 3000;

fn start(folder: &Folder) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tfrecords"));
    command.arg(folder.path()).arg(STEPS.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The step of a line that says that it was saved.
fn saved(line: &str) -> Option<u64> {
    line.strip_prefix("saved step ")?.parse().ok()
}

/// The step of a line that tells the loss, and that.
fn trained(line: &str) -> Option<(u64, f32)> {
    let (step, loss) = line.strip_prefix("step ")?.split_once(": loss ")?;
    Some((step.parse().ok()?, loss.parse().ok()?))
}

#[test]
fn a_killed_training_goes_on_where_it_was_saved() {
    let folder = Folder::new("killed");
    let mut child = start(&folder);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.find_map(|line| saved(&line).filter(|&step| step >= 100));
    // SIGKILL, wherever it is.
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was not killed in the middle");
    let seen = first.expect("a step that was saved");
    let kept = Saver::new(folder.path().join("digits")).latest().unwrap().unwrap();
    assert!((seen..STEPS).contains(&kept.step), "{seen} {}", kept.step);
    let written = || folder.files().into_iter().filter(|name| name.ends_with(".tfrecord"));
    let modified = |name: String| folder.path().join(name).metadata().unwrap().modified().unwrap();
    let before: Vec<_> = written().map(modified).collect();
    assert_eq!(before.len(), 4);

    let output = start(&folder).wait_with_output().unwrap();
    let (text, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{text}{errors}");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(&*format!("goes on from step {}", kept.step)), "{text}");
    assert_eq!(lines.clone().find_map(saved), Some(kept.step), "{text}");
    assert_eq!(lines.clone().filter_map(saved).next_back(), Some(STEPS), "{text}");
    let steps: Vec<(u64, f32)> = lines.filter_map(trained).collect();
    assert!(steps[0].0 > kept.step && steps[0].0 <= kept.step + 50, "{text}");
    // From the start, fifty steps come to a loss of about 1.2.
    assert!(steps[0].1 < 0.8, "it has forgotten what it had learned: {text}");
    assert_eq!(steps.last().unwrap().0, STEPS);
    let tested = text.lines().last().unwrap();
    let expected = format!("tested after step {STEPS}: loss ");
    let (loss, accuracy) =
        tested.strip_prefix(&expected).unwrap().split_once(", accuracy ").unwrap();
    assert!(loss.parse::<f32>().unwrap() < 0.2, "{tested}");
    assert!(accuracy.parse::<f32>().unwrap() > 0.95, "{tested}");
    // The files were written once.
    assert_eq!(written().map(modified).collect::<Vec<_>>(), before);
}
