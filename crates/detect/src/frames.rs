//! Stack frames: how they are read from a line, how names are made canonical, and which frame is blamed.
//!
//! A report is blamed on the innermost function that did something wrong. The innermost frames are mostly not that
//! function: they are the code that noticed (a sanitizer, a trap handler), that prints the report, or that did as it
//! was called to do (`memcpy`, a list helper, a lock). The tables at the end of this file list those functions, and the
//! first frame that isn't listed is blamed. So the title of a finding names `ext4_xattr_set` and not `kasan_report`,
//! and it stays the same if a compiler inlines one of the helpers.

/// Which functions may be blamed for a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The first frame that is not machinery.
    Trace,
    /// Like `Trace`, but functions that wait or lock are skipped too: their caller is blamed.
    Waiter,
    /// The entry point into the kernel. A CPU in an endless loop is interrupted anywhere in that loop, so the innermost
    /// frames differ each time and only the entry point is stable.
    Entry,
    /// The function after `at:` in a description of locks.
    LockSite,
    /// Like `Trace`, but functions that allocate are skipped too.
    Allocation,
}

/// A function on a stack, and how it was found there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// The name as printed, without offset.
    pub(crate) symbol: &'a str,
    /// How certain it is that this function had been called.
    pub(crate) place: Place,
}

/// Where a frame was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the program counter: it was running.
    Counter,
    /// In the chain of calls.
    Stack,
    /// Somewhere in the stack's memory, marked by the kernel with `?`. It may be left over from an earlier call.
    Doubtful,
}

/// Reads a line of a stack trace, or a line with the program counter.
pub(crate) fn frame(line: &str) -> Option<Frame<'_>> {
    let text = line.trim();
    let counter = PROGRAM_COUNTERS.iter().find_map(|start| text.strip_prefix(start));
    let text = without_addresses(counter.unwrap_or(text));
    let (place, text) = match (counter, text.strip_prefix("? ")) {
        (Some(_), _) => (Place::Counter, text),
        (None, Some(text)) => (Place::Doubtful, without_addresses(text)),
        (None, None) => (Place::Stack, text),
    };
    let symbol = called_from(text).or_else(|| with_offset(text)).or_else(|| inlined(text))?;
    Some(Frame { symbol, place })
}

/// The function in `frames` that is blamed. The innermost frame is first.
pub(crate) fn blamed(blame: Blame, frames: &[&str]) -> Option<String> {
    let outside =
        |machinery: &[&[&str]]| frames.iter().copied().find(|name| !machinery.iter().any(|list| listed(list, name)));
    let found = match blame {
        Blame::Trace | Blame::LockSite => outside(&[MACHINERY]),
        Blame::Waiter => outside(&[MACHINERY, WAITING]),
        Blame::Allocation => outside(&[MACHINERY, ALLOCATING]),
        Blame::Entry => {
            let entry = frames.iter().copied().find(|name| listed(ENTRIES, name));
            entry.or_else(|| outside(&[MACHINERY, WAITING, INTERRUPTS]))
        }
    };
    found.map(|name| if name.starts_with("smp_call_function") { "smp_call_function" } else { name }.to_owned())
}

/// A function's name without what a compiler or an architecture adds to it.
///
/// `foo.isra.3.part.4` and `foo.cold` are `foo`; `__x64_sys_open` and `SyS_open` are `sys_open`.
pub(crate) fn canonical(symbol: &str) -> String {
    let name = symbol.trim_start_matches('.');
    let name = name.split_once('.').filter(|(name, _)| !name.starts_with('<')).map_or(name, |(name, _)| name);
    SYSTEM_CALLS
        .iter()
        .find_map(|start| name.strip_prefix(start))
        .map_or_else(|| name.to_owned(), |call| format!("sys_{call}"))
}

