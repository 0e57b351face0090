//! What the system has, and which libraries a file lacks.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{BROWSER, Part};
use crate::{Outcome, output};

/// Folders outside the linker's list where browsers keep SwiftShader.
const BROWSERS: [&str; 3] =
    ["/usr/lib/chromium", "/usr/lib64/chromium-browser", "/opt/google/chrome"];

/// Names of browsers that take Chromium's options.
const CHROMIUMS: [&str; 4] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// The part's file, if the system has it with all that it needs.
pub fn find(part: &Part) -> Option<PathBuf> {
    let in_path = env::var_os("PATH").unwrap_or_default();
    if part.name == BROWSER {
        let dirs = env::split_paths(&in_path);
        let mut known = dirs.flat_map(|dir| CHROMIUMS.map(|name| dir.join(name)));
        // It may be a script, which `ldd` can't look into.
        return known.find(|path| output(Command::new(path).arg("--version")).is_ok());
    }
    let known = if part.file.contains(".so") {
        let browsers = BROWSERS.iter().map(|dir| Path::new(dir).join(part.file));
        linker(part.file).into_iter().chain(browsers).collect::<Vec<_>>()
    } else {
        env::split_paths(&in_path).map(|dir| dir.join(part.file)).collect()
    };
    let complete = |path: &PathBuf| missing(path, None).is_ok_and(|missing| missing.is_empty());
    known.into_iter().find(|path| path.is_file() && complete(path))
}

/// The libraries that `path` needs, itself or through others, and that neither the system nor the
/// folder `lib` has.
///
/// # Errors
/// A library is there but too old, or `ldd` can't be run.
pub fn missing(path: &Path, lib: Option<&Path>) -> Outcome<Vec<String>> {
    let mut command = Command::new("ldd");
    command.arg(path).env("LC_ALL", "C").env_remove("LD_LIBRARY_PATH");
    if let Some(lib) = lib {
        command.env("LD_LIBRARY_PATH", lib);
    }
    parse_ldd(&output(&mut command)?)
}

pub(super) fn parse_ldd(text: &str) -> Outcome<Vec<String>> {
    let mut missing = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| line.contains("not found")) {
        match line.split_once(" => not found") {
            Some((name, _)) => missing.push(name.to_owned()),
            None => return Err(line.to_owned()),
        }
    }
    missing.sort();
    missing.dedup();
    Ok(missing)
}

/// Where the linker finds the library called `file`.
pub fn linker(file: &str) -> Option<PathBuf> {
    // It lies outside the path of ordinary users.
    let lists = ["ldconfig", "/sbin/ldconfig"].map(|tool| output(Command::new(tool).arg("-p")));
    lists.into_iter().flatten().find_map(|list| parse_ldconfig(&list, file))
}

pub(super) fn parse_ldconfig(list: &str, file: &str) -> Option<PathBuf> {
    let bits = if cfg!(target_pointer_width = "64") { "64" } else { "" };
    let fits = |line: &&str| {
        let Some((name, kind)) = line.trim().split_once(" (") else { return false };
        // Arm and x86 say so in the kind: "libc6,AArch64", "libc6,x86-64".
        name == file && kind.split_once(')').is_some_and(|(kind, _)| kind.contains(bits))
    };
    let line = list.lines().find(fits)?;
    line.split_once("=> ").map(|(_, path)| PathBuf::from(path.trim()))
}
