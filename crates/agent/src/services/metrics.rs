//! The resources that the guest uses: one sample, or one at each interval.

use std::fs;
use std::rc::Rc;
use std::time::Duration;

use kiln_wire::{CgroupUsage, Done, ErrorCode, Fault, Message, MetricsRequest, MetricsSample, Reply};
use tokio::time::{MissedTickBehavior, interval};

use crate::link::{Stream, cancelled};
use crate::process::{Commands, Running};

/// Shortest interval.
const INTERVAL_MS_MIN: u64 = 10;
/// Longest interval: a day.
const INTERVAL_MS_MAX: u64 = 86_400_000;
/// `/proc` counts CPU time in hundredths of a second, independent of the kernel's tick.
const TICK_MS: u64 = 10;

/// Serves the stream to its end.
pub async fn serve(commands: Rc<Commands>, stream: Stream, request: MetricsRequest) {
    let Some(interval_ms) = request.interval_ms else {
        if send(&commands, &stream).await {
            stream.outlet.end(&Message::Done(Done::default()));
        }
        return;
    };
    if !(INTERVAL_MS_MIN..=INTERVAL_MS_MAX).contains(&interval_ms) {
        let message = format!("`interval_ms` {interval_ms} is not in {INTERVAL_MS_MIN}..={INTERVAL_MS_MAX}");
        return stream.outlet.fail(Fault::new(ErrorCode::InvalidRequest, message));
    }
    let mut ticks = interval(Duration::from_millis(interval_ms));
    // A host that reads slowly gets fewer samples and no old ones.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            end = stream.inbox.ended() => {
                return stream.outlet.fail(end.into_fault());
            }
            _ = ticks.tick() => if !send(&commands, &stream).await { return },
        }
    }
}

async fn send(commands: &Commands, stream: &Stream) -> bool {
    let sample = Message::Reply(Box::new(Reply::Sample(Box::new(sample(commands)))));
    tokio::select! {
        sent = stream.outlet.send(&sample) => sent.is_ok(),
        _ = stream.inbox.ended() => {
            stream.outlet.fail(cancelled());
            false
        }
    }
}

/// Time since boot.
pub fn uptime_ms() -> u64 {
    decimal(&read("/proc/uptime"), 1000)
}

/// CPU time since boot that was not idle, of all CPUs together.
pub fn cpu_busy_ms() -> u64 {
    busy_ms(&read("/proc/stat"))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn sample(commands: &Commands) -> MetricsSample {
    let memory = read("/proc/meminfo");
    let disk = rustix::fs::statvfs("/").ok();
    let pages = read("/proc/self/statm").split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    MetricsSample {
        uptime_ms: uptime_ms(),
        cpu_busy_ms: cpu_busy_ms(),
        cpus: commands.cpus(),
        memory_total_bytes: kib(&memory, "MemTotal:") << 10,
        memory_available_bytes: kib(&memory, "MemAvailable:") << 10,
        disk_total_bytes: disk.as_ref().map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize)),
        disk_free_bytes: disk.as_ref().map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
        load_1m_percent: decimal(&read("/proc/loadavg"), 100),
        agent_rss_bytes: pages.saturating_mul(rustix::param::page_size() as u64),
        execs: execs(commands),
    }
}

fn execs(commands: &Commands) -> Vec<CgroupUsage> {
    let usage = |(pid, job): (&u32, &Running)| {
        let group = job.group.upgrade();
        CgroupUsage {
            pid: *pid,
            session: job.session.clone(),
            cpu_us: group.as_ref().map_or(0, |group| u64::try_from(group.cpu().as_micros()).unwrap_or(u64::MAX)),
            memory_bytes: group.as_ref().map_or(0, |group| group.memory_bytes()),
            pids: group.as_ref().map_or(0, |group| group.pids()),
        }
    };
    commands.running().iter().map(usage).collect()
}

/// The first number of `text`, which has two digits after its point, times `scale`.
fn decimal(text: &str, scale: u64) -> u64 {
    let number = text.split_whitespace().next().unwrap_or_default();
    let (whole, hundredths) = number.split_once('.').unwrap_or((number, "0"));
    let parse = |digits: &str| digits.parse::<u64>().unwrap_or(0);
    parse(whole).saturating_mul(scale).saturating_add(parse(hundredths) * scale / 100)
}

/// All CPU time except idle and waiting for I/O. Time of guests is already part of user time.
fn busy_ms(stat: &str) -> u64 {
    const IDLE_AND_IOWAIT: [usize; 2] = [3, 4];
    const GUEST_FROM: usize = 8;
    let line = stat.lines().next().unwrap_or_default();
    let ticks = line.split_whitespace().skip(1).take(GUEST_FROM).map(|ticks| ticks.parse::<u64>().unwrap_or(0));
    ticks.enumerate().filter(|(index, _)| !IDLE_AND_IOWAIT.contains(index)).map(|(_, ticks)| ticks * TICK_MS).sum()
}

fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_parsed() {
        assert_eq!(decimal("123.45 200.00\n", 1000), 123_450);
        assert_eq!(decimal("0.07 0.01 0.05 1/90 99\n", 100), 7);
        assert_eq!(decimal("", 100), 0);
        assert_eq!(busy_ms("cpu  1 2 3 400 50 6 7 8 900 1000\ncpu0 1\n"), (1 + 2 + 3 + 6 + 7 + 8) * TICK_MS);
        assert_eq!(kib("MemTotal:        1024 kB\nMemFree: 1 kB\n", "MemFree:"), 1);
    }
}
