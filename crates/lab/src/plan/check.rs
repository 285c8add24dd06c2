//! Holds a document against the tables of keys. All problems are reported at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, value::Datetime};

use super::keys::{Key, Kind, Table};
use super::problem::Problems;

/// Text that is this similar to a key is most likely that key, misspelt.
const SIMILARITY_MIN: f64 = 0.7;
/// Entries of one list or map. A plan is written by a person, and each suite becomes cases of every cell.
const ENTRIES_MAX: usize = 10_000;

/// Where each key of a document is, by its path such as `suite[2].run`.
pub(super) type Places = BTreeMap<String, Range<usize>>;

/// Checks the document.
pub(super) fn check(document: &Spanned<DeTable<'_>>, keys: &Table, problems: &mut Problems<'_>) -> Places {
    let mut check = Check { problems, places: Places::new() };
    check.table("", &document.span(), document.get_ref(), keys);
    check.places
}

struct Check<'a, 'text> {
    problems: &'a mut Problems<'text>,
    places: Places,
}

impl Check<'_, '_> {
    fn table(&mut self, path: &str, span: &Range<usize>, table: &DeTable<'_>, keys: &Table) {
        for (name, value) in table {
            let at = join(path, name.get_ref());
            match keys.keys.iter().find(|key| key.name == name.get_ref()) {
                Some(key) => self.value(&at, value, &key.kind),
                None => self.unknown(path, name, keys),
            }
        }
        for Key { name, .. } in keys.keys.iter().filter(|key| key.required && !table.contains_key(key.name)) {
            self.problems.add(span, path, format!("needs `{name}`"));
        }
    }

    fn unknown(&mut self, path: &str, name: &Spanned<std::borrow::Cow<'_, str>>, keys: &Table) {
        let known = keys.keys.iter().map(|key| key.name);
        let hint = match nearest(name.get_ref(), known.clone()) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => format!("known are {}", known.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
        };
        let message = format!("unknown key `{}`", name.get_ref().escape_debug());
        self.problems.add_with_hint(&name.span(), path, message, Some(hint));
    }

    fn value(&mut self, path: &str, value: &Spanned<DeValue<'_>>, kind: &Kind) {
        let span = value.span();
        self.places.insert(path.to_owned(), span.clone());
        let problem = match (kind, value.get_ref()) {
            (Kind::Table(keys), DeValue::Table(table)) => return self.table(path, &span, table, keys),
            (Kind::List(of), DeValue::Array(entries)) if entries.len() <= ENTRIES_MAX => {
                for (index, entry) in entries.iter().enumerate() {
                    self.value(&format!("{path}[{index}]"), entry, of);
                }
                return;
            }
            (Kind::Map(of), DeValue::Table(table)) if table.len() <= ENTRIES_MAX => {
                for (name, entry) in table {
                    if is_variable(name.get_ref()) {
                        self.value(&join(path, name.get_ref()), entry, of);
                    } else {
                        let message = "must be a name of a variable: letters, digits and `_`";
                        self.problems.add(&name.span(), &join(path, name.get_ref()), message);
                    }
                }
                return;
            }
            (Kind::List(_), DeValue::Array(_)) | (Kind::Map(_), DeValue::Table(_)) => {
                Some(format!("has more than {ENTRIES_MAX} entries"))
            }
            (kind, value) => leaf(kind, value),
        };
        if let Some(problem) = problem {
            self.problems.add(&span, path, problem);
        }
    }
}

/// The problem of a value that is not a list or table.
fn leaf(kind: &Kind, value: &DeValue<'_>) -> Option<String> {
    let text = match value {
        DeValue::String(text) => Some(text.as_ref()),
        _ => None,
    };
    match (kind, text) {
        (Kind::Text, Some("")) => Some("must not be empty".into()),
        (Kind::Text | Kind::Scalar, Some(text)) if text.contains('\0') => Some("must not contain NUL".into()),
        (Kind::Text | Kind::Scalar, Some(_)) => None,
        (Kind::Scalar, None) if matches!(value, DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_)) => None,
        (Kind::Integer(first, last), _) => match integer(value) {
            Some(number) if (*first..=*last).contains(&number) => None,
            _ => Some(format!("must be a number from {first} to {last}")),
        },
        (Kind::Boolean, _) => (!matches!(value, DeValue::Boolean(_))).then(|| "must be true or false".into()),
        (Kind::Duration, Some(text)) => duration(text).err(),
        (Kind::Size, Some(text)) => size(text).err(),
        (Kind::Date, _) => match value {
            DeValue::Datetime(Datetime { date: Some(_), time: None, offset: None }) => None,
            DeValue::String(text) if date(text).is_some() => None,
            _ => Some("must be a day such as 2027-01-31".into()),
        },
        (Kind::Word(words), Some(text)) if words.contains(&text) => None,
        (Kind::Word(words), Some(text)) => {
            let mut problem = format!("`{}` is not one of {}", text.escape_debug(), words.join(", "));
            if let Some(nearest) = nearest(text, words.iter().copied()) {
                problem += &format!("; did you mean `{nearest}`?");
            }
            Some(problem)
        }
        (kind, _) => Some(format!("must be {}, not {}", name_of(kind), value_name(value))),
    }
}

/// A number.
pub(super) fn integer(value: &DeValue<'_>) -> Option<i64> {
    match value {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    }
}

/// Text such as `90s`, `5m` or `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("must be longer than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(_) => Err(format!("`{}` is not a time such as \"90s\", \"5m\" or \"1h\"", text.escape_debug())),
    }
}

/// Bytes of text such as `512M` or `2G`: powers of 1024.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let bytes = parse_size::Config::new().with_binary().parse_size(text);
    bytes
        .ok()
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("`{}` is not a size such as \"512M\" or \"2G\"", text.escape_debug()))
}

/// `2027-01-31`
pub(super) fn date(text: &str) -> Option<toml::value::Date> {
    let Datetime { date, time: None, offset: None } = text.parse().ok()? else { return None };
    date
}

/// A name of a variable.
pub(super) fn is_variable(name: &str) -> bool {
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    begins && name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The known word that is most similar to this one, if one is.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let similarity = |known: &str| strsim::jaro_winkler(&word, known);
    let near = known.into_iter().map(|known| (similarity(known), known)).filter(|(how, _)| *how >= SIMILARITY_MIN);
    near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn name_of(kind: &Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Word(_) => "text",
        Kind::Integer(..) => "a number",
        Kind::Boolean => "true or false",
        Kind::Duration => "a time such as \"90s\"",
        Kind::Size => "a size such as \"512M\"",
        Kind::Date => "a day",
        Kind::List(_) => "a list",
        Kind::Table(_) | Kind::Map(_) => "a table",
        Kind::Scalar => "text or a number",
    }
}

fn value_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
