//! Commands on a terminal, compared with the same commands without one.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use kiln_engine::link::{Event, Exec, GuestLink};
use kiln_programs::{Environment, command};
use kiln_wire::{Channel, ExecRequest, ExitStatus, Stdin, Text, Tty};
use tokio::process::Command;

use super::results::Results;
use super::samples::{Promise, Sense, Series, Unit};
use super::suite::Bench;
use crate::image;

/// The most that a command may take on a terminal, as a multiple of its time without one.
const RATIO_MAX: f64 = 2.0;
/// A program that writes line by line if its output is a terminal.
const SEQ: &[&str] = &["seq", "20000"];
const SEQ_LINES: usize = 20_000;
/// A shell writes each line on its own, whatever its output is.
const LOOP: &[&str] = &["sh", "-c", "i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i+1)); done"];
const LOOP_LINES: usize = 5000;
/// One whole `kiln run`.
const RUN_DEADLINE: Duration = Duration::from_secs(120);

/// Measures terminals in one guest.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let guest = bench.start(&[]).await?;
    let link = &guest.link;
    let mut seq = Pair::new("seq 20000 on a terminal", "seq 20000 without one", "seq 20000, with / without");
    let mut own = Series::new("seq 20000 on a terminal of the guest's own", Unit::Ms);
    let mut against_own = Series::new("seq 20000 on a terminal / on the guest's own", Unit::Ratio);
    let mut own_against_without = Series::new("seq 20000 on the guest's own terminal / without one", Unit::Ratio);
    let mut whole =
        Pair::new("kiln run -t -- seq 20000", "kiln run -- seq 20000", "kiln run seq 20000, with -t / without");
    let accel = image::accel_name(guest.vm.acceleration());
    let mut echoes = Pair::new("5000 × echo on a terminal", "5000 × echo without one", "5000 × echo, with / without");
    // The first round is not counted.
    for round in 0..=bench.samples.div_ceil(4) {
        for (pair, argv, lines) in [(&mut seq, SEQ, SEQ_LINES), (&mut echoes, LOOP, LOOP_LINES)] {
            // The order alternates, so that a busy moment of the host affects both of a pair equally.
            let (with, without) = if round % 2 == 0 {
                (timed(link, argv, lines, true).await?, timed(link, argv, lines, false).await?)
            } else {
                let without = timed(link, argv, lines, false).await?;
                (timed(link, argv, lines, true).await?, without)
            };
            if round > 0 {
                pair.push(with, without);
            }
        }
        let alone = in_guest(link, SEQ).await?;
        if let Some(with) = seq.with.samples.last().filter(|_| round > 0) {
            against_own.samples.push(with / alone);
            own.samples.push(alone);
            own_against_without.samples.extend(seq.without.samples.last().map(|without| alone / without));
        }
        let (with, without) = if round % 2 == 0 {
            (process(accel, true).await?, process(accel, false).await?)
        } else {
            let without = process(accel, false).await?;
            (process(accel, true).await?, without)
        };
        if round > 0 {
            whole.push(with, without);
        }
    }
    for (claim, ratio) in [
        ("`kiln run -t -- seq 20000` ≤ 2 × `kiln run -- seq 20000`, whole processes (median of ratios)", &whole.ratio),
        // Compared with a terminal in the guest: a program writes each line on its own to a terminal and 4 KiB at once
        // elsewhere. The guest's kernel needs more time for that, which Kiln can't change.
        ("`seq 20000` on a terminal ≤ 2 × on a terminal that is read in the guest (median of ratios)", &against_own),
        ("a shell's 5000 × `echo` on a terminal ≤ 2 × its time without (median of ratios)", &echoes.ratio),
    ] {
        results.promises.push(Promise { claim, seen: ratio.p50(), bound: RATIO_MAX, sense: Sense::AtMost });
    }
    results.series.extend([seq.with, seq.without, seq.ratio, own, against_own, own_against_without]);
    results.series.extend([whole.with, whole.without, whole.ratio]);
    results.series.extend([echoes.with, echoes.without, echoes.ratio]);
    results.series.push(keys(bench, link).await?);
    guest.vm.kill().await;
    Ok(())
}

