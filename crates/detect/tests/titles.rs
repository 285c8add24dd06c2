//! The rules of titles, one short report for each: which function is blamed, when a report is corrupted, and what the
//! type and the alternatives are.

use kiln_detect::{Finding, SavedLog};

/// The findings of a log, in the order of their rows.
fn scan(log: &str) -> Vec<Finding> {
    let mut saved = SavedLog::new();
    let mut findings = saved.push(log.as_bytes());
    findings.extend(saved.finish());
    findings.sort_by_key(|finding| finding.row);
    findings
}

/// The first finding: its title, its type and whether it is corrupted.
fn gist(log: &str) -> String {
    let findings = scan(log);
    let first = findings.first().unwrap_or_else(|| panic!("nothing found in {log}"));
    format!("{} | {}{}", first.title, first.crash_type, if first.corrupted { " | corrupted" } else { "" })
}

fn alternatives(log: &str) -> Vec<String> {
    scan(log).swap_remove(0).alternatives
}

#[test]
fn sanitizers_name_the_error_and_the_access() {
    let kasan = "BUG: KASAN: slab-out-of-bounds in memcpy+0x1/0x2\nWrite of size 8 at addr ffff88002db3cf50 by task a/1\n\
                 Call Trace:\n dump_stack+0x1/0x2\n ? kasan_report+0x1/0x2\n memcpy+0x1/0x2\n guilty.part.2+0x1/0x2\n";
    assert_eq!(gist(kasan), "KASAN: slab-out-of-bounds Write in guilty | KASAN-WRITE");
    assert_eq!(alternatives(kasan), ["bad-access in guilty"]);
    let cut = "BUG: KASAN: slab-out-of-bounds in f+0x1/0x2 at addr ffff88002db3cf50\n";
    assert_eq!(gist(cut), "KASAN: slab-out-of-bounds in f at addr ADDR | KASAN-READ | corrupted");
    let twice = "BUG: KASAN: double-free in slab_free+0x1/0x2\nCall Trace:\n kfree+0x1/0x2\n f+0x1/0x2\n g+0x1/0x2\n";
    assert_eq!(gist(twice), "KASAN: invalid-free in f | KASAN-INVALID-FREE");
    let kfence = "BUG: KFENCE: use-after-free read in f+0x1/0x2\n f+0x1/0x2\n g+0x1/0x2\n";
    assert_eq!(gist(kfence), "KFENCE: use-after-free read in f | KFENCE-USE-AFTER-FREE-READ");
    let kcsan = "BUG: KCSAN: data-race in f+0x1/0x2 / g.isra.0+0x1/0x2\n";
    assert_eq!(gist(kcsan), "KCSAN: data-race in f / g | KCSAN-DATARACE");
    let ubsan = "UBSAN: array-index-out-of-bounds in fs/a.c:1:2\nCall Trace:\n dump_stack+0x1/0x2\n \
                 __ubsan_handle_out_of_bounds+0x1/0x2\n f+0x1/0x2\n";
    assert_eq!(gist(ubsan), "UBSAN: array-index-out-of-bounds in f | MEMORY_SAFETY_UBSAN");
}

#[test]
fn kmsan_needs_the_origin_of_the_value() {
    let kmsan = "BUG: KMSAN: uninit-value in crypto_f+0x1/0x2\n crypto_f+0x1/0x2\n user+0x1/0x2\n\n\
                 Uninit was created at:\n __kmalloc+0x1/0x2\n maker+0x1/0x2\n";
    assert_eq!(gist(kmsan), "KMSAN: uninit-value in user | KMSAN-UNINIT-VALUE");
    let cut = "BUG: KMSAN: uninit-value in f+0x1/0x2\n f+0x1/0x2\n g+0x1/0x2\n";
    assert_eq!(gist(cut), "KMSAN: uninit-value in f | KMSAN-UNINIT-VALUE | corrupted");
}

