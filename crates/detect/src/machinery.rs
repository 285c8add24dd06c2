//! Tables of functions that are not blamed for a report, and of those that give a hang its name.
//!
//! In an entry, `*` at the start or the end stands for any text. The tables are in groups by what the functions do. A
//! function belongs in a table if a report in which it is the innermost frame says nothing about it: it noticed the
//! error, it printed the report, or it did to its arguments what its caller asked for.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

/// A table that is searched in one pass over a name, regardless of the number of its entries.
#[derive(Debug)]
pub(crate) struct Names {
    entries: Vec<Entry>,
    matcher: AhoCorasick,
}

#[derive(Debug)]
struct Entry {
    at_start: bool,
    at_end: bool,
}

impl Names {
    fn new(table: &[&str]) -> Self {
        let entries =
            table.iter().map(|entry| Entry { at_start: !entry.starts_with('*'), at_end: !entry.ends_with('*') });
        let literals = table.iter().map(|entry| entry.trim_matches('*'));
        Self { entries: entries.collect(), matcher: AhoCorasick::new(literals).expect("the tables are small") }
    }

    /// Whether an entry matches `name`.
    pub(crate) fn contain(&self, name: &str) -> bool {
        self.matcher.find_overlapping_iter(name).any(|found| {
            let entry = &self.entries[found.pattern().as_usize()];
            (!entry.at_start || found.start() == 0) && (!entry.at_end || found.end() == name.len())
        })
    }
}

/// Whether one entry of a short table matches `name`.
pub(crate) fn listed(table: &[&str], name: &str) -> bool {
    table.iter().any(|entry| match (entry.strip_prefix('*'), entry.strip_suffix('*')) {
        (Some(rest), Some(_)) => name.contains(rest.trim_end_matches('*')),
        (Some(end), _) => name.ends_with(end),
        (_, Some(start)) => name.starts_with(start),
        _ => name == *entry,
    })
}

/// Never blamed.
pub(crate) static MACHINERY: LazyLock<Names> = LazyLock::new(|| Names::new(MACHINERY_TABLE));
/// The callers of what a CPU does: system calls, softirqs, timers, work. A function above one of them is the operation
/// in which the CPU is.
pub(crate) static DISPATCHERS: LazyLock<Names> = LazyLock::new(|| Names::new(DISPATCHERS_TABLE));
/// Where tasks wait.
pub(crate) static WAITING: LazyLock<Names> = LazyLock::new(|| Names::new(WAITING_TABLE));

