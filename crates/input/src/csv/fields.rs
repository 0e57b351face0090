//! The fields of one record. A line break before a field is passed over; one within needs quotes.

use std::borrow::Cow;

use convoke_graph_core::Error;

use super::CsvOptions;

/// The fields, in order. Ends after a fault.
pub struct Fields<'r> {
    record: &'r [u8],
    delim: u8,
    quotes: bool,
    /// Where the next field begins.
    at: usize,
    done: bool,
}

/// A character out of place.
pub struct Fault {
    what: &'static str,
    offset: usize,
}

impl Fault {
    pub fn at(self, field: usize, record: usize) -> Error {
        let Self { what, offset } = self;
        Error::invalid(format!("field {field} in record {record}: {what} at byte {offset}"))
    }
}

impl<'r> Fields<'r> {
    pub fn new(record: &'r [u8], options: &CsvOptions) -> Self {
        let (delim, quotes) = (options.field_delim, options.use_quote_delim);
        Self { record, delim, quotes, at: 0, done: false }
    }

    fn rest(&self) -> &'r [u8] {
        self.record.get(self.at..).unwrap_or_default()
    }

    /// A delimiter at the end has an empty field behind it.
    fn last(&mut self) -> Option<Cow<'r, [u8]>> {
        self.done = true;
        (self.record.last() == Some(&self.delim)).then_some(Cow::Borrowed(&[]))
    }

    fn unquoted(&mut self) -> Result<Cow<'r, [u8]>, Fault> {
        let rest = self.rest();
        let len = rest.iter().position(|&b| b == self.delim).unwrap_or(rest.len());
        let field = &rest[..len];
        let wrong = |&b: &u8| matches!(b, b'\n' | b'\r') || (self.quotes && b == b'"');
        if let Some(idx) = field.iter().position(wrong) {
            let what = "expected no quote or line break in an unquoted field, found one";
            return Err(Fault { what, offset: self.at + idx });
        }
        self.at += len + 1;
        Ok(Cow::Borrowed(field))
    }

    /// A field that begins with a quote, of which a doubled one is one quote.
    fn quoted(&mut self) -> Result<Cow<'r, [u8]>, Fault> {
        let start = self.at;
        self.at += 1;
        let mut field = Cow::Borrowed(&[][..]);
        loop {
            let rest = self.rest();
            let Some(len) = rest.iter().position(|&b| b == b'"') else {
                let what = "expected a quote at the end of the field, found none for the quote";
                return Err(Fault { what, offset: start });
            };
            extend(&mut field, &rest[..len]);
            self.at += len;
            match rest.get(len + 1) {
                Some(b'"') => extend(&mut field, b"\""),
                Some(&b) if b != self.delim => {
                    let what = "expected a delimiter, the end or a second quote after the quote";
                    return Err(Fault { what, offset: self.at });
                }
                _ => {
                    self.at += 2;
                    return Ok(field);
                }
            }
            self.at += 2;
        }
    }
}

fn extend<'r>(field: &mut Cow<'r, [u8]>, part: &'r [u8]) {
    if field.is_empty() {
        *field = Cow::Borrowed(part);
    } else {
        field.to_mut().extend_from_slice(part);
    }
}

impl<'r> Iterator for Fields<'r> {
    type Item = Result<Cow<'r, [u8]>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        self.at += self.rest().iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
        let field = match self.rest().first() {
            None => return self.last().map(Ok),
            Some(b'"') if self.quotes => self.quoted(),
            Some(_) => self.unquoted(),
        };
        self.done = field.is_err();
        Some(field)
    }
}
