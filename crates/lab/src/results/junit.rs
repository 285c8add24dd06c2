//! JUnit XML in any of its dialects: the root may be `testsuites` or `testsuite`, and every attribute but a name may be
//! missing.

use std::time::Duration;

use quick_xml::Reader;
use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, Event};

use super::case_result::{CASES_MAX, CaseResult, Outcome};

/// The largest file. It is read as a whole.
const FILE_BYTES_MAX: usize = 64 << 20;

/// The reader's state.
#[derive(Debug, Default)]
pub(super) struct Junit {
    bytes: Vec<u8>,
    is_too_large: bool,
}

impl Junit {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let room = FILE_BYTES_MAX - self.bytes.len();
        self.is_too_large |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Returns the problem of the whole.
    pub(super) fn finish(self, done: &mut Vec<CaseResult>) -> Option<String> {
        if self.is_too_large {
            return Some(format!("the file has more than {FILE_BYTES_MAX} bytes"));
        }
        let text = String::from_utf8_lossy(&self.bytes);
        // A command may print before its results.
        let start = text.find("<?xml").or_else(|| text.find("<testsuite")).unwrap_or(0);
        let mut reader = Reader::from_str(&text[start..]);
        let mut case: Option<CaseResult> = None;
        let mut is_message = false;
        loop {
            match reader.read_event() {
                Ok(Event::Start(element)) => match element.local_name().as_ref() {
                    b"testcase" => case = Some(new_case(&element)),
                    name => is_message = case.as_mut().is_some_and(|case| part(case, name, &element)),
                },
                Ok(Event::Empty(element)) => match element.local_name().as_ref() {
                    b"testcase" => done.push(new_case(&element)),
                    name => {
                        if let Some(case) = case.as_mut() {
                            part(case, name, &element);
                        }
                    }
                },
                Ok(Event::Text(text)) if is_message => {
                    if let Some((case, text)) = case.as_mut().zip(text.decode().ok()) {
                        let text = unescape(&text).map_or_else(|_| text.to_string(), std::borrow::Cow::into_owned);
                        if !text.trim().is_empty() {
                            case.add_message(text.trim());
                        }
                    }
                }
                Ok(Event::CData(text)) if is_message => {
                    if let Some(case) = case.as_mut() {
                        case.add_message(String::from_utf8_lossy(&text).trim());
                    }
                }
                Ok(Event::End(element)) => {
                    if element.local_name().as_ref() == b"testcase" {
                        done.extend(case.take());
                    }
                    is_message = false;
                }
                Ok(Event::Eof) if case.is_some() => return Some("the file ends inside of a case".to_owned()),
                Ok(Event::Eof) => return None,
                Ok(_) => {}
                Err(error) => return Some(format!("the file is not XML: {error}")),
            }
            if done.len() > CASES_MAX {
                return Some(format!("more than {CASES_MAX} results came"));
            }
        }
    }
}

fn new_case(element: &BytesStart<'_>) -> CaseResult {
    let name = attribute(element, "name").unwrap_or_default();
    let name = match attribute(element, "classname").filter(|class| !class.is_empty()) {
        Some(class) => format!("{class} > {name}"),
        None => name,
    };
    let mut case = CaseResult::new(&name, Outcome::Pass);
    let seconds = attribute(element, "time").and_then(|time| time.replace(',', "").parse().ok());
    case.duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    case
}

/// An element inside of a case. Returns whether its text is a message.
fn part(case: &mut CaseResult, name: &[u8], element: &BytesStart<'_>) -> bool {
    let outcome = match name {
        b"failure" | b"error" => Outcome::Fail,
        b"skipped" => Outcome::Skip,
        _ => return false,
    };
    case.outcome = outcome;
    if let Some(message) = attribute(element, "message") {
        case.add_message(&message);
    }
    true
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = element.try_get_attribute(name).ok()??;
    let text = String::from_utf8_lossy(&attribute.value).into_owned();
    Some(unescape(&text).map_or_else(|_| text.clone(), std::borrow::Cow::into_owned))
}
