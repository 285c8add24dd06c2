//! What is done in the guests of a proof: a worker that is started before the snapshot, and looks at what it does.
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

/// Everything of a proof is below it.
const FOLDER: &str = "/run/kiln-verify";
/// A guest that does not do a thing of milliseconds in this time does not do it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// For the first rounds of a worker, under a host that starts many forks at once.
const BEATS_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at the worker's journal.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Output of a command, and content of a file, that are kept.
const TEXT_BYTES_MAX: usize = 256 << 10;

/// The listener's port is 4242, in hexadecimal digits where the kernel lists it; its input is one that never ends, else
/// it would close the connection. Each round takes one process, `sleep`: eight forks with more would keep a host of two
/// CPUs busy.
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

/// Starts the worker, and says what the machine is before it is saved.
pub async fn prepare(link: &GuestLink) -> anyhow::Result<Facts> {
    run(link, r#"mkdir -p "$0/marks" && head -c 262144 /dev/urandom > "$0/unsynced""#).await?;
    let session = SessionSpec { name: Some("kiln-verify".into()), ..SessionSpec::default() };
    let request = ExecRequest { session: Some(session), ..shell(WORKER) };
    let started = timeout(ANSWER_DEADLINE, link.exec(request)).await.context("its worker does not start")?;
    // The session stays when this end of it goes.
    drop(started.context("its worker does not start")?);
    let look = look(link).await?;
    let running = async {
        while beats(link).await?.len() < BEATS_MIN || echoes(link).await?.is_empty() {
            sleep(LOOK_AGAIN).await;
        }
        anyhow::Ok(())
    };
    timeout(BEATS_DEADLINE, running).await.context("its worker does nothing")??;
    Ok(Facts { who: "the original".into(), look, ..Facts::default() })
}

/// Stops the worker, and says how far it came: exactly what each fork goes on from.
pub async fn freeze(link: &GuestLink, original: &mut Facts) -> anyhow::Result<()> {
    link.freeze().await.context("its commands do not stand still")?;
    original.beats = beats(link).await?;
    original.echoes = echoes(link).await?;
    Ok(())
}

/// Looks at a machine at once after its start, and then until its worker has gone on from `beats_before` rounds. `asked`
/// is when it was asked for. It writes the file `mark`, where there is one.
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
    // A worker that stands still is judged, as what it has done till then.
    let deadline = Instant::now() + BEATS_DEADLINE;
    let mut beats = beats(link).await?;
    while beats.len() < beats_before + BEATS_MIN && Instant::now() < deadline {
        sleep(LOOK_AGAIN).await;
        beats = self::beats(link).await?;
    }
    let echoes = echoes(link).await?;
    Ok(Facts { who, look, clock, beats, echoes, mark, marks })
}

/// The marks that a machine has.
pub async fn marks(link: &GuestLink) -> anyhow::Result<Vec<String>> {
    Ok(run(link, r#"ls "$0/marks""#).await?.lines().map(str::to_owned).collect())
}

/// The host's clock, in nanoseconds since 1970.
pub fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// A file's time of change is the guest's clock when it was written, and takes no command to read.
async fn clock(link: &GuestLink, asked: i64) -> anyhow::Result<Clock> {
    let before = now_ns();
    write(link, "clock").await?;
    let after = now_ns();
    let stat = timeout(ANSWER_DEADLINE, link.stat(path("clock"), false)).await.context("it does not answer")?;
    Ok(Clock { asked, before, guest: stat.context("it does not tell its time")?.modified_ns, after })
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
    written.context("it does not answer")?.with_context(|| format!("it does not write `{file}`"))?;
    Ok(())
}

/// The file's text; none where it is not there yet.
async fn read(link: &GuestLink, file: &str) -> anyhow::Result<String> {
    let read = timeout(ANSWER_DEADLINE, link.read_file(path(file), TEXT_BYTES_MAX)).await;
    match read.context("it does not answer")? {
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
    let output = ran.context("it does not answer")?.context("it runs no commands")?;
    let code = output.exited.status.shell_code();
    ensure!(code == 0, "a command ended with {code}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
