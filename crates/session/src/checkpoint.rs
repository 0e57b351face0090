//! Checkpoints: all variables of a graph in one safetensors file.
//!
//! A file is written beside its place, synced, renamed, and its folder synced: after `save` has returned,
//! the new checkpoint is there whatever happens; before, the old one is. Restoring checks everything
//! before it changes anything.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use convoke_graph_core::{
    AlignedBytes, DType, Error, ErrorKind, HostTensor, NodeId, Result, Shape, Variable,
};
use safetensors::tensor::{Dtype, SafeTensors, View, serialize};

use crate::session::Session;

/// The greatest checkpoint that is read, in bytes.
pub const CHECKPOINT_MAX_BYTES: u64 = 64 << 30;

/// The key under which how often random nodes were drawn is kept.
const DRAWS: &str = "convoke.draws";

impl Session {
    /// Writes all variables of the graph, and the state of its random operations, to `path`.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] for a variable without elements; [`ErrorKind::Unavailable`]
    /// with the path and the system's reason if the file cannot be written. The old file is whole then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let variables = self.graph().global_variables();
        let values = self.run(&[], &variables[..])?;
        let names = variables.iter().map(Variable::name);
        let tensors: Vec<(String, Stored)> = names.zip(values.into_iter().map(Stored)).collect();
        let draws = HashMap::from([(DRAWS.to_owned(), self.draws_text())]);
        let bytes = serialize(tensors, Some(draws))
            .map_err(|e| Error::internal(format!("cannot lay out the checkpoint: {e}")))?;
        write_whole(path, &bytes)
    }

    /// Gives every variable of the graph the elements that `path` has under its name, or changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no file; [`ErrorKind::DataLoss`] if it is damaged;
    /// [`ErrorKind::InvalidArgument`] if a name is missing or unknown, or a shape or dtype differs.
    pub fn restore(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes = read_whole(path)?;
        let damaged = |e: safetensors::SafeTensorError| {
            let message = format!("{} is no whole checkpoint: {e}", path.display());
            Error::new(ErrorKind::DataLoss, message)
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let file = SafeTensors::deserialize(&bytes).map_err(damaged)?;
        let draws = header.metadata().as_ref().and_then(|m| m.get(DRAWS)).cloned();
        let variables = self.graph().global_variables();
        let known = |name: &str| variables.iter().any(|variable| variable.name() == name);
        if let Some(unknown) = file.names().into_iter().find(|name| !known(name)) {
            let message = format!(
                "{} has a variable {unknown:?} that the graph does not have; was it written by another \
                 model or optimizer?",
                path.display()
            );
            return Err(Error::invalid(message));
        }
        let mut values = Vec::new();
        for variable in &variables {
            values.push((variable.clone(), stored(path, &file, variable)?));
        }
        self.set_variables(values, self.parse_draws(draws.as_deref().unwrap_or(""))?)
    }

    fn draws_text(&self) -> String {
        let kept = self.state().lock();
        let mut lines: Vec<String> = kept
            .draws
            .iter()
            .map(|(node, count)| format!("{count} {}", self.graph().node(*node).name))
            .collect();
        lines.sort();
        lines.join("\n")
    }

    fn parse_draws(&self, text: &str) -> Result<Vec<(NodeId, u32)>> {
        let entry = |line: &str| {
            let (count, name) = line.split_once(' ')?;
            Some((self.graph().operation(name).ok()?.id(), count.parse().ok()?))
        };
        let parse = |line| {
            entry(line).ok_or_else(|| {
                let message = format!(
                    "the checkpoint has the random state {line:?}, which the graph does \
                                       not have"
                );
                Error::invalid(message)
            })
        };
        text.lines().map(parse).collect()
    }
}

/// The elements of `variable` in `file`, checked.
fn stored(path: &Path, file: &SafeTensors<'_>, variable: &Variable) -> Result<HostTensor> {
    let name = variable.name();
    let refuse = |message: String| Error::invalid(message).with_node(name.clone());
    let tensor = file.tensor(&name).map_err(|_| {
        let mut names = file.names();
        names.sort_unstable();
        refuse(format!("{} has no such variable; it has {}", path.display(), names.join(", ")))
    })?;
    let (dtype, dims) = (dtype_of(tensor.dtype()), variable.dims());
    let shape = Shape::new(tensor.shape())?;
    if dtype != Some(variable.dtype()) || !dims.admits(&shape) {
        return Err(refuse(format!(
            "expected {}{dims}, and {} has {:?}{shape}",
            variable.dtype(),
            path.display(),
            tensor.dtype(),
        )));
    }
    HostTensor::from_bytes(variable.dtype(), shape, AlignedBytes::copy_of(tensor.data())?)
        .map_err(|e| Error::new(ErrorKind::DataLoss, e.message()).with_node(name.clone()))
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
            // Variables hold no strings.
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

fn dtype_of(dtype: Dtype) -> Option<DType> {
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

fn io(path: &Path, what: &str, e: &std::io::Error) -> Error {
    let kind = match e.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::StorageFull => ErrorKind::ResourceExhausted,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("cannot {what} {}: {e}", path.display()))
}

fn read_whole(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).map_err(|e| io(path, "read", &e))?.len();
    if size > CHECKPOINT_MAX_BYTES {
        let message =
            format!("{} has {size} bytes, more than {CHECKPOINT_MAX_BYTES}", path.display());
        return Err(Error::new(ErrorKind::ResourceExhausted, message));
    }
    fs::read(path).map_err(|e| io(path, "read", &e))
}

/// Writes a file so that at its path there is always either the old or the new one, whole.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| {
        Error::invalid(format!("{} names no file to write a checkpoint to", path.display()))
    })?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary: PathBuf = folder.join(temporary);
    let write = || -> std::io::Result<()> {
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
