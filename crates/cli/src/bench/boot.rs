//! A cold boot until the end of a first command, compared with QEMU alone until the first line of `/init`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use kiln_engine::TCG_CPU;
use kiln_programs::{PATH_ONLY, command};
use kiln_wire::{ExecRequest, ExitStatus, Text};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::results::Results;
use super::samples::{Promise, Sense, Series, Unit};
use super::suite::Bench;

/// The agent's first line on the console.
const INIT_LINE: &str = "kiln-agent: init";
/// Most samples, whatever `--samples` is, because boots are slow.
const BOOTS_MAX: usize = 20;
const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// Measures boots, with Kiln and with QEMU alone in turn.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let mut ready = Series::new("cold boot, agent answers", Unit::Ms);
    let mut cold = Series::new("cold boot, first exec done", Unit::Ms);
    let mut raw = Series::new("QEMU alone, to /init", Unit::Ms);
    for _ in 0..bench.samples.min(BOOTS_MAX) {
        raw.samples.push(alone(bench, results.machine.accel == "kvm").await?);
        let start = Instant::now();
        let guest = bench.start(&[]).await?;
        ready.samples.push(guest.boot.as_secs_f64() * 1e3);
        let argv = vec![Text::from("/bin/true")];
        let first = guest.link.run(ExecRequest { argv, ..ExecRequest::default() }, b"", 0).await?;
        ensure!(first.exited.status == ExitStatus::Code(0), "the first command failed");
        cold.samples.push(start.elapsed().as_secs_f64() * 1e3);
        guest.vm.kill().await;
    }
    results.promises.push(Promise {
        claim: "cold boot to the end of the first exec ≤ 1.15 × QEMU alone to /init (p50)",
        seen: cold.p50() / raw.p50(),
        bound: 1.15,
        sense: Sense::AtMost,
    });
    results.series.extend([cold, ready, raw]);
    Ok(())
}

/// Boots the image's kernel and initramfs with only a serial line. Returns the time until the first line of `/init`, in
/// milliseconds.
async fn alone(bench: &Bench, kvm: bool) -> anyhow::Result<f64> {
    let args = floor_args(bench, kvm);
    let vmm = bench.engine.binary();
    let start = Instant::now();
    let mut qemu = Command::from(command(vmm, PATH_ONLY))
        .args(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("failed to start `{vmm}`"))?;
    let mut lines = BufReader::new(qemu.stdout.take().context("its stdout is piped")?).split(b'\n');
    let seen = async {
        while let Some(line) = lines.next_segment().await? {
            if String::from_utf8_lossy(&line).contains(INIT_LINE) {
                return Ok(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        bail!("QEMU ended before /init: {args:?}")
    };
    let outcome = tokio::time::timeout(BOOT_DEADLINE, seen).await.context("QEMU alone did not reach /init")?;
    qemu.kill().await?;
    outcome
}

/// The machine that Kiln would start, without any of its devices.
fn floor_args(bench: &Bench, kvm: bool) -> Vec<String> {
    let spec = bench.spec();
    let (accel, cpu) = if kvm { ("kvm", "host") } else { ("tcg,thread=multi", TCG_CPU) };
    let (smp, memory) = (spec.cpus.to_string(), format!("{}M", spec.memory_mib));
    let (kernel, initramfs, cmdline) = (&bench.image.kernel, &bench.image.initramfs, spec.kernel_cmdline());
    let flags = ["-nodefaults", "-no-user-config", "-no-reboot"];
    let options = [
        ("-display", "none"),
        ("-machine", "q35"),
        ("-accel", accel),
        ("-cpu", cpu),
        ("-smp", &smp),
        ("-m", &memory),
        ("-kernel", kernel.as_str()),
        ("-initrd", initramfs.as_str()),
        ("-append", &cmdline),
        ("-serial", "stdio"),
    ];
    flags.into_iter().chain(options.into_iter().flat_map(|(name, value)| [name, value])).map(Into::into).collect()
}
