//! Functions in the lines of a report: stack frames, program counters, places where locks were taken.
//!
//! Only frames that are in the chain of calls count. A frame with `?` or `(unreliable)` may be left over from an
//! earlier call. A frame with `[inline]` was added by a program that symbolised the log: it has no address of its own,
//! and a title must not depend on whether the log was symbolised.

use std::borrow::Cow;

/// A function as the title names it, and as the log does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// The name without the prefixes of system calls; or a name for a group of functions.
    pub(crate) canonical: String,
    /// The name in the log, without suffixes of the compiler, and demangled.
    pub(crate) raw: String,
}

impl Function {
    pub(crate) fn new(raw: String) -> Self {
        Self { canonical: canonical(&raw).to_owned(), raw }
    }

    /// Other names of the function: with all or some of its prefixes.
    pub(crate) fn variants(&self) -> impl Iterator<Item = &str> {
        let stripped = CALL_PREFIXES.iter().filter_map(|prefix| self.raw.strip_prefix(prefix));
        std::iter::once(self.raw.as_str()).chain(stripped).filter(|name| !name.is_empty())
    }
}

/// The shortest name that is left without one of the prefixes that system calls have: `__se_sys_open` is `open`.
pub(crate) fn canonical(name: &str) -> &str {
    let stripped = CALL_PREFIXES.iter().filter_map(|prefix| name.strip_prefix(prefix)).filter(|name| !name.is_empty());
    stripped.min_by_key(|name| name.len()).unwrap_or(name)
}

/// Prefixes of system calls, by architecture, age and layer.
#[rustfmt::skip]
const CALL_PREFIXES: &[&str] = &[
    "sys_", "__sys_", "___sys_", "____sys_", "SyS_", "SYSC_", "compat_SyS_", "compat_SYSC_", "ksys_", "__se_", "__se_sys_",
    "__do_sys_", "__x64_", "__ia32_", "__arm64_",
];

/// The functions of a stack frame. A frame of 32-bit ARM names the caller too, and the innermost function is only there.
pub(crate) fn frame(line: &str) -> Option<(&str, Option<&str>)> {
    let text = line.trim_start_matches(' ');
    // s390 puts the innermost frame in parentheses.
    let text = text.strip_prefix('(').filter(|rest| rest.starts_with("[<")).unwrap_or(text);
    let after = without_addresses(text);
    if let Some(symbol) = symbol(after) {
        return Some((symbol, None));
    }
    // `[<8010e300>] (foo) from [<8010e300>] (bar+0x18/0x1c)`, `foo from bar+0x18/0x1c`
    let (callee, caller) = after.split_once(" from ")?;
    let callee = callee.trim_start_matches('(').trim_end_matches(')');
    let caller = symbol(without_addresses(caller).trim_start_matches('('))?;
    (!callee.is_empty() && callee.bytes().all(is_symbol_byte)).then_some((callee, Some(caller)))
}

/// Whether a line has the program counter, and the function there if it is one of the kernel.
pub(crate) fn counter(line: &str) -> Option<Option<&str>> {
    const MARKS: [&str; 4] = ["IP", "pc ", "PC is at", "ERA"];
    MARKS.iter().find_map(|mark| line.match_indices(mark).find_map(|(at, _)| pointed_to(&line[at + mark.len()..])))
}

/// What follows the name of the register with the program counter.
fn pointed_to(text: &str) -> Option<Option<&str>> {
    let text = text.strip_prefix(':').unwrap_or(text).strip_prefix(' ')?;
    let digits = text.bytes().take_while(u8::is_ascii_hexdigit).count();
    // A segment: `0010:foo+0x1/0x2`.
    let text = text[digits..].strip_prefix(':').filter(|_| digits > 0).unwrap_or(text);
    if let Some(symbol) = symbol(without_addresses(text)) {
        return Some(Some(symbol));
    }
    let is_number =
        text.strip_prefix("0x").is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_hexdigit()));
    (is_number || text.ends_with("(null)")).then_some(None)
}

