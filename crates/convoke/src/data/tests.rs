//! Datasets: the built-in digits, and small IDX files made in a folder of the test's own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use flate2::{Compression, write::GzEncoder};

use super::*;

const TRAIN: [&str; 2] = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"];
const TEST: [&str; 2] = ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

/// A folder that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    /// Three training and two test images of 2 by 2; pixels count up from 0.
    fn good() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("convoke-data-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Self(env::temp_dir().join(name));
        fs::create_dir(&dir.0).unwrap();
        dir.write(TRAIN[0], &images(3, 2, 2));
        dir.write(TRAIN[1], &labels(&[7, 0, 9]));
        dir.write(TEST[0], &images(2, 2, 2));
        dir.write(TEST[1], &labels(&[1, 2]));
        dir
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    /// Reads the folder, which must fail, and returns the message with the folder cut out.
    #[track_caller]
    fn refused(&self) -> String {
        let message = idx(&self.0).expect_err("the files are bad").to_string();
        message.replace(&format!("{}/", self.0.display()), "").replace(self.path(), "DIR")
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // A folder left behind in the temporary folder harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn images(n: u32, height: u32, width: u32) -> Vec<u8> {
    let mut bytes = words(&[0x803, n, height, width]);
    bytes.extend((0..n * height * width).map(|pixel| pixel as u8));
    bytes
}

fn labels(labels: &[u8]) -> Vec<u8> {
    let mut bytes = words(&[0x801, labels.len() as u32]);
    bytes.extend(labels);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn the_digits_are_all_there() {
    let set = digits().unwrap();
    assert_eq!((set.train.len(), set.test.len()), (1438, 359));
    assert_eq!((set.height, set.width, set.classes), (8, 8, 10));
    // The file's first line is for training, its fifth for testing.
    assert_eq!(set.train.pixels()[..8], [0, 0, 5, 13, 9, 1, 0, 0]);
    assert_eq!(set.train.labels()[..6], [0, 1, 2, 3, 5, 6]);
    assert_eq!(set.test.labels()[..3], [4, 9, 4]);
    // How often each digit comes in the 1,797 lines; counted with awk.
    let mut counts = [0; 10];
    for &label in set.train.labels().iter().chain(set.test.labels()) {
        counts[usize::from(label)] += 1;
    }
    assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
}

#[test]
fn a_batch_follows_its_rows() {
    let set = digits().unwrap();
    let mut pixels = [f32::NAN; 3 * 64];
    let mut labels = [-1; 3];
    set.train.write_batch(&[5, 0, 5], &mut pixels, &mut labels).unwrap();
    assert_eq!(labels, [6, 0, 6]);
    assert_eq!(pixels[64..72], [0.0, 0.0, 0.3125, 0.8125, 0.5625, 0.0625, 0.0, 0.0]);
    assert_eq!(pixels[..64], pixels[128..]);
    assert!(pixels.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
    set.train.write_batch(&[], &mut [], &mut []).unwrap();
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let set = digits().unwrap();
    let refused = |rows: &[usize], pixels: usize, labels: usize| {
        let (mut pixels, mut labels) = (vec![-1.0; pixels], vec![-1; labels]);
        let error = set.test.write_batch(rows, &mut pixels, &mut labels).unwrap_err();
        assert!(pixels.iter().all(|&x| x == -1.0) && labels.iter().all(|&x| x == -1));
        error.to_string()
    };
    assert_eq!(refused(&[0], 63, 1), "expected 64 elements in the slice for pixels, found 63");
    assert_eq!(refused(&[0], 64, 2), "expected 1 elements in the slice for labels, found 2");
    assert_eq!(
        refused(&[0, 359], 128, 2),
        "expected a row below 359, the number of images, found 359"
    );
}

#[test]
fn damaged_digits_are_refused() {
    let pixels = "3,".repeat(64);
    let refused = |text: &str| digits::parse(text).unwrap_err().to_string();
    let place = "data/digits/digits.csv.gz, line 2: ";
    for (line, message) in [
        (format!("{pixels}10"), "expected a label from 0 to 9, found \"10\""),
        (format!("17,{}5", &pixels[2..]), "expected a pixel from 0 to 16, found \"17\""),
        (format!("x,{}5", &pixels[2..]), "expected a pixel from 0 to 16, found \"x\""),
        ("1,2".into(), "expected 64 pixels and a label, found \"1,2\""),
    ] {
        assert_eq!(refused(&format!("{pixels}5\n{line}\n")), format!("{place}{message}"));
    }
    let more = refused(&format!("{pixels}5\n{pixels}5,5\n"));
    assert!(more.starts_with(&format!("{place}expected 64 pixels and a label, and no more")));
    assert_eq!(digits::parse(&format!("{pixels}5\n")).unwrap().train.len(), 1);
}

#[test]
fn plain_and_gzipped_files_say_the_same() {
    let dir = Dir::good();
    let plain = idx(&dir.0).unwrap();
    for name in TRAIN {
        let bytes = fs::read(dir.0.join(name)).unwrap();
        fs::remove_file(dir.0.join(name)).unwrap();
        dir.write(&format!("{name}.gz"), &gzip(&bytes));
    }
    // What counts is the content, not the name.
    dir.write(TEST[1], &gzip(&labels(&[1, 2])));
    let zipped = idx(&dir.0).unwrap();
    for set in [plain, zipped] {
        assert_eq!((set.height, set.width, set.classes), (2, 2, 10));
        assert_eq!(set.train.labels(), [7, 0, 9]);
        assert_eq!(set.train.pixels(), (0..12).collect::<Vec<u8>>());
        assert_eq!((set.test.len(), set.test.labels()), (2, &[1, 2][..]));
        let (mut pixels, mut label) = ([0.0; 4], [0]);
        set.train.write_batch(&[1], &mut pixels, &mut label).unwrap();
        assert_eq!((pixels, label), ([4.0, 5.0, 6.0, 7.0].map(|x| x / 255.0), [0]));
    }
}

/// One bad file each, and the whole message.
#[test]
fn damaged_files_are_refused() {
    let huge = words(&[0x803, u32::MAX, u32::MAX, u32::MAX]);
    let large = words(&[0x803, 1 << 20, 32, 33]);
    let more = [images(3, 2, 2), vec![0]].concat();
    let short = &images(3, 2, 2)[..27];
    let cases: [(&str, &[u8], &str); 12] = [
        (TRAIN[0], &[], "expected 4 bytes of the magic number at byte 0, found 0; "),
        (TRAIN[0], &words(&[0x803, 3])[..7], "expected 12 bytes of sizes at byte 4, found 3; "),
        (TRAIN[0], short, "expected 12 bytes of pixels at byte 16, found 11; "),
        (TRAIN[0], &more, "expected the end of the file at byte 28, found more"),
        (
            TRAIN[0],
            &labels(&[1, 2, 3]),
            "expected the magic number 0x00000803 of images at byte 0, found 0x00000801",
        ),
        (
            TRAIN[0],
            &huge,
            "expected from 1 to 1073741824 bytes of pixels by the sizes at byte 4, found \
             [4294967295, 4294967295, 4294967295]",
        ),
        (
            TRAIN[0],
            &large,
            "expected from 1 to 1073741824 bytes of pixels by the sizes at byte 4, found \
             [1048576, 32, 33]",
        ),
        (
            TRAIN[0],
            &images(3, 0, 2),
            "expected from 1 to 1073741824 bytes of pixels by the sizes at byte 4, found [3, 0, 2]",
        ),
        (TEST[1], &labels(&[1, 10]), "expected a label below 10 at byte 9, found 10"),
        (
            TEST[1],
            &labels(&[1, 2, 3]),
            "expected 2 labels by the size at byte 4, one for each image of \
             t10k-images-idx3-ubyte, found 3",
        ),
        (
            TEST[0],
            &images(2, 4, 1),
            "expected images of 2 by 2 by the sizes at byte 8, as in the training set, found 4 by 1",
        ),
        (
            TEST[0],
            &words(&[0x803, 1 << 20, 32, 32]),
            "expected 1073741824 bytes of pixels at byte 16, found 0; ",
        ),
    ];
    for (name, bytes, message) in cases {
        let dir = Dir::good();
        dir.write(name, bytes);
        let fix = if message.ends_with(' ') { "fetch the file again" } else { "" };
        assert_eq!(dir.refused(), format!("{name}: {message}{fix}"));
        // The same content is refused in the same words when it is compressed.
        dir.write(name, &gzip(bytes));
        assert_eq!(dir.refused(), format!("{name}: {message}{fix}"), "gzipped");
    }
}

#[test]
fn damaged_gzip_is_refused() {
    let whole = gzip(&images(3, 2, 2));
    let (last, flipped) = (whole.len() - 1, whole.len() - 8);
    let wrong_sum = [&whole[..flipped], &[!whole[flipped]], &whole[flipped + 1..]].concat();
    let trailing = [&whole[..], b"more"].concat();
    for (bytes, what) in [
        (&whole[..last], "cut in the last byte"),
        (&whole[..20], "cut in the data"),
        (&whole[..2], "cut in the header"),
        (&wrong_sum[..], "wrong checksum"),
        (&trailing[..], "bytes after the end"),
    ] {
        let dir = Dir::good();
        dir.write(TRAIN[0], bytes);
        let message = dir.refused();
        let start = format!("{}: damaged gzip data after byte ", TRAIN[0]);
        assert!(message.starts_with(&start), "{what}: {message}");
    }
}

#[test]
fn missing_files_are_named() {
    let dir = Dir::good();
    fs::remove_file(dir.0.join(TEST[1])).unwrap();
    assert_eq!(
        dir.refused(),
        "expected t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz in DIR, found neither; give \
         the folder that holds the four IDX files (Debian's package dataset-fashion-mnist puts \
         them in /usr/share/datasets/fashion-mnist)"
    );
    fs::create_dir(dir.0.join(TEST[1])).unwrap();
    assert_eq!(
        dir.refused(),
        "t10k-labels-idx1-ubyte: expected a regular file, found something else"
    );
    assert!(matches!(idx(Path::new("/nowhere")), Err(DataError::Missing { .. })));
}
