//! The agent's binary, for tests that run it as a process of this host.

use camino::Utf8PathBuf;

/// `KILN_AGENT_BIN`; if it is not set, the static agent of this workspace.
pub fn agent() -> Utf8PathBuf {
    let built = || {
        let exe = Utf8PathBuf::try_from(std::env::current_exe().expect("this binary")).expect("UTF-8");
        // <target>/<profile>/deps/<test>
        let target = exe.ancestors().nth(3).expect("tests run from a target directory").to_owned();
        target.join("x86_64-unknown-linux-gnu/agent/kiln-agent")
    };
    let path = std::env::var("KILN_AGENT_BIN").map_or_else(|_| built(), Utf8PathBuf::from);
    assert!(path.is_file(), "`{path}` is not there: `scripts/build.sh` builds it, or KILN_AGENT_BIN names another");
    path
}
