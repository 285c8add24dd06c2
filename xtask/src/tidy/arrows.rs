//! Which crate may use which: the arrows of ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata};

use super::problem::Problem;

/// For each crate the crates of ours that it may depend on. Arrows point only down.
const ALLOWED: [(&str, &[&str]); 17] = [
    ("kiln-wire", &[]),
    ("kiln-detect", &[]),
    ("kiln-api", &[]),
    ("kiln-archive", &[]),
    ("kiln-agent", &["kiln-wire", "kiln-archive"]),
    ("kiln-programs", &[]),
    ("kiln-vdev", &["kiln-programs"]),
    ("kiln-rootfs", &["kiln-archive"]),
    ("kiln-oci", &["kiln-archive", "kiln-programs"]),
    ("kiln-net", &["kiln-programs"]),
    (
        "kiln-engine",
        &["kiln-wire", "kiln-detect", "kiln-archive", "kiln-programs", "kiln-rootfs", "kiln-oci", "kiln-net"],
    ),
    ("kiln-lab", &["kiln-wire", "kiln-detect", "kiln-engine"]),
    ("kiln-server", &["kiln-wire", "kiln-detect", "kiln-api", "kiln-engine", "kiln-lab"]),
    (
        "kiln-cli",
        &[
            "kiln-wire",
            "kiln-archive",
            "kiln-detect",
            "kiln-api",
            "kiln-programs",
            "kiln-rootfs",
            "kiln-oci",
            "kiln-net",
            "kiln-vdev",
            "kiln-engine",
            "kiln-lab",
            "kiln-server",
        ],
    ),
    ("kiln-e2e-guest", &[]),
    (
        "kiln-e2e",
        &[
            "kiln-wire",
            "kiln-detect",
            "kiln-api",
            "kiln-vdev",
            "kiln-engine",
            "kiln-lab",
            "kiln-server",
            "kiln-e2e-guest",
        ],
    ),
    ("xtask", &[]),
];

/// One dependency of one of our packages on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arrow<'a> {
    from: &'a str,
    to: &'a str,
    /// Whether only tests and benches use it.
    for_tests: bool,
}

/// The problems of a workspace's dependencies, each at its package's manifest.
pub fn check(workspace: &Metadata) -> Vec<Problem> {
    let packages = workspace.workspace_packages();
    let names: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut arrows = Vec::new();
    for package in &packages {
        for dependency in package.dependencies.iter().filter(|dependency| names.contains(dependency.name.as_str())) {
            let for_tests = dependency.kind == DependencyKind::Development;
            arrows.push(Arrow { from: package.name.as_str(), to: &dependency.name, for_tests });
        }
    }

    let manifest = |name: &str| {
        let package = packages.iter().find(|package| package.name.as_str() == name);
        let path = package.map(|package| package.manifest_path.as_std_path());
        path.and_then(|path| path.strip_prefix(&workspace.workspace_root).ok()).unwrap_or(Path::new("Cargo.toml"))
    };
    let broken = unknown(&names).into_iter().chain(forbidden(&arrows)).chain(cycles(&arrows));
    broken.map(|(name, problem)| Problem::new(manifest(name), 1, problem)).collect()
}

fn allowed(name: &str) -> Option<&'static [&'static str]> {
    ALLOWED.iter().find(|(from, _)| *from == name).map(|(_, to)| *to)
}

fn unknown<'a>(names: &BTreeSet<&'a str>) -> Vec<(&'a str, String)> {
    let strangers = names.iter().filter(|name| allowed(name).is_none());
    strangers.map(|name| (*name, format!("`{name}` is not in the table of xtask/src/tidy/arrows.rs"))).collect()
}

fn forbidden<'a>(arrows: &[Arrow<'a>]) -> Vec<(&'a str, String)> {
    let product = arrows.iter().filter(|arrow| !arrow.for_tests);
    let broken = product.filter(|arrow| !allowed(arrow.from).unwrap_or_default().contains(&arrow.to));
    broken.map(|arrow| (arrow.from, format!("`{}` may not depend on `{}`", arrow.from, arrow.to))).collect()
}

/// Tests may use crates that their own crate may not, but none that depends on it. That a crate's tests use the crate
/// itself, with features for tests, is not a circle.
fn cycles<'a>(arrows: &[Arrow<'a>]) -> Vec<(&'a str, String)> {
    let mut builds_on: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for arrow in arrows.iter().filter(|arrow| !arrow.for_tests) {
        builds_on.entry(arrow.from).or_default().push(arrow.to);
    }
    let others = arrows.iter().filter(|arrow| arrow.for_tests && arrow.to != arrow.from);
    let round = others.filter(|arrow| reaches(&builds_on, arrow.to, arrow.from));
    round
        .map(|arrow| (arrow.from, format!("tests of `{}` use `{}`, which depends on it", arrow.from, arrow.to)))
        .collect()
}

fn reaches(builds_on: &BTreeMap<&str, Vec<&str>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(name) = open.pop() {
        if name == to {
            return true;
        }
        if seen.insert(name) {
            open.extend(builds_on.get(name).into_iter().flatten());
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product<'a>(from: &'a str, to: &'a str) -> Arrow<'a> {
        Arrow { from, to, for_tests: false }
    }

    fn tests<'a>(from: &'a str, to: &'a str) -> Arrow<'a> {
        Arrow { from, to, for_tests: true }
    }

    #[test]
    fn arrows_of_the_table_are_allowed() {
        let all = ALLOWED.iter().flat_map(|(from, targets)| targets.iter().map(|to| product(from, to)));
        assert_eq!(forbidden(&all.collect::<Vec<_>>()), []);
    }

    #[test]
    fn the_table_has_no_cycle() {
        let builds_on: BTreeMap<&str, Vec<&str>> = ALLOWED.iter().map(|(from, to)| (*from, to.to_vec())).collect();
        for (from, targets) in ALLOWED {
            for to in targets {
                assert!(!reaches(&builds_on, to, from), "{from} -> {to} -> … -> {from}");
            }
        }
    }

    #[test]
    fn an_arrow_that_points_up_is_named() {
        let broken = forbidden(&[product("kiln-wire", "kiln-engine"), product("kiln-cli", "kiln-agent")]);
        assert_eq!(broken[0], ("kiln-wire", "`kiln-wire` may not depend on `kiln-engine`".to_owned()));
        assert_eq!(broken[1].0, "kiln-cli");
    }

    #[test]
    fn tests_may_use_more_than_their_crate() {
        assert_eq!(forbidden(&[tests("kiln-engine", "kiln-detect")]), []);
        assert_eq!(cycles(&[tests("kiln-engine", "kiln-detect")]), []);
        assert_eq!(cycles(&[tests("kiln-engine", "kiln-engine")]), []);
    }

    #[test]
    fn tests_may_not_use_a_crate_that_depends_on_theirs() {
        let arrows =
            [product("kiln-lab", "kiln-engine"), product("kiln-engine", "kiln-wire"), tests("kiln-wire", "kiln-lab")];
        assert_eq!(
            cycles(&arrows),
            [("kiln-wire", "tests of `kiln-wire` use `kiln-lab`, which depends on it".to_owned())]
        );
    }

    #[test]
    fn a_crate_that_is_not_in_the_table_is_named() {
        let names = BTreeSet::from(["kiln-wire", "kiln-common"]);
        let message = "`kiln-common` is not in the table of xtask/src/tidy/arrows.rs".to_owned();
        assert_eq!(unknown(&names), [("kiln-common", message)]);
    }
}
