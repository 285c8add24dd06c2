//! What a proof does in its guests: starts a worker before the snapshot, and reads facts from each guest.
//!
//! ```text
//!   prepare ─▶ worker (a session): each round counts, draws a UUID, writes both to its journal, sends its count
//!                └──▶ connection over the loopback ──▶ echoes          all below FOLDER, in memory
//!   save │ fork ─▶ look: names, randomness, clock ─▶ await_beats ─▶ marks
//! ```

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use kiln_engine::link::{GuestLink, StreamError};
use kiln_wire::{ErrorCode, ExecRequest, SessionSpec, Text};
use tokio::time::{Instant, sleep, timeout};

use super::checks::BEATS_MIN;
use super::facts::{self, Beat, Clock, Facts, Look};

/// The directory in the guest for all files of a proof.
const FOLDER: &str = "/run/kiln-verify";
/// Deadline of a request that takes milliseconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Deadline of a worker's first rounds, on a host that starts many forks at once.
const BEATS_DEADLINE: Duration = Duration::from_secs(30);
/// Time between two reads of the worker's journal.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Most bytes that are kept of a command's output, and of a file.
const TEXT_BYTES_MAX: usize = 256 << 10;
const NO_ANSWER: &str = "the guest does not answer";

/// The worker's shell script.
///
/// The listener's port is 4242, which the kernel lists in hexadecimal digits, as 1092. The input of `nc -l` must not
/// end, else it closes the connection. Each round starts one process, `sleep`: with more, eight forks would keep a host
/// of two CPUs busy.
const WORKER: &str = r#"cd "$0" && mkfifo wire silence
nc -l -p 4242 <> silence > echoes &
until grep -q :1092 /proc/net/tcp /proc/net/tcp6 2> /dev/null; do sleep 0.05; done
nc 127.0.0.1 4242 < wire &
exec 4> wire
number=0
while sleep 0.2; do
    number=$((number + 1))
    read -r draw < /proc/sys/kernel/random/uuid
    echo "$$ $number $draw" >> journal
    echo $number >&4
done
"#;

