//! Networks of VMs as root: what a network slot adds to a fork, and TCP through a slot against a plain TAP device.

mod hosts;
mod slots;
mod throughput;

use camino::Utf8Path;
use kiln_engine::host;

use super::results::Results;
use super::suite::Bench;
use crate::output::say;

/// Measures networks.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let has = |program: &str| host::find_program(Utf8Path::new(program)).is_some();
    if !rustix::process::geteuid().is_root() || !Utf8Path::new("/dev/net/tun").exists() || !has("nft") || !has("ip") {
        say("networks need root, /dev/net/tun, nft and ip: they are not measured in this run");
        return Ok(());
    }
    slots::measure(bench, results).await?;
    throughput::measure(bench, results).await
}
