//! Which of the images of an index a VM can run: linux on amd64, of the best variant that its CPU has.

use std::collections::BTreeSet;

use crate::manifest::{Descriptor, Index};
use crate::platform::{CpuLevel, Platform};

/// Why no image of an index was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// None is for the VMs that Kiln starts.
    #[error("there is no image for linux/amd64 that the CPU can run; there is {}", listed(.found))]
    NoMatch {
        /// What there is, without attestations.
        found: Vec<Platform>,
    },
    /// Several manifests have no platform, so nothing distinguishes them.
    #[error("the index has {manifests} manifests without a platform")]
    Ambiguous {
        /// How many.
        manifests: usize,
    },
}

/// Platforms that an error lists.
const LISTED_MAX: usize = 16;
impl Index {
    /// The manifest that a VM with such a CPU runs best: the highest variant, and the first of these. If no manifest
    /// has a platform, the only one there is; its configuration has the platform then.
    ///
    /// # Errors
    /// If there is no such manifest, or nothing distinguishes several.
    pub fn choose(&self, cpu: CpuLevel) -> Result<&Descriptor, PlatformError> {
        let level = |descriptor: &Descriptor| descriptor.platform.as_ref().and_then(Platform::level);
        let mut best: Option<(CpuLevel, &Descriptor)> = None;
        for descriptor in &self.manifests {
            let Some(level) = level(descriptor).filter(|level| *level <= cpu) else { continue };
            if best.is_none_or(|(highest, _)| level > highest) {
                best = Some((level, descriptor));
            }
        }
        if let Some((_, descriptor)) = best {
            return Ok(descriptor);
        }
        let without: Vec<_> = self.manifests.iter().filter(|manifest| manifest.platform.is_none()).collect();
        match without[..] {
            [only] => Ok(only),
            [first, .., last] if first.digest == last.digest && same(&without) => Ok(first),
            [] => {
                let found = self.manifests.iter().filter_map(|manifest| manifest.platform.clone());
                Err(PlatformError::NoMatch { found: found.filter(|platform| !platform.is_attestation()).collect() })
            }
            _ => Err(PlatformError::Ambiguous { manifests: without.len() }),
        }
    }
}

fn same(descriptors: &[&Descriptor]) -> bool {
    descriptors.windows(2).all(|pair| pair[0].digest == pair[1].digest)
}

fn listed(platforms: &[Platform]) -> String {
    let all: BTreeSet<String> = platforms.iter().map(ToString::to_string).collect();
    let names: Vec<&str> = all.iter().take(LISTED_MAX).map(String::as_str).collect();
    match all.len() {
        0 => "none at all".to_owned(),
        count if count > LISTED_MAX => format!("{} and {} more", names.join(", "), count - LISTED_MAX),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms.iter().enumerate().map(|(number, text)| {
            let mut parts = text.split('/').map(str::to_owned);
            let platform = (!text.is_empty()).then(|| Platform {
                os: parts.next().unwrap_or_default(),
                architecture: parts.next().unwrap_or_default(),
                variant: parts.next(),
            });
            let digest = Digest::sha256(&[u8::try_from(number).expect("few")]);
            Descriptor { media_type: String::new(), digest, size: 1, platform, annotations: [].into() }
        });
        Index { manifests: manifests.collect() }
    }

    fn chosen(platforms: &[&str], cpu: CpuLevel) -> usize {
        let index = index(platforms);
        let choice = index.choose(cpu).expect("one fits").clone();
        index.manifests.iter().position(|manifest| *manifest == choice).expect("is one of them")
    }

    #[test]
    fn the_highest_variant_that_the_cpu_has_is_chosen() {
        let all =
            ["unknown/unknown", "linux/arm64", "linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"];
        assert_eq!(chosen(&all, CpuLevel::V1), 2);
        assert_eq!(chosen(&all, CpuLevel::V2), 3);
        assert_eq!(chosen(&all, CpuLevel::V3), 4);
        assert_eq!(chosen(&["linux/amd64/v1", "linux/amd64"], CpuLevel::V3), 0, "the first of equal ones");
    }

    #[test]
    fn a_manifest_without_platform_is_chosen_if_it_is_the_only_one() {
        assert_eq!(chosen(&["unknown/unknown", ""], CpuLevel::V1), 1);
        assert_eq!(chosen(&["", "linux/amd64"], CpuLevel::V1), 1);
        assert_eq!(index(&["", ""]).choose(CpuLevel::V1), Err(PlatformError::Ambiguous { manifests: 2 }));
    }

    #[test]
    fn what_there_is_instead_is_listed() {
        let none = |platforms: &[&str]| index(platforms).choose(CpuLevel::V2).expect_err("none fits").to_string();
        let many: Vec<String> = (0..20).map(|number| format!("linux/cpu{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let lines = [
            none(&["unknown/unknown", "linux/arm64/v8", "linux/amd64/v3"]),
            none(&["linux\u{1b}[31m/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]),
            none(&[]),
            none(&many),
            none(&["", ""]),
        ];
        insta::assert_snapshot!(lines.join("\n"));
    }
}
