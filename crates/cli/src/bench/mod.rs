//! `kiln bench`: measures the promises of SPECIFICATION.md on this host, each beside its floor in the same run. A floor
//! is the best possible number: QEMU without Kiln, a port without a protocol, a round trip.

mod agent;
mod boot;
mod exec;
mod files;
mod fork;
mod guests;
mod images;
mod machine;
mod network;
mod results;
mod samples;
mod scan;
mod suite;
mod terminal;
mod vhost;

pub use suite::run;