/// PowerPC: `--- interrupt: 700 at foo+0x1/0x2`
pub(crate) fn interrupted(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("--- interrupt: ")?;
    symbol(rest.split_once(" at ")?.1)
}

/// `at: foo+0x1/0x2`, `at: [<ffffffff81d91389>] foo+0x1/0x2`
pub(crate) fn lock_site(line: &str) -> Option<&str> {
    line.match_indices("at: ").find_map(|(at, mark)| symbol(without_addresses(&line[at + mark.len()..])))
}

/// `[<ffffffff81d91389>] foo+0x1/0x2` anywhere in a line.
pub(crate) fn with_address(line: &str) -> Option<&str> {
    line.match_indices('[').find_map(|(at, _)| {
        let after = without_addresses(&line[at..]);
        if after.len() < line.len() - at { symbol(after) } else { None }
    })
}

/// The function in the text of a heading's hole: `foo+0x1/0x2 [module]`, `fs/file.c:12 foo+0x1/0x2()`.
pub(crate) fn named(text: &str) -> Option<&str> {
    text.split_whitespace().find_map(symbol)
}

/// A function's name as a title has it: demangled, without suffixes of the compiler (`.part.1`, `.cold`).
pub(crate) fn plain(symbol: &str) -> Cow<'_, str> {
    let symbol = symbol.trim_start_matches('.');
    if (symbol.starts_with("_R") || symbol.starts_with("_ZN"))
        && let Ok(demangled) = rustc_demangle::try_demangle(symbol)
    {
        // The alternate form leaves out hashes, which differ from build to build.
        let mut text = Bounded(String::new());
        return match std::fmt::write(&mut text, format_args!("{demangled:#}")) {
            Ok(()) => Cow::Owned(text.0),
            Err(_) => Cow::Borrowed(symbol),
        };
    }
    Cow::Borrowed(symbol.split_once('.').map_or(symbol, |(name, _)| name))
}

/// A string that refuses to grow without end: a mangled name can describe a text that is far longer than itself.
struct Bounded(String);

/// Bytes of a demangled name.
const DEMANGLED_BYTES_MAX: usize = 512;