#[test]
fn a_report_without_a_trusted_frame_is_corrupted() {
    let warning = "WARNING: CPU: 0 PID: 1 at fs/a.c:1 f+0x1/0x2\nModules linked in:\n";
    assert_eq!(gist(warning), "WARNING in corrupted | WARNING | corrupted");
    let doubtful = "[    1.000000] BUG: sleeping function called from invalid context at a.c:1\n\
                    [    1.000000] Call Trace:\n[    1.000000]  ? f+0x1/0x2\n[    1.000000]  g+0x1/0x2 (unreliable)\n";
    assert!(gist(doubtful).ends_with(" in corrupted | ATOMIC_SLEEP | corrupted"));
    let injected = "BUG: sleeping function called from invalid context at a.c:1\nCall Trace:\n should_fail.cold+0x1/0x2\n \
                    f+0x1/0x2\n g+0x1/0x2\n";
    assert!(gist(injected).ends_with(" | corrupted"));
    let unfinished =
        "BUG: unable to handle kernel paging request at ffffe\nRIP: 0010:f+0x1/0x2\nCall Trace:\n f+0x1/0x2\n";
    assert_eq!(gist(unfinished), "BUG: unable to handle kernel paging request in f | MEMORY_SAFETY_BUG | corrupted");
    let half = "BUG: unable to handle kernel\n";
    assert_eq!(gist(half), "BUG: unable to handle kernel | UNKNOWN | corrupted");
}

#[test]
fn warnings_blame_the_caller_of_a_check() {
    let of = |place: &str, frames: &str| {
        format!(
            "WARNING: CPU: 0 PID: 1 at {place}+0x1/0x2\nRIP: 0010:{frames}\nCall Trace:\n end+0x1/0x2\n rest+0x1/0x2\n"
        )
    };
    for (place, frames, title) in [
        ("lib/refcount.c:1 refcount_warn_saturate", "refcount_warn_saturate+0x1/0x2", "WARNING: refcount bug in end"),
        ("lib/debugobjects.c:1 debug_print_object", "debug_print_object+0x1/0x2", "WARNING: ODEBUG bug in end"),
        ("mm/slab_common.c:1 kmalloc_slab", "kmalloc_slab+0x1/0x2", "WARNING: kmalloc bug in end"),
        ("drivers/usb/core/urb.c:1 usb_submit_urb", "usb_submit_urb+0x1/0x2", "WARNING in end/usb_submit_urb"),
        ("fs/proc/generic.c:1 proc_register", "proc_register+0x1/0x2", "WARNING: proc registration bug in end"),
        ("net/a.c:1 guilty", "guilty+0x1/0x2", "WARNING in guilty"),
    ] {
        assert!(gist(&of(place, frames)).starts_with(&format!("{title} | ")), "{place}");
    }
    let newer = "WARNING: net/a.c:1 at guilty+0x1/0x2, CPU#1: a/1\nRIP: 0010:guilty+0x1/0x2\nCall Trace:\n a+0x1/0x2\n b+0x1/0x2\n";
    assert_eq!(gist(newer), "WARNING in guilty | WARNING");
    let queue = "NETDEV WATCHDOG: eth0 (e1000): transmit queue 0 timed out\nWARNING: CPU: 0 PID: 1 at net/a.c:1 \
                 dev_watchdog+0x1/0x2\nRIP: 0010:dev_watchdog+0x1/0x2\nCall Trace:\n a+0x1/0x2\n b+0x1/0x2\n";
    assert_eq!(gist(queue), "WARNING in dev_watchdog | WARNING");
    let alone = "NETDEV WATCHDOG: eth0 (e1000): transmit queue 0 timed out\n";
    assert!(gist(alone).starts_with("NETDEV WATCHDOG: transmit queue timed out"));
}

