//! What the lines of a report say: the title, the function to blame, and whether the report is whole.
//!
//! ```text
//!   lines ── evidence ──▶ lines that count ──┬─ needs: is each line there that such a report has?
//!            (no doubtful frames,            ├─ steps: to the frames, and one of them is blamed
//!             no second stack of a panic)    └─ stack: does a frame follow each line that announces a stack?
//! ```
//!
//! A report without one of these is corrupted: cut, or mixed with the lines of another CPU. Its title then names the
//! function `corrupted`, or is the line of the heading.

use std::borrow::Cow;
use std::sync::LazyLock;

use crate::frames::{self, Function};
use crate::machinery::{DISPATCHERS, MACHINERY, WAITING, listed};
use crate::signatures::{Choice, Need, Signature, Stack, Step};
use crate::title;
use crate::words::Words;

/// Lines of a report after which a panic or a deadlock adds nothing: the panic prints the same stack again, and printing
/// a report takes locks in unusual orders.
const WHOLE_LINES: usize = 22;
/// Reports of KMSAN are shorter.
const WHOLE_LINES_KMSAN: usize = 16;
/// A frame comes within this many lines after the line that announces a stack.
const FRAME_WITHIN_LINES: usize = 15;
/// Lines after the one that announces a stack. With fewer, the report is cut.
const STACK_LINES_MIN: usize = 2;
/// The function in a title if no frame can be trusted.
const CORRUPTED: &str = "corrupted";
/// Functions that wait for readers, which are one cause of hangs with many names.
const READERS: [&str; 4] = ["synchronize_rcu", "synchronize_srcu", "synchronize_net", "synchronize_sched"];

/// What a report says.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) title: String,
    pub(crate) alternatives: Vec<String>,
    pub(crate) function: Option<String>,
    pub(crate) corrupted: bool,
}

/// Judges a report by its lines, of which the heading is the first.
pub(crate) fn judge(signature: &Signature, holes: &[String], lines: &[String]) -> Judgement {
    let lines = evidence(lines);
    let Some(found) = meet_needs(signature.needs, &lines) else {
        return cut(signature, holes, &lines);
    };
    let (functions, mut corrupted) = if signature.steps.is_empty() {
        let in_heading = lines.first().and_then(|heading| frames::named(heading.text));
        let in_heading = in_heading.map(|symbol| Function::new(frames::plain(symbol).into_owned()));
        (vec![found.function.or(in_heading)], false)
    } else {
        let (mut functions, mut is_whole) = follow(signature, signature.steps, &lines);
        for steps in signature.other_steps {
            if is_whole {
                break;
            }
            (functions, is_whole) = follow(signature, steps, &lines);
        }
        (functions, !is_whole)
    };
    corrupted |= signature.is_remainder || (signature.stack == Stack::Always && !has_stacks(&lines));
    let mut functions = functions.into_iter();
    let blamed = functions.next().flatten();
    let origin = functions.next().flatten();

    let words = Fill { holes, access: found.access, message: found.message, line: None };
    let name = blamed.as_ref().map_or(CORRUPTED, |function| function.canonical.as_str());
    let origin = origin.as_ref().map_or(CORRUPTED, |function| function.canonical.as_str());
    let title = words.fill(signature.title, name, origin);
    let mut alternatives = Vec::new();
    let variants = blamed.iter().flat_map(Function::variants);
    for name in std::iter::once(name).chain(variants) {
        for form in [signature.title, signature.alike] {
            let other = words.fill(form, name, origin);
            if !other.is_empty() && other != title && !alternatives.contains(&other) {
                alternatives.push(other);
            }
        }
    }
    // A time stamp within a title shows that two lines were mixed.
    corrupted |= title.match_indices('[').any(|(at, _)| crate::console::stamp(&title[at..]).is_some());
    let function = blamed.map(|function| function.canonical);
    Judgement { title, alternatives, function, corrupted }
}

/// A report that lacks a line: all that is certain is its heading.
fn cut(signature: &Signature, holes: &[String], lines: &[Line<'_>]) -> Judgement {
    let literal = signature.heading.trim_start_matches('^').split('{').next().unwrap_or("");
    let heading = lines.first().map_or("", |line| line.text);
    let from = heading.find(literal).map_or(heading, |at| &heading[at..]);
    let (form, line) = if signature.cut_title.is_empty() {
        ("{line}", from)
    } else {
        (signature.cut_title, from.strip_prefix(literal).unwrap_or(from))
    };
    let words = Fill { holes, access: None, message: None, line: Some(line) };
    Judgement { title: words.fill(form, CORRUPTED, CORRUPTED), corrupted: true, ..Judgement::default() }
}

/// A line that counts.
#[derive(Clone, Copy, Debug)]
struct Line<'a> {
    text: &'a str,
    /// It announces a stack.
    start: Option<Start>,
    /// It is from the stack of an injected fault, which the kernel prints into the middle of a report.
    is_injected: bool,
}

