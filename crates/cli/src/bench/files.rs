//! Small and large files, compared with `dd` at a virtio-serial port without a protocol in the same VM.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use kiln_engine::link::{Event, GuestLink};
use kiln_wire::{ExecRequest, ExitStatus, Stdin, Text};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::results::Results;
use super::samples::{Promise, Sense, Series, Unit};
use super::suite::Bench;

const LARGE_BYTES: usize = 16 << 20;
const SMALL_BYTES: usize = 1 << 10;
const PATH: &str = "/tmp/kiln-bench";
const RAW_PATH: &str = "/tmp/kiln-bench-raw";
/// The second port, which has no protocol.
const PORT: &str = "kiln.bench.0";
const COPY_BYTES: usize = 256 << 10;
/// The promised share of `dd`'s speed.
const RATIO_MIN: f64 = 0.6;

/// Measures files in one guest.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let guest = bench.start(&[PORT]).await?;
    let link = &guest.link;
    let mut small_write = Series::new("file write, 1 KiB", Unit::Ms);
    let mut small_read = Series::new("file read, 1 KiB", Unit::Ms);
    let small: Vec<u8> = (0..SMALL_BYTES).map(|index| index as u8).collect();
    for _ in 0..bench.samples {
        let start = Instant::now();
        link.write_file(PATH, &small, None).await?;
        small_write.samples.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        ensure!(link.read_file(PATH, SMALL_BYTES).await? == small, "a small file changed on its way");
        small_read.samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    results.series.extend([small_write, small_read]);
    let mut ways = Ways {
        link,
        device: find_port(link).await?,
        port: guest.vm.port_stream(PORT).await?,
        content: (0..LARGE_BYTES).map(|index| (index / 251) as u8).collect(),
    };
    let mut file_in = Pair::new("file write, 16 MiB", "dd of a bare port to a file, 16 MiB", "file write / dd");
    let mut file_out = Pair::new("file read, 16 MiB", "dd of a file to a bare port, 16 MiB", "file read / dd");
    // The first round is not counted, because it fills the guest's page cache and grows buffers on both sides.
    for round in 0..=bench.samples.div_ceil(4) {
        // The order alternates, so that a busy moment of the host affects both of a pair equally.
        let (dd, file) = if round % 2 == 0 {
            (ways.dd_in().await?, ways.file_in().await?)
        } else {
            let file = ways.file_in().await?;
            (ways.dd_in().await?, file)
        };
        let (dd_back, file_back) = if round % 2 == 0 {
            (ways.dd_out().await?, ways.file_out().await?)
        } else {
            let file = ways.file_out().await?;
            (ways.dd_out().await?, file)
        };
        if round > 0 {
            file_in.push(file, dd);
            file_out.push(file_back, dd_back);
        }
    }
    for (claim, pair) in [
        ("16 MiB file in ≥ 60 % of dd from a bare port to a file (median of the rounds' ratios)", file_in),
        ("16 MiB file out ≥ 60 % of dd from a file to a bare port (median of the rounds' ratios)", file_out),
    ] {
        results.promises.push(Promise { claim, seen: pair.ratio.p50(), bound: RATIO_MIN, sense: Sense::AtLeast });
        results.series.extend([pair.file, pair.floor, pair.ratio]);
    }
    guest.vm.kill().await;
    Ok(())
}

/// The samples of one direction and of its floor, round by round.
struct Pair {
    file: Series,
    floor: Series,
    ratio: Series,
}

impl Pair {
    fn new(file: &'static str, floor: &'static str, ratio: &'static str) -> Self {
        Self {
            file: Series::new(file, Unit::MibPerS),
            floor: Series::new(floor, Unit::MibPerS),
            ratio: Series::new(ratio, Unit::Ratio),
        }
    }

    fn push(&mut self, file: f64, floor: f64) {
        self.file.samples.push(file);
        self.floor.samples.push(floor);
        self.ratio.samples.push(file / floor);
    }
}

/// The ways to transfer the same bytes. Each returns MiB/s, from before the first byte until all bytes have arrived.
struct Ways<'a> {
    link: &'a GuestLink,
    device: String,
    port: UnixStream,
    content: Vec<u8>,
}

impl Ways<'_> {
    async fn file_in(&self) -> anyhow::Result<f64> {
        let start = Instant::now();
        self.link.write_file(PATH, &self.content, None).await?;
        Ok(mib_per_s(start))
    }

    async fn file_out(&self) -> anyhow::Result<f64> {
        let start = Instant::now();
        let back = self.link.read_file(PATH, LARGE_BYTES).await?;
        let rate = mib_per_s(start);
        ensure!(back == self.content, "a large file changed on its way");
        Ok(rate)
    }

    /// `dd` starts before the measurement, which ends when `dd` exits: the file is complete then.
    async fn dd_in(&mut self) -> anyhow::Result<f64> {
        let blocks = LARGE_BYTES / COPY_BYTES;
        let device = &self.device;
        let script = format!(
            "rm -f {RAW_PATH}; exec dd if={device} of={RAW_PATH} bs={COPY_BYTES} count={blocks} iflag=fullblock 2>/dev/null"
        );
        let mut reader = self.link.exec(shell(&script)).await?;
        let start = Instant::now();
        self.port.write_all(&self.content).await?;
        finished(&mut reader.output).await?;
        Ok(mib_per_s(start))
    }

    /// The start of `dd` is not counted: the time starts when the first bytes arrive, and those bytes are not counted.
    async fn dd_out(&mut self) -> anyhow::Result<f64> {
        let blocks = LARGE_BYTES / COPY_BYTES;
        let device = &self.device;
        let script = format!("exec dd if={RAW_PATH} of={device} bs={COPY_BYTES} count={blocks} 2>/dev/null");
        let mut writer = self.link.exec(shell(&script)).await?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut left = LARGE_BYTES - self.port.read(&mut buffer).await?;
        let start = Instant::now();
        while left > 0 {
            let count = self.port.read(&mut buffer).await?;
            ensure!(count > 0, "the bare port closed");
            left = left.checked_sub(count).context("more bytes than were written came out of the bare port")?;
        }
        let rate = mib_per_s(start);
        finished(&mut writer.output).await?;
        Ok(rate)
    }
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

async fn finished(output: &mut kiln_engine::link::StreamReceiver) -> anyhow::Result<()> {
    loop {
        if let Event::Exited(exited) = output.next().await? {
            ensure!(exited.status == ExitStatus::Code(0), "dd ended with {:?}", exited.status);
            return Ok(());
        }
    }
}
