//! The UCI optical digits, built into the program. Format and licence: `data/digits/README.md`.

use std::io::Read;

use flate2::read::GzDecoder;

use super::{DataError, Dataset, Images};

const NAME: &str = "data/digits/digits.csv.gz";
const FILE: &[u8] = include_bytes!("../../../../data/digits/digits.csv.gz");
/// The file holds 264,712 bytes; a damaged one must not unpack to much more.
const MAX_TEXT: u64 = 1 << 20;
const SIDE: usize = 8;
const WHITE: u8 = 16;
const CLASSES: u8 = 10;
/// Every fifth image, from the fifth on, is for testing.
const FOLDS: usize = 5;

/// The built-in digits: 1,438 images to train on and 359 to test on, 8 by 8, pixels in sixteenths.
///
/// # Errors
/// The copy inside the program is damaged.
pub fn digits() -> Result<Dataset, DataError> {
    let mut text = String::new();
    GzDecoder::new(FILE)
        .take(MAX_TEXT)
        .read_to_string(&mut text)
        .map_err(|source| DataError::Gzip { path: NAME.into(), offset: 0, source })?;
    parse(&text)
}

/// Splits the lines of `text` by number: `line % 5 == 4`, from 0, is for testing.
pub(super) fn parse(text: &str) -> Result<Dataset, DataError> {
    let mut pixels = [Vec::new(), Vec::new()];
    let mut labels = [Vec::new(), Vec::new()];
    for (idx, line) in text.lines().enumerate() {
        let part = usize::from(idx % FOLDS == FOLDS - 1);
        labels[part].push(parse_line(line, idx + 1, &mut pixels[part])?);
    }
    let [train, test] = [0, 1].map(|part| {
        let (pixels, labels) = (&mut pixels[part], &mut labels[part]);
        Images::new(std::mem::take(pixels), std::mem::take(labels), SIDE * SIDE, WHITE)
    });
    let name = "digits".to_owned();
    Ok(Dataset { train, test, name, height: SIDE, width: SIDE, classes: usize::from(CLASSES) })
}

/// Appends the pixels of a line and returns its label.
fn parse_line(text: &str, line: usize, pixels: &mut Vec<u8>) -> Result<u8, DataError> {
    let error = |expected, found: &str| DataError::Csv {
        name: NAME,
        line,
        expected,
        found: found.chars().take(40).collect(),
    };
    let mut fields = text.split(',');
    for _ in 0..SIDE * SIDE {
        let field = fields.next().ok_or_else(|| error("64 pixels and a label", text))?;
        let pixel = field.parse().ok().filter(|&pixel| pixel <= WHITE);
        pixels.push(pixel.ok_or_else(|| error("a pixel from 0 to 16", field))?);
    }
    let field = fields.next().ok_or_else(|| error("64 pixels and a label", text))?;
    if fields.next().is_some() {
        return Err(error("64 pixels and a label, and no more", text));
    }
    let label = field.parse().ok().filter(|&label| label < CLASSES);
    label.ok_or_else(|| error("a label from 0 to 9", field))
}
