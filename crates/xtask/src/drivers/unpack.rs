//! Unpacks packages and keeps, of all that they hold, the files that are needed.
//!
//! A library is kept only if the system lacks it, so the kept ones can lie in `LD_LIBRARY_PATH`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::Apt;
use super::{BROWSER, Found, Part, system};
use crate::{Outcome, output};

/// Packages of the C and C++ run time. To mix them with the system's breaks programs.
const CORE: [&str; 6] = ["libc6", "libc-bin", "libgcc-s1", "libstdc++6", "libatomic1", "libcrypt1"];
/// Libraries that the browser's others open while they run, so that `ldd` does not see them.
const OPENED: [&str; 3] = ["libsoftokn3.so", "libfreeblpriv3.so", "libnssckbi.so"];

/// Makes the folder of drivers anew, part by part.
pub struct Unpacker {
    dir: PathBuf,
    /// None before it is first needed.
    apt: Option<Outcome<Apt>>,
}

impl Unpacker {
    /// Empties `dir`, and prepares it.
    pub fn new(dir: &Path) -> Outcome<Self> {
        let unpacker = Self { dir: dir.to_owned(), apt: None };
        if dir.exists() {
            unpacker.remove("")?;
        }
        for sub in ["lib", "bin", "icd", "browser", "packages"] {
            make(&dir.join(sub))?;
        }
        Ok(unpacker)
    }

    /// Fetches the part's package, and what its file needs and the system lacks.
    pub fn part(&mut self, part: &Part) -> Outcome<Found> {
        eprintln!("drivers: {}: fetching {}", part.name, part.package);
        let packages = self.dir.join("packages");
        let also = part.also.filter(|name| !packages.join(name).exists());
        let wanted = [Some(part.package), also].into_iter().flatten();
        let wanted: Vec<String> = wanted.map(str::to_owned).collect();
        let archives = self.unpack(&wanted)?;
        let Some(file) = find(&packages.join(part.package), part.file) else {
            return Err(format!("{} holds no {}", part.package, part.file));
        };
        let folder = match part.beside {
            [] if part.file.contains(".so") => "lib",
            [] => "bin",
            _ => "browser",
        };
        let kept = self.dir.join(folder).join(file.file_name().unwrap_or_default());
        copy(&file, &kept)?;
        self.beside(part, &file, &kept)?;
        if let Err(message) = self.complete(part, &kept) {
            // Left in the linker's path, it would do harm.
            return fs::remove_file(&kept).map_or_else(
                |error| Err(format!("can't remove {}: {error}", kept.display())),
                |()| Err(message),
            );
        }
        Ok(Found::Unpacked(archives.join(" "), kept))
    }

    /// Adds the files that the part needs in its folder, placed as they are around `file`.
    fn beside(&self, part: &Part, file: &Path, kept: &Path) -> Outcome {
        let (Some(package), Some(from), Some(to)) = (part.also, file.parent(), kept.parent())
        else {
            return Ok(());
        };
        let packages = self.dir.join("packages");
        let home = from.strip_prefix(packages.join(part.package)).unwrap_or(from);
        for path in part.beside {
            let place = to.join(Path::new(path).strip_prefix(home).unwrap_or(Path::new(path)));
            make(place.parent().unwrap_or(to))?;
            copy(&packages.join(package).join(path), &place)?;
        }
        Ok(())
    }

    /// Adds the libraries that `kept` needs.
    fn complete(&mut self, part: &Part, kept: &Path) -> Outcome {
        if self.link(kept)?.is_empty() {
            return Ok(());
        }
        eprintln!("drivers: {}: fetching what {} depends on", part.name, part.package);
        let mut others = self.apt()?.dependencies(part.package)?;
        others.retain(|name| name.starts_with("lib") && !CORE.contains(&name.as_str()));
        if !others.is_empty() {
            self.unpack(&others)?;
        }
        let lacking = self.link(kept)?;
        if lacking.is_empty() {
            return if part.name == BROWSER { self.opened() } else { Ok(()) };
        }
        Err(format!("{} needs {}, which no package holds", part.file, lacking.join(", ")))
    }

    /// Adds the libraries of `OPENED` that were unpacked and that the system lacks.
    fn opened(&self) -> Outcome {
        for name in OPENED.into_iter().filter(|name| system::linker(name).is_none()) {
            if let Some(library) = find(&self.dir.join("packages"), name) {
                copy(&library, &self.dir.join("lib").join(name))?;
            }
        }
        Ok(())
    }

    /// Removes what was only on the way.
    pub fn finish(self) -> Outcome {
        self.remove("packages")?;
        if self.dir.join("apt").exists() { self.remove("apt") } else { Ok(()) }
    }

    fn apt(&mut self) -> Outcome<&Apt> {
        let dir = self.dir.join("apt");
        let apt = self.apt.get_or_insert_with(|| Apt::open(&dir));
        apt.as_ref().map_err(String::clone)
    }

    /// Unpacks each package into a folder of its name, and returns the names with versions.
    fn unpack(&mut self, packages: &[String]) -> Outcome<Vec<String>> {
        let archives = self.dir.join("packages").join("archives");
        make(&archives)?;
        self.apt()?.download(packages, &archives)?;
        let mut names = Vec::new();
        for archive in files(&archives)? {
            let file = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // NAME_VERSION_ARCHITECTURE.deb
            let mut fields = file.split('_');
            let (name, version) = (fields.next().unwrap_or_default(), fields.next());
            let into = self.dir.join("packages").join(name);
            output(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(into))?;
            names.push(format!("{name} {}", version.unwrap_or("?").replace("%3a", ":")));
        }
        self.remove("packages/archives")?;
        Ok(names)
    }

    /// Moves into `lib` what `file` needs, as far as it was unpacked; returns what else it needs.
    fn link(&self, file: &Path) -> Outcome<Vec<String>> {
        let lib = self.dir.join("lib");
        loop {
            let missing = system::missing(file, Some(&lib))?;
            let mut lacking = Vec::new();
            for name in &missing {
                // One that is there already and does not count is of another architecture.
                let kept = lib.join(name);
                match find(&self.dir.join("packages"), name) {
                    Some(library) if !kept.exists() => copy(&library, &kept)?,
                    _ => lacking.push(name.clone()),
                }
            }
            if lacking.len() == missing.len() {
                return Ok(lacking);
            }
        }
    }

    fn remove(&self, sub: &str) -> Outcome {
        let dir = self.dir.join(sub);
        fs::remove_dir_all(&dir).map_err(|error| format!("can't remove {}: {error}", dir.display()))
    }
}

/// The first file of this name under `dir`.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let here = dir.join(name);
    if here.is_file() {
        return Some(here);
    }
    let entries = files(dir).ok()?;
    let dirs = entries.iter().filter(|path| path.is_dir() && !path.is_symlink());
    dirs.into_iter().find_map(|dir| find(dir, name))
}

/// What lies in `dir`, in the order of names.
fn files(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let entries =
        fs::read_dir(dir).map_err(|error| format!("can't read {}: {error}", dir.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    paths.sort();
    Ok(paths)
}

fn copy(from: &Path, to: &Path) -> Outcome {
    let copied = fs::copy(from, to);
    copied.map(drop).map_err(|error| format!("can't copy to {}: {error}", to.display()))
}

fn make(dir: &Path) -> Outcome {
    fs::create_dir_all(dir).map_err(|error| format!("can't make {}: {error}", dir.display()))
}
