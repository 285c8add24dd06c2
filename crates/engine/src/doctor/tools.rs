//! Findings about the programs that Kiln starts or copies, with the package that has each.

use camino::Utf8Path;

use super::report::{FindingStatus, HostFinding};
use crate::host::{find_program, is_static};

/// A program that Kiln starts.
struct Tool {
    name: &'static str,
    package: &'static str,
    /// A verb phrase: what the program does for Kiln.
    purpose: &'static str,
    /// The status of the finding if the program is not installed.
    absent: FindingStatus,
}

const TOOLS: [Tool; 5] = [
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
    Tool { name: "mke2fs", package: "e2fsprogs", purpose: "makes volumes", absent: FindingStatus::Warn },
    Tool { name: "mmdebstrap", package: "mmdebstrap", purpose: "makes images of Debian", absent: FindingStatus::Warn },
    Tool { name: "nft", package: "nftables", purpose: "sets the rules of `--net nat`", absent: FindingStatus::Warn },
];
/// Debian's packages `busybox` and `busybox-static` both install a program of this name. Guests need the static one.
const BUSYBOX: &str = "busybox";

pub(super) fn findings() -> Vec<HostFinding> {
    let tools = TOOLS.iter().map(|tool| tool_finding(tool, find_program(tool.name.into()).as_deref()));
    let busybox = find_program(BUSYBOX.into());
    let busybox = busybox_finding(busybox.as_deref().map(|path| (path, is_static(path))));
    tools.chain([busybox]).collect()
}

fn tool_finding(tool: &Tool, found: Option<&Utf8Path>) -> HostFinding {
    match found {
        Some(path) => HostFinding::new(tool.name, FindingStatus::Ok, format!("{path} {}", tool.purpose)),
        None => {
            let finding = HostFinding::new(tool.name, tool.absent, format!("not found; it {}", tool.purpose));
            finding.hint(format!("apt-get install --no-install-recommends {}", tool.package))
        }
    }
}

/// `found` is the path of busybox, and whether it is static.
fn busybox_finding(found: Option<(&Utf8Path, bool)>) -> HostFinding {
    let finding = |status, detail| HostFinding::new("busybox-static", status, detail);
    let (status, detail) = match found {
        Some((path, true)) => return finding(FindingStatus::Ok, format!("{path} is copied into images")),
        Some((path, false)) => {
            (FindingStatus::Missing, format!("{path} needs a dynamic loader, which guests don't have"))
        }
        None => (FindingStatus::Missing, "not found; it is copied into images".into()),
    };
    finding(status, detail).hint("apt-get install --no-install-recommends busybox-static")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_has_a_purpose_and_a_package() {
        let path = Utf8Path::new("/usr/bin/program");
        let tools = TOOLS.iter().flat_map(|tool| [tool_finding(tool, Some(path)), tool_finding(tool, None)]);
        let busybox = [Some((path, true)), Some((path, false)), None].map(busybox_finding);
        let lines: Vec<_> = tools.chain(busybox).map(|finding| finding.line()).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
