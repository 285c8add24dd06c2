//! `kiln vhost probe`: who a backend is.

use kiln_vdev::probe::{NamedBits, ProbeError, ProbeOptions, ProbeReport, probe};
use owo_colors::OwoColorize as _;

use super::failure::of_socket;
use crate::args::vhost::ProbeArgs;
use crate::failure::Failure;
use crate::output::{Progress, plain, print, print_json};

/// Where lines of names are broken.
const WIDTH: usize = 100;

/// Asks and prints.
pub fn run(args: &ProbeArgs) -> Result<u8, Failure> {
    let progress = Progress::start("asking");
    let options = ProbeOptions { device: args.device, timeout: args.timeout, with_harm: args.quirks };
    let report = probe(&args.socket, &options).map_err(|error| match error {
        ProbeError::Socket(error) => of_socket(&args.socket, error),
    })?;
    drop(progress);
    match args.json {
        true => print_json(&report)?,
        false => lines(&report).iter().try_for_each(print)?,
    }
    Ok(0)
}

fn lines(report: &ProbeReport) -> Vec<String> {
    let mut lines = Vec::new();
    let mut row = |name: &str, value: String| lines.push(format!("{name:<18} {}", plain(&value)));
    row("socket", report.socket.clone());
    row("device", device(report));
    bits(&mut row, "features", &report.features);
    match &report.protocol_features {
        Some(features) => bits(&mut row, "protocol features", features),
        None => row("protocol features", "the backend has none".into()),
    }
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    for (name, value) in [
        ("queues", number(report.queues)),
        ("memory slots", number(report.max_mem_slots)),
        ("status", report.status.map(|status| format!("{status:#x}"))),
    ] {
        if let Some(value) = value {
            row(name, value);
        }
    }
    for (id, size) in &report.shared_memory {
        row("shared memory", format!("region {id}: {size} bytes"));
    }
    if let Some(config) = &report.config {
        row("configuration", format!("{} bytes", config.bytes.len()));
        for field in &config.fields {
            row("", field.to_string());
        }
    }
    for (place, quirk) in report.quirks.iter().enumerate() {
        row(if place == 0 { "behaviour" } else { "" }, format!("{}: {}", quirk.tried, quirk.behaviour));
    }
    for (place, problem) in report.problems.iter().enumerate() {
        row(if place == 0 { "problems" } else { "" }, problem.clone());
    }
    let round_trip = report.round_trip_us.map_or(String::new(), |micros| format!(", GET_FEATURES {micros} µs"));
    row("time", format!("handshake {} µs{round_trip}", report.handshake_us));
    let width = 18;
    lines.into_iter().map(|line| bold_name(&line, width)).collect()
}

fn bold_name(line: &str, width: usize) -> String {
    match line.split_at_checked(width) {
        Some((name, value)) => format!("{}{value}", name.bold()),
        None => line.to_owned(),
    }
}

fn device(report: &ProbeReport) -> String {
    match &report.device {
        Some(device) if device.is_guess => {
            format!("{} (guessed: {})", device.kind, device.reason.as_deref().unwrap_or_default())
        }
        Some(device) => device.kind.clone(),
        None => "unknown; give it with --device".into(),
    }
}

fn bits(row: &mut impl FnMut(&str, String), name: &str, bits: &NamedBits) {
    row(name, format!("{:#x}", bits.bits));
    let unknown = bits.unknown.iter().map(|bit| format!("bit {bit}"));
    let mut line = String::new();
    for word in bits.names.iter().map(ToString::to_string).chain(unknown) {
        if line.len() + word.len() > WIDTH - 20 {
            row("", std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    if !line.is_empty() {
        row("", line);
    }
}

#[cfg(test)]
mod tests {
    use kiln_vdev::probe::{ConfigReport, DeviceReport, Quirk, QuirkId};
    use kiln_vdev::protocol::ProtocolFeatures;
    use kiln_vdev::virtio::{DeviceKind, feature};

    use super::*;

    fn quirk(id: QuirkId, tried: &'static str, behaviour: &str) -> Quirk {
        Quirk { id, tried, behaviour: behaviour.into(), is_deadly: false }
    }

    fn report() -> ProbeReport {
        let mut config = vec![0; 60];
        config[..8].copy_from_slice(&131_072_u64.to_le_bytes());
        config[20..24].copy_from_slice(&512_u32.to_le_bytes());
        let kind = Some(DeviceKind::Blk);
        let features = feature::VERSION_1 | feature::PROTOCOL_FEATURES | feature::blk::BLK_SIZE | 1 << 57;
        ProbeReport {
            socket: "disk.sock".into(),
            device: Some(DeviceReport { kind: "blk".into(), is_guess: true, reason: Some("it has blocks".into()) }),
            features: NamedBits::features(kind, features),
            protocol_features: Some(NamedBits::protocol_features(ProtocolFeatures::MQ | ProtocolFeatures::CONFIG)),
            queues: Some(4),
            max_mem_slots: Some(32),
            status: None,
            shared_memory: vec![(1, 4096)],
            config: Some(ConfigReport::new(kind, features, config)),
            quirks: vec![
                quirk(QuirkId::SecondConnection, "a second connection while one is open", "served beside the first"),
                quirk(QuirkId::AfterClientLeft, "after its client disconnects", "accepts no more connections"),
            ],
            handshake_us: 340,
            round_trip_us: Some(16),
            problems: vec!["`disk.sock` said \u{1b}[2J".into()],
        }
    }

    fn plain_text(report: &ProbeReport) -> String {
        let text = lines(report).join("\n");
        anstream::adapter::strip_str(&text).to_string()
    }

    #[test]
    fn a_disk_is_described() {
        insta::assert_snapshot!(plain_text(&report()));
    }

    #[test]
    fn json_has_names_and_sizes() {
        let json = serde_json::to_value(report()).expect("plain data");
        assert_eq!(json["features"]["names"].as_array().map(Vec::len), Some(3));
        assert_eq!(json["features"]["unknown"], serde_json::json!([57]));
        assert_eq!(json["config"]["capacity_bytes"], 67_108_864);
    }
}