/// Each line that is more than a frame or a register has one of these words.
const NOTABLE: [&str; 12] = [
    " ? ",
    " (unreliable)",
    "Disabling lock debugging",
    "Kernel panic",
    "WARNING: possible circular",
    " should_fail",
    "Call ",
    "Allocated",
    "Freed",
    "acktrace",
    "Uninit was stored",
    " badaddr: ",
];

/// The lines that count.
fn evidence(lines: &[String]) -> Vec<Line<'_>> {
    static WORDS: LazyLock<Words> = LazyLock::new(|| Words::new(NOTABLE));
    let whole_lines = match lines.first() {
        Some(heading) if heading.contains("BUG: KMSAN:") => WHOLE_LINES_KMSAN,
        _ => WHOLE_LINES,
    };
    let mut counted = Vec::with_capacity(lines.len());
    for (index, text) in lines.iter().map(String::as_str).enumerate() {
        if !WORDS.are_in(text) {
            counted.push(Line { text, start: None, is_injected: false });
            continue;
        }
        // After `<EOI>` comes the code that the interrupt has interrupted, whose first frame is always in doubt.
        let is_doubtful = (text.contains(" ? ") || text.ends_with(" (unreliable)")) && !text.contains("<EOI>");
        if index > 0 && (is_doubtful || text.starts_with("Disabling lock debugging due to kernel taint")) {
            continue;
        }
        if counted.len() >= whole_lines
            && (text.contains("Kernel panic - not syncing")
                || text.contains("WARNING: possible circular locking dependency detected"))
        {
            break;
        }
        counted.push(Line { text, start: stack_start(text), is_injected: is_injected_fault(text) });
    }
    counted
}

/// What the lines that a report needs contain.
#[derive(Debug, Default)]
struct Found<'a> {
    function: Option<Function>,
    access: Option<&'static str>,
    message: Option<&'a str>,
}

/// Finds the lines that a report needs, in their order. `None` if one is missing.
fn meet_needs<'a>(needs: &[Need], lines: &[Line<'a>]) -> Option<Found<'a>> {
    let mut found = Found::default();
    let mut rest = lines.get(1..)?;
    for need in needs {
        let at = match need {
            Need::Text(text) => rest.iter().position(|line| line.text.contains(text))?,
            Need::Access => rest.iter().position(|line| {
                found.access = access(line.text);
                found.access.is_some()
            })?,
            Need::Source => rest.iter().position(|line| has_source(line.text))?,
            Need::LockSite => position(rest, frames::lock_site, &mut found.function)?,
            Need::Address => position(rest, frames::with_address, &mut found.function)?,
            Need::Name(text) => position(rest, |line| name_after(line, text), &mut found.function)?,
            Need::Function => {
                frames::named(lines.first()?.text)?;
                continue;
            }
            Need::Message => {
                found.message = Some(rest.first()?.text.trim());
                0
            }
        };
        rest = &rest[at + 1..];
    }
    Some(found)
}

/// The first line in which `find` finds a function.
fn position<'a>(
    lines: &[Line<'a>],
    find: impl Fn(&'a str) -> Option<&'a str>,
    function: &mut Option<Function>,
) -> Option<usize> {
    lines.iter().position(|line| {
        let found = find(line.text).map(|symbol| Function::new(frames::plain(symbol).into_owned()));
        let is_found = found.is_some();
        *function = found;
        is_found
    })
}

/// `Read of size 8 at addr`, `Write at addr f0ff`
fn access(line: &str) -> Option<&'static str> {
    [("Read ", "Read"), ("Write ", "Write")].into_iter().find_map(|(word, name)| {
        let (_, rest) = line.split_once(word)?;
        let operand = rest.strip_prefix("of size ").or_else(|| rest.strip_prefix("at addr "))?;
        operand.starts_with(|digit: char| digit.is_ascii_hexdigit()).then_some(name)
    })
}