#[rustfmt::skip]
const MACHINERY_TABLE: &[&str] = &[
    // Traps on their way to a report.
    "exc_*", "asm_exc_*", "*do_error*", "*do_trap*", "*_trap", "invalid_op", "*do_invalid_op*", "*fixup_bug*", "handle_bug", "*report_bug*",
    "*program_check_exception*", "*program_check_common*", "*do_kernel_fault*", "*do_translation_fault*", "*do_mem_abort*",
    "*el1_abort*", "*el1h_64_sync*", "bug_handler", "call_break_hook", "brk_handler", "do_debug_exception", "el1_dbg",
    // Printing it.
    "*panic*", "*__warn*", "*warn_slowpath*", "*warn_alloc*", "*warn_bogus*", "*print_report*", "*print_address_description*",
    "*print_usage_bug*", "*print_unlock*", "*imbalance_bug*", "*print_tainted*", "get_taint", "*show_stack*", "*dump_stack*",
    "*walk_stack*", "*dump_backtrace*", "*stack_trace_save*", "*stack_trace_consume_entry*", "*arch_stack_walk*", "*assertfail*",
    "*__fortify_report*", "*print_hex_dump*", "*hex_dump_to_buffer*", "*rust_begin_unwind", "rust_helper_BUG",
    // Formatting of messages.
    "*printk*", "*string*", "*pointer*", "*snprintf*", "*scnprintf*", "*kasprintf*", "*kvasprintf*", "*va_format*", "*dev_info*",
    "*dev_notice*", "*dev_warn*", "*dev_err*", "*dev_alert*", "*dev_crit*", "*dev_emerg*", "*add_uevent_var*",
    // Sanitizers and checks.
    "*kasan*", "*hwasan*", "*__asan*", "*kmsan*", "*__msan*", "*__sanitizer*", "*kcsan_setup_watchpoint*", "*check_memory_region*",
    "*check_heap_object*", "*check_object*", "*debug_object*", "*timer_is_static_object*", "*work_is_static_object*",
    "*might_fault*", "*might_sleep*", "*__might_resched*", "*__phys_addr*", "*perf_trace*",
    // Memory that is moved, compared or read for a caller.
    "*memcpy*", "*memcmp*", "*memset*", "*memchr*", "*memmove*", "*memdup*", "*strcmp*", "*strncmp*", "*strcpy*", "*strlcpy*",
    "*strncpy*", "*strscpy*", "*strlen*", "*strstr*", "*strnstr*", "*strnlen*", "*strchr*", "*strdup*", "*strndup*",
    "*copy_to_user*", "*copy_from_user*", "*copy_to_iter*", "*copy_from_iter*", "*copy_page_to_iter*", "*copy_page_from_iter*",
    "*copy_folio_to_iter*", "copyin", "copyout", "*copy_overflow*", "*put_user*", "*get_user*", "*extract_user_to_sg*", "*extract_iter_to_sg*",
    "*read_word_at_a_time*", "*read_once_word_nocheck*", "*read_once_size_nocheck*", "*write_once_word_nocheck*",
    "*write_once_size_nocheck*", "*readb", "*readw", "*readl", "*readq", "*writeb", "*writew", "*writel", "*writeq",
    "*logic_in*", "*logic_out*", "*crc_itu_t*", "crc4*", "crc7*", "crc8*", "crc16*", "crc32*", "crc64*", "crc_t10*",
    // Counts, bits, lists and trees.
    "*atomic_dec*", "*atomic_inc*", "*atomic_read*", "*atomic_set*", "*atomic_or*", "*atomic_xor*", "*atomic_and*", "*atomic_add*",
    "*atomic_sub*", "*atomic_fetch*", "*atomic_xchg*", "*atomic_cmpxchg*", "*atomic_try*", "*atomic64_dec*", "*atomic64_inc*",
    "*atomic64_read*", "*atomic64_set*", "*atomic64_or*", "*atomic64_xor*", "*atomic64_and*", "*atomic64_add*", "*atomic64_sub*",
    "*atomic64_fetch*", "*atomic64_xchg*", "*atomic64_cmpxchg*", "*atomic64_try*", "*set_bit*", "*clear_bit*", "*change_bit*",
    "*test_bit*", "refcount_*", "__refcount_*", "kref_*", "*ref_tracker*", "*list_add*", "*list_del*", "*list_replace*", "*list_move*",
    "*list_splice*", "klist_*", "rb_*", "__rb_*", "*xas_start*", "*xas_load*", "*xas_find*", "*rhashtable_lookup*", "*ida_free*",
    "*seqprop_assert*",
    // Memory that is allocated or freed for a caller.
    "*alloc_page*", "*malloc*", "*zalloc*", "*calloc*", "*krealloc*", "*kmem_cache*", "*allocate_slab*", "*slab_*",
    "*__alloc_frozen_pages_noprof*", "*folio_alloc*", "*folio_unlock*", "*filemap_alloc_folio*", "*__filemap_get_folio*",
    "*find_or_create_page*", "*do_read_cache_folio*", "*read_cache_page*", "*pagecache_get_page*",
    "*grab_cache_page_write_begin*", "*find_lock_entries*", "*truncate_inode_pages_range*", "kfree", "kvfree", "*kfree_skb*",
    // Locks, and the checks of locks.
    "*lockdep*", "*lock_acquire*", "*lock_release*", "*lock_class*", "*mark_lock*", "*reacquire_held_locks*", "*mark_held_locks*",
    "*trace_hardirq*", "*trace_softirq*", "*bh_enable*", "*bh_disable*", "*raw_spin_rq*", "*spin_lock*", "*spin_trylock*",
    "*spin_unlock*", "*read_lock*", "*read_trylock*", "*read_unlock*", "*write_lock*", "*write_trylock*", "*write_unlock*", "down",
    "*down_read*", "*down_write*", "*down_trylock*", "*up_read*", "*up_write*", "mutex_*", "__mutex_*", "rt_mutex_*",
    "*owner_on_cpu*", "*osq_lock*", "*osq_unlock*", "lock_page*", "unlock_page*", "*__wake_up*", "complete",
    "*wait_for_completion*", "*finish_wait*",
    // Work, timers and threads that are started, stopped or waited for.
    "*del_timer*", "*__mod_timer*", "*lock_timer_base*", "*__timer_delete_sync*", "*sk_stop_timer_sync*", "*flush_work*",
    "*__cancel_work_timer*", "*cancel_work_sync*", "*try_to_grab_pending*", "*drain_workqueue*", "*destroy_workqueue*",
    "*queue_work*", "*insert_work*", "*__queue_delayed_work*", "*queue_delayed_work_on*", "*kthread_stop*",
    "*cleanup_srcu_struct*",
    // Objects of the driver model that are removed: their driver is to blame.
    "*kobject_*", "*get_device_parent*", "*device_add*", "*device_del*", "*device_unregister*", "*device_destroy*",
    "*device_release*", "*device_for_each_child*", "*device_remove_file*", "put_device", "*devres_release_all*", "*sysfs_remove*",
    "*hwrng_unregister*", "*i2c_del_adapter*", "*__unregister_client*", "*rollback_registered*", "*unregister_netdev*",
    "*tty_unregister_device*", "*dummy_urb_enqueue*", "*usb_kill_urb*", "*usb_kill_anchored_urbs*", "*usb_control_msg*",
    "*usb_hcd_submit_urb*", "*usb_submit_urb*",
    // Inodes and names that are released.
    "iput", "iput_final", "ihold", "*drop_nlink*", "*dput*",
    // Glue of compilers and architectures.
    "*_indirect_thunk_*",
];

