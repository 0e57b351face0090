//! The list of TensorFlow's tests in `docs/tensorflow-tests.md`: all numbers, each with tests that are there or a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const PAGE: &str = include_str!("../../docs/tensorflow-tests.md");

const REASONS: [&str; 4] = ["by type", "remote", "v1 control flow", "not yet: "];

/// A row: TensorFlow's number, and what stands for it here.
struct Row {
    number: usize,
    here: &'static str,
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        let number = cells.next()?.parse().ok()?;
        let (_, here) = (cells.next()?, cells.next()?);
        assert!(cells.next().is_none(), "{line}");
        Some(Row { number, here })
    };
    PAGE.lines().filter_map(row).collect()
}

impl Row {
    /// The files and the tests in them that it names.
    fn tests(&self) -> Vec<(&'static str, &'static str)> {
        let mut file = None;
        let mut tests = Vec::new();
        // What stands between an odd backtick and the next.
        for name in self.here.split('`').skip(1).step_by(2) {
            if name.ends_with(".rs") {
                file = Some(name);
            } else {
                tests.push((file.unwrap_or_else(|| panic!("{}: no file", self.number)), name));
            }
        }
        tests
    }

    fn has_reason(&self) -> bool {
        REASONS.iter().any(|reason| self.here.contains(reason))
    }
}

/// The functions of a file of tests that are tests.
fn tests_in(file: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = match file.starts_with("crates/") {
        true => root.join("..").join(file),
        false => root.join("suite").join(file),
    };
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut tests = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            is_test = true;
        } else if let Some(name) = line.strip_prefix("fn ").filter(|_| is_test) {
            tests.insert(name.split('(').next().unwrap_or_default().to_owned());
            is_test = false;
        }
    }
    tests
}

#[test]
fn all_numbers_are_there() {
    let numbers: Vec<usize> = rows().iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=191).collect::<Vec<usize>>());
    for row in rows() {
        assert!(!row.tests().is_empty() || row.has_reason(), "{}: {}", row.number, row.here);
    }
}

#[test]
fn each_test_that_is_named_is_there() {
    let mut files: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for row in rows() {
        for (file, test) in row.tests() {
            let tests = files.entry(file).or_insert_with(|| tests_in(file));
            assert!(tests.contains(test), "{}: there is no test {test} in {file}", row.number);
            named.insert((file, test));
        }
    }
    assert!(named.len() >= 150, "{} tests stand for TensorFlow's", named.len());
}

/// What the type system refuses is shown in code that does not compile, with the number beside it.
#[test]
fn what_is_refused_by_type_is_shown() {
    let mut shown = BTreeSet::new();
    for code in PAGE.split("```compile_fail").skip(1) {
        let code = code.split("```").next().unwrap_or_default();
        let (_, numbers) = code.split_once("// ").expect("a number in the code");
        let numbers = numbers.lines().next().unwrap_or_default().split(", ");
        shown.extend(numbers.map(|number| number.parse::<usize>().unwrap()));
    }
    let of_type = rows().into_iter().filter(|row| row.here.contains("by type"));
    let of_type: BTreeSet<usize> = of_type.map(|row| row.number).collect();
    assert_eq!(shown, of_type);
}
