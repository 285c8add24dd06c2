//! Findings about the networks of VMs: which kind this user gets, and what on the host is in the way.

use camino::Utf8Path;
use kiln_net::slots::{Obstacle, Slots};

use super::report::{FindingStatus, HostFinding};
use crate::host::find_program;

/// The device that makes TAP devices.
const TUN: &str = "/dev/net/tun";

/// What `--net nat` needs.
#[derive(Debug, Clone, Copy)]
struct Needs {
    is_root: bool,
    has_tun: bool,
    has_nft: bool,
}

/// Starts `nft` if networks can work at all.
pub(super) fn findings() -> Vec<HostFinding> {
    let needs = Needs {
        is_root: rustix::process::geteuid().is_root(),
        has_tun: Utf8Path::new(TUN).exists(),
        has_nft: find_program("nft".into()).is_some(),
    };
    let obstacles = if needs.is_root && needs.has_nft {
        Slots::obstacles().map_err(|error| error.to_string())
    } else {
        Ok(Vec::new())
    };
    std::iter::once(nat_finding(needs)).chain(obstacle_findings(obstacles)).collect()
}

fn nat_finding(needs: Needs) -> HostFinding {
    let finding = |status, detail: &str| HostFinding::new("networks", status, detail.to_owned());
    match needs {
        Needs { is_root: false, .. } => finding(FindingStatus::Ok, "`--net user`; `--net nat` needs root"),
        Needs { has_tun: false, .. } => {
            finding(FindingStatus::Warn, "`--net user`; `--net nat` needs `/dev/net/tun`, which is not there")
                .hint("modprobe tun")
        }
        // The finding about `nft` has the hint.
        Needs { has_nft: false, .. } => finding(FindingStatus::Ok, "`--net user`; `--net nat` needs `nft`"),
        Needs { .. } => finding(FindingStatus::Ok, "`--net nat` and `--net user`"),
    }
}

/// Each chain that drops what it does not know. Whether it has a rule for VMs is not read: rules can jump anywhere.
fn obstacle_findings(listed: Result<Vec<Obstacle>, String>) -> Vec<HostFinding> {
    let finding = |detail: String| HostFinding::new("forwarding", FindingStatus::Warn, detail);
    match listed {
        Ok(obstacles) => obstacles
            .iter()
            .map(|Obstacle { table, chain }| {
                finding(format!("the chain `{chain}` of the table `{table}` drops packets of `--net nat`, unless a rule lets them pass"))
                    .hint(LET_PASS)
            })
            .collect(),
        Err(problem) => vec![finding(format!("the rules of this host can't be listed: {problem}"))],
    }
}

/// For chains of iptables. A user of another firewall knows its words.
const LET_PASS: &str = "let packets of the interfaces `kiln-*` and their answers pass, for docker with: \
    iptables -I DOCKER-USER -i 'kiln-+' -j ACCEPT; \
    iptables -I DOCKER-USER -o 'kiln-+' -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_host_has_a_finding() {
        let all = Needs { is_root: true, has_tun: true, has_nft: true };
        let needs =
            [all, Needs { has_nft: false, ..all }, Needs { has_tun: false, ..all }, Needs { is_root: false, ..all }];
        let obstacle = Obstacle { table: "ip filter".into(), chain: "FORWARD".into() };
        let forwarding = [Ok(vec![obstacle]), Err("`nft` failed".into())].map(obstacle_findings);
        let findings = needs.map(nat_finding).into_iter().chain(forwarding.into_iter().flatten());
        let lines: Vec<_> = findings.map(|finding| finding.line()).collect();
        insta::assert_snapshot!(lines.join("\n"));
        assert!(obstacle_findings(Ok(Vec::new())).is_empty());
    }
}
