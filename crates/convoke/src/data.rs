//! Datasets of small labelled images: the built-in digits, and Fashion-MNIST's IDX files.
//!
//! Pixels stay bytes in memory. A batch is converted when it is written into the caller's slice, so
//! that a shuffled epoch never holds a second copy of the set.

mod digits;
mod idx;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use digits::digits;
pub use idx::{DEFAULT_DIR, MAX_BYTES, idx};

/// Images for training and for testing, all of one size.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// What to train on.
    pub train: Images,
    /// What to test on; no image is in both.
    pub test: Images,
    /// What the set is called in messages.
    pub name: String,
    /// Rows of pixels in an image.
    pub height: usize,
    /// Pixels in a row of an image.
    pub width: usize,
    /// Labels lie in `0..classes`.
    pub classes: usize,
}

/// Images as bytes, each with its label. There are as many labels as images.
#[derive(Debug, Clone)]
pub struct Images {
    pixels: Vec<u8>,
    labels: Vec<u8>,
    row_len: usize,
    white: f32,
}

impl Images {
    /// `pixels` is `labels.len()` images of `row_len` bytes in `0..=white`.
    fn new(pixels: Vec<u8>, labels: Vec<u8>, row_len: usize, white: u8) -> Self {
        debug_assert_eq!(pixels.len(), labels.len() * row_len, "an image has row_len pixels");
        Self { pixels, labels, row_len, white: f32::from(white) }
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Pixels in one image: height times width.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// The pixels as stored, image after image, each row by row from the top left.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The labels as stored, one for each image.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Writes the images numbered `rows`, in that order, scaled to `0.0..=1.0`, and their labels.
    ///
    /// # Shapes
    /// With n = `rows.len()`: `pixels [n, row_len]`, `labels [n]`. A row may come more than once.
    ///
    /// # Errors
    /// A slice has another length, or a row does not exist. Nothing is written then.
    pub fn write_batch(
        &self,
        rows: &[usize],
        pixels: &mut [f32],
        labels: &mut [i32],
    ) -> Result<(), DataError> {
        self.check_batch(rows, pixels.len(), labels.len())?;
        for (images, &row) in pixels.chunks_exact_mut(self.row_len).zip(rows) {
            let stored = &self.pixels[row * self.row_len..][..self.row_len];
            for (to, &from) in images.iter_mut().zip(stored) {
                *to = f32::from(from) / self.white;
            }
        }
        for (to, &row) in labels.iter_mut().zip(rows) {
            *to = i32::from(self.labels[row]);
        }
        Ok(())
    }

    fn check_batch(&self, rows: &[usize], pixels: usize, labels: usize) -> Result<(), DataError> {
        let fits = |what, expected, found| {
            if expected == found { Ok(()) } else { Err(DataError::Slice { what, expected, found }) }
        };
        fits("pixels", rows.len().saturating_mul(self.row_len), pixels)?;
        fits("labels", rows.len(), labels)?;
        match rows.iter().find(|&&row| row >= self.len()) {
            Some(&row) => Err(DataError::Row { row, len: self.len() }),
            None => Ok(()),
        }
    }
}

/// Why a dataset could not be read, or a batch not written. Offsets are in bytes from the start of
/// the file's content, after decompression.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are named in the message")]
#[non_exhaustive]
pub enum DataError {
    #[error(
        "expected {name} or {name}.gz in {}, found neither; give the folder that holds the four \
         IDX files (Debian's package dataset-fashion-mnist puts them in {DEFAULT_DIR})",
        dir.display()
    )]
    Missing { dir: PathBuf, name: &'static str },
    #[error("{}: expected a regular file, found something else", path.display())]
    NotAFile { path: PathBuf },
    #[error("{}: can't be read at byte {offset}: {source}", path.display())]
    Io { path: PathBuf, offset: u64, source: io::Error },
    #[error(
        "{}: damaged gzip data after byte {offset} of the content: {source}; fetch the file again",
        path.display()
    )]
    Gzip { path: PathBuf, offset: u64, source: io::Error },
    #[error(
        "{}: expected {expected} bytes of {what} at byte {offset}, found {found}; \
         fetch the file again",
        path.display()
    )]
    Truncated { path: PathBuf, offset: u64, what: &'static str, expected: u64, found: u64 },
    #[error("{}: expected the end of the file at byte {offset}, found more", path.display())]
    Trailing { path: PathBuf, offset: u64 },
    #[error(
        "{}: expected the magic number {expected:#010x} of {what} at byte 0, found {found:#010x}",
        path.display()
    )]
    Magic { path: PathBuf, what: &'static str, expected: u32, found: u32 },
    #[error(
        "{}: expected from 1 to {limit} bytes of {what} by the sizes at byte {offset}, found \
         {sizes:?}",
        path.display()
    )]
    Size { path: PathBuf, offset: u64, what: &'static str, sizes: Vec<u32>, limit: u64 },
    #[error(
        "{}: expected images of {} by {} by the sizes at byte {offset}, as in the training set, \
         found {} by {}",
        path.display(), expected[0], expected[1], found[0], found[1]
    )]
    ImageSize { path: PathBuf, offset: u64, expected: [usize; 2], found: [usize; 2] },
    #[error(
        "{}: expected {expected} labels by the size at byte {offset}, one for each image of {}, \
         found {found}",
        path.display(), images.display()
    )]
    Count { path: PathBuf, images: PathBuf, offset: u64, expected: usize, found: usize },
    #[error("{}: expected a label below {classes} at byte {offset}, found {found}", path.display())]
    Label { path: PathBuf, offset: u64, classes: usize, found: u8 },
    #[error("{name}, line {line}: expected {expected}, found {found:?}")]
    Csv { name: &'static str, line: usize, expected: &'static str, found: String },
    #[error("expected {expected} elements in the slice for {what}, found {found}")]
    Slice { what: &'static str, expected: usize, found: usize },
    #[error("expected a row below {len}, the number of images, found {row}")]
    Row { row: usize, len: usize },
}
