//! Files, small and large, beside a bare virtio-serial port of the same VM.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use kiln_engine::link::{Event, GuestLink};
use kiln_wire::{ExecRequest, ExitStatus, Stdin, Text};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::samples::{Promise, Sense, Series, Unit};
use super::{Bench, Results};

const LARGE_BYTES: usize = 16 << 20;
const SMALL_BYTES: usize = 1 << 10;
const PATH: &str = "/tmp/kiln-bench";
const RAW_PATH: &str = "/tmp/kiln-bench-raw";
/// The second port: bytes without any protocol.
const PORT: &str = "kiln.bench.0";
const COPY_BYTES: usize = 256 << 10;

/// Measures files in one guest.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let guest = bench.start(&[PORT]).await?;
    let link = &guest.link;
    let mut port = guest.vm.port_stream(PORT).await?;
    let device = find_port(link).await?;
    let mut small_write = Series::new("file write, 1 KiB", Unit::Ms);
    let mut small_read = Series::new("file read, 1 KiB", Unit::Ms);
    let mut write = Series::new("file write, 16 MiB", Unit::MibPerS);
    let mut read = Series::new("file read, 16 MiB", Unit::MibPerS);
    let mut raw_in = Series::new("bare virtio-serial, host to guest", Unit::MibPerS);
    let mut raw_file = Series::new("bare virtio-serial, host to a file of the guest (dd)", Unit::MibPerS);
    let mut raw_out = Series::new("bare virtio-serial, guest to host", Unit::MibPerS);
    let small: Vec<u8> = (0..SMALL_BYTES).map(|index| index as u8).collect();
    let large: Vec<u8> = (0..LARGE_BYTES).map(|index| (index / 251) as u8).collect();
    for _ in 0..bench.samples {
        let start = Instant::now();
        link.write_file(PATH, &small, None).await?;
        small_write.samples.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        ensure!(link.read_file(PATH, SMALL_BYTES).await? == small, "a small file changed on its way");
        small_read.samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    for _ in 0..bench.samples.div_ceil(4) {
        raw_in.samples.push(raw_to_guest(link, &device, &mut port, &large).await?);
        raw_file.samples.push(raw_to_file(link, &device, &mut port, &large).await?);
        let start = Instant::now();
        link.write_file(PATH, &large, None).await?;
        write.samples.push(mib_per_s(start));
        raw_out.samples.push(raw_to_host(link, &device, &mut port).await?);
        let start = Instant::now();
        let back = link.read_file(PATH, LARGE_BYTES).await?;
        read.samples.push(mib_per_s(start));
        ensure!(back == large, "a large file changed on its way");
    }
    for (claim, file, raw) in [
        ("16 MiB file in ≥ 60 % of the bare virtio-serial rate", &write, &raw_in),
        ("16 MiB file out ≥ 60 % of the bare virtio-serial rate", &read, &raw_out),
    ] {
        results.promises.push(Promise { claim, seen: file.p50() / raw.p50(), bound: 0.6, sense: Sense::AtLeast });
    }
    results.series.extend([small_write, small_read, write, raw_in, raw_file, read, raw_out]);
    guest.vm.kill().await;
    Ok(())
}

fn mib_per_s(start: Instant) -> f64 {
    LARGE_BYTES as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64()
}

fn shell(script: &str) -> ExecRequest {
    ExecRequest { argv: ["sh", "-c", script].map(Text::from).into(), stdin: Stdin::None, ..ExecRequest::default() }
}

async fn find_port(link: &GuestLink) -> anyhow::Result<String> {
    let script =
        format!("for p in /sys/class/virtio-ports/*; do grep -qx {PORT} $p/name && echo /dev/${{p##*/}}; done");
    let found = link.run(shell(&script), b"", 4096).await?;
    let device = String::from_utf8(found.stdout)?.trim().to_owned();
    ensure!(device.starts_with("/dev/"), "no port {PORT} in the guest");
    Ok(device)
}

/// The rate at which a port takes bytes that `dd` reads at its other end. Neither its start nor its end counts.
async fn raw_to_guest(link: &GuestLink, device: &str, port: &mut UnixStream, data: &[u8]) -> anyhow::Result<f64> {
    let mut reader = link.exec(reader(device, "/dev/null")).await?;
    let start = Instant::now();
    port.write_all(data).await?;
    let rate = mib_per_s(start);
    finished(&mut reader.output).await?;
    Ok(rate)
}

/// The rate at which `dd` puts a port's bytes into a file, its end included: what the guest's kernel needs for both.
async fn raw_to_file(link: &GuestLink, device: &str, port: &mut UnixStream, data: &[u8]) -> anyhow::Result<f64> {
    let mut reader = link.exec(reader(device, RAW_PATH)).await?;
    let start = Instant::now();
    port.write_all(data).await?;
    finished(&mut reader.output).await?;
    let rate = mib_per_s(start);
    link.run(shell(&format!("rm {RAW_PATH}")), b"", 0).await?;
    Ok(rate)
}

fn reader(device: &str, file: &str) -> ExecRequest {
    let blocks = LARGE_BYTES / COPY_BYTES;
    shell(&format!("exec dd if={device} of={file} bs={COPY_BYTES} count={blocks} iflag=fullblock 2>/dev/null"))
}

/// The rate at which bytes come that `dd` writes, from the first one to the last.
async fn raw_to_host(link: &GuestLink, device: &str, port: &mut UnixStream) -> anyhow::Result<f64> {
    let blocks = LARGE_BYTES / COPY_BYTES;
    let script = format!("exec dd if=/dev/zero of={device} bs={COPY_BYTES} count={blocks} 2>/dev/null");
    let mut writer = link.exec(shell(&script)).await?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut left = LARGE_BYTES - port.read(&mut buffer).await?;
    let start = Instant::now();
    while left > 0 {
        let count = port.read(&mut buffer).await?;
        ensure!(count > 0, "the bare port closed");
        left = left.checked_sub(count).context("more bytes than were written came out of the bare port")?;
    }
    let rate = mib_per_s(start);
    finished(&mut writer.output).await?;
    Ok(rate)
}

async fn finished(output: &mut kiln_engine::link::StreamReceiver) -> anyhow::Result<()> {
    loop {
        if let Event::Exited(exited) = output.next().await? {
            ensure!(exited.status == ExitStatus::Code(0), "dd ended with {:?}", exited.status);
            return Ok(());
        }
    }
}
