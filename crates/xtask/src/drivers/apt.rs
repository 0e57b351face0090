//! Debian's packages, through apt with lists and caches of its own, so that the system's stay as
//! they are, and no rights are needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Outcome, output};

/// apt with everything that it writes under one folder.
pub struct Apt {
    config: PathBuf,
}

impl Apt {
    /// Fetches the lists of the system's sources into `dir`.
    ///
    /// # Errors
    /// There is no apt, or `dir` can't be written. Sources that don't answer show when downloading.
    pub fn open(dir: &Path) -> Outcome<Self> {
        let mut dump = Command::new("apt-config");
        let settings = output(dump.arg("dump").env("LC_ALL", "C"))
            .map_err(|_| "apt is not there to fetch it".to_owned())?;
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub)
                .map_err(|error| format!("can't make {}: {error}", sub.display()))?;
        }
        let apt = Self { config: dir.join("apt.conf") };
        super::write(&apt.config, &config(&settings, dir))?;
        eprintln!("drivers: fetching Debian's package lists");
        if let Err(message) = output(apt.command().arg("update")) {
            eprintln!("drivers: {message}; going on with the lists that came");
        }
        Ok(apt)
    }

    /// Puts the packages' archives into `dir`.
    pub fn download(&self, packages: &[String], dir: &Path) -> Outcome {
        output(self.command().arg("download").args(packages).current_dir(dir)).map(drop)
    }

    /// What installing `package` would install besides it.
    pub fn dependencies(&self, package: &str) -> Outcome<Vec<String>> {
        let mut command = self.command();
        command.args(["--simulate", "--no-install-recommends", "install", package]);
        let mut packages = parse_simulation(&output(&mut command)?);
        packages.retain(|name| name != package);
        Ok(packages)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C").arg("-q");
        command
    }
}

/// The system's settings (its proxies matter), without its hooks, with our own folders.
pub(super) fn config(settings: &str, dir: &Path) -> String {
    let hooks = ["APT::Update::", "DPkg::", "Dpkg::", "AptCli::"];
    let kept = settings.lines().filter(|line| !hooks.iter().any(|hook| line.starts_with(hook)));
    let kept = kept.fold(String::new(), |all, line| all + line + "\n");
    let dir = dir.display();
    format!(
        "{kept}\
         // The settings above are those of the files in these places.\n\
         Dir::Etc::parts \"/dev/null\";\n\
         Dir::Etc::main \"/dev/null\";\n\
         Dir::State \"{dir}/state\";\n\
         Dir::State::status \"/var/lib/dpkg/status\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         Dir::Log \"{dir}\";\n\
         // The user _apt may not be able to enter this folder.\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n\
         Acquire::http::Timeout \"30\";\n"
    )
}

/// The names in lines such as `Inst libz3-4 (4.8.12-3.1 Debian:12.15/oldstable [amd64])`.
pub(super) fn parse_simulation(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    names.map(str::to_owned).collect()
}
