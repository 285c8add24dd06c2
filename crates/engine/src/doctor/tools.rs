//! Programs of this host that Kiln uses, and how to get them.

use camino::Utf8Path;

use super::{FindingStatus, HostFinding};
use crate::host::{find_program, is_static};

/// A program to look for.
struct Tool {
    name: &'static str,
    package: &'static str,
    /// What it is used for.
    purpose: &'static str,
    /// How bad it is when it is not there.
    absent: FindingStatus,
}

const TOOLS: [Tool; 4] = [
    Tool {
        name: "dpkg-deb",
        package: "dpkg",
        purpose: "unpacks the guest kernel's package",
        absent: FindingStatus::Missing,
    },
    Tool {
        name: "apt-get",
        package: "apt",
        purpose: "fetches the guest kernel's package",
        absent: FindingStatus::Warn,
    },
    Tool {
        name: "mkfs.erofs",
        package: "erofs-utils",
        purpose: "makes read-only root disks",
        absent: FindingStatus::Warn,
    },
    Tool { name: "qemu-img", package: "qemu-utils", purpose: "makes and converts disks", absent: FindingStatus::Warn },
];
/// Debian's static busybox has the name of the other one.
const BUSYBOX: &str = "busybox";

pub(super) fn findings() -> Vec<HostFinding> {
    TOOLS.iter().map(tool_finding).chain([busybox_finding()]).collect()
}

fn tool_finding(tool: &Tool) -> HostFinding {
    match find_program(Utf8Path::new(tool.name)) {
        Some(path) => HostFinding::new(tool.name, FindingStatus::Ok, format!("{path} {}", tool.purpose)),
        None => {
            let finding = HostFinding::new(tool.name, tool.absent, format!("not found; it {}", tool.purpose));
            finding.hint(format!("apt-get install --no-install-recommends {}", tool.package))
        }
    }
}

fn busybox_finding() -> HostFinding {
    let finding = |status, detail| HostFinding::new("busybox-static", status, detail);
    let (status, detail) = match find_program(Utf8Path::new(BUSYBOX)) {
        Some(path) if is_static(&path) => return finding(FindingStatus::Ok, format!("{path} goes into guests")),
        Some(path) => (FindingStatus::Missing, format!("{path} needs a dynamic loader, which guests don't have")),
        None => (FindingStatus::Missing, "not found; it goes into guests".into()),
    };
    finding(status, detail).hint("apt-get install --no-install-recommends busybox-static")
}