/// The function in the text of a heading's hole: `foo+0x1/0x2 [module]`, `fs/file.c:12 foo+0x1/0x2()`.
pub(crate) fn named(text: &str) -> Option<String> {
    let word = text.split_whitespace().find_map(|word| with_offset(without_addresses(word)));
    let is_address = |text: &str| text.len() >= 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let alone = || Some(text.trim()).filter(|text| is_symbol(text) && !is_address(text));
    word.or_else(alone).map(canonical)
}

/// Removes the addresses before a function's name: `[<ffffffff81d91389>] `, also twice, also `[c0001234] `.
fn without_addresses(text: &str) -> &str {
    let mut rest = text.trim_start_matches("([<");
    if rest.len() < text.len() {
        rest = &text[1..];
    }
    loop {
        let Some((address, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else { return rest };
        let digits = address.trim_start_matches('<').trim_end_matches('>');
        if digits.len() < 8 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return rest;
        }
        rest = after.trim_start();
    }
}

/// `foo+0x1f/0x200`
fn with_offset(text: &str) -> Option<&str> {
    let (symbol, offset) = text.split_once("+0x")?;
    let size = offset.trim_start_matches(|digit: char| digit.is_ascii_hexdigit());
    (size.starts_with("/0x") && is_symbol(symbol)).then_some(symbol)
}

/// `foo lib/foo.c:77 [inline]`
fn inlined(text: &str) -> Option<&str> {
    let (symbol, place) = text.strip_suffix(" [inline]")?.split_once(' ')?;
    (is_symbol(symbol) && place.contains(':')).then_some(symbol)
}

/// 32-bit ARM: `(foo) from [<8010e300>] (bar+0x18/0x1c)` and ` foo from bar+0x18/0x1c`.
fn called_from(text: &str) -> Option<&str> {
    let (callee, _) = text.split_once(" from ")?;
    let callee = callee.trim_start_matches('(').trim_end_matches(')');
    let callee = callee.split_once("+0x").map_or(callee, |(callee, _)| callee);
    is_symbol(callee).then_some(callee)
}

/// Whether `text` is the name of a C or Rust function, mangled or not: `<rust_binder::Process>::update_ref`.
fn is_symbol(text: &str) -> bool {
    let of_c = |byte: u8| byte.is_ascii_alphanumeric() || b"_.$".contains(&byte);
    let of_rust = |byte: u8| of_c(byte) || b"<>:, &[]()".contains(&byte);
    match text.as_bytes() {
        [] | [b'0'..=b'9', ..] => false,
        [b'<', ..] => text.contains("::") && text.bytes().all(of_rust),
        bytes => bytes.iter().all(|&byte| of_c(byte) || byte == b':'),
    }
}

/// Whether `name` matches an entry of `list`. A `*` at the start or end of an entry matches any text there.
fn listed(list: &[&str], name: &str) -> bool {
    list.iter().any(|entry| match (entry.strip_prefix('*'), entry.strip_suffix('*')) {
        (Some(rest), Some(_)) => name.contains(rest.trim_end_matches('*')),
        (Some(end), _) => name.ends_with(end),
        (_, Some(start)) => name.starts_with(start),
        _ => name == *entry,
    })
}

/// The text before the name of the function that was running, by architecture.
const PROGRAM_COUNTERS: &[&str] =
    &["RIP: 0010:", "RIP: e030:", "RIP: ", "EIP: 0060:", "EIP: ", "PC is at ", "pc : ", "epc : ", "NIP "];

const SYSTEM_CALLS: &[&str] = &[
    "__x64_sys_",
    "__ia32_sys_",
    "__arm64_sys_",
    "__riscv_sys_",
    "__s390x_sys_",
    "__se_sys_",
    "__do_sys_",
    "__ia32_compat_sys_",
    "__x64_compat_sys_",
    "__arm64_compat_sys_",
    "__se_compat_sys_",
    "__do_compat_sys_",
    "compat_SyS_",
    "compat_SYSC_",
    "compat_sys_",
    "SyS_",
    "SYSC_",
    "ksys_",
];

/// Functions that notice, report, or only do what their caller requires. They are never blamed.
#[rustfmt::skip]
const MACHINERY: &[&str] = &[
    // Reports themselves.
    "dump_stack*", "__dump_stack", "show_stack*", "dump_backtrace*", "show_trace*", "unwind_backtrace", "panic*",
    "vpanic", "__warn*", "warn_slowpath*", "report_bug", "__report_bug", "report_bug_entry", "fixup_bug*", "handle_bug",
    "die", "__die*", "die_*", "oops_*", "page_fault_oops", "no_context", "bad_area*", "__bad_area*", "mm_fault_error",
    "rust_begin_unwind", "rust_helper_BUG", "*rust_begin_unwind", "*panicking*", "__panic", "*_panic", "check_panic_on_warn", "assertfail",
    // Traps on their way in.
    "exc_*", "asm_exc_*", "do_error_trap", "do_trap*", "do_invalid_op", "invalid_op", "error_entry", "do_page_fault",
    "__do_page_fault", "page_fault", "async_page_fault", "do_async_page_fault", "do_user_addr_fault",
    "do_kern_addr_fault", "__do_kernel_fault*", "do_general_protection", "general_protection", "do_double_fault",
    "double_fault", "ret_from_exception", "brk_handler", "bug_handler", "call_break_hook", "do_debug_exception",
    "bug_brk_handler", "bug_brk", "el1*", "el0*", "do_mem_abort", "do_tag_check_fault", "program_check_*", "retint_*", "__x86_indirect_*", "do_translation_fault", "do_DataAbort",
    "do_PrefetchAbort", "__dabt_usr", "do_alignment*", "do_bad*", "__do_user_fault", "arm_notify_die", "fault_in_*",
    // Sanitizers.
    "kasan_*", "__kasan_*", "print_address_description*", "print_report*", "__asan_*", "__hwasan_*", "asan_*",
    "check_memory_region*", "describe_*", "end_report*", "object_err", "print_trailer", "kmsan_*", "__msan_*",
    "kcsan_*", "__kcsan_*", "__tsan_*", "ubsan_*", "__ubsan_*", "handle_overflow", "kfence_*", "__kfence_*",
    "__sanitizer_*", "__stack_chk_fail", "hwasan_*", "report_enabled", "save_stack*", "set_track*",
    // Memory that is moved, counted or compared on behalf of a caller.
    "memcpy*", "memset*", "memmove*", "memcmp*", "memchr*", "__mem*", "__pi_*", "__arch_*", "str*", "__str*",
    "copy_from_user*", "copy_to_user*", "_copy_*", "__copy_*", "copy_user_*", "copy_page_*", "rep_*", "instrument_*",
    "check_heap_object", "__check_heap_object", "__check_object_size", "usercopy_*", "check_object_size",
    "bitmap_*", "test_and_*", "_atomic_*", "crc_*", "stack_trace_*", "arch_stack_walk", "walk_stackframe", "unwind_next*",
    "logic_in*", "logic_out*", "should_fail*", "should_failslab", "__should_fail*", "fail_dump", "simple_copy_to_iter", "find_*_bit", "_find_*", "test_bit", "arch_test_bit", "arch_atomic*", "atomic*", "raw_atomic*",
    "__read_once*", "read_once*", "read_word_at_a_time", "csum_*", "do_csum", "crc32*", "__fortify_report", "fortify_panic",
    "sized_strscpy", "vsnprintf", "vscnprintf", "scnprintf", "snprintf", "sprintf", "string", "string_nocheck", "pointer", "seq_vprintf", "seq_printf",
    // Lists, trees and counts.
    "__list_*", "list_*", "hlist_*", "__hlist_*", "rb_*", "__rb_*", "llist_*", "plist_*", "refcount_*", "__refcount_*",
    "kref_*", "kobject_*", "ref_tracker_*", "klist_*", "__klist_*", "xas_*", "lib_ref*", "idr_*", "radix_tree_*",
    "kobj_*", "__kobject_*", "add_uevent_var", "percpu_ref_*", "sysfs_remove_*", "put_device", "get_device", "get_device_parent",
    "device_add", "device_del", "device_release", "device_unregister", "device_register", "dpm_sysfs_*", "usb_kill_urb",
    "skb_put", "skb_push", "drop_nlink", "mark_buffer_dirty", "fast_dput", "skb_over_panic", "skb_under_panic", "skb_panic",
    // Allocation and release of memory.
    "kmalloc*", "__kmalloc*", "___kmalloc*", "__do_kmalloc*", "kzalloc*", "kcalloc*", "krealloc*", "__krealloc*",
    "kmem_cache_*", "__kmem_cache_*", "kfree*", "__kfree*", "___cache_free", "kvmalloc*", "__kvmalloc*", "kvfree*",
    "kvzalloc*", "vmalloc*", "__vmalloc*", "vzalloc*", "vfree", "__vfree", "__vunmap", "alloc_pages*", "__alloc_pages*",
    "__alloc_frozen*", "get_page_from_freelist", "slab_*", "__slab_*", "___slab_*", "__get_free_pages", "cache_*",
    "__cache_*", "__free_slab", "free_large_kmalloc", "kmemdup*", "memdup_*", "check_slab", "free_debug_processing",
    "__free_pages*", "free_pages*", "alloc_slab_page", "allocate_slab", "new_slab*", "discard_slab", "free_unref_page*",
    "kmemleak_*", "create_object*", "__create_object", "__page_frag_*", "warn_alloc", "deactivate_slab",
    "post_alloc_hook", "prep_new_page", "do_slab_free", "memblock_*", "___free_*", "__alloc_*_noprof", "alloc_*_noprof",
    // Locks, and the checks of locks.
    "_raw_*", "__raw_*", "do_raw_*", "native_queued_*", "queued_*", "pv_queued_*", "__pv_*", "spin_*", "lock_acquire*",
    "__lock_acquire*", "lock_release*", "__lock_release*", "lock_is_held*", "lock_sock*", "mark_*lock*", "mark_held_locks",
    "mark_usage", "check_*lock*", "check_prev*", "check_wait_context*", "validate_chain*", "lockdep_*", "look_up_lock_class",
    "register_lock_class", "assign_lock_key", "print_*", "debug_*", "__debug_*", "spin_dump", "spin_bug", "rwlock_bug",
    "mutex_*", "__mutex_*", "rt_mutex_*", "down_*", "__down_*", "down", "up_*", "__up_*", "up", "rwsem_*", "reacquire_*",
    "trace_hardirqs_*", "trace_irq_*", "__trace_*", "warn_bogus_irq_restore", "_local_bh_*", "__local_bh_*", "ct_*",
    "local_bh_*", "___might_*", "__might_*", "might_*", "rcu_lockdep_*", "check_preemption_disabled", "add_chain_*",
    "__this_cpu_*", "__schedule_bug", "__static_call_*", "wake_up*", "__wake_up*", "try_to_wake_up", "percpu_down_*",
    "rcu_read_*", "rcu_is_watching", "lookup_chain_*", "usage_*", "valid_state*", "rwbase_*", "__rt_*", "rtlock_*",
    "rcu_dereference*", "__schedule", "schedule", "preempt_schedule*", "___preempt_*",
    "_cond_resched", "__cond_resched", "osq_*", "lock_timer_base", "folio_unlock", "kthread_stop", "wait_for_completion*",
    "add_wait_queue*", "prepare_to_wait*",
    "remove_wait_queue_locked", "finish_wait", "lock_*_nested", "hrtimer_*", "timer_*", "__mod_timer", "mod_timer*",
    "del_timer*", "__timer_*", "timerqueue_add", "try_invoke_on_locked_down_task",
    // Work that is queued or waited for.
    "__flush_work*", "flush_work*", "__cancel_work*", "cancel_work*", "cancel_delayed_work*", "__queue_work", "queue_work*",
    "__queue_delayed_work", "queue_delayed_work*", "flush_delayed_work", "__flush_workqueue", "flush_workqueue",
    "drain_workqueue", "destroy_workqueue", "start_flush_work", "insert_work", "del_timer_sync", "cancel_*_sync",
    "devres_release_*", "sysfs_*", "__sysfs_*", "device_remove_*",
    // Tracing and entry glue.
    "ftrace_*", "__switch_to*", "asm_common_interrupt", "ret_from_fork*", "entry_*", "do_syscall_*", "kthread",
    "do_fast_syscall_*", "do_int80_*", "common_interrupt", "irq_enter*", "<*",
];

/// Functions in which a task waits.
#[rustfmt::skip]
const WAITING: &[&str] = &[
    "schedule*", "__schedule*", "io_schedule*", "context_switch", "wait_*", "__wait_*", "do_wait_*", "___wait_*",
    "bit_wait*", "__bit_wait*", "out_of_line_wait_*", "folio_wait_*", "__lock_page*", "lock_page*", "__folio_lock*",
    "folio_lock*", "rwsem_*", "__rwsem_*", "percpu_*", "__percpu_*", "sleep_on_*", "usleep_*", "msleep*", "blk_execute_*",
    "do_sleep_*", "freezable_*", "swait_*", "synchronize_rcu_expedited_wait*", "rpc_wait_*", "_synchronize_rcu*",
    "autoremove_*", "wait", "__synchronize_*", "synchronize_sched*", "wait_rcu_gp", "__wait_rcu_gp", "jbd2_log_wait_*",
    "lock_sock_*", "__lock_sock*", "sched_*", "rcu_barrier*", "call_rwsem_*", "__down", "__down_*",
    "__filemap_fdatawait*", "filemap_fdatawait*", "do_read_cache_*",
];

/// Functions between an interrupt and the code that it interrupted.
#[rustfmt::skip]
const INTERRUPTS: &[&str] = &[
    "nmi_*", "arch_trigger_*", "rcu_*", "check_cpu_stall*", "print_cpu_stall*", "sched_*", "update_process_times",
    "tick_*", "__hrtimer_*", "hrtimer_*", "__run_hrtimer", "*apic_timer_interrupt", "*sysvec_*", "local_apic_*",
    "smp_apic_*", "trigger_*", "__rcu_*", "asm_call_*", "watchdog*", "__irqentry_*", "irq_exit*", "__do_softirq",
    "do_softirq*", "invoke_softirq", "handle_softirqs", "run_ksoftirqd", "native_*", "__intel_*", "perf_*", "end_repeat_nmi",
    "default_do_nmi", "do_nmi", "nmi", "asm_*", "kasan*", "ktime_*", "arch_*", "idle_*", "cpu_*", "do_idle", "default_idle*",
    "secondary_startup*", "start_secondary", "x86_64_start_*", "start_kernel", "rest_init", "csd_*", "flush_tlb_*",
    "on_each_cpu*", "smpboot_*", "pv_*", "kvm_*steal*", "kvm_wait*", "__x86_*", "timekeeping_*", "tasklet_*",
];

/// Functions that allocate on behalf of a caller.
const ALLOCATING: &[&str] = &["*alloc*", "idr_*", "pcpu_*", "__kernfs_new_node_*", "__get_*"];

/// Entry points into the kernel: the level at which an endless loop has a stable name.
#[rustfmt::skip]
const ENTRIES: &[&str] = &[
    "smp_call_function*", "sys_*", "*_ioctl", "*_sendmsg", "*_recvmsg", "*_rcv", "*_read_iter", "*_write_iter", "*_writepages",
    "*_write", "*_timer_handler", "*_thread", "*_worker", "*_workfn", "*_newlink", "*_mount", "*_fill_super",
    "*_tasklet_handler", "*_heartbeat_event", "*_join_timer_arm", "br_handle_frame", "__cleanup_mnt", "*_evict_inode",
    "*_release", "*_poll", "*_uadd", "*_getgen",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(line: &str) -> Option<&str> {
        frame(line).map(|frame| frame.symbol)
    }

    #[test]
    fn frames_of_every_architecture_are_read() {
        for line in [
            " foo+0x194/0x24d",
            "  [<ffffffff81d91389>] foo+0xc1/0x128",
            " [<ffffffff81d91389>] [<ffffffff81d91389>] foo+0xc1/0x128 [module]",
            "RIP: 0010:foo+0x1/0x2",
            "RIP: 0010:[<ffffffff81d91389>]  [<ffffffff81d91389>] foo+0x1/0x2",
            "PC is at foo+0x1/0x2",
            "pc : foo+0x1/0x2",
            "[<8010e300>] (foo) from [<8010e300>] (bar+0x18/0x1c)",
            " foo from bar+0x18/0x1c",
            "[c000000001234560] [c000000001234560] foo+0x18/0x1c",
            "([<000000000011324e>] foo+0x1/0x2)",
            " foo lib/foo.c:77 [inline]",
            " foo+0x172/0x1f0 lib/foo.c:113",
        ] {
            assert_eq!(symbol(line), Some("foo"), "{line}");
        }
    }

    #[test]
    fn other_lines_are_not_frames() {
        for line in
            ["RIP: 0033:0x45c1d9", "RIP: 0010:          (null)", "Call Trace:", "R13: 0+0x1", "LR is at foo+0x1/0x2"]
        {
            assert_eq!(symbol(line), None, "{line}");
        }
    }

    #[test]
    fn a_frame_with_a_question_mark_is_doubtful() {
        assert_eq!(frame(" ? foo+0x1/0x2"), Some(Frame { symbol: "foo", place: Place::Doubtful }));
        assert_eq!(frame(" [<ffffffff81d91389>] ? foo+0x1/0x2"), Some(Frame { symbol: "foo", place: Place::Doubtful }));
    }

    #[test]
    fn additions_of_compilers_and_architectures_are_removed_from_names() {
        assert_eq!(canonical("check_cpu_stall.isra.63.part.1"), "check_cpu_stall");
        assert_eq!(canonical("foo.cold"), "foo");
        assert_eq!(canonical(".foo"), "foo");
        assert_eq!(canonical("__x64_sys_rmdir"), "sys_rmdir");
        assert_eq!(canonical("SyS_rmdir"), "sys_rmdir");
        assert_eq!(canonical("<a::B>::c"), "<a::B>::c");
    }

    #[test]
    fn a_function_in_a_heading_is_read_with_or_without_its_offset() {
        assert_eq!(named("fs/file.c:12 foo.part.1+0x1/0x2()").as_deref(), Some("foo"));
        assert_eq!(named("foo+0x1/0x2 [mod]").as_deref(), Some("foo"));
        assert_eq!(named("foo ").as_deref(), Some("foo"));
        assert_eq!(named("ffffffff8343632e"), None);
        assert_eq!(named("at 0x1234, CPU#1"), None);
        assert_eq!(named("0x1234"), None);
    }

    #[test]
    fn the_first_frame_that_is_not_machinery_is_blamed() {
        let frames = ["dump_stack", "kasan_report", "__mutex_lock", "wait_for_x", "ext4_fill_super", "sys_mount"];
        assert_eq!(blamed(Blame::Trace, &frames).as_deref(), Some("wait_for_x"));
        assert_eq!(blamed(Blame::Waiter, &frames).as_deref(), Some("ext4_fill_super"));
        assert_eq!(blamed(Blame::Entry, &frames).as_deref(), Some("ext4_fill_super"));
        assert_eq!(blamed(Blame::Trace, &frames[..2]), None);
    }
}