/// `fs/a.c:12`
fn has_source(line: &str) -> bool {
    line.match_indices(':').any(|(at, _)| {
        let name_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_/.".contains(byte);
        let file = &line[..at];
        let length = file.bytes().rev().take_while(name_byte).count();
        let is_file = file[file.len() - length..].rsplit_once('.').is_some_and(|(stem, extension)| {
            !stem.is_empty() && !extension.is_empty() && extension.bytes().all(|byte| byte.is_ascii_lowercase())
        });
        is_file && line[at + 1..].starts_with(|digit: char| digit.is_ascii_digit())
    })
}

/// The name after `mark` at the end of a line.
fn name_after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    let (_, name) = line.split_once(mark)?;
    let name = name.trim_end();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
    (!name.is_empty() && name.bytes().all(is_name)).then_some(name)
}

/// Goes along `steps`. Returns the function to blame of each group of frames, and whether each group has one.
fn follow(signature: &Signature, steps: &[Step], lines: &[Line<'_>]) -> (Vec<Option<Function>>, bool) {
    let mut walk = Walk { signature, frames: Vec::new(), functions: Vec::new(), is_whole: true, has_frames: false };
    let mut rest = lines.iter();
    let mut index = 0;
    while let Some(step) = steps.get(index) {
        if *step == Step::Frames {
            if walk.has_frames {
                walk.choose();
            }
            walk.has_frames = true;
        }
        for line in rest.by_ref() {
            if line.is_injected {
                walk.is_whole = false;
                break;
            }
            if *step != Step::Frames {
                // Only the heading itself names the function of the heading.
                if walk.take(*step, line.text) || *step == Step::Heading {
                    break;
                }
                continue;
            }
            if line.start.is_some() {
                break;
            }
            if steps.get(index + 1).is_some_and(|next| walk.take(*next, line.text)) {
                index += 1;
                break;
            }
            walk.take(Step::Frames, line.text);
        }
        index += 1;
    }
    walk.choose();
    (walk.functions, walk.is_whole)
}

/// The state on the way to the frames.
struct Walk<'s> {
    signature: &'s Signature,
    frames: Vec<String>,
    functions: Vec<Option<Function>>,
    is_whole: bool,
    has_frames: bool,
}

impl Walk<'_> {
    /// Takes a line if it is the one for a step.
    fn take(&mut self, step: Step, line: &str) -> bool {
        let only = |symbol| Some([symbol, None]);
        let symbols = match step {
            Step::Heading => frames::named(line).and_then(|symbol| only(Some(symbol))),
            Step::Counter => frames::counter(line).and_then(only),
            Step::Trap => frames::counter(line)
                .and_then(only)
                .or_else(|| frames::interrupted(line).and_then(|symbol| only(Some(symbol)))),
            Step::Stack => {
                let is_stack = ["Call Trace:", "Call trace:", "Backtrace:"].iter().any(|mark| line.contains(mark));
                is_stack.then_some([None, None])
            }
            Step::Line(texts) => texts.iter().any(|text| line.contains(text)).then_some([None, None]),
            Step::LockSite => frames::lock_site(line).and_then(|symbol| only(Some(symbol))),
            Step::Address => frames::with_address(line).and_then(|symbol| only(Some(symbol))),
            Step::Frames => frames::frame(line).map(|(callee, caller)| [Some(callee), caller]),
        };
        let Some(symbols) = symbols else { return false };
        for symbol in symbols.into_iter().flatten() {
            let name = frames::plain(symbol);
            if !MACHINERY.contain(&name) && !listed(self.signature.skip, &name) {
                self.frames.push(name.into_owned());
            }
        }
        true
    }

    /// Blames one of the frames so far, and begins the next group.
    fn choose(&mut self) {
        let frames = std::mem::take(&mut self.frames);
        let function = match self.signature.choice {
            Choice::First => frames.into_iter().next().map(Function::new),
            Choice::Operation => operation(&frames),
            Choice::Waiter => waiter(&frames),
        };
        self.is_whole &= function.is_some();
        self.functions.push(function);
    }
}

/// The function that a dispatcher has called. Without a dispatcher the stack is not whole.
fn operation(frames: &[String]) -> Option<Function> {
    let at = frames.iter().position(|frame| DISPATCHERS.contain(frames::canonical(frame)))?;
    if frames[at].contains("smp_call_function") {
        // Here the wait is the operation, and it has several names.
        return Some(Function { canonical: "smp_call_function".to_owned(), raw: frames[at].clone() });
    }
    Some(Function::new(frames[at.saturating_sub(1)].clone()))
}

