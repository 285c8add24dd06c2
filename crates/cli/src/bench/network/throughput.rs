//! TCP between a guest and the host: through a slot, with its namespace, links and rules, and through a plain TAP device
//! with the same flags of QEMU.

use std::net::TcpStream;

use anyhow::Context as _;
use kiln_engine::guest::Watch;
use kiln_engine::home::Home;
use kiln_engine::link::Renewal;
use kiln_engine::network::{NetworkKind, NetworkRequest, VmNetwork};
use kiln_engine::{Attachment, Engine as _, ForkPart, ForkSpec, Guest, Nic, Tap, blocking};
use kiln_net::inner::MTU;
use kiln_net::policy::{Policy, PolicyDefault};
use kiln_wire::{Interface, Network};

use super::hosts::{self, PlainTap, Way};
use crate::bench::guests::run;
use crate::bench::images::Debian;
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};
use crate::bench::suite::{BOOT_TIMEOUT, Bench};

/// Bytes that the guest's program sends or reads at once, and how often.
const PART_BYTES: u64 = 256 << 10;
const PARTS: u64 = 256;
const MIB: f64 = 1048576.0;
const SEND: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
part = bytes(int(sys.argv[3]))
for _ in range(int(sys.argv[4])): s.sendall(part)
s.shutdown(socket.SHUT_WR)
s.recv(1)";
const RECEIVE: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
part = bytearray(int(sys.argv[3]))
while s.recv_into(part): pass";

/// A guest and the rates of its transfers.
struct Lane {
    guest: Guest,
    up: Series,
    down: Series,
}

/// Measures transfers, one of each in turn.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let Some(mut debian) = Debian::make(bench).await? else { return Ok(()) };
    let tap = PlainTap::make()?;
    let (network, slot) = on_a_slot(bench, &mut debian).await?;
    let plain = on_plain_tap(bench, &debian, &tap).await?;
    let lane =
        |guest, up, down| Lane { guest, up: Series::new(up, Unit::MibPerS), down: Series::new(down, Unit::MibPerS) };
    let mut slot = lane(slot, "TCP of kiln run --net nat, from the guest", "TCP of kiln run --net nat, to the guest");
    let mut plain = lane(plain, "TCP of a plain TAP device, from the guest", "TCP of a plain TAP device, to the guest");
    // The first round is not counted: it translates the guest's code.
    for sample in 0..=bench.samples.div_ceil(2) {
        // The order alternates, so that a busy moment of the host affects both of a pair equally.
        for lane in if sample % 2 == 0 { [&mut slot, &mut plain] } else { [&mut plain, &mut slot] } {
            let (up, down) = (transfer(&lane.guest, Way::Up).await?, transfer(&lane.guest, Way::Down).await?);
            if sample > 0 {
                lane.up.samples.push(up);
                lane.down.samples.push(down);
            }
        }
    }
    for (claim, ours, theirs) in [
        ("TCP from the guest through a slot ≥ 0.9 × a plain TAP device (p50)", &slot.up, &plain.up),
        ("TCP to the guest through a slot ≥ 0.9 × a plain TAP device (p50)", &slot.down, &plain.down),
    ] {
        let seen = ours.p50() / theirs.p50();
        results.promises.push(Promise { claim, seen, bound: 0.9, sense: Sense::AtLeast });
    }
    for Lane { guest, up, down } in [slot, plain] {
        guest.vm.kill().await;
        results.series.extend([up, down]);
    }
    network.stop().await?;
    blocking(move || drop((tap, debian))).await;
    Ok(())
}

/// A guest as `kiln run --net nat` starts it.
async fn on_a_slot(bench: &Bench, debian: &mut Debian) -> anyhow::Result<(VmNetwork, Guest)> {
    let policy = Policy::new(PolicyDefault::Deny, false, vec![hosts::HOST.to_string().parse()?], vec![])?;
    let request = NetworkRequest { kind: NetworkKind::Nat, policy, label: "bench".into() };
    let network = VmNetwork::start(&Home::at(bench.engine.home()), request).await?;
    let ready = debian.ready(bench, &[VmNetwork::card(NetworkKind::Nat)], VmNetwork::ready(NetworkKind::Nat)).await?;
    let part = ForkPart { nics: vec![network.nic()], network: Some(network.guest()), ..ForkPart::default() };
    let forks = ForkSpec { parts: vec![part], ..ForkSpec::default() };
    let guest = Guest::fork(&bench.engine, &ready, forks, Watch::default()).await?;
    Ok((network, guest))
}

/// A guest that booted on the device, which is what a user of QEMU without Kiln has.
async fn on_plain_tap(bench: &Bench, debian: &Debian, tap: &PlainTap) -> anyhow::Result<Guest> {
    let attachment = Attachment::Tap(Tap { device: tap.device().into(), namespace: None });
    let nic = Nic { mac: VmNetwork::card(NetworkKind::Nat).mac, attachment };
    let guest = Guest::start(&bench.engine, debian.spec(bench, &[nic]), BOOT_TIMEOUT, Watch::default()).await?;
    let interface = Interface { address: hosts::GUEST, prefix: hosts::PREFIX, gateway: None, mtu: Some(MTU) };
    let network = Network { interfaces: vec![interface], nameservers: vec![] };
    guest.link.renew(Renewal { network: Some(network), ..Renewal::default() }, BOOT_TIMEOUT).await?;
    Ok(guest)
}

/// The rate of one connection, in MiB each second.
async fn transfer(guest: &Guest, way: Way) -> anyhow::Result<f64> {
    let bytes = PART_BYTES * PARTS;
    let (port, server) = hosts::serve(way, bytes)?;
    let script = if way == Way::Up { SEND } else { RECEIVE };
    let (host, port_word, size, count) =
        (hosts::HOST.to_string(), port.to_string(), PART_BYTES.to_string(), PARTS.to_string());
    let ran = run(&guest.link, &["/usr/bin/python3", "-c", script, &host, &port_word, &size, &count]).await;
    if ran.is_err() {
        // The server may still wait for the guest.
        drop(TcpStream::connect((hosts::HOST, port)));
    }
    let served = blocking(move || server.join()).await;
    ran?;
    let seconds = served.ok().context("the server of a transfer panicked")??;
    Ok(bytes as f64 / MIB / seconds)
}
