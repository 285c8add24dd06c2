//! Places in the source of the functions in a report, from a kernel with debug information.
//!
//! ```text
//!   frame `foo+0x1f/0x200` ── symbol table ──▶ address of foo + 0x1f ── DWARF ──▶ fs/foo.c:12, and what was inlined there
//!   bare address           ── Kernel Offset ─▶ address ──────────────────┘
//! ```
//!
//! A frame is found by the name and size of its function, so it doesn't matter where the kernel was loaded. An address
//! without a name needs the offset that a panic prints.
//!
//! The file may be hostile. It is read, never run; sections are read only if they lie within the file, up to a bound;
//! so are the numbers of symbols, frames and inlined functions, and the time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use addr2line::gimli::{self, EndianSlice, RunTimeEndian, Section as _};
use camino::Utf8Path;
use kiln_detect::Finding;
use object::read::{ObjectSection as _, ObjectSymbol as _, ReadCache};
use object::{CompressionFormat, Object as _};

use crate::failure::Failure;

/// The largest file, and so the most debug information.
const FILE_BYTES_MAX: u64 = 4 << 30;
const SYMBOLS_MAX: usize = 4 << 20;
/// Functions that are inlined into each other at one place.
const INLINED_MAX: usize = 32;
/// Characters of a name from the debug information.
const NAME_CHARS_MAX: usize = 200;
/// Lines of all findings together that are looked up.
const LINES_MAX: usize = 20_000;
const TIME_MAX: Duration = Duration::from_secs(60);

/// What to do about a file that can't be used.
const HINT: &str = "give the `vmlinux` of the kernel's build, or of its package of debug symbols";
const HINT_NO_DEBUG_INFO: &str = "build the kernel with CONFIG_DEBUG_INFO, or install its package of debug symbols";
const HINT_COMPRESSED: &str = "objcopy --decompress-debug-sections vmlinux plain";

/// Adds the places in the source to the lines of findings.
pub fn annotate(vmlinux: &Utf8Path, findings: &mut [Finding]) -> Result<(), Failure> {
    let unusable = |words: &str| Failure::words(1, format!("`{vmlinux}` {words}"));
    let file = fs_err::File::open(vmlinux)?.into_file();
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        let words = format!("is not a regular file of at most {} GiB", FILE_BYTES_MAX >> 30);
        return Err(unusable(&words).hint(HINT));
    }
    let cache = ReadCache::new(file);
    let Ok(elf) = object::File::parse(&cache) else { return Err(unusable("is not an ELF file").hint(HINT)) };
    let endian = if elf.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
    let mut left = metadata.len();
    let dwarf = gimli::Dwarf::load(|id| Ok(EndianSlice::new(section(&elf, id.name(), &mut left)?, endian)));
    let dwarf = dwarf.map_err(|found| match found {
        Unusable::Compressed => unusable("has compressed debug information").hint(HINT_COMPRESSED),
        Unusable::Damaged => unusable("has damaged debug information").hint(HINT),
    })?;
    if dwarf.debug_info.reader().is_empty() {
        return Err(unusable("has no debug information").hint(HINT_NO_DEBUG_INFO));
    }
    let folder = build_folder(&dwarf);
    let Ok(context) = addr2line::Context::from_dwarf(dwarf) else {
        return Err(unusable("has damaged debug information").hint(HINT));
    };
    let symbols = Symbols { functions: functions(&elf), context, folder, offset: kernel_offset(findings) };

    let deadline = Instant::now() + TIME_MAX;
    let mut lines_left = LINES_MAX;
    for finding in findings {
        let lines = std::mem::take(&mut finding.extract);
        for line in lines {
            if lines_left == 0 || Instant::now() > deadline {
                finding.extract.push(line);
                continue;
            }
            lines_left -= 1;
            symbols.annotate(&line, &mut finding.extract);
        }
    }
    Ok(())
}

/// Why a section can't be used.
enum Unusable {
    Compressed,
    Damaged,
}

