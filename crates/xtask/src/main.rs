//! Chores: the test gate, tidiness, software Vulkan drivers. Run as `cargo xtask`.

mod drivers;
mod environment;
mod gate;
mod tidy;
mod vectors;

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
Chores of the Convoke workspace.

Usage: cargo xtask <TASK>

Tasks:
  test [--quick] [-- ARGS]  run the whole gate; ARGS go to the test runner;
                            --quick leaves out clippy and the documentation
  tidy                      check the house rules and count lines
  drivers                   fetch software Vulkan drivers, spirv-val and a browser into
                            target/drivers (Debian packages, unpacked, not installed)
  vectors                   build the command, and count how many of the CPU kernels' loops
                            became vector instructions (x86-64, with objdump)
  env [-- CMD ARGS]         run CMD with those; without CMD, print them as shell exports

Options:
  -h, --help                print this text

The gate runs, in order: cargo fmt, tidy, clippy, cargo doc, all tests, the documentation's tests.
With CI=true a driver that can't be had is a failure; else what is left out is said.

Exit status: 0 if all is well, 1 if something failed, 2 if the command line is wrong. `env` gives
the status of CMD.
";

/// What a chore returns; the text says what failed.
type Outcome<T = ()> = Result<T, String>;

/// One command line.
#[derive(Debug, PartialEq)]
enum Task {
    Help,
    Test { quick: bool, runner_args: Vec<OsString> },
    Tidy,
    Drivers,
    Vectors,
    Env(Vec<OsString>),
}

fn main() -> ExitCode {
    let task = match parse(env::args_os().skip(1)) {
        Ok(task) => task,
        Err(message) => {
            eprintln!("xtask: {message}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let outcome = match task {
        Task::Help => {
            print!("{HELP}");
            Ok(())
        }
        Task::Test { quick, runner_args } => gate::run(quick, &runner_args),
        Task::Tidy => tidy::run(&root()),
        Task::Drivers => drivers::ensure(true).and_then(|drivers| {
            drivers.report(true);
            drivers.complete_in_ci()
        }),
        Task::Vectors => vectors::run(&root()),
        Task::Env(words) => match environment::task(&words) {
            Ok(status) => return status,
            Err(message) => Err(message),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: impl Iterator<Item = OsString>) -> Outcome<Task> {
    let mut args = args.collect::<Vec<_>>();
    let tail = match args.iter().position(|arg| arg == "--") {
        Some(idx) => args.split_off(idx).split_off(1),
        None => Vec::new(),
    };
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        return Ok(Task::Help);
    }
    let words = args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>();
    let words = words.iter().map(|word| word.as_ref()).collect::<Vec<&str>>();
    match (words.as_slice(), tail.is_empty()) {
        (["test"], _) => Ok(Task::Test { quick: false, runner_args: tail }),
        (["test", "--quick"], _) => Ok(Task::Test { quick: true, runner_args: tail }),
        (["tidy"], true) => Ok(Task::Tidy),
        (["drivers"], true) => Ok(Task::Drivers),
        (["vectors"], true) => Ok(Task::Vectors),
        (["env"], _) => Ok(Task::Env(tail)),
        ([], true) => Err("expected a task, found none".into()),
        _ => Err(format!("expected one of the tasks below, found {:?}", words.join(" "))),
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.ancestors().nth(2).map_or_else(|| package.clone(), Path::to_owned)
}

fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true")
}

/// Runs a command to its end and returns what it wrote to standard output.
fn output(command: &mut Command) -> Outcome<String> {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let name = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let out = command.output().map_err(|error| format!("can't run {name}: {error}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    let last = text.lines().rev().find(|line| line.starts_with("E: ")).or(text.lines().last());
    Err(format!("{name} failed ({}): {}", out.status, last.unwrap_or("no message")))
}

#[cfg(test)]
mod tests;
