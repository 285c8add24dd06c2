//! The guest protocol against the real agent binary in test mode: no root, no KVM, no VM.
//!
//! Tests of correct hosts use the `GuestLink` of the engine. Tests of broken and hostile hosts send bytes of their own
//! choice. Each test starts its own agent.

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