/// The content of a section; empty if there is none. `left` is what all sections together may have.
fn section<'data>(
    elf: &object::File<'data, &'data ReadCache<std::fs::File>>,
    name: &str,
    left: &mut u64,
) -> Result<&'data [u8], Unusable> {
    let Some(section) = elf.section_by_name(name) else { return Ok(&[]) };
    let range = section.compressed_file_range().map_err(|_| Unusable::Damaged)?;
    if range.format != CompressionFormat::None {
        return Err(Unusable::Compressed);
    }
    *left = left.checked_sub(range.uncompressed_size).ok_or(Unusable::Damaged)?;
    section.data().map_err(|_| Unusable::Damaged)
}

/// A function of the kernel.
#[derive(Clone, Copy, Debug)]
struct Function {
    address: u64,
    size: u64,
}

fn functions<'data>(elf: &object::File<'data, &'data ReadCache<std::fs::File>>) -> HashMap<&'data str, Vec<Function>> {
    let mut functions: HashMap<_, Vec<_>> = HashMap::new();
    for symbol in elf.symbols().take(SYMBOLS_MAX).filter(|symbol| symbol.size() > 0 && symbol.is_definition()) {
        if let Ok(name) = symbol.name() {
            functions.entry(name).or_default().push(Function { address: symbol.address(), size: symbol.size() });
        }
    }
    functions
}

/// The folder in which the kernel was built. It is the same for nearly all of its files.
fn build_folder(dwarf: &gimli::Dwarf<EndianSlice<'_, RunTimeEndian>>) -> Option<String> {
    let header = dwarf.units().next().ok()??;
    let folder = dwarf.unit(header).ok()?.comp_dir?;
    Some(format!("{}/", folder.to_string_lossy().trim_end_matches('/'))).filter(|folder| folder.len() > 1)
}

/// `Kernel Offset: 0x1c000000 from 0xffffffff81000000 (relocation range: …)`, which a panic prints last.
fn kernel_offset(findings: &[Finding]) -> Option<u64> {
    findings.iter().flat_map(|finding| &finding.extract).find_map(|line| {
        let (_, rest) = line.split_once("Kernel Offset: ")?;
        if rest.starts_with("disabled") {
            return Some(0);
        }
        hex(rest.strip_prefix("0x")?.split(' ').next()?)
    })
}

struct Symbols<'data> {
    functions: HashMap<&'data str, Vec<Function>>,
    context: addr2line::Context<EndianSlice<'data, RunTimeEndian>>,
    folder: Option<String>,
    /// How far the kernel was moved from where it was linked, if the log shows it.
    offset: Option<u64>,
}

impl Symbols<'_> {
    /// Adds a line, with the functions that were inlined at its place before it.
    fn annotate(&self, line: &str, lines: &mut Vec<String>) {
        let Some((at, place)) = self.address(line) else {
            lines.push(line.to_owned());
            return;
        };
        // A frame is the address to return to, which may belong to the next line, or even to the next function.
        let address = if is_counter(line) { place.address } else { place.address.wrapping_sub(1) };
        let mut found = self.look_up(address);
        let Some((name, source)) = found.pop() else {
            lines.push(line.to_owned());
            return;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        lines.extend(found.iter().map(|(name, source)| format!("{indent}{name} {source} [inline]")));
        let name = if place.is_named { String::new() } else { format!(" {name}") };
        lines.push(format!("{}{name} {source}{}", &line[..at], &line[at..]));
    }

    /// The functions at an address, innermost first: name, and file with line.
    fn look_up(&self, address: u64) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let Ok(mut frames) = self.context.find_frames(address).skip_all_loads() else { return found };
        while let Ok(Some(frame)) = frames.next() {
            let Some(location) = frame.location else { break };
            let (Some(file), Some(line)) = (location.file, location.line) else { break };
            let file = self.folder.as_ref().and_then(|folder| file.strip_prefix(folder.as_str())).unwrap_or(file);
            let name = frame.function.and_then(|function| function.demangle().ok().map(|name| plain(&name)));
            found.push((name.unwrap_or_default(), format!("{}:{line}", plain(file.trim_start_matches("./")))));
            if found.len() > INLINED_MAX {
                break;
            }
        }
        found
    }

    /// The address that a line is about, and where its text ends.
    fn address(&self, line: &str) -> Option<(usize, Place)> {
        named(line).map_or_else(
            || self.bare(line),
            |(name, offset, size, end)| {
                // A module's functions are not in this file, even if one has the same name.
                if line[end..].trim_start().starts_with('[') {
                    return None;
                }
                let all = self.functions.get(name)?;
                let function = all.iter().find(|function| function.size == size).or_else(|| all.first())?;
                let address = function.address.checked_add(offset).filter(|_| offset <= function.size)?;
                Some((end, Place { address, is_named: true }))
            },
        )
    }

    /// `[<ffffffff9d234567>]`, `0xffffffff9d234567`, `RIP: 0010:0xffffffff9d234567`, at the end of a line.
    fn bare(&self, line: &str) -> Option<(usize, Place)> {
        let end = line.trim_end().len();
        let word = line[..end].rsplit([' ', ':']).next()?;
        let digits =
            word.strip_prefix("[<").and_then(|word| word.strip_suffix(">]")).or_else(|| word.strip_prefix("0x"))?;
        let address = hex(digits).filter(|_| digits.len() == 16)?.checked_sub(self.offset?)?;
        Some((end, Place { address, is_named: false }))
    }
}

