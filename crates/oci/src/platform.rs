//! For what machines an image is. VMs of Kiln run linux on amd64.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The level of an x86-64 CPU (x86-64-v1 and so on, see the psABI), which is the variant of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuLevel {
    /// Every x86-64 CPU.
    #[default]
    V1,
    /// With SSE4.2, POPCNT and CMPXCHG16B.
    V2,
    /// With AVX2, BMI and FMA.
    V3,
}

/// For what machines an image is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Platform {
    /// The operating system, such as `linux`.
    #[serde(default)]
    pub os: String,
    /// The architecture as Go names it, such as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// The level within the architecture, such as `v2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Characters of a platform's part that are shown.
const SHOWN_CHARS_MAX: usize = 24;

impl Platform {
    /// The level that the image needs; `None` if no VM of Kiln can run it.
    pub fn level(&self) -> Option<CpuLevel> {
        if self.os != "linux" || !matches!(self.architecture.as_str(), "amd64" | "x86_64") {
            return None;
        }
        match self.variant.as_deref().unwrap_or("") {
            "" | "v1" => Some(CpuLevel::V1),
            "v2" => Some(CpuLevel::V2),
            "v3" => Some(CpuLevel::V3),
            _ => None,
        }
    }

    /// Signatures and build records are in an index as images for no platform.
    pub(crate) fn is_attestation(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect::<String>();
        write!(f, "{}/{}", shown(&self.os), shown(&self.architecture))?;
        match self.variant.as_deref().filter(|variant| !variant.is_empty()) {
            Some(variant) => write!(f, "/{}", shown(variant)),
            None => Ok(()),
        }
    }
}
