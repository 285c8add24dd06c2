//! The kernel's taint word: what the kernel remembers of what happened to it, in bits. It catches what a log hides.

/// The bits of `/proc/sys/kernel/tainted` that a test can set, by Documentation/admin-guide/tainted-kernels.rst.
const BITS: [(u32, &str); 18] = [
    (0, "a proprietary module was loaded"),
    (1, "a module was loaded by force"),
    (2, "the kernel runs on a system that is out of specification"),
    (3, "a module was unloaded by force"),
    (4, "a machine check occurred"),
    (5, "a bad page was found"),
    (6, "a program asked for taint"),
    (7, "the kernel died: an oops or BUG"),
    (8, "a table of ACPI was overridden"),
    (9, "a warning was issued"),
    (10, "a staging driver was loaded"),
    (11, "a workaround for firmware is active"),
    (12, "a module out of tree was loaded"),
    (13, "an unsigned module was loaded"),
    (14, "a soft lockup occurred"),
    (15, "the kernel was live patched"),
    (17, "the structure randomisation plugin was used"),
    (18, "an in-kernel test was run"),
];
/// Bits that say what was loaded or run, and not that something is wrong.
const HARMLESS: u64 = 1 << 0 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 18;

/// The word in the text of the file.
pub(super) fn parse(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// What is wrong since `before`, if anything.
pub(super) fn problem(before: u64, after: u64) -> Option<String> {
    let new = after & !before & !HARMLESS;
    if new == 0 {
        return None;
    }
    let named = BITS.iter().filter(|(bit, _)| new & (1 << bit) != 0).map(|(_, what)| *what);
    let mut what: Vec<_> = named.map(str::to_owned).collect();
    if what.is_empty() {
        what.push(format!("new bits {new:#x}"));
    }
    Some(format!("the kernel is tainted: {}", what.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_bits_that_mean_a_fault_are_a_problem() {
        assert_eq!(parse(b"512\n"), Some(512));
        assert_eq!(parse(b"x"), None);
        assert_eq!(problem(512, 512), None);
        assert_eq!(problem(0, 1 << 12), None, "a module of ours was loaded");
        assert_eq!(
            problem(0, 640).as_deref(),
            Some("the kernel is tainted: the kernel died: an oops or BUG, a warning was issued")
        );
        assert_eq!(problem(0, 1 << 40).as_deref(), Some("the kernel is tainted: new bits 0x10000000000"));
    }
}