#[test]
fn a_hang_has_the_name_of_what_the_cpu_or_task_does() {
    let soft = "watchdog: BUG: soft lockup - CPU#0 stuck for 22s!\nRIP: 0010:spin+0x1/0x2\nCall Trace:\n loop+0x1/0x2\n \
                __se_sys_rmdir+0x1/0x2\n do_syscall_64+0x1/0x2\n";
    assert_eq!(gist(soft), "BUG: soft lockup in rmdir | HANG");
    assert_eq!(
        alternatives(soft),
        [
            "stall in rmdir",
            "BUG: soft lockup in __se_sys_rmdir",
            "stall in __se_sys_rmdir",
            "BUG: soft lockup in sys_rmdir",
            "stall in sys_rmdir"
        ]
    );
    let calling = soft.replace("__se_sys_rmdir", "smp_call_function_many");
    assert_eq!(gist(&calling), "BUG: soft lockup in smp_call_function | HANG");
    let stall = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\nCall Trace:\n rcu_check+0x1/0x2\n \
                 asm_sysvec_apic_timer_interrupt+0x1/0x2\nRIP: 0010:spin+0x1/0x2\n ext4_file_read_iter+0x1/0x2\n vfs_read+0x1/0x2\n";
    assert_eq!(gist(stall), "INFO: rcu detected stall in ext4_file_read_iter | HANG");
    let hung = |frames: &str| {
        format!("INFO: task a:1 blocked for more than 120 seconds.\nCall Trace:\n schedule+0x1/0x2\n{frames}")
    };
    assert_eq!(gist(&hung(" mutex_lock+0x1/0x2\n f+0x1/0x2\n")), "INFO: task hung in f | HANG");
    assert_eq!(gist(&hung(" rtnl_lock+0x1/0x2\n f+0x1/0x2\n")), "INFO: task hung in rtnl_lock | HANG");
    assert_eq!(gist(&hung(" synchronize_net+0x1/0x2\n f+0x1/0x2\n")), "INFO: task hung in synchronize_rcu | HANG");
}

#[test]
fn a_deadlock_is_named_after_the_lock_that_is_wanted() {
    let site = "at: [<ffffffff8232bf0e>]";
    let circular = format!(
        "WARNING: possible circular locking dependency detected\na/1 is trying to acquire lock:\nff (a), {site} mutex_lock+0x1/0x2\n\
         but task is already holding lock:\nff (b), {site} other+0x1/0x2\nstack backtrace:\nCall Trace:\n f+0x1/0x2\n g+0x1/0x2\n"
    );
    assert_eq!(gist(&circular), "possible deadlock in other | LOCKDEP");
    let cut = "WARNING: possible circular locking dependency detected\n------\n";
    assert_eq!(gist(cut), "WARNING: possible circular locking dependency detected | WARNING | corrupted");
    let held = format!(
        "[ BUG: lock held when returning to user space! ]\na/1 is leaving the kernel with locks still held!\n #0: (a), {site} f+0x1/0x2\n"
    );
    assert_eq!(gist(&held), "BUG: lock held when returning to user space in f | UNKNOWN");
    let leaked = "BUG: workqueue leaked lock or atomic: kworker/1\n     last function: work_fn\n1 lock held\n";
    assert_eq!(gist(leaked), "BUG: workqueue leaked lock or atomic in work_fn | UNKNOWN");
}

#[test]
fn arm_riscv_and_powerpc_have_their_own_forms() {
    let arm64 = "Unable to handle kernel NULL pointer dereference at virtual address 0\npc : f+0x1/0x2\nlr : g+0x1/0x2\n\
                 Call trace:\n f+0x1/0x2\n g+0x1/0x2\n";
    assert!(gist(arm64).starts_with("BUG: unable to handle kernel NULL pointer dereference in f | NULL"));
    let arm = "Internal error: Oops: 5 [#1] SMP ARM\nPC is at f+0x1/0x2\nLR is at g+0x1/0x2\nBacktrace:\n\
               [<8010e300>] (f) from [<8010e300>] (g+0x18/0x1c)\n[<8010e300>] (g) from [<8010e300>] (h+0x18/0x1c)\n";
    assert_eq!(gist(arm), "Internal error in f | DoS");
    let riscv = "Unable to handle kernel paging request at virtual address 0000000000000008\nepc : f+0x1/0x2\n ra : g+0x1/0x2\n\
                 status: 0000000000000120 badaddr: 0000000000000008 cause: 000000000000000d\n[<ffffffff80001234>] f+0x1/0x2\n\
                 [<ffffffff80001234>] g+0x1/0x2\n";
    assert_eq!(gist(riscv), "BUG: unable to handle kernel paging request in f | MEMORY_SAFETY_BUG");
    let powerpc = "WARNING: CPU: 0 PID: 1 at mm/a.c:1 f+0x1/0x2\n--- interrupt: 700 at f+0x1/0x2\n[c000] [c001] g+0x1/0x2\n\
                   Call Trace:\n[c000] [c001] f+0x1/0x2\n[c000] [c001] g+0x1/0x2\n";
    assert_eq!(gist(powerpc), "WARNING in f | WARNING");
}

