//! `convoke devices`: what this machine has. And how a device is chosen by name.

use clap::Args;
use convoke::{DeviceInfo, DeviceKind, DeviceOptions, DevicePolicy, Devices};

use super::Failure;

#[derive(Args)]
pub(super) struct Options {
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let all = DeviceOptions { allow_software: true, ..DeviceOptions::default() };
    let devices = Devices::with_options(&all)?;
    if options.json {
        let list: Vec<serde_json::Value> = devices.list().iter().map(json).collect();
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(());
    }
    for device in devices.list() {
        println!("{device}");
    }
    if devices.list().len() == 1 {
        println!("no GPU: no Vulkan, Metal, DX12 or GL driver answers");
    }
    Ok(())
}

/// A device as JSON.
pub(super) fn json(device: &DeviceInfo) -> serde_json::Value {
    serde_json::json!({
        "name": &*device.name,
        "id": device.id,
        "kind": format!("{:?}", device.kind),
        "adapter": device.adapter,
        "driver": device.driver,
        "backend": device.backend,
        "limits": device.limits,
    })
}

/// The devices and the policy that `--device` asks for: `auto`, `cpu`, `gpu`, a name, or `auto:` and a name.
pub(super) fn choose(name: &str) -> Result<(Devices, DevicePolicy), Failure> {
    let lower = name.to_lowercase();
    let is_cpu = lower == "cpu" || lower == "cpu:0";
    if is_cpu {
        return Ok((Devices::cpu(), DevicePolicy::Prefer("CPU:0".into())));
    }
    if lower == "auto" {
        return Ok((Devices::open()?, DevicePolicy::Auto));
    }
    if let Some(name) = lower.strip_prefix("auto:") {
        return Ok((Devices::named(name)?, DevicePolicy::Auto));
    }
    let is_gpu = lower == "gpu" || lower.starts_with("gpu:");
    let devices = if is_gpu { Devices::open()? } else { Devices::named(name)? };
    let wanted = if lower.starts_with("gpu:") { lower.to_uppercase() } else { "GPU:0".into() };
    if is_gpu && devices.list().iter().all(|device| device.kind == DeviceKind::Cpu) {
        let software = Devices::software_adapters();
        let hint = match software.as_slice() {
            [] => "no driver answers; use --device cpu".to_owned(),
            names => {
                format!("only software adapters answer: {}; name one to use it", names.join(", "))
            }
        };
        return Err(format!("no hardware GPU: {hint}").into());
    }
    devices.index_of(&wanted)?;
    Ok((devices, DevicePolicy::Prefer(wanted)))
}
