//! Finds out whether apt has a newer kernel than an image.

use super::apt::Apt;
use super::packages::SourceError;
use super::store::Image;
use super::version::version_key;

/// What apt has compared with the kernel of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelNews {
    /// Nothing newer.
    Newest,
    /// This package is newer. `kiln image build` takes it.
    Newer {
        /// The package's file, with its version.
        package: String,
    },
    /// apt can't be run, or names no kernel.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl Image {
    /// Asks apt for a newer kernel than this image's. Takes some seconds, changes nothing, and uses the lists of the
    /// last `apt-get update`.
    pub fn kernel_news(&self) -> KernelNews {
        let apt = Apt::of_host();
        let newest = apt.newest_kernel().and_then(|package| apt.candidate(&package)).map(|candidate| candidate.file);
        news(self.kernel_package.as_deref(), &self.kernel_version, newest)
    }
}

/// A package's version counts too, not only the kernel's version in its name: a rebuilt kernel keeps its name.
fn news(package: Option<&str>, release: &str, newest: Result<String, SourceError>) -> KernelNews {
    let newest = match newest {
        Ok(newest) => newest,
        Err(error) => return KernelNews::Unknown { reason: error.to_string() },
    };
    let is_newer = match package {
        Some(package) => version_key(&newest) > version_key(package),
        None => {
            version_key(newest.split('_').next().unwrap_or_default()) > version_key(&format!("linux-image-{release}"))
        }
    };
    if is_newer { KernelNews::Newer { package: newest } } else { KernelNews::Newest }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "linux-image-6.1.0-48-cloud-amd64_6.1.172-1_amd64.deb";
    const REBUILT: &str = "linux-image-6.1.0-48-cloud-amd64_6.1.172-2_amd64.deb";
    const NEW: &str = "linux-image-6.1.0-49-cloud-amd64_6.1.176-1_amd64.deb";
    const RELEASE: &str = "6.1.0-48-cloud-amd64";

    #[test]
    fn a_newer_kernel_is_recognised_by_its_package() {
        for newer in [REBUILT, NEW] {
            assert_eq!(news(Some(OLD), RELEASE, Ok(newer.into())), KernelNews::Newer { package: newer.into() });
        }
        for other in [OLD, REBUILT] {
            assert_eq!(news(Some(REBUILT), RELEASE, Ok(other.into())), KernelNews::Newest);
        }
    }

    #[test]
    fn a_kernel_without_a_package_is_recognised_by_its_release() {
        assert_eq!(news(None, RELEASE, Ok(NEW.into())), KernelNews::Newer { package: NEW.into() });
        assert_eq!(news(None, RELEASE, Ok(REBUILT.into())), KernelNews::Newest);
        assert_eq!(news(None, "6.12.3-cloud-amd64", Ok(NEW.into())), KernelNews::Newest);
    }

    #[test]
    fn an_apt_that_fails_gives_no_news() {
        let missing = SourceError::Unusable { path: "apt-cache".into(), problem: "was not found" };
        let expected = KernelNews::Unknown { reason: "`apt-cache` was not found".into() };
        assert_eq!(news(Some(OLD), RELEASE, Err(missing)), expected);
    }
}
