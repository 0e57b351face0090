//! What files keep of readers: what they read, not how far they have come.

use std::sync::Arc;

use super::{NameList, ReaderAction, ReaderOp, ReaderSource, ReaderSpec};
use crate::ops::registry::Decode;
use crate::{
    Attributes, Compression, FixedOptions, HostTensor, LineOptions, Op, OpError, QueueSpec,
    RecordFormat, TfRecordOptions,
};

/// What the names of the attributes of a reader's queue begin with.
const QUEUE: &str = "queue_";

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[("reader", |a| {
    let has_queue = a.get("queue_name").is_some();
    let queue = has_queue.then(|| QueueSpec::decode(a, QUEUE)).transpose()?.map(Arc::new);
    let container = a.get("container").map(|_| a.text("container")).transpose()?;
    let (name, container) = (a.text("name")?.to_owned(), container.map(Arc::from));
    let reader = ReaderSpec { name, container, source: source(a)? };
    Ok(Arc::new(ReaderOp { reader: Arc::new(reader), action: action(a)?, queue }))
})];

/// The operation's attributes; none if its list of names is no tensor.
pub(super) fn encoded(op: &ReaderOp) -> Option<Attributes> {
    let number = match op.action {
        ReaderAction::ReadUpTo(n) => Some(n),
        _ => None,
    };
    let attributes = Attributes::of("reader")
        .with("action", op.name())
        .with_some("number", number)
        .with("name", op.reader.name.as_str())
        .with_some("container", op.reader.container.as_deref());
    let attributes = match &op.reader.source {
        ReaderSource::Files(format) => with_format(attributes, format),
        ReaderSource::Names(NameList { names, epochs, shuffle }) => {
            let names = HostTensor::strings(&[names.len()], names.iter().cloned()).ok()?;
            attributes
                .with("format", "names")
                .with("names", names)
                .with_some("epochs", *epochs)
                .with_some("shuffle", *shuffle)
        }
    };
    Some(match &op.queue {
        Some(queue) => queue.encoded(attributes, QUEUE),
        None => attributes,
    })
}

fn with_format(attributes: Attributes, format: &RecordFormat) -> Attributes {
    match format {
        RecordFormat::WholeFile { max_bytes } => {
            attributes.with("format", "whole_file").with("max_bytes", *max_bytes)
        }
        RecordFormat::Lines(LineOptions { skip_header_lines, max_line_bytes, compression }) => {
            attributes
                .with("format", "lines")
                .with("skip_header_lines", *skip_header_lines)
                .with("max_bytes", *max_line_bytes)
                .with("compression", name_of(*compression))
        }
        RecordFormat::Fixed(options) => attributes
            .with("format", "fixed")
            .with("header_bytes", options.header_bytes)
            .with("record_bytes", options.record_bytes)
            .with("footer_bytes", options.footer_bytes)
            .with("hop_bytes", options.hop_bytes)
            .with("compression", name_of(options.compression))
            .with("max_bytes", options.max_record_bytes),
        RecordFormat::TfRecord(TfRecordOptions { compression, max_record_bytes }) => attributes
            .with("format", "tf_record")
            .with("compression", name_of(*compression))
            .with("max_bytes", *max_record_bytes),
        RecordFormat::Identity => attributes.with("format", "identity"),
    }
}

fn source(a: &Attributes) -> Result<ReaderSource, OpError> {
    let format = match a.text("format")? {
        "whole_file" => RecordFormat::WholeFile { max_bytes: a.int("max_bytes")? },
        "lines" => RecordFormat::Lines(LineOptions {
            skip_header_lines: a.int("skip_header_lines")?,
            max_line_bytes: a.int("max_bytes")?,
            compression: compression(a)?,
        }),
        "fixed" => RecordFormat::Fixed(FixedOptions {
            header_bytes: a.int("header_bytes")?,
            record_bytes: a.int("record_bytes")?,
            footer_bytes: a.int("footer_bytes")?,
            hop_bytes: a.int("hop_bytes")?,
            compression: compression(a)?,
            max_record_bytes: a.int("max_bytes")?,
        }),
        "tf_record" => RecordFormat::TfRecord(TfRecordOptions {
            compression: compression(a)?,
            max_record_bytes: a.int("max_bytes")?,
        }),
        "identity" => RecordFormat::Identity,
        "names" => {
            let optional = |name: &str| a.get(name).map(|_| a.int(name)).transpose();
            return Ok(ReaderSource::Names(NameList {
                names: a.tensor("names")?.as_strings()?.iter().map(|name| name.to_vec()).collect(),
                epochs: optional("epochs")?,
                shuffle: optional("shuffle")?,
            }));
        }
        other => return Err(OpError::Invalid(format!("there is no reader of {other:?}"))),
    };
    Ok(ReaderSource::Files(format))
}

fn name_of(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Zlib => "zlib",
    }
}

fn compression(a: &Attributes) -> Result<Compression, OpError> {
    Ok(match a.text("compression")? {
        "none" => Compression::None,
        "gzip" => Compression::Gzip,
        "zlib" => Compression::Zlib,
        other => return Err(OpError::Invalid(format!("there is no compression {other:?}"))),
    })
}

fn action(a: &Attributes) -> Result<ReaderAction, OpError> {
    Ok(match a.text("action")? {
        "reader" => ReaderAction::Make,
        "read" => ReaderAction::Read,
        "read_up_to" => ReaderAction::ReadUpTo(a.int("number")?),
        "skip_file" => ReaderAction::SkipFile,
        "records_produced" => ReaderAction::RecordsProduced,
        "work_units_completed" => ReaderAction::WorkUnitsCompleted,
        "serialize_state" => ReaderAction::SerializeState,
        "restore_state" => ReaderAction::RestoreState,
        "reset" => ReaderAction::Reset,
        "next_epoch" => ReaderAction::NextEpoch,
        other => return Err(OpError::Invalid(format!("a reader does not {other:?}"))),
    })
}
