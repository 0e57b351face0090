//! Compiled pipelines in a file, so that the next process need not compile them: one file for each adapter and
//! driver, where the backend can (Vulkan).
//!
//! What is in the file is the driver's own and is given back to it as it was: a file that is damaged, of another
//! driver, or that others may write is left alone with one warning. A file is replaced in one step, so that
//! several processes may share it; the last one's stays.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::trusted;

/// How files begin.
const MAGIC: &[u8; 8] = b"convoke1";
/// How many drafts of files this process has begun.
static DRAFTS: AtomicU64 = AtomicU64::new(0);
/// A file that is larger isn't read.
const MAX_BYTES: u64 = 256 << 20;

/// What a file held that passed all checks: made by [`load`] alone.
#[derive(Debug, PartialEq)]
pub(super) struct Checked(Vec<u8>);

impl Checked {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The pipelines of one device that a file keeps.
#[derive(Debug)]
pub(super) struct DiskCache {
    raw: wgpu::PipelineCache,
    path: PathBuf,
    /// Of what the file or an empty cache holds.
    hash: u64,
}

impl DiskCache {
    /// The cache of `device` in `dir`; none if the device can't or nothing is asked for.
    pub(super) fn open(device: &wgpu::Device, dir: Option<&Path>) -> Option<DiskCache> {
        let dir = dir?;
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let path = dir.join(file_name(&device.adapter_info()));
        let data = load(&path).unwrap_or_else(|reason| {
            tracing::warn!("the pipeline cache {} is ignored: {reason}", path.display());
            None
        });
        let raw = trusted::create_pipeline_cache(device, data.as_ref());
        let hash = hash_of(&raw.get_data().unwrap_or_default());
        Some(DiskCache { raw, path, hash })
    }

    pub(super) fn raw(&self) -> &wgpu::PipelineCache {
        &self.raw
    }

    /// Writes the file, if there is anything new.
    pub(super) fn store(&self) {
        let Some(data) = self.raw.get_data().filter(|data| hash_of(data) != self.hash) else {
            return;
        };
        if let Err(error) = store(&self.path, &data) {
            let path = self.path.display();
            tracing::warn!("the pipeline cache {path} is not written: {error}");
        }
    }
}

fn file_name(info: &wgpu::AdapterInfo) -> String {
    let mut hasher = DefaultHasher::new();
    (&info.name, &info.driver, &info.driver_info, info.vendor, info.device).hash(&mut hasher);
    format!("{:?}-{:016x}.pipelines", info.backend, hasher.finish()).to_lowercase()
}

fn hash_of(data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

/// What a file keeps; none if there is none.
fn load(path: &Path) -> Result<Option<Checked>, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let about = file.metadata().map_err(|e| e.to_string())?;
    if !about.is_file() {
        return Err("it is not a file".to_owned());
    }
    if about.len() > MAX_BYTES {
        return Err(format!("it has {} bytes, of at most {MAX_BYTES}", about.len()));
    }
    check_owner(path, &about)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let damaged = || "it is damaged; it will be written anew".to_owned();
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (hash, data) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
    if u64::from_le_bytes(*hash) != hash_of(data) {
        return Err(damaged());
    }
    Ok(Some(Checked(data.to_vec())))
}

/// Refuses what others than its owner may write.
#[cfg(unix)]
fn check_owner(path: &Path, file: &std::fs::Metadata) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let dir = path.parent().and_then(|dir| std::fs::metadata(dir).ok());
    let open = |about: &std::fs::Metadata| about.mode() & 0o022 != 0;
    if open(file) || dir.as_ref().is_some_and(open) {
        return Err("others may write it or its directory".to_owned());
    }
    // On Linux, what belongs to this process says who its user is.
    let own = std::fs::metadata("/proc/self").ok().map(|own| own.uid());
    if own.is_some_and(|own| own != file.uid()) {
        return Err("it belongs to another user".to_owned());
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_owner(_: &Path, _: &std::fs::Metadata) -> Result<(), String> {
    Ok(())
}

fn store(path: &Path, data: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    make_private_dir(dir)?;
    let n = DRAFTS.fetch_add(1, Ordering::Relaxed);
    let draft = path.with_extension(format!("{}.{n}.draft", std::process::id()));
    let written = (|| {
        let mut file = create_private(&draft)?;
        file.write_all(MAGIC)?;
        file.write_all(&hash_of(data).to_le_bytes())?;
        file.write_all(data)?;
        drop(file);
        std::fs::rename(&draft, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written
}

fn make_private_dir(dir: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

fn create_private(path: &Path) -> io::Result<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test, empty.
    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("convoke-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let dir = dir("stored");
        let path = dir.join("deep").join("a.pipelines");
        assert_eq!(load(&path), Ok(None));
        for data in [&b"pipelines"[..], b"", &[7; 100_000]] {
            store(&path, data).unwrap();
            assert_eq!(load(&path).unwrap().unwrap().bytes(), data);
        }
        let names = std::fs::read_dir(path.parent().unwrap()).unwrap();
        assert_eq!(names.count(), 1, "a draft is left");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn damaged_files_are_refused() {
        let dir = dir("damaged");
        let path = dir.join("a.pipelines");
        store(&path, b"pipelines").unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            assert!(load(&path).unwrap_err().contains("damaged"), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(load(&path).unwrap_err().contains("damaged"), "{at} bytes");
        }
        assert!(load(&dir).unwrap_err().contains("not a file"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn what_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = dir("open");
        let path = dir.join("a.pipelines");
        store(&path, b"pipelines").unwrap();
        let allow = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        allow(&path, 0o666);
        assert!(load(&path).unwrap_err().contains("others may write"));
        allow(&path, 0o600);
        assert!(load(&path).unwrap().is_some());
        allow(&dir, 0o777);
        assert!(load(&path).unwrap_err().contains("others may write"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn two_writers_leave_one_whole_file() {
        let dir = dir("two");
        let path = dir.join("a.pipelines");
        store(&path, &[0; 1000]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..200u8 {
                    store(&path, &vec![n; 50_000]).unwrap();
                }
            });
            for _ in 0..200 {
                let data = load(&path).unwrap().unwrap();
                assert!(data.bytes().iter().all(|&byte| byte == data.bytes()[0]));
            }
        });
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let dir = dir("blocked");
        store(&dir.join("a"), b"x").unwrap();
        // A file stands where the directory would be.
        assert!(store(&dir.join("a").join("b.pipelines"), b"x").is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
