//! Calibrations in files: JSON with a checksum, replaced in one step.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use convoke_placement::{Curve, DeviceModel, Family, Link, Picoseconds};
use serde_json::{Map, Value, json};

use super::{Calibration, MeasuredDevice};

/// A file that is larger isn't read.
const MAX_BYTES: u64 = 1 << 16;
/// Points of a curve, at most.
const MAX_POINTS: usize = 64;
/// How many drafts this process has begun.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

impl Calibration {
    /// All of it as a JSON object, for people and scripts.
    pub fn to_json(&self) -> String {
        format!("{:#}", write(self))
    }
}

/// The name of a device's file. What else it depends on is in the file, so that one of another driver is found, and
/// told of.
pub(super) fn name(device: &MeasuredDevice) -> String {
    let text = format!("{}-{}-{}", device.backend, device.adapter, device.threads).to_lowercase();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let slug: String = text.chars().map(plain).take(80).collect();
    format!("{slug}-{:08x}.json", checksum(&text) as u32)
}

/// What the system calls the processor.
pub(super) fn processor() -> String {
    let name = || {
        let file = File::open("/proc/cpuinfo").ok()?.take(MAX_BYTES);
        // Only as far as need be: the system takes a while for each processor.
        let mut lines = BufReader::new(file).lines().map_while(Result::ok);
        lines.find_map(|line| {
            Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned())
        })
    };
    name().unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// What a file keeps of a device; none if there is no file.
///
/// # Errors
/// Why it is not to be trusted.
pub(super) fn load(path: &Path, device: &MeasuredDevice) -> Result<Option<Calibration>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let about = file.metadata().map_err(|e| e.to_string())?;
    if !about.is_file() || about.len() > MAX_BYTES {
        return Err(format!("expected a file of at most {MAX_BYTES} bytes, got {}", about.len()));
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(|_| "it is damaged")?;
    let kept: Value = serde_json::from_str(&text).map_err(|_| "it is damaged")?;
    let inner = kept.get("calibration").ok_or("it is damaged")?;
    if kept.get("checksum") != Some(&json!(checksum_text(inner))) {
        return Err("it is damaged".to_owned());
    }
    let found = read_device(inner.get("device"))?;
    if let Some(different) = difference(&found, device) {
        return Err(different);
    }
    read(inner, found).map(Some)
}

/// Writes a calibration.
///
/// # Errors
/// What the system refuses; the file before stays.
pub(super) fn store(path: &Path, calibration: &Calibration) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(dir)?;
    let n = DRAFTS.fetch_add(1, Ordering::Relaxed);
    let draft = path.with_extension(format!("{}.{n}.draft", std::process::id()));
    let inner = write(calibration);
    let kept = json!({ "checksum": checksum_text(&inner), "calibration": inner });
    let written = File::create(&draft)
        .and_then(|mut file| file.write_all(format!("{kept:#}\n").as_bytes()))
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

/// FNV-1a of 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn checksum_text(value: &Value) -> String {
    format!("{:016x}", checksum(&value.to_string()))
}

/// What the file is of, if that is not what is there.
fn difference(found: &MeasuredDevice, device: &MeasuredDevice) -> Option<String> {
    let texts = [
        ("adapter", &found.adapter, &device.adapter),
        ("backend", &found.backend, &device.backend),
        ("driver", &found.driver, &device.driver),
        ("processor", &found.host, &device.host),
        ("version", &found.version, &device.version),
    ];
    let other = texts.iter().find(|(_, found, expected)| found != expected);
    let text = other.map(|(what, found, expected)| {
        format!("it is of {what} {found:?}, and this is {expected:?}")
    });
    let threads = (found.threads != device.threads)
        .then(|| format!("it is of {} threads, and this is {}", found.threads, device.threads));
    text.or(threads)
}

