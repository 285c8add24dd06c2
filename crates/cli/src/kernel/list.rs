//! What kernels there are, and what is known of one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::Utf8PathBuf;
use comfy_table::{Table, presets};
use kiln_engine::image::KernelFormat;
use kiln_engine::kernels::{Kernel, KernelName, KernelStore, Missing};
use serde::Serialize;

use crate::failure::Failure;
use crate::image::{home, kernel_failure};
use crate::output::{age, mebibytes, plain, print, print_json};

/// Enough digits to distinguish the kernels of one host.
const DIGEST_CHARS_SHOWN: usize = 12;
/// What a kernel without a name is listed as.
const NO_NAME: &str = "<none>";

/// A kernel as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    names: Vec<KernelName>,
    digest: String,
    release: String,
    source: String,
    format: KernelFormat,
    modules: usize,
    missing: Vec<Missing>,
    added_unix_seconds: u64,
    size_bytes: u64,
    dir: Utf8PathBuf,
}

impl Listed {
    pub(super) fn of(store: &KernelStore, kernel: &Kernel) -> Result<Self, Failure> {
        let kernel = kernel.clone();
        Ok(Self {
            names: store.names_of(&kernel.digest).map_err(kernel_failure)?,
            digest: kernel.digest,
            release: kernel.release,
            source: kernel.source,
            format: kernel.format,
            modules: kernel.module_count,
            missing: kernel.missing,
            added_unix_seconds: kernel.added_unix_seconds,
            size_bytes: kernel.size_bytes,
            dir: kernel.dir,
        })
    }
}

/// Runs `kiln kernel ls`.
pub(super) fn list(json: bool) -> Result<u8, Failure> {
    let store = KernelStore::new(&home()?);
    let kernels = store.list().map_err(kernel_failure)?;
    let listed = kernels.iter().map(|kernel| Listed::of(&store, kernel)).collect::<Result<Vec<_>, _>>()?;
    if json {
        print_json(&listed)?;
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        print(table(&listed, now))?;
    }
    Ok(0)
}

/// Runs `kiln kernel inspect`.
pub(super) fn inspect(asked: &str) -> Result<u8, Failure> {
    let store = KernelStore::new(&home()?);
    let kernel = store.find(asked).map_err(kernel_failure)?;
    print_json(&Listed::of(&store, &kernel)?)?;
    Ok(0)
}

/// One row for each name, and one for each kernel without a name.
fn table(kernels: &[Listed], now: Duration) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "RELEASE", "DIGEST", "MODULES", "SIZE", "ADDED", "SOURCE"]);
    for kernel in kernels {
        let mut names: Vec<_> = kernel.names.iter().map(ToString::to_string).collect();
        if names.is_empty() {
            names.push(NO_NAME.to_owned());
        }
        for name in names {
            table.add_row([
                name,
                plain(&kernel.release),
                kernel.digest.chars().take(DIGEST_CHARS_SHOWN).collect(),
                kernel.modules.to_string(),
                mebibytes(kernel.size_bytes),
                age(now.saturating_sub(Duration::from_secs(kernel.added_unix_seconds))),
                plain(&kernel.source),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use kiln_engine::kernels::Purpose;

    use super::*;

    #[test]
    fn the_list_is_a_table_or_json() {
        let debian = Listed {
            names: ["debian:6.12", "stable"].map(|name| name.parse().expect("a name")).into(),
            digest: "0123456789abcdef".repeat(4),
            release: "6.12.95+deb12-cloud-amd64".into(),
            source: "linux-image-6.12.95+deb12-cloud-amd64_6.12.95-1~bpo12+1_amd64.deb".into(),
            format: KernelFormat::Vmlinux,
            modules: 1137,
            missing: vec![],
            added_unix_seconds: 1_000_000,
            size_bytes: 165 << 20,
            dir: "/kernels/0123".into(),
        };
        let own = Listed {
            names: vec![],
            digest: "fedcba9876543210".repeat(4),
            release: "6.1.0-mine".into(),
            source: "./bzImage".into(),
            format: KernelFormat::BzImage,
            modules: 0,
            missing: vec![Missing {
                option: "CONFIG_EROFS_FS".into(),
                purpose: Purpose::Root,
                what: "the root filesystem of an image".into(),
                module: Some("erofs".into()),
            }],
            added_unix_seconds: 1_000_060,
            size_bytes: 9 << 20,
            dir: "/kernels/fedc".into(),
        };
        let listed = [debian, own];
        let json = serde_json::to_string_pretty(&listed).expect("plain data");
        insta::assert_snapshot!(format!("{}\n\n{json}", table(&listed, Duration::from_secs(1_000_120))));
    }
}
