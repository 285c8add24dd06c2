//! The guest protocol against the real agent binary in test mode: no root, no KVM, no VM.
//!
//! What a host with manners sees goes through the product's own `GuestLink`; what a broken or hostile one may do is said
//! byte by byte. Each test starts an agent of its own.

mod activity;
mod common;
mod exec;
mod exec_data;
mod exec_end;
mod files;
mod files_errors;
mod floods;
mod forward;
mod freeze;
mod handshake;
mod hostile;
mod leaks;
mod limits;
mod reset;
mod services;
mod sessions;
mod sessions_attach;
mod streams;
mod tar;
mod tty;
mod watch;
