//! The environment in which programs find the drivers, and a task that runs one in it.
//!
//! The unpacked libraries are only those that the system lacks, so `LD_LIBRARY_PATH` hides none of
//! the system's own.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::drivers::{self, Drivers};
use crate::{Outcome, in_ci};

/// Variables to set for child processes, in a fixed order.
pub type Variables = Vec<(&'static str, OsString)>;

/// What `drivers` and the system offer. Empty where there is nothing to set.
pub fn variables(drivers: &Drivers) -> Outcome<Variables> {
    let mut variables = Variables::new();
    let icds = drivers.icds();
    if !icds.is_empty() {
        let files = join(icds.into_iter().chain(system_icds()))?;
        // Loaders older than 1.3.207 know only the second name.
        variables.push(("VK_DRIVER_FILES", files.clone()));
        variables.push(("VK_ICD_FILENAMES", files));
        // Mesa's device selection layer looks for a display and complains that there is none.
        variables.push(("NODEVICE_SELECT", "1".into()));
    }
    if let Some(dir) = drivers.lib_dir() {
        variables
            .push(("LD_LIBRARY_PATH", join([dir].into_iter().chain(paths("LD_LIBRARY_PATH")))?));
    }
    if let Some(dir) = drivers.bin_dir() {
        variables.push(("PATH", join([dir].into_iter().chain(paths("PATH")))?));
    }
    let adapters = if in_ci() { drivers::adapters() } else { drivers.adapters() };
    if !adapters.is_empty() && env::var_os("CONVOKE_TEST_ADAPTERS").is_none() {
        variables.push(("CONVOKE_TEST_ADAPTERS", adapters.join(",").into()));
    }
    if let Some(browser) = drivers.browser()
        && env::var_os("CONVOKE_TEST_BROWSER").is_none()
    {
        variables.push(("CONVOKE_TEST_BROWSER", browser.into()));
    }
    Ok(variables)
}

/// Runs the command in `words`, or prints the variables if there is none.
pub fn task(words: &[OsString]) -> Outcome<ExitCode> {
    let drivers = drivers::ensure(false)?;
    drivers.report(false);
    let variables = variables(&drivers)?;
    let Some((program, args)) = words.split_first() else {
        for (name, value) in variables {
            println!("export {name}={}", quoted(&value));
        }
        return Ok(ExitCode::SUCCESS);
    };
    let status = Command::new(program)
        .args(args)
        .envs(variables)
        .status()
        .map_err(|error| format!("can't run {}: {error}", program.display()))?;
    // A command ended by a signal has no code.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The system's drivers, or those that the caller named; without the software ones, which
/// `Drivers` names itself.
fn system_icds() -> Vec<PathBuf> {
    for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        let named = paths(name).filter(|path| !is_ours(path)).collect::<Vec<_>>();
        if !named.is_empty() {
            return named;
        }
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for place in ["/usr/local/etc", "/usr/local/share", "/etc", "/usr/share"] {
        let Ok(entries) = PathBuf::from(place).join("vulkan/icd.d").read_dir() else { continue };
        let mut files = entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>();
        files.sort();
        for file in files {
            let seen = found.iter().any(|other| other.file_name() == file.file_name());
            if !seen && !is_ours(&file) && file.extension() == Some(OsStr::new("json")) {
                found.push(file);
            }
        }
    }
    found
}

fn is_ours(icd: &Path) -> bool {
    let name = icd.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    ["lvp_icd", "lavapipe", "swiftshader"].iter().any(|ours| name.contains(ours))
}

fn paths(name: &str) -> impl Iterator<Item = PathBuf> {
    let value = env::var_os(name).unwrap_or_default();
    let paths = env::split_paths(&value).filter(|path| !path.as_os_str().is_empty());
    paths.collect::<Vec<_>>().into_iter()
}

fn join(paths: impl Iterator<Item = PathBuf>) -> Outcome<OsString> {
    let mut unique: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !unique.contains(&path) {
            unique.push(path);
        }
    }
    env::join_paths(unique).map_err(|error| {
        format!("{error}; move the workspace to a folder without the path separator in its name")
    })
}

fn quoted(value: &OsStr) -> String {
    format!("'{}'", value.to_string_lossy().replace('\'', r"'\''"))
}
