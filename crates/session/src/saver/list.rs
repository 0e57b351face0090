//! The list of a saver's checkpoints, in the order of saving, and which of them stay.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// The version of the list's form.
const VERSION: u64 = 1;

/// The checkpoints of a saver, the newest last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) step: u64,
    /// The name of its file or index.
    pub(super) file: String,
    /// When it was saved, in milliseconds since 1970.
    pub(super) saved_ms: u64,
    /// Whether it stays, however many come.
    pub(super) stays: bool,
}

impl List {
    /// Adds the newest, in place of one of the same step.
    pub(super) fn add(&mut self, step: u64, file: String, saved_ms: u64) {
        self.entries.retain(|entry| entry.step != step);
        self.entries.push(Entry { step, file, saved_ms, stays: false });
    }

    /// Takes out the oldest, so that `max` stay beside those that stay for `interval`; 0 is all. Says their steps.
    pub(super) fn drop_old(&mut self, max: usize, interval: Option<Duration>) -> Vec<u64> {
        let n = self.entries.iter().filter(|entry| !entry.stays).count();
        let mut excess = if max == 0 { 0 } else { n.saturating_sub(max) };
        let mut last_stays =
            self.entries.iter().filter(|entry| entry.stays).map(|entry| entry.saved_ms).max();
        let mut dropped = Vec::new();
        self.entries.retain_mut(|entry| {
            if entry.stays || excess == 0 {
                return true;
            }
            excess -= 1;
            entry.stays = interval.is_some_and(|interval| {
                last_stays.is_none_or(|last| {
                    u128::from(entry.saved_ms.saturating_sub(last)) >= interval.as_millis()
                })
            });
            if entry.stays {
                last_stays = Some(entry.saved_ms);
            } else {
                dropped.push(entry.step);
            }
            entry.stays
        });
        dropped
    }

    pub(super) fn to_json(&self) -> String {
        let entry = |e: &Entry| {
            let Entry { step, file, saved_ms, stays } = e;
            json!({ "step": step, "file": file, "saved_unix_ms": saved_ms, "stays": stays })
        };
        let entries: Vec<Value> = self.entries.iter().map(entry).collect();
        format!("{:#}\n", json!({ "version": VERSION, "checkpoints": entries }))
    }

    /// A list whose every file is one that `is_name` allows for its step, or why it is damaged.
    pub(super) fn parse(text: &str, is_name: impl Fn(u64, &str) -> bool) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if value.get("version").and_then(Value::as_u64) != Some(VERSION) {
            return Err(format!("expected version {VERSION}"));
        }
        let entries = value.get("checkpoints").and_then(Value::as_array);
        let mut list = Self::default();
        for value in entries.ok_or("it has no array `checkpoints`")? {
            let entry = Entry::parse(value).ok_or_else(|| format!("it has the entry {value}"))?;
            if !is_name(entry.step, &entry.file) {
                return Err(format!("{:?} is no file of step {}", entry.file, entry.step));
            }
            if list.entries.iter().any(|other| other.step == entry.step) {
                return Err(format!("it has step {} twice", entry.step));
            }
            list.entries.push(entry);
        }
        // A saver lists what it has just saved.
        if list.entries.is_empty() { Err("it names no checkpoint".to_owned()) } else { Ok(list) }
    }
}

impl Entry {
    fn parse(value: &Value) -> Option<Self> {
        Some(Self {
            step: value.get("step")?.as_u64()?,
            file: value.get("file")?.as_str()?.to_owned(),
            saved_ms: value.get("saved_unix_ms")?.as_u64()?,
            stays: value.get("stays")?.as_bool()?,
        })
    }
}

pub(super) fn now_ms() -> u64 {
    to_ms(SystemTime::now())
}

pub(super) fn to_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
