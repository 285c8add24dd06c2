//! Commands that use all of a guest's resources: the agent keeps running.

use kiln_e2e::guest::{Guest, in_vm, shell};
use kiln_engine::link::Event;
use kiln_wire::{Channel, ExecRequest, Limits, Message, MetricsRequest, Reply, Text};

const RSS_BYTES_MAX: u64 = 8 << 20;

#[test]
fn the_agent_survives_a_lack_of_memory_and_a_fork_bomb() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let eater = guest.shell("exec tail /dev/zero").await.expect("it runs");
        assert_eq!((eater.exited.status.shell_code(), eater.exited.oom_killed), (137, true));
        let mut bomb = shell("f() { f | f & }; f; sleep 60");
        bomb.limits = Limits { wall_ms: Some(3000), ..Limits::default() };
        // The shell decides how it ends. This test requires only that it ends and leaves nothing.
        guest.link.run(bomb, b"", 1 << 20).await.expect("the agent goes on");
        assert_eq!(guest.text("echo still here").await, "still here");
        // The agent is still killing them, so the script waits for their end.
        let script = "left() { ls -d /proc/[0-9]* | wc -l; }; n=0; \
             while [ $(left) -ge 100 ] && [ $n -lt 500 ]; do usleep 10000; n=$((n+1)); done; left";
        let left = guest.text(script).await;
        assert!(left.parse::<u32>().expect("a number") < 100, "{left} processes are left");
        assert!(resident(&guest).await < RSS_BYTES_MAX);
    });
}

#[test]
fn a_limit_holds_for_the_whole_group() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let mut request = shell("(tail /dev/zero) & wait");
        request.limits = Limits { memory_bytes: Some(32 << 20), ..Limits::default() };
        let output = guest.link.run(request, b"", 1 << 20).await.expect("it runs");
        assert!(output.exited.oom_killed, "{:?}", output.exited);

        let mut request = shell("while :; do :; done & while :; do :; done & wait");
        request.limits = Limits { cpu_ms: Some(400), ..Limits::default() };
        let output = guest.link.run(request, b"", 1 << 20).await.expect("it runs");
        assert!(output.exited.timed_out, "{:?}", output.exited);
    });
}

#[test]
fn processes_that_a_command_leaves_behind_are_killed_with_it() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let exec =
            guest.link.exec(shell("setsid sleep 7777 & setsid sleep 7777 & sleep 7777")).await.expect("it starts");
        drop(exec);
        let script = "n=0; while pgrep -f 'sleep 7777' > /dev/null && [ $n -lt 500 ]; do usleep 10000; n=$((n+1)); done; \
             pgrep -f '^sleep 7777' | wc -l";
        assert_eq!(guest.text(script).await, "0");
    });
}

#[test]
fn a_hundred_megabytes_of_output_leave_the_agent_small() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let argv = ["head", "-c", "100000000", "/dev/zero"].map(Text::from).into();
        let mut exec = guest.link.exec(ExecRequest { argv, ..ExecRequest::default() }).await.expect("it starts");
        let mut total = 0;
        loop {
            match exec.output.next().await.expect("the stream goes on") {
                Event::Data(Channel::Out, bytes) => total += bytes.len(),
                Event::Exited(exited) => break assert_eq!(exited.status.shell_code(), 0),
                _ => {}
            }
        }
        assert_eq!(total, 100_000_000);
        assert!(resident(&guest).await < RSS_BYTES_MAX);
    });
}

async fn resident(guest: &Guest) -> u64 {
    let (_sender, receiver) = guest.link.open(&Message::Metrics(MetricsRequest::default())).expect("the link is up");
    match receiver.replies().await.expect("a sample").pop() {
        Some(Reply::Sample(sample)) => sample.agent_rss_bytes,
        other => panic!("no sample: {other:?}"),
    }
}