impl std::fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if self.0.len() + text.len() > DEMANGLED_BYTES_MAX {
            return Err(std::fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Removes up to two addresses before a name, and the spaces after them: `[<ffffffff81d91389>] `, `[c0001234] `.
pub(crate) fn without_addresses(text: &str) -> &str {
    let mut rest = text;
    for _ in 0..2 {
        let Some((address, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else { break };
        let digits = address.trim_start_matches('<').trim_end_matches('>');
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) || !after.starts_with(' ') {
            break;
        }
        rest = after.trim_start_matches(' ');
    }
    rest
}

/// `foo+0x1f/0x200`, up to the offset. The size may be cut off.
fn symbol(text: &str) -> Option<&str> {
    let length = text.bytes().take_while(|byte| is_symbol_byte(*byte)).count();
    let is_offset = text[length..]
        .strip_prefix("+0x")
        .is_some_and(|offset| offset.starts_with(|digit: char| digit.is_ascii_hexdigit()));
    let symbol = &text[..length];
    // A name that begins with a digit is an address that lost its brackets.
    (is_offset && symbol.starts_with(|first: char| !first.is_ascii_digit())).then_some(symbol)
}

fn is_symbol_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.$".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_architecture_are_read() {
        for line in [
            " foo+0x194/0x24d",
            "  [<ffffffff81d91389>] foo+0xc1/0x128",
            " [<ffffffff81d91389>] [<ffffffff81d91389>] foo+0xc1/0x128 [module]",
            "[c000000001234560] [c000000001234560] foo+0x18/0x1c",
            "([<000000000011324e>] foo+0x1/0x2)",
            " foo+0x172/0x1f0 lib/foo.c:113",
            " foo+0x172",
        ] {
            assert_eq!(frame(line), Some(("foo", None)), "{line}");
        }
        for line in ["[<8010e300>] (foo) from [<8010e300>] (bar+0x18/0x1c)", " foo from bar+0x18/0x1c"] {
            assert_eq!(frame(line), Some(("foo", Some("bar"))), "{line}");
        }
    }

    #[test]
    fn other_lines_are_not_frames() {
        for line in [
            "Call Trace:",
            "R13: 0+0x1",
            " ? foo+0x1/0x2",
            " [<ffffffff81d91389>] ? foo+0x1/0x2",
            " foo lib/foo.c:77 [inline]",
            "LR is at foo+0x1/0x2",
            "ffff from x",
            "",
        ] {
            assert_eq!(frame(line), None, "{line}");
        }
    }

    #[test]
    fn program_counters_of_every_architecture_are_read() {
        for line in [
            "RIP: 0010:foo+0x1/0x2",
            "RIP: e030:foo+0x1/0x2",
            "RIP: 0010:[<ffffffff81d91389>]  [<ffffffff81d91389>] foo+0x1/0x2",
            "IP: [<ffffffff81d91389>] foo+0x1/0x2",
            "EIP: foo+0x1/0x2",
            "PC is at foo+0x1/0x2",
            "pc : foo+0x1/0x2",
            "epc : foo+0x1/0x2",
            "NIP [c000000000386f60] foo+0x1/0x2",
            "   ERA: 9000000000224e28 foo+0x1/0x2",
        ] {
            let line = line.replace("ERA: 9000000000224e28", "ERA: [<9000000000224e28>]");
            assert_eq!(counter(&line), Some(Some("foo")), "{line}");
        }
        for line in ["RIP: 0033:0x45c1d9", "RIP: 0010:          (null)", "IP: 0x0"] {
            assert_eq!(counter(line), Some(None), "{line}");
        }
        for line in
            ["pc : [<8010>]    lr : [<8010>]", "LR is at foo+0x1/0x2", "NIP:  c000000000386f60 LR: 0", "SKIP this"]
        {
            assert_eq!(counter(line), None, "{line}");
        }
    }

    #[test]
    fn additions_of_compilers_and_architectures_are_removed_from_names() {
        assert_eq!(plain("check_cpu_stall.isra.63.part.1"), "check_cpu_stall");
        assert_eq!(plain("foo.cold"), "foo");
        assert_eq!(plain(".foo"), "foo");
        for name in ["__se_sys_rmdir", "SyS_rmdir", "sys_rmdir", "__do_sys_rmdir", "rmdir"] {
            assert_eq!(canonical(name), "rmdir");
        }
        assert_eq!(canonical("__x64_sys_rmdir"), "sys_rmdir");
        let variants = |name: &str| Function::new(name.to_owned()).variants().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(variants("__se_sys_rmdir"), ["__se_sys_rmdir", "sys_rmdir", "rmdir"]);
        assert_eq!(variants("foo"), ["foo"]);
    }

    #[test]
    fn rust_names_are_demangled_without_hashes() {
        assert_eq!(plain("_RNvNtCs1234_4core9panicking5panic"), "core::panicking::panic");
        assert_eq!(plain("_ZN4core9panicking5panic17h0123456789abcdefE"), "core::panicking::panic");
        assert_eq!(plain("_Rust_but_not_mangled.cold"), "_Rust_but_not_mangled");
    }

    #[test]
    fn functions_are_found_within_lines() {
        assert_eq!(named("fs/file.c:12 foo.part.1+0x1/0x2()"), Some("foo.part.1"));
        assert_eq!(named("at 0x1234, CPU#1"), None);
        assert_eq!(lock_site(" (&x){+.+.}, at: [<ffffffff81938722>] foo+0xa2/0xd0"), Some("foo"));
        assert_eq!(lock_site(" (&x){+.+.}, at: foo+0xa2/0xd0"), Some("foo"));
        assert_eq!(with_address("a/1 is trying to release lock at: [<ffffffff81938722>] foo+0xa2/0xd0"), Some("foo"));
        assert_eq!(with_address("[x] foo+0xa2/0xd0"), None);
        assert_eq!(interrupted("--- interrupt: 700 at foo+0x1/0x2"), Some("foo"));
    }
}
