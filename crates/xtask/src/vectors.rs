//! Machine code: whether the loops of the CPU's kernels became vector instructions.
//!
//! Each loop is compiled for each set of instructions, as an instance of one function (`cpu-backend/src/fast`). What the
//! compiler made of them is read from the command's release build by `objdump`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Outcome;

/// A set of instructions: the end of its function's name, and its registers.
const SETS: [(&str, &str); 2] = [("fast::avx512", "%zmm"), ("fast::avx2", "%ymm")];

/// The loops of which at least so many in a hundred use the registers of their set: the others go over single bytes, or
/// are calls.
const LEAST: usize = 85;

/// One loop.
#[derive(Debug, Default, PartialEq, Eq)]
struct Loop {
    set: usize,
    /// Instructions, and those on the set's registers; with 512 bits also on half of them.
    all: usize,
    wide: usize,
}

/// Builds, reads, prints, and fails if too few loops are vectors.
pub(crate) fn run(root: &Path) -> Outcome {
    if !cfg!(target_arch = "x86_64") {
        return Err("the loops have sets of instructions on x86-64 only".to_owned());
    }
    let mut build = Command::new("cargo");
    let status = build.args(["build", "--release", "-p", "convoke"]).current_dir(root).status();
    if !status.map_err(|e| format!("can't run cargo: {e}"))?.success() {
        return Err("the command can't be built".to_owned());
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let program = root.join(target).join("release/convoke");
    let mut objdump = Command::new("objdump");
    objdump.args(["-d", "-C", "--no-show-raw-insn"]).arg(&program).stdout(Stdio::piped());
    let mut child = objdump.spawn().map_err(|e| format!("objdump (of binutils): {e}"))?;
    let text = child.stdout.take().ok_or("objdump prints nothing")?;
    let loops = read(BufReader::new(text));
    let status = child.wait().map_err(|e| format!("objdump: {e}"))?;
    let loops = loops?;
    if !status.success() {
        return Err(format!("objdump: {status}"));
    }
    for (set, (name, _)) in SETS.iter().enumerate() {
        let own = || loops.iter().filter(|l| l.set == set);
        let (n, n_wide) = (own().count(), own().filter(|l| l.wide > 0).count());
        let [all, wide]: [usize; 2] = [own().map(|l| l.all).sum(), own().map(|l| l.wide).sum()];
        let most = own().map(|l| l.wide).max().unwrap_or(0);
        println!(
            "{name}: {n_wide} of {n} loops are vectors; {wide} of {all} instructions, at most {most} in a loop"
        );
        if n == 0 || n_wide * 100 < n * LEAST {
            return Err(format!("{name}: expected {LEAST} of 100 loops to be vectors"));
        }
    }
    Ok(())
}

/// The loops of a disassembly.
fn read(text: impl BufRead) -> Outcome<Vec<Loop>> {
    let mut loops: Vec<Loop> = Vec::new();
    let mut is_in_loop = false;
    for line in text.lines() {
        let line = line.map_err(|e| format!("objdump: {e}"))?;
        if let Some(name) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            let set = SETS.iter().position(|(set, _)| name.1.ends_with(set));
            is_in_loop = set.is_some();
            loops.extend(set.map(|set| Loop { set, ..Loop::default() }));
        } else if let (true, Some(own), true) =
            (is_in_loop, loops.last_mut(), line.starts_with(' '))
        {
            own.all += 1;
            let is_wide = SETS[own.set..].iter().any(|(_, registers)| line.contains(registers));
            own.wide += usize::from(is_wide);
        }
    }
    Ok(loops)
}

#[cfg(test)]
mod tests {
    use super::{Loop, read};

    #[test]
    fn loops_are_read_from_a_disassembly() {
        let text = "\
0000000000001000 <convoke_cpu_backend::fast::avx512>:
    1000:\tvaddps %zmm0,%zmm1,%zmm1
    1006:\tvmovups %ymm1,(%rdi)
    100a:\tret

0000000000001010 <convoke_cpu_backend::other>:
    1010:\tvaddps %zmm0,%zmm1,%zmm1

0000000000001020 <convoke_cpu_backend::fast::avx2>:
    1020:\tvaddss %xmm0,%xmm1,%xmm1
";
        let loops = read(text.as_bytes()).unwrap();
        let expected = [Loop { set: 0, all: 3, wide: 2 }, Loop { set: 1, all: 1, wide: 0 }];
        assert_eq!(loops, expected);
    }
}
