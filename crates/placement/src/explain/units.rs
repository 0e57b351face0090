//! How times, sizes and tables print.

use std::fmt;

use crate::Picoseconds;

/// Five columns of text: two to the left, two to the right, and one that is not padded.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<[String; 5]>,
}

impl Table {
    /// A table with this first row.
    pub fn new(head: [&str; 5]) -> Self {
        Self { rows: vec![head.map(str::to_owned)] }
    }

    /// Adds a row.
    pub fn row(&mut self, row: [String; 5]) {
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |c: usize| self.rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
        let widths: [usize; 4] = [width(0), width(1), width(2), width(3)];
        for [a, b, c, d, last] in &self.rows {
            let [wa, wb, wc, wd] = widths;
            writeln!(f, "{a:<wa$}  {b:<wb$}  {c:>wc$}  {d:>wd$}  {last}")?;
        }
        Ok(())
    }
}

/// A time in picoseconds, with three decimals in a unit that suits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Picoseconds);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == Picoseconds::MAX {
            return f.write_str("forever");
        }
        let (unit, name) = match self.0 {
            0 => return f.write_str("0"),
            1_000_000_000_000.. => (1_000_000_000_000, "s"),
            1_000_000_000.. => (1_000_000_000, "ms"),
            1_000_000.. => (1_000_000, "us"),
            _ => (1_000, "ns"),
        };
        write!(f, "{}.{:03} {name}", self.0 / unit, self.0 % unit / (unit / 1000))
    }
}

/// A difference of times in picoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed(pub i64);

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{}", Time(self.0.unsigned_abs()))
    }
}

/// A size with one decimal in a unit that suits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, name) = match self.0 {
            0..1024 => return write!(f, "{} B", self.0),
            1024..0x10_0000 => (10, "KiB"),
            0x10_0000..0x4000_0000 => (20, "MiB"),
            _ => (30, "GiB"),
        };
        let part = ((self.0 & ((1 << shift) - 1)) * 10) >> shift;
        write!(f, "{}.{part} {name}", self.0 >> shift)
    }
}
