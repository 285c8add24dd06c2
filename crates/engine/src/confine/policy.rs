//! Which measures are required: all of them, unless the user turns some off.

use std::collections::BTreeSet;
use std::env;

use super::measure::Measure;

/// Names the measures that are off, separated by commas. `all` turns off all of them.
pub const POLICY_VARIABLE: &str = "KILN_CONFINE_OFF";

/// Which measures are required.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    off: BTreeSet<Measure>,
}

/// A name in the policy is not a measure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` in `{POLICY_VARIABLE}` is not a measure: the measures are {known}")]
pub struct PolicyError {
    name: String,
    known: String,
}

impl Policy {
    /// Reads `$KILN_CONFINE_OFF`.
    ///
    /// # Errors
    /// A name in it is not a measure. With a typing mistake, a measure would stay on that should be off, or the other
    /// way round.
    pub(crate) fn from_environment() -> Result<Self, PolicyError> {
        Self::parse(&env::var_os(POLICY_VARIABLE).unwrap_or_default().to_string_lossy())
    }

    /// All measures except these.
    pub fn without(off: impl IntoIterator<Item = Measure>) -> Self {
        Self { off: off.into_iter().collect() }
    }

    /// This policy with these measures off, too.
    pub(crate) fn less(mut self, off: impl IntoIterator<Item = Measure>) -> Self {
        self.off.extend(off);
        self
    }

    /// Whether a measure is required.
    pub fn wants(&self, measure: Measure) -> bool {
        !self.off.contains(&measure)
    }

    /// Reads a value of the variable.
    pub(crate) fn parse(text: &str) -> Result<Self, PolicyError> {
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
    fn an_unknown_measure_is_refused_with_the_known_ones() {
        insta::assert_snapshot!(Policy::parse("landlock,limit").expect_err("a typing mistake"));
    }
}
