//! Command lines and what they mean.

use super::*;

fn task(line: &str) -> Outcome<Task> {
    parse(line.split_whitespace().map(OsString::from))
}

#[test]
fn command_lines() {
    let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    assert_eq!(task("test"), Ok(Task::Test { quick: false, runner_args: args(&[]) }));
    assert_eq!(
        task("test --quick -- -E test(x) --help"),
        Ok(Task::Test { quick: true, runner_args: args(&["-E", "test(x)", "--help"]) })
    );
    assert_eq!(task("tidy"), Ok(Task::Tidy));
    assert_eq!(task("drivers"), Ok(Task::Drivers));
    assert_eq!(task("vectors"), Ok(Task::Vectors));
    assert_eq!(task("env -- cargo run -- x"), Ok(Task::Env(args(&["cargo", "run", "--", "x"]))));
    assert_eq!(task("test --help"), Ok(Task::Help));
}

#[test]
fn wrong_command_lines() {
    assert_eq!(task(""), Err("expected a task, found none".into()));
    for line in ["clean", "test quick", "tidy -- x", "env cargo", "test --quick --quick"] {
        let words = line.replace(" -- x", "");
        let message = format!("expected one of the tasks below, found {words:?}");
        assert_eq!(task(line), Err(message));
    }
}
