//! Long campaigns, run by `make soak`. `KILN_SOAK_MINUTES` bounds each that repeats something; 10 unless set.

mod kernels;
mod lives;

use std::time::{Duration, Instant};

use kiln_e2e::guest::{Guest, shell};
use kiln_e2e::{Kiln, is_running};
use kiln_wire::{Limits, Message, MetricsRequest, Reply};

const MINUTES: u64 = 10;
const RSS_BYTES_MAX: u64 = 8 << 20;

fn until() -> Instant {
    let minutes = std::env::var("KILN_SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(MINUTES);
    Instant::now() + Duration::from_secs(minutes * 60)
}

#[test]
fn soak_every_cold_boot_answers_and_leaves_nothing() {
    let (until, mut boots) = (until(), 0);
    while Instant::now() < until {
        let outcome = Kiln::shell(&["--cold"], "echo $((6 * 7))").run();
        assert_eq!((outcome.code, outcome.text().as_str()), (0, "42"), "boot {boots}: {}", outcome.stderr);
        boots += 1;
    }
    println!("{boots} boots");
}

#[test]
fn soak_one_guest_serves_commands_files_and_kills_without_growing() {
    let until = until();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    runtime.block_on(async {
        let guest = Guest::boot(|_| {}).await;
        let (mut rounds, mut state) = (0u64, 0x9e37_79b9_7f4a_7c15_u64);
        println!("seed {state:#x}");
        while Instant::now() < until {
            // xorshift: any order is good if it can be repeated.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            match state % 5 {
                0 => assert_eq!(guest.text("echo round").await, "round"),
                1 => {
                    let content = vec![state as u8; (state % 300_000) as usize];
                    guest.link.write_file("/tmp/soak", &content, None).await.expect("it is written");
                    let back = guest.link.read_file("/tmp/soak", content.len()).await.expect("it is read");
                    assert!(back == content, "round {rounds}");
                }
                2 => drop(guest.link.exec(shell("setsid sleep 100 & sleep 100")).await.expect("it starts")),
                3 => {
                    let mut request = shell("yes");
                    request.limits = Limits { wall_ms: Some(50), ..Limits::default() };
                    let output = guest.link.run(request, b"", 1 << 20).await.expect("it runs");
                    assert!(output.exited.timed_out || output.exited.truncated);
                }
                _ => drop(guest.link.ping().await.expect("the agent answers")),
            }
            rounds += 1;
        }
        let (_sender, receiver) =
            guest.link.open(&Message::Metrics(MetricsRequest::default())).expect("the link is up");
        let Some(Reply::Sample(sample)) = receiver.replies().await.expect("a sample").pop() else {
            panic!("no sample")
        };
        println!("{rounds} rounds, agent at {} KiB", sample.agent_rss_bytes >> 10);
        assert!(sample.agent_rss_bytes < RSS_BYTES_MAX, "the agent grew to {} bytes", sample.agent_rss_bytes);
        assert_eq!(sample.execs.len(), 0, "every command is gone");
    });
}

#[test]
fn soak_kill_9_at_any_moment_leaves_no_vmm() {
    let (until, mut kills) = (until(), 0u32);
    while Instant::now() < until {
        let mut running = Kiln::shell(&[], "sleep 100").start();
        std::thread::sleep(Duration::from_millis(u64::from(kills * 37 % 4000)));
        let vmms = running.vmms();
        running.signal(rustix::process::Signal::KILL);
        running.wait();
        let deadline = Instant::now() + Duration::from_secs(2);
        while vmms.iter().any(|vmm| is_running(*vmm)) {
            assert!(Instant::now() < deadline, "after kill {kills}: {vmms:?} still run");
            std::thread::sleep(Duration::from_millis(10));
        }
        kills += 1;
    }
    println!("{kills} kills");
}
