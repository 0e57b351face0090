//! The house rules that a program can check, and how many lines each crate has.
//!
//! A rule is a pure function of one file's text, or of all files' names and texts.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::Outcome;

/// Folders whose sources are checked. Of the workspace's own folder, only the files.
const FOLDERS: [&str; 8] =
    ["crates", "shaders", "tests", "benches", "examples", "docs", "data", ".ci"];
/// What is read: by the end of its name, or by its name.
const ENDS: [&str; 8] = ["rs", "wgsl", "toml", "md", "sh", "yml", "yaml", "run"];

/// A file's path within the workspace, with `/` between folders, and its text.
struct Source {
    path: String,
    text: String,
}

/// A broken rule. `line` counts from 1.
#[derive(Debug, PartialEq)]
struct Fault {
    path: String,
    line: usize,
    message: String,
}

/// Checks the workspace in `root`, prints every fault and the table of lines.
///
/// # Errors
/// A file can't be read, or there are faults.
pub fn run(root: &Path) -> Outcome {
    let sources = sources(root)?;
    let faults = check(&sources);
    for fault in &faults {
        println!("{}:{}: {}", fault.path, fault.line, fault.message);
    }
    print!("{}", table(&sources));
    match faults.len() {
        0 => Ok(()),
        1 => Err("tidy found 1 fault, named above".into()),
        n => Err(format!("tidy found {n} faults, named above")),
    }
}

fn check(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        for rule in rules::OF_A_FILE {
            rule(source, &mut faults);
        }
    }
    rules::orphans(sources, &mut faults);
    faults
}

/// Lines of Rust, of Rust in tests, and of WGSL, for each crate.
fn table(sources: &[Source]) -> String {
    let mut crates: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    let mut all = [0; 3];
    for source in sources {
        let kind = match source.end() {
            "rs" if source.is_test() => 1,
            "rs" => 0,
            "wgsl" => 2,
            _ => continue,
        };
        let lines = source.text.lines().count();
        crates.entry(source.krate()).or_default()[kind] += lines;
        all[kind] += lines;
    }
    let row = |name: &str, lines: [usize; 3]| {
        format!("{name:<22} {:>7} {:>7} {:>7}\n", lines[0], lines[1], lines[2])
    };
    let head = format!("{:<22} {:>7} {:>7} {:>7}\n", "lines", "rust", "tests", "wgsl");
    let rows = crates.iter().map(|(name, lines)| row(name, *lines)).collect::<String>();
    head + &rows + &row("all", all)
}

impl Source {
    fn end(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.rsplit('.').next().unwrap_or_default()
    }

    /// Whether it belongs to tests or benches, where files may be long.
    fn is_test(&self) -> bool {
        let folders = ["tests", "benches"];
        self.path.split('/').any(|part| folders.contains(&part)) || self.path.ends_with("/tests.rs")
    }

    /// Whether it is a result that a program wrote down.
    fn is_golden(&self) -> bool {
        self.path.split('/').any(|part| part == "golden" || part == "goldens")
    }

    /// The crate's folder: `crates/NAME`, else the first folder.
    fn krate(&self) -> String {
        let depth = if self.path.starts_with("crates/") { 2 } else { 1 };
        self.path.split('/').take(depth).collect::<Vec<_>>().join("/")
    }

    fn fault(&self, line: usize, message: impl Into<String>) -> Fault {
        Fault { path: self.path.clone(), line, message: message.into() }
    }
}

/// The files to check, in the order of their paths.
fn sources(root: &Path) -> Outcome<Vec<Source>> {
    let mut sources = Vec::new();
    read_folder(root, "", false, &mut sources)?;
    for folder in FOLDERS {
        let path = root.join(folder);
        if path.is_dir() {
            read_folder(&path, &format!("{folder}/"), true, &mut sources)?;
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn read_folder(dir: &Path, prefix: &str, deep: bool, sources: &mut Vec<Source>) -> Outcome {
    let error = |path: &Path, error| format!("can't read {}: {error}", path.display());
    for entry in fs::read_dir(dir).map_err(|e| error(dir, e))? {
        let path = entry.map_err(|e| error(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            if deep && name != "target" {
                read_folder(&path, &format!("{prefix}{name}/"), deep, sources)?;
            }
        } else if name.rsplit('.').next().is_some_and(|end| ENDS.contains(&end)) {
            let text = fs::read_to_string(&path).map_err(|e| error(&path, e))?;
            sources.push(Source { path: format!("{prefix}{name}"), text });
        }
    }
    Ok(())
}