struct Place {
    address: u64,
    is_named: bool,
}

/// The function, offset and size in a line with `foo+0x1f/0x200`, and where that ends.
fn named(line: &str) -> Option<(&str, u64, u64, usize)> {
    line.match_indices("+0x").find_map(|(plus, _)| {
        let name_bytes = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.$".contains(byte);
        let length = line[..plus].bytes().rev().take_while(name_bytes).count();
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_hexdigit).count();
        let offset_at = plus + 3;
        let offset = digits(&line[offset_at..]);
        let size_at = offset_at + offset + 3;
        line.get(offset_at + offset..size_at).filter(|between| *between == "/0x")?;
        let size = digits(&line[size_at..]);
        let name = &line[plus - length..plus];
        let end = size_at + size;
        Some((name, hex(&line[offset_at..size_at - 3])?, hex(&line[size_at..end])?, end)).filter(|_| length > 0)
    })
}

/// Whether a line has the program counter, and not an address to return to.
fn is_counter(line: &str) -> bool {
    ["IP:", "pc :", "PC is at", "NIP ["].iter().any(|mark| line.contains(mark))
}

fn hex(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// Text of the file, which must not steer the terminal.
fn plain(text: &str) -> String {
    text.chars().filter(|character| ('!'..='~').contains(character) || *character == ' ').take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use kiln_detect::SavedLog;

    use super::*;

    /// A program in place of a kernel: `guilty` is inlined into `middle`, which `outer` calls.
    const SOURCE: &str = "\
volatile int sink;
static inline __attribute__((always_inline)) void guilty(int *p) {
    *p = 1;
}
__attribute__((noinline)) void middle(int *p) {
    sink++;
    guilty(p);
    sink++;
}
void outer(void) {
    middle((int *)8);
    sink++;
}
";

    /// A folder with `vmlinux`, and its symbols as `nm -S` prints them.
    fn built(options: &[&str]) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("kernel.c"), SOURCE).expect("written");
        let mut compiler = Command::new("cc");
        compiler.args(["-g", "-O1", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-Wl,-e,outer"]).args(options);
        let built = compiler.args(["-o", "vmlinux", "kernel.c"]).current_dir(folder.path()).status();
        assert!(built.expect("cc links Rust programs too").success());
        let nm = Command::new("nm").args(["-S", "vmlinux"]).current_dir(folder.path()).output().expect("is with cc");
        (folder, String::from_utf8(nm.stdout).expect("names"))
    }

    fn symbol(nm: &str, name: &str) -> (u64, u64) {
        let row = nm.lines().find(|row| row.ends_with(&format!(" T {name}"))).expect("is defined");
        let mut fields = row.split(' ').map(|field| u64::from_str_radix(field, 16));
        let mut next = || fields.next().and_then(Result::ok).expect("a number");
        (next(), next())
    }

    fn annotated(folder: &tempfile::TempDir, log: &str) -> Result<Vec<String>, Failure> {
        let mut saved = SavedLog::new();
        let mut findings = saved.push(log.as_bytes());
        findings.extend(saved.finish());
        let path = Utf8Path::from_path(folder.path()).expect("UTF-8").join("vmlinux");
        annotate(&path, &mut findings)?;
        Ok(findings.swap_remove(0).extract)
    }

    /// The offset in `middle` at which `guilty` writes.
    fn offset_of_write(folder: &tempfile::TempDir, nm: &str) -> u64 {
        let (address, size) = symbol(nm, "middle");
        let place = |offset: u64| {
            let log = format!("kernel BUG at a.c:1!\nRIP: 0010:middle+0x{offset:x}/0x{size:x}\n");
            annotated(folder, &log).expect("is read").len()
        };
        assert!(address > 0);
        (0..size).find(|offset| place(*offset) > 2).expect("`guilty` is inlined somewhere")
    }

    #[test]
    fn frames_get_their_source_and_what_was_inlined() {
        let (folder, nm) = built(&[]);
        let (offset, (_, size)) = (offset_of_write(&folder, &nm), symbol(&nm, "middle"));
        let (_, outer) = symbol(&nm, "outer");
        let log = format!(
            "kernel BUG at a.c:1!\nRIP: 0010:middle+0x{offset:x}/0x{size:x}\nCall Trace:\n <TASK>\n outer+0xb/0x{outer:x}\n \
             middle+0x1/0x{size:x} [module]\n unknown+0x1/0x2\n"
        );
        let lines = annotated(&folder, &log).expect("is read");
        assert_eq!(lines[1], "guilty kernel.c:3 [inline]");
        assert_eq!(lines[2], format!("RIP: 0010:middle+0x{offset:x}/0x{size:x} kernel.c:7"));
        assert!(lines[5].starts_with(&format!(" outer+0xb/0x{outer:x} kernel.c:1")), "{lines:?}");
        assert!(lines[6].ends_with(" [module]") && lines[7] == " unknown+0x1/0x2", "{lines:?}");
    }

    #[test]
    fn an_address_without_a_name_needs_the_offset_of_the_kernel() {
        let (folder, nm) = built(&["-Wl,-Ttext=0xffffffff81000000", "-mcmodel=kernel"]);
        let (address, _) = symbol(&nm, "outer");
        let moved = address + 0x1c00_0000;
        let log = |offset: &str| format!("Kernel panic - not syncing: x\nRIP: 0010:0x{moved:016x}\n{offset}");
        let lines = annotated(&folder, &log("Kernel Offset: 0x1c000000 from 0xffffffff81000000\n")).expect("is read");
        // Compilers disagree whether a function begins on its own line or on its first statement's.
        assert!(lines[1].starts_with(&format!("RIP: 0010:0x{moved:016x} outer kernel.c:1")), "{}", lines[1]);
        let lines = annotated(&folder, &log("")).expect("is read");
        assert_eq!(lines[1], format!("RIP: 0010:0x{moved:016x}"));
    }

    #[test]
    fn each_unusable_file_has_its_error() {
        let log = "kernel BUG at a.c:1!\nRIP: 0010:middle+0x1/0x2\n";
        let (stripped, _) = built(&["-g0"]);
        let (packed, _) = built(&["-gz=zlib"]);
        let (text, _) = built(&[]);
        std::fs::write(text.path().join("vmlinux"), "text").expect("written");
        let missing = tempfile::tempdir().expect("a folder");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("vmlinux")).expect("made");
        let messages = [&stripped, &packed, &text, &missing, &folder].map(|place| {
            let error = annotated(place, log).expect_err("is not usable");
            let name = place.path().to_str().expect("UTF-8");
            format!("{}\n  hint: {}", error.message().replace(name, ""), error.hint_text().unwrap_or("-"))
        });
        insta::assert_snapshot!(messages.join("\n"));
    }

    #[test]
    fn damage_anywhere_in_the_file_is_survived() {
        let (folder, nm) = built(&[]);
        let (_, size) = symbol(&nm, "middle");
        let log = format!("kernel BUG at a.c:1!\nRIP: 0010:middle+0x1/0x{size:x}\n");
        let path = folder.path().join("vmlinux");
        let good = std::fs::read(&path).expect("was built");
        // Every 97th byte in turn: headers, tables, debug information.
        for at in (0..good.len()).step_by(97) {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            std::fs::write(&path, &bad).expect("written");
            let _ = annotated(&folder, &log);
            std::fs::write(&path, &good[..at]).expect("written");
            let _ = annotated(&folder, &log);
        }
    }
}