#[rustfmt::skip]
const DISPATCHERS_TABLE: &[&str] = &[
    // System calls.
    "*do_syscall_*", "*do_fast_syscall_*", "*sysenter_dispatch*", "*tracesys_phase2*", "*el0_svc_handler*", "*invoke_syscall*",
    "*ret_fast_syscall*", "*exit_to_usermode*", "*task_work_run*", "*__fput*",
    // System calls that lead to one of many operations: the operation names the hang.
    "*vfs_write*", "*vfs_read*", "*vfs_iter_read*", "*vfs_iter_write*", "*do_iter_read*", "*do_iter_write*", "*call_read_iter*",
    "*call_write_iter*", "*new_sync_read*", "*new_sync_write*", "*vfs_ioctl*", "*ksys_ioctl*", "*compat_ioctl*",
    "*compat_sys_ioctl*", "*blkdev_driver_ioctl*", "*blkdev_ioctl*", "call_mmap*", "*mmap_region*", "*do_mmap*",
    "*do_dentry_open*", "*vfs_open*", "sock_sendmsg*", "sock_recvmsg*", "sock_release*", "__sock_release*", "setsockopt",
    "*kernel_setsockopt*", "*sock_common_setsockopt*", "listen", "*kernel_listen*", "*sk_common_release*", "sock_mmap*", "accept",
    "*kernel_accept*", "sock_do_ioctl*", "sock_ioctl*", "compat_sock_ioctl*", "nfnetlink_rcv_msg*", "rtnetlink_rcv_msg*",
    "netlink_dump*", "socketpair*", "connect*", "ioctl*", "sys_socketpair*", "sys_connect*", "sys_ioctl*",
    // Faults.
    "*__do_fault*", "*do_page_fault*", "page_fault",
    // Interrupts, timers, threads and work.
    "*netif_receive_skb*", "*do_softirq*", "*call_timer_fn*", "*_run_timers*", "*run_timer_softirq*", "*hrtimer_run*",
    "*run_ksoftirqd*", "*tasklet_action*", "*tasklet_hi_action*", "*smp_call_function*", "*smpboot_thread_fn*", "kthread",
    "*process_one_work*", "*start_secondary*", "*cpu_startup_entry*", "*ret_from_fork*",
];

#[rustfmt::skip]
const WAITING_TABLE: &[&str] = &[
    "*sched*", "*_lock*", "*_slowlock*", "*down*", "*rwsem*", "*completion*", "*kthread*", "*wait*", "*synchronize*",
    "*context_switch*", "*__switch_to*", "*cancel_delayed_work*", "*rcu_barrier*",
];

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [&str; 5] = ["start_*", "*_end", "*anywhere*", "whole", "start"];

    #[test]
    fn a_star_stands_for_any_text() {
        let names = Names::new(&TABLE);
        for (name, is_listed) in [
            ("start_of", true),
            ("a_start_of", false),
            ("the_end", true),
            ("the_ends", false),
            ("is_anywhere_in", true),
            ("whole", true),
            ("wholes", false),
            ("start", true),
            ("", false),
        ] {
            assert_eq!(names.contain(name), is_listed, "{name}");
            assert_eq!(listed(&TABLE, name), is_listed, "{name}");
        }
    }

    #[test]
    fn both_ways_to_search_a_table_agree() {
        for table in [MACHINERY_TABLE, DISPATCHERS_TABLE, WAITING_TABLE] {
            let names = Names::new(table);
            for name in MACHINERY_TABLE.iter().chain(DISPATCHERS_TABLE).map(|entry| entry.replace('*', "x")) {
                assert_eq!(names.contain(&name), listed(table, &name), "{name}");
            }
        }
    }
}
