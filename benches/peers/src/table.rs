//! The table of all cases and peers, and its place in a file.

use std::fmt::Write;
use std::path::Path;

use convoke::Devices;

use crate::{Failure, Outcome};

/// The table as Markdown: Convoke's medians, and how many times as long each peer takes; then what it ran on.
pub fn table(
    rows: &[(String, Vec<Outcome>)],
    device: &str,
    seconds: f64,
) -> Result<String, Failure> {
    let mut peers: Vec<&str> = Vec::new();
    for outcome in rows.iter().flat_map(|(_, outcomes)| &outcomes[1..]) {
        if !peers.contains(&outcome.peer) {
            peers.push(outcome.peer);
        }
    }
    let mut text = format!("| case | Convoke, us | {} |\n", peers.join(" | "));
    writeln!(text, "|---|---:|{}", "---:|".repeat(peers.len()))?;
    for (name, outcomes) in rows {
        let own = outcomes[0].median.as_secs_f64();
        write!(text, "| {name} | {:.1} |", own * 1e6)?;
        for peer in &peers {
            match outcomes.iter().find(|outcome| outcome.peer == *peer) {
                Some(Outcome { median, is_right, .. }) => {
                    let mark = if *is_right { "" } else { " !" };
                    write!(text, " {:.2}{mark} |", median.as_secs_f64() / own)?;
                }
                None => text.push_str(" |"),
            }
        }
        text.push('\n');
    }
    let date = chrono::Local::now().format("%Y-%m-%d");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    write!(text, "\n{date}, {} with {threads} threads", processor())?;
    if device != "cpu" {
        let devices = Devices::named(device)?;
        let driver = devices.list().get(1).map(|gpu| format!("{}, {}", gpu.adapter, gpu.driver));
        write!(text, ", {}", driver.unwrap_or_default())?;
    }
    writeln!(text, "; `convoke-peers --device {device} --seconds {seconds}`.\n")?;
    Ok(text)
}

/// What the processor calls itself, where the system tells it as Linux does.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Puts the table into a file, between its marks for the device.
pub fn write(path: &Path, device: &str, table: &str) -> Result<(), Failure> {
    let (begin, end) =
        (format!("<!-- peers on {device} -->\n"), format!("<!-- end of {device} -->"));
    let text = std::fs::read_to_string(path)?;
    let missing = || format!("{} has no lines {begin:?} and {end:?}", path.display());
    let (before, rest) = text.split_once(&begin).ok_or_else(missing)?;
    let (_, after) = rest.split_once(&end).ok_or_else(missing)?;
    std::fs::write(path, format!("{before}{begin}{table}{end}{after}"))?;
    Ok(())
}
