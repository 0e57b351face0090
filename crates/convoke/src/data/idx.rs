//! IDX files as MNIST and Fashion-MNIST ship them, gzipped or not.
//!
//! A file is a big-endian header (magic number, then one 32-bit size for each axis) and bytes. The
//! header is checked before anything is allocated, and memory grows only with bytes that were read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::{DataError, Dataset, Images};

/// Where Debian's package `dataset-fashion-mnist` puts its files.
pub const DEFAULT_DIR: &str = "/usr/share/datasets/fashion-mnist";
/// The most bytes that one file may hold after its header.
pub const MAX_BYTES: u64 = 1 << 30;

/// Unsigned bytes with three axes, and with one.
const IMAGES: u32 = 0x0000_0803;
const LABELS: u32 = 0x0000_0801;
const CLASSES: usize = 10;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Reads `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
/// `t10k-labels-idx1-ubyte` in `dir`, each as it is or with `.gz` at its end. The plain one is taken
/// where both are there; what is gzipped shows by its first bytes, not by its name.
///
/// # Errors
/// A file is missing or damaged, holds more than [`MAX_BYTES`], or doesn't fit the others. The
/// message names the file, the byte, what was expected and what came.
pub fn idx(dir: &Path) -> Result<Dataset, DataError> {
    let train = read_images(dir, "train-images-idx3-ubyte")?;
    let train_labels = read_labels(dir, "train-labels-idx1-ubyte", &train)?;
    let test = read_images(dir, "t10k-images-idx3-ubyte")?;
    if test.size != train.size {
        let (expected, found) = (train.size, test.size);
        return Err(DataError::ImageSize { path: test.path, offset: 8, expected, found });
    }
    let test_labels = read_labels(dir, "t10k-labels-idx1-ubyte", &test)?;
    let [height, width] = train.size;
    let row_len = height * width;
    Ok(Dataset {
        train: Images::new(train.pixels, train_labels, row_len, u8::MAX),
        test: Images::new(test.pixels, test_labels, row_len, u8::MAX),
        name: dir.file_name().map_or("idx".into(), |name| name.to_string_lossy().into_owned()),
        height,
        width,
        classes: CLASSES,
    })
}

struct ImageFile {
    path: PathBuf,
    pixels: Vec<u8>,
    n: usize,
    size: [usize; 2],
}

fn read_images(dir: &Path, name: &'static str) -> Result<ImageFile, DataError> {
    let mut content = Content::open(dir, name)?;
    let sizes = content.header("images", IMAGES)?;
    let pixels = content.rest("pixels", sizes)?;
    let [n, height, width] = sizes.map(|size| size as usize);
    Ok(ImageFile { path: content.path, pixels, n, size: [height, width] })
}

fn read_labels(dir: &Path, name: &'static str, images: &ImageFile) -> Result<Vec<u8>, DataError> {
    let mut content = Content::open(dir, name)?;
    let sizes @ [n] = content.header("labels", LABELS)?;
    if n as usize != images.n {
        return Err(DataError::Count {
            path: content.path,
            images: images.path.clone(),
            offset: 4,
            expected: images.n,
            found: n as usize,
        });
    }
    let start = content.offset;
    let labels = content.rest("labels", sizes)?;
    match labels.iter().position(|&label| usize::from(label) >= CLASSES) {
        None => Ok(labels),
        Some(idx) => Err(DataError::Label {
            path: content.path,
            offset: start + idx as u64,
            classes: CLASSES,
            found: labels[idx],
        }),
    }
}

/// What a file holds, after decompression, and how much of it was read.
struct Content {
    path: PathBuf,
    reader: Box<dyn Read>,
    gzip: bool,
    offset: u64,
}

impl Content {
    fn open(dir: &Path, name: &'static str) -> Result<Self, DataError> {
        let plain = dir.join(name);
        let zipped = dir.join(format!("{name}.gz"));
        let path = [plain, zipped]
            .into_iter()
            .find(|path| path.exists())
            .ok_or_else(|| DataError::Missing { dir: dir.to_owned(), name })?;
        // To open a pipe would wait for a writer.
        if !path.is_file() {
            return Err(DataError::NotAFile { path });
        }
        let io = |source| DataError::Io { path: path.clone(), offset: 0, source };
        let mut file = BufReader::new(File::open(&path).map_err(io)?);
        let gzip = file.fill_buf().map_err(io)?.starts_with(&GZIP);
        let reader: Box<dyn Read> =
            if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        Ok(Self { path, reader, gzip, offset: 0 })
    }

    /// Reads the magic number and one size for each of `N` axes.
    fn header<const N: usize>(
        &mut self,
        what: &'static str,
        magic: u32,
    ) -> Result<[u32; N], DataError> {
        let [found] = self.words("the magic number")?;
        if found != magic {
            let path = self.path.clone();
            return Err(DataError::Magic { path, what, expected: magic, found });
        }
        self.words("sizes")
    }

    /// Reads what the sizes promise, and makes sure that nothing follows.
    fn rest<const N: usize>(
        &mut self,
        what: &'static str,
        sizes: [u32; N],
    ) -> Result<Vec<u8>, DataError> {
        let product = sizes.iter().try_fold(1u64, |all, &size| all.checked_mul(u64::from(size)));
        let len = product.filter(|len| (1..=MAX_BYTES).contains(len)).ok_or_else(|| {
            let (path, sizes) = (self.path.clone(), sizes.to_vec());
            DataError::Size { path, offset: 4, what, sizes, limit: MAX_BYTES }
        })?;
        let bytes = self.bytes(what, len)?;
        let at_end = self.read(1)?.is_empty();
        if at_end {
            Ok(bytes)
        } else {
            Err(DataError::Trailing { path: self.path.clone(), offset: self.offset - 1 })
        }
    }

    fn words<const N: usize>(&mut self, what: &'static str) -> Result<[u32; N], DataError> {
        let bytes = self.bytes(what, 4 * N as u64)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        Ok(words)
    }

    fn bytes(&mut self, what: &'static str, len: u64) -> Result<Vec<u8>, DataError> {
        let offset = self.offset;
        let bytes = self.read(len)?;
        let found = bytes.len() as u64;
        if found == len {
            return Ok(bytes);
        }
        Err(DataError::Truncated { path: self.path.clone(), offset, what, expected: len, found })
    }

    /// At most `len` bytes; fewer only at the end.
    fn read(&mut self, len: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let result = self.reader.by_ref().take(len).read_to_end(&mut bytes);
        self.offset += bytes.len() as u64;
        result.map(|_| bytes).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> DataError {
        let (path, offset) = (self.path.clone(), self.offset);
        // The decoder reports damage by these kinds; any other comes from the file system.
        let damage =
            [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidInput, io::ErrorKind::InvalidData];
        if self.gzip && damage.contains(&source.kind()) {
            DataError::Gzip { path, offset, source }
        } else {
            DataError::Io { path, offset, source }
        }
    }
}