fn write(calibration: &Calibration) -> Value {
    let Calibration { device, model, upload, download } = calibration;
    let curve = |curve: &Curve| json!(curve.points());
    let families: Map<String, Value> = Family::ALL
        .iter()
        .map(|&family| (family.name().to_owned(), curve(model.arithmetic.of(family))))
        .collect();
    let link = |link: &Link| json!({ "latency_ps": link.latency, "bytes_per_second": link.bytes_per_second });
    json!({
        "device": {
            "adapter": device.adapter,
            "driver": device.driver,
            "backend": device.backend,
            "host": device.host,
            "threads": device.threads,
            "version": device.version,
        },
        "kind": format!("{:?}", model.kind),
        "name": model.name.to_string(),
        "launch_ps": model.launch,
        "submission_ps": model.submission,
        "run_ps": model.run,
        "memory": curve(&model.memory),
        "arithmetic": families,
        "upload": link(upload),
        "download": link(download),
    })
}

fn read_device(value: Option<&Value>) -> Result<MeasuredDevice, String> {
    let text = |key: &str| {
        let found = value.and_then(|value| value.get(key)?.as_str());
        found.map(str::to_owned).ok_or_else(|| format!("it has no {key}"))
    };
    let threads = value.and_then(|value| value.get("threads")?.as_u64());
    let threads = threads.and_then(|n| usize::try_from(n).ok()).ok_or("it has no threads")?;
    Ok(MeasuredDevice {
        adapter: text("adapter")?,
        driver: text("driver")?,
        backend: text("backend")?,
        host: text("host")?,
        threads,
        version: text("version")?,
    })
}

fn read(value: &Value, device: MeasuredDevice) -> Result<Calibration, String> {
    let missing = |key: &str| format!("it has no {key}");
    let number = |value: &Value, key: &str| {
        value.get(key).and_then(Value::as_u64).ok_or_else(|| missing(key))
    };
    let curve = |value: Option<&Value>, key: &str| {
        read_curve(value).ok_or_else(|| format!("its curve of {key} is not one"))
    };
    let link = |key: &str| {
        let link = value.get(key).ok_or_else(|| missing(key))?;
        let rate = number(link, "bytes_per_second")?;
        Ok::<_, String>(Link { latency: number(link, "latency_ps")?, bytes_per_second: rate })
    };
    let kind = value.get("kind").and_then(Value::as_str).ok_or_else(|| missing("kind"))?;
    let name = value.get("name").and_then(Value::as_str).ok_or_else(|| missing("name"))?;
    let mut model = blank(kind).ok_or_else(|| format!("there is no kind {kind:?}"))?;
    model.name = name.parse().map_err(|_| format!("{name:?} is no device's name"))?;
    model.launch = number(value, "launch_ps")?;
    model.submission = number(value, "submission_ps")?;
    model.run = number(value, "run_ps")?;
    model.memory = curve(value.get("memory"), "memory")?;
    let families = value.get("arithmetic").ok_or_else(|| missing("arithmetic"))?;
    for family in Family::ALL {
        model.arithmetic.set(family, curve(families.get(family.name()), family.name())?);
    }
    Ok(Calibration { device, model, upload: link("upload")?, download: link("download")? })
}

/// A model of the kind that prints so.
fn blank(kind: &str) -> Option<DeviceModel> {
    use convoke_placement::DeviceKind::{Cpu, DiscreteGpu, IntegratedGpu, SoftwareGpu};
    let kinds = [Cpu, DiscreteGpu, IntegratedGpu, SoftwareGpu];
    let kind = kinds.into_iter().find(|known| format!("{known:?}") == kind)?;
    Some(DeviceModel { kind, ..DeviceModel::gpu(kind, 0, u64::MAX) })
}

fn read_curve(value: Option<&Value>) -> Option<Curve> {
    let points = value?.as_array().filter(|points| points.len() <= MAX_POINTS)?;
    let point = |point: &Value| -> Option<(u64, Picoseconds)> {
        Some((point.get(0)?.as_u64()?, point.get(1)?.as_u64()?))
    };
    Curve::through(points.iter().map(point).collect::<Option<Vec<_>>>()?)
}
