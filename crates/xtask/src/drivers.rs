//! Two software Vulkan drivers, the Vulkan loader, `spirv-val` and a browser, from the system or unpacked into
//! `target/drivers`. Nothing is installed, and nothing outside that folder is written.
//!
//! lavapipe (adapter "llvmpipe") and SwiftShader are independent, so a fault of one shows against
//! the other. What was found is noted in a stamp, and looked for again only if that no longer holds.

mod apt;
mod stamp;
mod system;
#[cfg(test)]
mod tests;
mod unpack;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::{Outcome, in_ci, root};
use unpack::Unpacker;

/// Something that the tests use, and where it comes from.
struct Part {
    name: &'static str,
    /// Debian's package.
    package: &'static str,
    /// The file that matters, by its name in the package or its path there.
    file: &'static str,
    /// Files that it needs in its own folder, by their paths in `also`.
    beside: &'static [&'static str],
    /// The package that holds what is beside it.
    also: Option<&'static str>,
    /// What the adapter's name contains, for a driver.
    adapter: Option<&'static str>,
}

impl Part {
    const fn new(name: &'static str, package: &'static str, file: &'static str) -> Self {
        Self { name, package, file, beside: &[], also: None, adapter: None }
    }

    const fn driver(
        name: &'static str,
        package: &'static str,
        file: &'static str,
        adapter: &'static str,
    ) -> Self {
        Self { adapter: Some(adapter), ..Self::new(name, package, file) }
    }
}

const BROWSER: &str = "browser";

const PARTS: [Part; 5] = [
    Part::new("loader", "libvulkan1", "libvulkan.so.1"),
    Part::driver("lavapipe", "mesa-vulkan-drivers", "libvulkan_lvp.so", "llvmpipe"),
    Part::driver("swiftshader", "chromium-common", "libvk_swiftshader.so", "swiftshader"),
    Part::new("spirv-val", "spirv-tools", "spirv-val"),
    Part {
        beside: &[
            "usr/lib/chromium/chrome_100_percent.pak",
            "usr/lib/chromium/chrome_200_percent.pak",
            "usr/lib/chromium/chrome_crashpad_handler",
            "usr/lib/chromium/icudtl.dat",
            "usr/lib/chromium/libEGL.so",
            "usr/lib/chromium/libGLESv2.so",
            "usr/lib/chromium/locales/en-US.pak",
            "usr/lib/chromium/resources.pak",
            "usr/lib/chromium/snapshot_blob.bin",
            "usr/lib/chromium/v8_context_snapshot.bin",
        ],
        also: Some("chromium-common"),
        ..Part::new(BROWSER, "chromium", "usr/lib/chromium/chromium")
    },
];

/// Where a part was found.
#[derive(Debug, Clone, PartialEq)]
enum Found {
    System(PathBuf),
    /// The package with its version, and the file.
    Unpacked(String, PathBuf),
    /// Why there is none.
    Missing(String),
}

/// What was found of each part, in the order of `PARTS`.
#[derive(Debug)]
pub struct Drivers {
    dir: PathBuf,
    found: Vec<Found>,
}

/// Finds or fetches every part. With `retry`, and in CI, what was missing last
/// time is looked for again.
pub fn ensure(retry: bool) -> Outcome<Drivers> {
    let target = root().join("target");
    let dir = target.join("drivers");
    if !cfg!(target_os = "linux") {
        let reason = "fetched on Linux only".to_owned();
        return Ok(Drivers { dir, found: vec![Found::Missing(reason); PARTS.len()] });
    }
    let _lock = lock(&target)?;
    let retry = retry || in_ci();
    match stamp::read(&dir) {
        Some(found) if !(retry && found.iter().any(Found::is_missing)) => {
            Ok(Drivers { dir, found })
        }
        _ => fetch(dir),
    }
}

/// The names that the adapters of all drivers contain.
pub fn adapters() -> Vec<&'static str> {
    PARTS.iter().filter_map(|part| part.adapter).collect()
}

impl Drivers {
    /// Descriptions of the drivers, as the Vulkan loader reads them.
    pub fn icds(&self) -> Vec<PathBuf> {
        let drivers = self.there().filter(|(part, _)| part.adapter.is_some());
        drivers.map(|(part, _)| icd(&self.dir, part)).collect()
    }