/// The samples of a command with a terminal and without one, round by round.
struct Pair {
    with: Series,
    without: Series,
    ratio: Series,
}

impl Pair {
    fn new(with: &'static str, without: &'static str, ratio: &'static str) -> Self {
        Self {
            with: Series::new(with, Unit::Ms),
            without: Series::new(without, Unit::Ms),
            ratio: Series::new(ratio, Unit::Ratio),
        }
    }

    fn push(&mut self, with: f64, without: f64) {
        self.with.samples.push(with);
        self.without.samples.push(without);
        self.ratio.samples.push(with / without);
    }
}

fn request(argv: &[&str], terminal: bool) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().copied().map(Text::from).collect(),
        stdin: if terminal { Stdin::Stream } else { Stdin::None },
        tty: terminal.then(|| Tty { rows: 24, cols: 80, term: String::new() }),
        ..ExecRequest::default()
    }
}

/// Runs a command and returns the time until all of its output has arrived, in milliseconds.
async fn timed(link: &GuestLink, argv: &[&str], lines: usize, terminal: bool) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut exec = link.exec(request(argv, terminal)).await?;
    let mut seen = 0;
    loop {
        match exec.output.next().await? {
            Event::Data(_, bytes) => seen += bytes.iter().filter(|byte| **byte == b'\n').count(),
            Event::Exited(exited) => {
                ensure!(exited.status == ExitStatus::Code(0), "`{}` ended with {:?}", argv[0], exited.status);
                ensure!(seen == lines, "{seen} lines of {lines} came");
                return Ok(start.elapsed().as_secs_f64() * 1e3);
            }
            _ => {}
        }
    }
}

/// A whole `kiln run` of `seq`, from the start of its process to its end.
async fn process(accel: &str, terminal: bool) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut command = Command::from(command(std::env::current_exe()?, Environment::Callers));
    command.args(["run", "--accel", accel]).args(terminal.then_some("-t")).arg("--").args(SEQ);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(RUN_DEADLINE, command.output()).await.context("`kiln run` hangs")??;
    let taken = start.elapsed().as_secs_f64() * 1e3;
    ensure!(output.status.success(), "`kiln run -- seq` ended with {}", output.status);
    let seen = output.stdout.iter().filter(|byte| **byte == b'\n').count();
    ensure!(seen == SEQ_LINES, "{seen} lines of {SEQ_LINES} came");
    Ok(taken)
}

/// The time of a command on a terminal that a program in the guest reads, measured by that program, in milliseconds.
async fn in_guest(link: &GuestLink, argv: &[&str]) -> anyhow::Result<f64> {
    let bench = ["/init", "--terminal-bench", "1", "--"];
    let request = request(&[&bench[..], argv].concat(), false);
    let output = link.run(request, b"", 4096).await?;
    let samples: Vec<f64> = serde_json::from_slice(&output.stdout).context("the guest's timing is not JSON")?;
    Ok(samples.first().context("the guest timed nothing")? / 1e6)
}

/// The time from a key to its echo, on a terminal without other output.
async fn keys(bench: &Bench, link: &GuestLink) -> anyhow::Result<Series> {
    let mut echoed = Series::new("a key's echo on a terminal", Unit::Ms);
    let mut exec = link.exec(request(&["cat"], true)).await?;
    for _ in 0..bench.samples + bench.warm_up {
        let start = Instant::now();
        exec.input.send(b"x").await?;
        echo(&mut exec).await?;
        echoed.samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    echoed.samples.drain(..bench.warm_up);
    Ok(echoed)
}

async fn echo(exec: &mut Exec) -> anyhow::Result<()> {
    loop {
        match exec.output.next().await? {
            Event::Data(Channel::Out, bytes) if bytes.contains(&b'x') => return Ok(()),
            Event::Data(..) => {}
            other => bail!("no echo, but {other:?}"),
        }
    }
}
