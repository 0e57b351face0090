//! One safetensors file: written so that its path always has a whole one, read tensor by tensor.
//!
//! What a file says of itself is checked against its length before memory of a size that it names is taken.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use convoke_graph_core::{AlignedBytes, DType, Error, ErrorKind, HostTensor, Result, Shape};
use convoke_input::kind_of;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, View, serialize};

use super::CHECKPOINT_MAX_BYTES;

/// The greatest header that is read, as in the format's own library.
const HEADER_MAX_BYTES: u64 = 100_000_000;
/// The key of what a header says beside its tensors.
pub(crate) const RESERVED: &str = "__metadata__";
/// How many drafts this process has begun.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

/// A file whose header is read and fits its length.
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the elements begin.
    start: u64,
}

impl TensorFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let size = size_of_file(path, CHECKPOINT_MAX_BYTES)?;
        let mut file = File::open(path).map_err(|e| io(path, "read", &e))?;
        let mut length = [0; 8];
        read(path, &mut file, &mut length)?;
        let n_header = u64::from_le_bytes(length);
        let start = n_header.checked_add(8).filter(|&start| start <= size);
        let (Some(start), Ok(n_header), true) =
            (start, usize::try_from(n_header), n_header <= HEADER_MAX_BYTES)
        else {
            let why = format!("it has {size} bytes and says that its header has {n_header}");
            return Err(damaged(path, &why));
        };
        let mut text = vec![0; n_header];
        read(path, &mut file, &mut text)?;
        let header: Metadata =
            serde_json::from_slice(&text).map_err(|e| damaged(path, &e.to_string()))?;
        match start.checked_add(header.data_len() as u64) {
            Some(expected) if expected == size => {}
            expected => {
                let expected = expected.map_or("more than 2^64".to_owned(), |n| n.to_string());
                let why = format!("it has {size} bytes, and its header tells of {expected}");
                return Err(damaged(path, &why));
            }
        }
        Ok(Self { path: path.to_owned(), file, header, start })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
    }

    /// What was written beside the tensors under `key`.
    pub(crate) fn note(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// The elements of `name`, which were found to be of this dtype and as many as `shape` has.
    pub(crate) fn read(&self, name: &str, dtype: DType, shape: Shape) -> Result<HostTensor> {
        let lost = || damaged(&self.path, &format!("{name:?} lies outside of it"));
        let (begin, end) = self.info(name).ok_or_else(lost)?.data_offsets;
        let len = end.checked_sub(begin).ok_or_else(lost)?;
        let at = self.start.checked_add(begin as u64).ok_or_else(lost)?;
        let mut bytes = AlignedBytes::zeroed(len)?;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(at)).map_err(|e| io(&self.path, "read", &e))?;
        read(&self.path, &mut file, &mut bytes)?;
        HostTensor::from_bytes(dtype, shape, bytes)
            .map_err(|e| damaged(&self.path, e.message()).with_node(name))
    }
}

/// Writes tensors under their names, and notes beside them.
pub(crate) fn write(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, HostTensor)>,
    notes: Option<HashMap<String, String>>,
) -> Result<()> {
    let tensors: Vec<(String, Stored)> =
        tensors.into_iter().map(|(name, tensor)| (name, Stored(tensor))).collect();
    if tensors.iter().any(|(name, _)| name == RESERVED) {
        let message = format!("nothing can be stored as {RESERVED:?}; give it another name");
        return Err(Error::invalid(message).with_node(RESERVED));
    }
    let bytes = serialize(tensors, notes)
        .map_err(|e| Error::internal(format!("cannot lay out {}: {e}", path.display())))?;
    write_whole(path, &bytes)
}

/// The text of a file that has at most `max` bytes.
pub(crate) fn read_text(path: &Path, max: u64) -> Result<String> {
    size_of_file(path, max)?;
    let mut text = String::new();
    let file = File::open(path).map_err(|e| io(path, "read", &e))?;
    match file.take(max).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(damaged(path, &e.to_string())),
        Err(e) => Err(io(path, "read", &e)),
    }
}

/// Writes a file so that at its path there is always either the old or the new one, whole.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::invalid(format!("{} names no file to write to", path.display())))?;
    let folder = folder_of(path);
    let mut temporary = name.to_owned();
    let draft = DRAFTS.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}.{draft}.tmp", std::process::id()));
    let temporary: PathBuf = folder.join(temporary);
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // Not every system lets a folder be opened; the rename is done all the same.
        if let Ok(folder) = File::open(folder) {
            folder.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|e| {
        // What is left of the attempt is of no use; if it cannot be removed either, nothing is lost.
        let _ = fs::remove_file(&temporary);
        io(path, "write", &e)
    })
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

pub(crate) fn io(path: &Path, what: &str, e: &io::Error) -> Error {
    Error::new(kind_of(e), format!("cannot {what} {}: {e}", path.display()))
}

pub(crate) fn damaged(path: &Path, why: &str) -> Error {
    let message = format!("{} is damaged: {why}", path.display());
    Error::new(ErrorKind::DataLoss, message)
}

/// The convoke dtype of a stored one, if there is one.
pub(crate) fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::BOOL => DType::Bool,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::I16 => DType::I16,
        Dtype::U16 => DType::U16,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        Dtype::I64 => DType::I64,
        Dtype::U64 => DType::U64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        _ => return None,
    })
}

/// The bytes of a file that exists and has at most `max`.
fn size_of_file(path: &Path, max: u64) -> Result<u64> {
    let about = fs::metadata(path).map_err(|e| io(path, "read", &e))?;
    if !about.is_file() {
        return Err(Error::invalid(format!("{} is no file", path.display())));
    }
    if about.len() > max {
        let message = format!("{} has {} bytes, more than {max}", path.display(), about.len());
        return Err(Error::new(ErrorKind::ResourceExhausted, message));
    }
    Ok(about.len())
}

fn read(path: &Path, file: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    file.read_exact(bytes).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => damaged(path, "it ends too early"),
        _ => io(path, "read", &e),
    })
}

/// A tensor as safetensors writes it.
struct Stored(HostTensor);

impl View for Stored {
    fn dtype(&self) -> Dtype {
        match self.0.dtype() {
            DType::Bool => Dtype::BOOL,
            DType::I8 => Dtype::I8,
            DType::U8 => Dtype::U8,
            DType::I16 => Dtype::I16,
            DType::U16 => Dtype::U16,
            DType::I32 => Dtype::I32,
            DType::U32 => Dtype::U32,
            DType::I64 => Dtype::I64,
            DType::U64 => Dtype::U64,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::F64 => Dtype::F64,
            // Strings are written as bytes and the places where they end.
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        self.0.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.0.bytes())
    }

    fn data_len(&self) -> usize {
        self.0.bytes().len()
    }
}
