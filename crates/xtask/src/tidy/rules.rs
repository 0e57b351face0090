//! The rules. What they look for is written in pieces here, so that they don't find themselves.

use super::{Fault, Source};

type Rule = fn(&Source, &mut Vec<Fault>);

/// Rules that look at one file.
pub const OF_A_FILE: [Rule; 6] = [header, whitespace, length, ignored, allowed, workplace];

/// Longest Rust file outside tests.
const MAX_LINES: usize = 600;
const IGNORE: &str = concat!("#[", "ignore");
const ALLOWS: [&str; 2] = [concat!("#[", "allow("), concat!("#![", "allow(")];
/// Folders that exist on one person's machine only.
const WORKPLACES: [&str; 4] =
    [concat!("/", "work/"), concat!("/", "root/"), concat!("/", "home/"), concat!("/", "Users/")];

/// A Rust file begins with `//!`, a kernel with `//`: what it is.
fn header(source: &Source, faults: &mut Vec<Fault>) {
    let start = match source.end() {
        "rs" => "//! ",
        "wgsl" => "// ",
        _ => return,
    };
    if !source.text.starts_with(start) && !source.is_golden() {
        let start = start.trim();
        faults.push(
            source.fault(1, format!("expected the file to begin with `{start}` and what it is")),
        );
    }
}

/// No tab, no blank at the end of a line, and one end of line at the end of the file.
fn whitespace(source: &Source, faults: &mut Vec<Fault>) {
    if source.is_golden() {
        return;
    }
    for (line, text) in (1..).zip(source.text.split('\n')) {
        if text.contains('\t') {
            faults.push(source.fault(line, "tab; indent with spaces"));
        }
        if text.ends_with(|last: char| last.is_whitespace()) {
            faults.push(source.fault(line, "white space at the end of the line"));
        }
    }
    let n_lines = source.text.lines().count();
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        faults.push(source.fault(n_lines, "no end of line at the end of the file"));
    }
    if source.text.ends_with("\n\n") {
        faults.push(source.fault(n_lines, "empty line at the end of the file"));
    }
}

/// A Rust file outside tests has at most `MAX_LINES` lines.
fn length(source: &Source, faults: &mut Vec<Fault>) {
    let n_lines = source.text.lines().count();
    if source.end() == "rs" && !source.is_test() && n_lines > MAX_LINES {
        let message = format!("{n_lines} lines; split what has more than {MAX_LINES}");
        faults.push(source.fault(MAX_LINES + 1, message));
    }
}

/// No test is left out: it says what happens today, with a FIXME.
fn ignored(source: &Source, faults: &mut Vec<Fault>) {
    if source.end() == "rs" {
        for line in lines_with(source, IGNORE) {
            faults.push(source.fault(line, format!("{IGNORE}]; test what happens today instead")));
        }
    }
}

/// A lint that is silenced says why.
fn allowed(source: &Source, faults: &mut Vec<Fault>) {
    if source.end() != "rs" {
        return;
    }
    for start in ALLOWS {
        for (at, _) in source.text.match_indices(start) {
            let attribute = source.text[at..].split(']').next().unwrap_or_default();
            if !attribute.contains("reason") {
                let line = source.text[..at].matches('\n').count() + 1;
                let message = format!("{start}..)] without a reason; use expect with one");
                faults.push(source.fault(line, message));
            }
        }
    }
}

/// No path that exists on one machine only.
fn workplace(source: &Source, faults: &mut Vec<Fault>) {
    for folder in WORKPLACES {
        for (line, text) in (1..).zip(source.text.lines()) {
            let starts_path = |(at, _): (usize, &str)| {
                let before = text[..at].chars().next_back();
                before.is_none_or(|c| !c.is_alphanumeric() && !"._-~*})".contains(c))
            };
            if text.match_indices(folder).any(starts_path) {
                let message = format!("a path under {folder} exists on one machine only");
                faults.push(source.fault(line, message));
            }
        }
    }
}

/// Every kernel in `shaders/` is named, as a word, in the package's Rust files.
pub fn orphans(sources: &[Source], faults: &mut Vec<Fault>) {
    let tables = sources.iter().filter(|source| {
        source.path.starts_with("shaders/src/") && source.end() == "rs" && !source.is_test()
    });
    let tables = tables.map(|source| source.text.as_str()).collect::<Vec<_>>();
    for source in sources {
        let name = source.path.strip_prefix("shaders/").and_then(|path| path.strip_suffix(".wgsl"));
        let Some(name) = name.filter(|name| !name.contains('/')) else { continue };
        if !tables.iter().any(|text| has_word(text, name)) {
            let message = format!("orphaned kernel; name {name} in shaders/src, or remove it");
            faults.push(source.fault(1, message));
        }
    }
}

fn lines_with<'s>(source: &'s Source, text: &str) -> impl Iterator<Item = usize> + use<'s> {
    let text = text.to_owned();
    let lines = (1..).zip(source.text.lines());
    lines.filter(move |(_, line)| line.contains(&text)).map(|(number, _)| number)
}

fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}