/// Prints keys and values for [`Look::parse`].
const LOOK: &str = r#"cd "$0"
echo random $(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
read -r uuid < /proc/sys/kernel/random/uuid; echo uuid $uuid
[ ! -e /etc/machine-id ] || read -r id < /etc/machine-id; echo machine-id $id
read -r boot < /proc/sys/kernel/random/boot_id; echo boot-id $boot
echo hostname $(hostname)
for card in /sys/class/net/e*/address; do [ ! -e $card ] || read -r mac < $card; break; done; echo mac $mac
echo unsynced $(sha256sum < unsynced)
"#;

/// Starts the worker, and returns the facts of the VM before it is saved.
pub async fn prepare(link: &GuestLink) -> anyhow::Result<Facts> {
    run(link, r#"mkdir -p "$0/marks" && head -c 262144 /dev/urandom > "$0/unsynced""#).await?;
    let session = SessionSpec { name: Some("kiln-verify".into()), ..SessionSpec::default() };
    let request = ExecRequest { session: Some(session), ..shell(WORKER) };
    let started = timeout(ANSWER_DEADLINE, link.exec(request)).await.context("the worker does not start")?;
    // The session keeps running after this side closes.
    drop(started.context("the worker does not start")?);
    let look = look(link).await?;
    let running = async {
        while beats(link).await?.len() < BEATS_MIN || echoes(link).await?.is_empty() {
            sleep(POLL_INTERVAL).await;
        }
        anyhow::Ok(())
    };
    timeout(BEATS_DEADLINE, running).await.context("the worker does nothing")??;
    Ok(Facts { who: "the original".into(), look, ..Facts::default() })
}

/// Freezes the worker and reads how far it came. Each fork continues from exactly there.
pub async fn freeze(link: &GuestLink, original: &mut Facts) -> anyhow::Result<()> {
    link.freeze().await.context("the guest's commands can't be frozen")?;
    original.beats = beats(link).await?;
    original.echoes = echoes(link).await?;
    Ok(())
}

/// Reads the facts of a fork: its values at once, and its worker's rounds once there are enough after `beats_before`.
/// `asked` is the time of the request for the fork. Writes the file `mark`, if given.
pub async fn see(
    link: &GuestLink,
    who: String,
    asked: i64,
    beats_before: usize,
    mark: Option<String>,
) -> anyhow::Result<Facts> {
    let clock = clock(link, asked).await?;
    let look = look(link).await?;
    let marks = marks(link).await?;
    let mark = mark.unwrap_or_default();
    if !mark.is_empty() {
        write(link, &format!("marks/{mark}")).await?;
    }
    // After the deadline the check judges the rounds so far, and fails if they are too few.
    let deadline = Instant::now() + BEATS_DEADLINE;
    let mut beats = beats(link).await?;
    while beats.len() < beats_before + BEATS_MIN && Instant::now() < deadline {
        sleep(POLL_INTERVAL).await;
        beats = self::beats(link).await?;
    }
    let echoes = echoes(link).await?;
    Ok(Facts { who, look, clock, beats, echoes, mark, marks })
}

/// The marks that a VM has.
pub async fn marks(link: &GuestLink) -> anyhow::Result<Vec<String>> {
    Ok(run(link, r#"ls "$0/marks""#).await?.lines().map(str::to_owned).collect())
}

/// The host's clock, in nanoseconds since 1970.
pub fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// Reads the guest's clock from the time at which a new file was modified. That needs no command in the guest, so it is
/// quick.
async fn clock(link: &GuestLink, asked: i64) -> anyhow::Result<Clock> {
    let before = now_ns();
    write(link, "clock").await?;
    let after = now_ns();
    let stat = timeout(ANSWER_DEADLINE, link.stat(path("clock"), false)).await.context(NO_ANSWER)?;
    Ok(Clock { asked, before, guest: stat.context("the guest's clock can't be read")?.modified_ns, after })
}

async fn look(link: &GuestLink) -> anyhow::Result<Look> {
    Ok(Look::parse(&run(link, LOOK).await?))
}

async fn beats(link: &GuestLink) -> anyhow::Result<Vec<Beat>> {
    Ok(facts::beats(&read(link, "journal").await?))
}

async fn echoes(link: &GuestLink) -> anyhow::Result<Vec<u64>> {
    Ok(facts::echoes(&read(link, "echoes").await?))
}

fn path(file: &str) -> String {
    format!("{FOLDER}/{file}")
}

async fn write(link: &GuestLink, file: &str) -> anyhow::Result<()> {
    let written = timeout(ANSWER_DEADLINE, link.write_file(path(file), b"", None)).await;
    written.context(NO_ANSWER)?.with_context(|| format!("`{file}` can't be written"))?;
    Ok(())
}

/// A file's text; empty if the file does not exist yet.
async fn read(link: &GuestLink, file: &str) -> anyhow::Result<String> {
    let read = timeout(ANSWER_DEADLINE, link.read_file(path(file), TEXT_BYTES_MAX)).await;
    match read.context(NO_ANSWER)? {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(StreamError::Fault(fault)) if fault.code == ErrorCode::NotFound => Ok(String::new()),
        Err(error) => Err(anyhow::Error::new(error).context(format!("`{file}` can't be read"))),
    }
}

fn shell(script: &str) -> ExecRequest {
    ExecRequest { argv: ["sh", "-c", script, FOLDER].map(Text::from).into(), ..ExecRequest::default() }
}

/// The output of a script that must succeed.
async fn run(link: &GuestLink, script: &str) -> anyhow::Result<String> {
    let ran = timeout(ANSWER_DEADLINE, link.run(shell(script), b"", TEXT_BYTES_MAX as u64)).await;
    let output = ran.context(NO_ANSWER)?.context("the guest does not run commands")?;
    let code = output.exited.status.shell_code();
    ensure!(code == 0, "a command exited with {code}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