#[test]
fn functions_of_rust_are_demangled() {
    let panicked = "rust_kernel: panicked at drivers/a.rs:1:2:\nattempt to subtract with overflow\n\
                    kernel BUG at rust/helpers/bug.c:7!\nRIP: 0010:rust_helper_BUG+0x8/0x10\nCall Trace:\n\
                    _RNvCs1234_7___rustc17rust_begin_unwind+0x1/0x2\n _RNvNtCs1234_4core9panicking5panic+0x1/0x2\n \
                    _RNvNtCs1234_6binder4node6update+0x1/0x2\n rest+0x1/0x2\n";
    assert_eq!(gist(panicked), "attempt to subtract with overflow in binder::node::update | UNKNOWN");
}

#[test]
fn a_panic_repeats_the_report_before_it() {
    let lines: String = (0..30).map(|number| format!(" f{number}+0x1/0x2\n")).collect();
    let report = format!(
        "BUG: unable to handle kernel NULL pointer dereference at 0\nRIP: 0010:f+0x1/0x2\nCall Trace:\n{lines}"
    );
    let findings = scan(&format!("{report}Kernel panic - not syncing: Fatal exception\nCall Trace:\n"));
    assert_eq!(findings.len(), 1);
    assert!(!findings[0].corrupted, "the panic's own stack is not needed");
}

#[test]
fn a_lesser_finding_does_not_end_a_report() {
    let log = "[    1.000000] kernel BUG at fs/a.c:1!\n[    1.000001] a invoked oom-killer: gfp_mask=0x0\n\
               [    1.000002] RIP: 0010:f+0x1/0x2\n[    1.000003] Call Trace:\n[    1.000004]  f+0x1/0x2\n[    1.000005]  g+0x1/0x2\n";
    assert_eq!(gist(log), "kernel BUG in f | BUG");
}

#[test]
fn unknown_reports_are_found_in_lines_of_the_kernel() {
    assert_eq!(gist("[    1.000000] WARNING: foo 12\n"), "WARNING: foo NUM | WARNING");
    assert_eq!(gist("[    1.000000] INFO: foo\n"), "INFO: foo | UNKNOWN");
    assert_eq!(gist("[    1.000000] BUG: foo\n"), "BUG: foo | UNKNOWN");
    for quiet in [
        "WARNING: any program prints this\n",
        "[    1.000000] WARNING: SHOUTED BY A PROGRAM\n",
        "[    1.000000] INFO: lockdep is turned off.\n",
        "[    1.000000] EXT4-fs (vda1): INFO: recovery required on readonly filesystem\n",
        "[    1.000000] WARNING: the mand mount option is being deprecated and\n",
        "[    1.000000] ODEBUG: x\n[    1.000000] DEBUG: y\n",
    ] {
        assert_eq!(scan(quiet), [], "{quiet}");
    }
}

#[test]
fn a_fuzzer_that_fails_is_a_finding() {
    assert_eq!(gist("SYZFAIL: SIGSEGV\n"), "SYZFAIL: SIGSEGV | SYZ_FAILURE");
    let fatal = "2022/10/02 11:34:15 SYZFATAL: executor 4 failed 11 times\n";
    assert_eq!(gist(fatal), "SYZFATAL: executor NUM failed NUM times | SYZ_FAILURE");
    assert_eq!(alternatives(fatal), ["SYZFATAL"]);
    assert_eq!(scan("[    1.000000] usb 1-1: x\nSYZFAIL: SIGSEGV\n"), []);
}