/// The function that made the task wait, or the name of a usual cause of waiting.
fn waiter(frames: &[String]) -> Option<Function> {
    for frame in frames {
        if frame.contains("rtnl_lock") {
            return Some(Function::new(frame.clone()));
        }
        if READERS.iter().any(|name| frame.contains(name)) {
            return Some(Function { canonical: READERS[0].to_owned(), raw: frame.clone() });
        }
    }
    frames.iter().find(|frame| !WAITING.contain(frames::canonical(frame))).cloned().map(Function::new)
}

/// Fault injection prints a stack of its own into the middle of a report.
fn is_injected_fault(line: &str) -> bool {
    line.contains(" should_fail")
        && frames::frame(line)
            .is_some_and(|(symbol, _)| ["should_fail", "should_failslab"].contains(&&*frames::plain(symbol)))
}

/// What announces a stack. Each is checked once: the first line of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    CallTrace,
    Allocated,
    AllocatedBy,
    Freed,
    FreedBy,
    Leak,
    Backtrace,
    Stored,
    /// RISC-V prints registers and then the stack, without a line between them. The stack may be missing.
    Registers,
}

const STARTS: usize = 9;

fn stack_start(line: &str) -> Option<Start> {
    let by_task = |mark: &str| {
        line.split_once(mark).is_some_and(|(_, rest)| {
            let rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
            rest.starts_with(':')
        })
    };
    match () {
        () if line.contains("Call Trace") || line.contains("Call trace") => Some(Start::CallTrace),
        () if line.contains("Allocated:") => Some(Start::Allocated),
        () if by_task("Allocated by task ") => Some(Start::AllocatedBy),
        () if line.contains("Freed:") => Some(Start::Freed),
        () if by_task("Freed by task ") => Some(Start::FreedBy),
        () if is_leak_start(line) => Some(Start::Leak),
        () if line.contains("Backtrace:") => Some(Start::Backtrace),
        () if line.contains("Uninit was stored to memory at") => Some(Start::Stored),
        () if line.contains("status: ") && line.contains(" badaddr: ") && line.contains(" cause: ") => {
            Some(Start::Registers)
        }
        () => None,
    }
}

/// `  backtrace:`, `  backtrace (crc 1a2b):`, but not `stack backtrace:`.
fn is_leak_start(line: &str) -> bool {
    line.split_once(" backtrace").is_some_and(|(before, after)| {
        let is_end = after.starts_with(':') || (after.starts_with(" (crc ") && after.contains("):"));
        is_end && !before.ends_with('k')
    })
}

/// Whether there is a stack, and each line that announces one is followed by a frame.
fn has_stacks(lines: &[Line<'_>]) -> bool {
    let mut checked = [false; STARTS];
    let mut has_stack = false;
    for (at, line) in lines.iter().enumerate() {
        let Some(start) = line.start else { continue };
        if std::mem::replace(&mut checked[start as usize], true) {
            continue;
        }
        let after = &lines[at + 1..];
        if after.len() < STACK_LINES_MIN {
            return false;
        }
        let frame = after
            .iter()
            .take(FRAME_WITHIN_LINES)
            .take_while(|line| line.start.is_none())
            .any(|line| line.text.contains("(stack is not available)") || frames::frame(line.text).is_some());
        has_stack |= frame;
        if !frame && start != Start::Registers {
            return false;
        }
    }
    has_stack
}

/// The words for the holes of a title.
struct Fill<'a> {
    holes: &'a [String],
    access: Option<&'static str>,
    message: Option<&'a str>,
    line: Option<&'a str>,
}

impl Fill<'_> {
    /// Fills the holes of a title, and replaces what changes from boot to boot.
    fn fill(&self, form: &str, function: &str, origin: &str) -> String {
        let mut parts = form.split('{');
        let mut title = parts.next().unwrap_or("").to_owned();
        for part in parts {
            let (name, literal) = part.split_once('}').expect("the table's titles close their holes");
            let words: Cow<'_, str> = match name {
                "fn" => function.into(),
                "origin" => origin.into(),
                "access" => self.access.unwrap_or("").into(),
                "message" => self.message.unwrap_or("").into(),
                "line" => self.line.unwrap_or("").into(),
                number => {
                    let index: usize = number.parse().expect("the table's titles have these holes");
                    self.holes.get(index).map_or("", String::as_str).into()
                }
            };
            title.push_str(&words);
            title.push_str(literal);
        }
        title::generalise(&title)
    }
}
