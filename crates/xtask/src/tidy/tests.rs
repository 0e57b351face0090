//! Each rule on a small file.

use super::*;

fn faults(files: &[(&str, &str)]) -> String {
    let source = |&(path, text): &(&str, &str)| Source { path: path.into(), text: text.into() };
    let sources = files.iter().map(source).collect::<Vec<_>>();
    let line = |fault: Fault| format!("{}:{}: {}\n", fault.path, fault.line, fault.message);
    check(&sources).into_iter().map(line).collect()
}

#[test]
fn a_file_says_what_it_is() {
    let message = "expected the file to begin with";
    assert_eq!(
        faults(&[("crates/x/src/a.rs", "fn a() {}\n"), ("shaders/lib/b.wgsl", "fn b() {}\n")]),
        format!(
            "crates/x/src/a.rs:1: {message} `//!` and what it is\n\
             shaders/lib/b.wgsl:1: {message} `//` and what it is\n"
        )
    );
    let good = [("tests/a.rs", "//! A.\n"), ("shaders/lib/b.wgsl", "// B.\n"), ("a.toml", "b\n")];
    assert_eq!(faults(&good), "");
}

#[test]
fn white_space() {
    assert_eq!(
        faults(&[("a.md", "x \n\ty\nz"), ("b.md", "x\n\n"), ("tests/golden/c.wgsl", "x \n\n")]),
        "a.md:1: white space at the end of the line\n\
         a.md:2: tab; indent with spaces\n\
         a.md:3: no end of line at the end of the file\n\
         b.md:2: empty line at the end of the file\n"
    );
}

#[test]
fn long_files() {
    let long = format!("//! Long.\n{}", "// x\n".repeat(600));
    let tests = "crates/x/src/a/tests.rs";
    assert_eq!(
        faults(&[("crates/x/src/a.rs", &long), (tests, &long), ("tests/suite/a.rs", &long)]),
        "crates/x/src/a.rs:601: 601 lines; split what has more than 600\n"
    );
    assert_eq!(faults(&[("crates/x/src/a.rs", &long[..long.len() - 5])]), "");
}

#[test]
fn silenced_tests_and_lints() {
    let ignore = concat!("//! A.\n#[", "ignore = \"slow\"]\nfn a() {}\n");
    let ignored = faults(&[("tests/a.rs", ignore)]);
    assert!(ignored.starts_with("tests/a.rs:2: "), "{ignored}");
    let allow = concat!("//! A.\n\n#[", "allow(dead_code)]\nfn a() {}\n");
    assert!(faults(&[("tests/a.rs", allow)]).starts_with("tests/a.rs:3: "));
    let reason =
        concat!("//! A.\n#[", "allow(\n    dead_code,\n    reason = \"x\"\n)]\nfn a() {}\n");
    assert_eq!(faults(&[("tests/a.rs", reason)]), "");
}

#[test]
fn paths_of_one_machine() {
    let text = concat!("see /", "work/main/x\nurl.org/", "home/x, target/", "work/x\n");
    assert_eq!(
        faults(&[("a.md", text)]),
        concat!("a.md:1: a path under /", "work/ exists on one machine only\n")
    );
}

#[test]
fn orphaned_kernels() {
    let table = ("shaders/src/lib.rs", "//! T.\nconst A: &str = \"relu_grad\";\nkernel!(add);\n");
    let kernel = "// K.\n";
    let kernels = [
        table,
        ("shaders/relu.wgsl", kernel),
        ("shaders/add.wgsl", kernel),
        ("shaders/lib/x.wgsl", kernel),
    ];
    assert_eq!(
        faults(&kernels),
        "shaders/relu.wgsl:1: orphaned kernel; name relu in shaders/src, or remove it\n"
    );
}

#[test]
fn lines_are_counted_by_crate() {
    let source = |(path, text): (&str, &str)| Source { path: path.into(), text: text.into() };
    let sources = [
        ("crates/x/src/a.rs", "a\nb\n"),
        ("crates/x/src/a/tests.rs", "a\n"),
        ("shaders/a.wgsl", "a\nb\nc\n"),
        ("README.md", "a\n"),
    ];
    assert_eq!(
        table(&sources.map(source)),
        "lines                     rust   tests    wgsl\n\
         crates/x                     2       1       0\n\
         shaders                      0       0       3\n\
         all                          2       1       3\n"
    );
}
