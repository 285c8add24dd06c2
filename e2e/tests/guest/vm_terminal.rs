//! Terminals of a real guest.

use kiln_e2e::guest::{Guest, in_vm, shell};
use kiln_engine::link::{Event, Exec};
use kiln_wire::{Stdin, Tty};

/// Prints the scheduling policies of the kernel's unbound workers.
const POLICIES: &str = "for p in /proc/[0-9]*; do read -r line < $p/stat && set -- $line && case $2 in \"(kworker/u\"*) \
                        echo ${41};; esac; done 2>/dev/null | sort -u | tr -d '\\n'";
/// `SCHED_OTHER`.
const USUAL: &str = "0";
/// `SCHED_BATCH`.
const BATCH: char = '3';

async fn drain(exec: &mut Exec) {
    while let Ok(Event::Data(..)) = exec.output.next().await {}
}

#[test]
fn workers_of_the_kernel_do_not_preempt_while_output_flows() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        assert_eq!(guest.text(POLICIES).await.trim(), USUAL);
        let mut request = shell("exec yes");
        request.stdin = Stdin::Stream;
        request.tty = Some(Tty { rows: 24, cols: 80, term: String::new() });
        let mut flood = guest.link.exec(request).await.expect("it starts");
        tokio::select! {
            () = drain(&mut flood) => panic!("`yes` ended"),
            () = async { while !guest.text(POLICIES).await.contains(BATCH) {} } => {}
        }
        drop(flood);
        while guest.text(POLICIES).await.trim() != USUAL {}
    });
}
