//! Which measures are asked for: all of them, unless the user turns some off.

use std::collections::BTreeSet;
use std::env;

use super::measure::Measure;

/// Names the measures that are off, with commas between them; `all` for all of them.
pub const POLICY_VARIABLE: &str = "KILN_CONFINE_OFF";

/// Which measures are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    off: BTreeSet<Measure>,
}

/// A policy that names what is no measure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` in `{POLICY_VARIABLE}` is not a way to confine a VMM: {known}")]
pub struct PolicyError {
    name: String,
    known: String,
}

impl Policy {
    /// What `$KILN_CONFINE_OFF` says.
    ///
    /// # Errors
    /// It names what is no measure: a slip of the pen would leave on what was to be off, or the other way round.
    pub(crate) fn from_environment() -> Result<Self, PolicyError> {
        Self::parse(&env::var_os(POLICY_VARIABLE).unwrap_or_default().to_string_lossy())
    }

    /// All measures but these.
    pub fn without(off: impl IntoIterator<Item = Measure>) -> Self {
        Self { off: off.into_iter().collect() }
    }

    /// Whether a measure is asked for.
    pub fn wants(&self, measure: Measure) -> bool {
        !self.off.contains(&measure)
    }

    fn parse(text: &str) -> Result<Self, PolicyError> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let mut off = BTreeSet::new();
        for name in names {
            match Measure::ALL.into_iter().find(|measure| measure.name() == name) {
                Some(measure) => drop(off.insert(measure)),
                None if name == "all" => off.extend(Measure::ALL),
                None => {
                    let known = Measure::ALL.map(Measure::name).join(", ");
                    return Err(PolicyError { name: name.escape_default().to_string(), known });
                }
            }
        }
        Ok(Self { off })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_on_unless_they_are_named() {
        let parsed = |text| Policy::parse(text).expect("names measures");
        assert!(Measure::ALL.into_iter().all(|measure| parsed("").wants(measure)));
        assert_eq!(parsed(" landlock, limits,"), Policy::without([Measure::Landlock, Measure::Limits]));
        assert!(!Measure::ALL.into_iter().any(|measure| parsed("all").wants(measure)));
    }

    #[test]
    fn what_is_no_measure_is_refused_with_those_that_are() {
        let error = Policy::parse("landlock,limit").expect_err("a slip of the pen").to_string();
        assert!(error.contains("`limit`") && error.contains("limits"), "{error}");
    }
}