    /// The names that the adapters of the drivers contain.
    pub fn adapters(&self) -> Vec<&'static str> {
        self.there().filter_map(|(part, _)| part.adapter).collect()
    }

    /// The folder of unpacked libraries, if any was unpacked.
    pub fn lib_dir(&self) -> Option<PathBuf> {
        let dir = self.dir.join("lib");
        dir.read_dir().is_ok_and(|mut files| files.next().is_some()).then_some(dir)
    }

    /// The folder of unpacked programs, if any was unpacked.
    pub fn bin_dir(&self) -> Option<PathBuf> {
        let dir = self.dir.join("bin");
        dir.read_dir().is_ok_and(|mut files| files.next().is_some()).then_some(dir)
    }

    /// The browser's program.
    pub fn browser(&self) -> Option<&Path> {
        let browser = PARTS.iter().zip(&self.found).find(|(part, _)| part.name == BROWSER);
        browser.and_then(|(_, found)| found.path())
    }

    /// An error in CI if a part is missing. Elsewhere `report` has said so.
    pub fn complete_in_ci(&self) -> Outcome {
        let missing = PARTS.iter().zip(&self.found).filter(|(_, found)| found.is_missing());
        let names = missing.map(|(part, _)| part.name).collect::<Vec<_>>();
        if names.is_empty() || !in_ci() {
            return Ok(());
        }
        Err(format!(
            "CI=true needs all drivers, and these are missing: {}; see the reasons above",
            names.join(", ")
        ))
    }

    fn there(&self) -> impl Iterator<Item = (&'static Part, &Found)> {
        PARTS.iter().zip(&self.found).filter(|(_, found)| !found.is_missing())
    }

    /// Says what is missing and, if `all`, where the rest comes from.
    pub fn report(&self, all: bool) {
        for (part, found) in PARTS.iter().zip(&self.found) {
            match found {
                Found::System(_) | Found::Unpacked(..) if !all => {}
                Found::System(path) => eprintln!("drivers: {}: {}", part.name, path.display()),
                Found::Unpacked(package, _) => {
                    eprintln!("drivers: {}: unpacked from {package}", part.name);
                }
                Found::Missing(reason) => eprintln!(
                    "drivers: {}: skipped, {reason}; what needs it is not tested \
                     (`cargo xtask drivers` tries again)",
                    part.name
                ),
            }
        }
    }
}

impl Found {
    fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::System(path) | Self::Unpacked(_, path) => Some(path),
            Self::Missing(_) => None,
        }
    }
}

/// Keeps a second xtask from unpacking into the same folder.
fn lock(target: &Path) -> Outcome<File> {
    let path = target.join("drivers.lock");
    let open = || {
        fs::create_dir_all(target)?;
        let file = File::create(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|error: std::io::Error| format!("can't lock {}: {error}", path.display()))
}

/// Looks for every part from the start.
fn fetch(dir: PathBuf) -> Outcome<Drivers> {
    let mut unpacker = Unpacker::new(&dir)?;
    let mut found = Vec::new();
    for part in &PARTS {
        found.push(match system::find(part) {
            Some(path) => Found::System(path),
            None => unpacker.part(part).unwrap_or_else(Found::Missing),
        });
    }
    unpacker.finish()?;
    for (part, found) in PARTS.iter().zip(&found) {
        if let (Some(_), Some(library)) = (part.adapter, found.path()) {
            write(&icd(&dir, part), &icd_text(library))?;
        }
    }
    stamp::write(&dir, &found)?;
    Ok(Drivers { dir, found })
}

fn icd(dir: &Path, part: &Part) -> PathBuf {
    dir.join("icd").join(format!("{}.json", part.name))
}

fn icd_text(library: &Path) -> String {
    let path = library.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "{{\n  \"file_format_version\": \"1.0.0\",\n  \"ICD\": {{ \"library_path\": \"{path}\", \
         \"api_version\": \"1.3.0\" }}\n}}\n"
    )
}

fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(|error| format!("can't write {}: {error}", path.display()))
}
