//! What was found last time: one line for each part, `name TAB kind TAB what TAB path`.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Found, PARTS, Part};
use crate::Outcome;

/// Changes with the layout of the folder, so that an older one is made anew.
const HEAD: &str = "convoke drivers 2";

/// What the stamp in `dir` says, if it is whole and every file that it names is there.
pub fn read(dir: &Path) -> Option<Vec<Found>> {
    let text = fs::read_to_string(dir.join("stamp")).ok()?;
    let found = parse(&text)?;
    let there = found.iter().all(|found| found.path().is_none_or(Path::is_file));
    there.then_some(found)
}

/// Comes last when the folder is made, so that a half-made one has no stamp.
pub fn write(dir: &Path, found: &[Found]) -> Outcome {
    super::write(&dir.join("stamp"), &print(found))
}

pub(super) fn print(found: &[Found]) -> String {
    let line = |(part, found): (&Part, &Found)| {
        let (kind, what, path) = match found {
            Found::System(path) => ("system", "", path.to_str().unwrap_or_default()),
            Found::Unpacked(package, path) => {
                ("unpacked", package.as_str(), path.to_str().unwrap_or_default())
            }
            Found::Missing(reason) => ("missing", reason.as_str(), ""),
        };
        let what = what.replace(['\t', '\n'], " ");
        format!("{}\t{kind}\t{what}\t{path}\n", part.name)
    };
    let lines = PARTS.iter().zip(found).map(line).collect::<String>();
    format!("{HEAD}\n{lines}")
}

pub(super) fn parse(text: &str) -> Option<Vec<Found>> {
    let mut lines = text.lines();
    if lines.next()? != HEAD {
        return None;
    }
    let mut found = Vec::new();
    for part in &PARTS {
        let fields = lines.next()?.split('\t').collect::<Vec<_>>();
        let [name, kind, what, path] = fields.as_slice() else { return None };
        if *name != part.name {
            return None;
        }
        found.push(match *kind {
            "system" => Found::System(PathBuf::from(path)),
            "unpacked" => Found::Unpacked((*what).to_owned(), PathBuf::from(path)),
            "missing" => Found::Missing((*what).to_owned()),
            _ => return None,
        });
    }
    Some(found)
}
