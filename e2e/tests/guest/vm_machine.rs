//! What a guest finds: its mounts, its devices, its clock, its names.

use kiln_e2e::guest::{Guest, in_vm};
use kiln_engine::{ExitReason, Vm};
use kiln_wire::{Identity, Sync};

#[test]
fn a_guest_has_what_programs_expect() {
    in_vm(async {
        let guest = Guest::boot(|spec| spec.cpus = 2).await;
        let script = "set -e; mount | cut -d' ' -f3 | sort | tr '\\n' ' '; nproc; cat /proc/1/oom_score_adj; \
             stat -c %a /tmp; ls -d /dev/shm /dev/pts /dev/null /dev/urandom | wc -l; hostname; \
             ip -o addr show lo | grep -c 127.0.0.1; cat /proc/self/oom_score_adj; cat /proc/1/cgroup";
        let seen = guest.text(script).await;
        let lines: Vec<&str> = seen.lines().collect();
        for mount in ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp", "/sys/fs/cgroup"] {
            assert!(lines[0].split(' ').any(|found| found == mount), "no {mount}: {seen}");
        }
        assert!(lines[0].ends_with('2'), "two CPUs: {seen}");
        assert_eq!(lines[1..6], ["-1000", "1777", "4", "kiln", "1"], "{seen}");
        assert_eq!(lines[6], "0", "commands can be killed for memory: {seen}");
        assert!(lines[7].starts_with("0::/") && lines[7].len() > 4, "a group of its own: {seen}");
    });
}

#[test]
fn modules_are_loaded_on_request_with_what_they_need() {
    in_vm(async {
        let guest = Guest::boot(|spec| spec.modules = vec!["overlay".into(), "squashfs".into()]).await;
        let seen = guest.text("grep -cE 'overlay|squashfs' /proc/filesystems").await;
        assert_eq!(seen, "2");
    });
}

#[test]
fn sync_sets_the_clock_and_the_names() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let host_time_ns = 1_900_000_000_000_000_000;
        let identity =
            Identity { hostname: "other".into(), machine_id: "0123456789abcdef0123456789abcdef".into(), macs: vec![] };
        // 32 zero bytes: what is credited is the host's business.
        let seed = format!("{}=", "A".repeat(43));
        guest.link.sync(Sync { host_time_ns, seed, identity: Some(identity) }).await.expect("all of it is done");
        let seen = guest.text("date +%s | cut -c1-8; hostname; cat /etc/machine-id").await;
        assert_eq!(seen, "19000000\nother\n0123456789abcdef0123456789abcdef");
    });
}

#[test]
fn no_exit_status_is_ever_stolen() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        // Orphans of every command become children of PID 1, and end while others are waited for.
        let script = "for i in 1 2 3 4 5; do (sleep 0.0$i & exec true) & done; exit 7";
        for _ in 0..30 {
            let output = guest.shell(script).await.expect("it runs");
            assert_eq!(output.exited.status.shell_code(), 7);
        }
        // What the last command left is being killed; the shell waits for its end.
        let zombies = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
        let script =
            format!("n=0; while [ $({zombies}) != 0 ] && [ $n -lt 500 ]; do usleep 10000; n=$((n+1)); done; {zombies}");
        assert_eq!(guest.text(&script).await, "0");
    });
}

#[test]
fn goodbye_powers_the_guest_off() {
    in_vm(async {
        let Guest { vm, link } = Guest::boot(|_| {}).await;
        link.shutdown().await;
        assert_eq!(ended(&vm).await, ExitReason::GuestPoweredOff);
    });
}

async fn ended(vm: &Vm) -> ExitReason {
    vm.wait().await.reason
}
