//! The one gate, the same here and in CI: format, tidiness, lints, documentation, tests.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::environment::Variables;
use crate::{Outcome, drivers, environment, root, tidy};

/// Runs the steps in order up to the first that fails, and prints what each took.
pub fn run(quick: bool, runner_args: &[OsString]) -> Outcome {
    let mut gate = Gate { root: root(), variables: Variables::new(), steps: Vec::new() };
    let outcome = gate.steps(quick, runner_args);
    gate.summary();
    outcome
}

struct Gate {
    root: PathBuf,
    variables: Variables,
    steps: Vec<Step>,
}

struct Step {
    name: &'static str,
    /// None if the step was left out.
    time: Option<Duration>,
    note: &'static str,
}

impl Gate {
    fn steps(&mut self, quick: bool, runner_args: &[OsString]) -> Outcome {
        self.step("drivers", |gate| {
            let drivers = drivers::ensure(false)?;
            drivers.report(true);
            gate.variables = environment::variables(&drivers)?;
            drivers.complete_in_ci()
        })?;
        self.step("fmt", |gate| gate.cargo(&["fmt", "--all", "--check"], &[]))?;
        self.step("tidy", |gate| tidy::run(&gate.root))?;
        if quick {
            self.skip("clippy", "--quick");
            self.skip("doc", "--quick");
        } else {
            let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
            self.step("clippy", |gate| gate.cargo(&clippy, &[]))?;
            self.variables.push(("RUSTDOCFLAGS", "-Dwarnings".into()));
            let doc = ["doc", "--workspace", "--no-deps"];
            let outcome = self.step("doc", |gate| gate.cargo(&doc, &[]));
            self.variables.pop();
            outcome?;
        }
        self.step("test", |gate| gate.tests(runner_args))?;
        self.step("doc tests", |gate| gate.cargo(&["test", "--doc", "--workspace"], &[]))
    }

    fn tests(&self, runner_args: &[OsString]) -> Outcome {
        let probe = self
            .command(&["nextest", "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if probe.is_ok_and(|status| status.success()) {
            return self.cargo(&["nextest", "run", "--workspace"], runner_args);
        }
        println!("cargo-nextest is not installed; using cargo test");
        // Every target but the benches.
        let kinds = ["test", "--workspace", "--lib", "--bins", "--tests", "--examples"];
        let mut args = runner_args.to_vec();
        if !args.is_empty() {
            args.insert(0, "--".into());
        }
        self.cargo(&kinds, &args)
    }

    fn step(&mut self, name: &'static str, run: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        println!("\n== {name}");
        let start = Instant::now();
        let outcome = run(self);
        let time = start.elapsed();
        let note = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("== {name}: {note} in {:.1} s", time.as_secs_f64());
        self.steps.push(Step { name, time: Some(time), note });
        outcome.map_err(|message| format!("the step {name:?} failed: {message}"))
    }

    fn skip(&mut self, name: &'static str, note: &'static str) {
        self.steps.push(Step { name, time: None, note });
    }

    fn cargo(&self, args: &[&str], more: &[OsString]) -> Outcome {
        let mut command = self.command(args);
        let status = command.args(more).status();
        let line = format!("cargo {}", args.join(" "));
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{line} ({status})")),
            Err(error) => Err(format!("can't run {line}: {error}")),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(args).envs(self.variables.iter().cloned()).current_dir(&self.root);
        command
    }

    fn summary(&self) {
        println!("\nstep          seconds");
        for Step { name, time, note } in &self.steps {
            match time {
                Some(time) => println!("{name:<12} {:>8.1}  {note}", time.as_secs_f64()),
                None => println!("{name:<12} {:>8}  left out: {note}", "-"),
            }
        }
        let total = self.steps.iter().filter_map(|step| step.time).sum::<Duration>();
        println!("{:<12} {:>8.1}", "all", total.as_secs_f64());
    }
}
