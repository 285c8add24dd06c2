//! The dirty log: which pages a backend has written while a guest is migrated.

use std::os::fd::AsFd as _;

use super::prelude::*;
use crate::check::disk::{Disk, Setup};
use crate::check::guest::Guest;
use crate::memory::{DirtyLog, SharedFile};
use crate::protocol::Log;

const SHMFD: Need = Need::Protocol(ProtocolFeatures::LOG_SHMFD);
const LOG_ALL: Need = Need::Feature(feature::LOG_ALL, "VHOST_F_LOG_ALL");
const MIGRATION: &str = "Migration";

cases! {
    "data.log-base-answered" Must [SHMFD] log_base_answered,
        "Communication" => "SET_LOG_BASE is in the list of messages that have a reply, if LOG_SHMFD is negotiated";
    "data.log-fd-accepted" May [Need::Protocol(ProtocolFeatures::REPLY_ACK)] log_fd_accepted,
        "VHOST_USER_SET_LOG_FD" => "\"an optional message with an eventfd\"";
    "data.log-marks-data" Must [Need::DataPath, SHMFD, LOG_ALL] log_marks_data,
        MIGRATION => "a page that is not marked is not sent again: after migration the guest reads old data";
    "data.log-marks-used-ring" Must [Need::DataPath, SHMFD, LOG_ALL] log_marks_used_ring,
        MIGRATION => "with VHOST_VRING_F_LOG writes to the used ring are marked at `log_guest_addr`";
    "data.log-stops" Should [Need::DataPath, SHMFD, LOG_ALL] log_stops,
        MIGRATION => "without VHOST_F_LOG_ALL no page is marked: a cancelled migration costs nothing";
}

fn log_base_answered(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(USUAL | ProtocolFeatures::LOG_SHMFD)?;
    let (_log, description, file) = DirtyLog::create(Guest::BYTES)?;
    set_log_base(&mut link, description, &file)
}

/// Sends a log. It has a reply, whose content the specification does not define.
pub(super) fn set_log_base(link: &mut Link, log: Log, file: &SharedFile) -> Outcome {
    link.send(&SetLogBase(log), &[file.as_fd()])?;
    link.reply_to(6).map(drop)
}

fn log_fd_accepted(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let event = crate::socket::Event::new()?;
    link.require(&SetLogFd(Empty), &[event.as_fd()])
}

/// A disk whose writes to memory are logged.
fn logged(context: &mut Context<'_>) -> Outcome<(Disk, DirtyLog)> {
    let setup = Setup { protocol: ProtocolFeatures::LOG_SHMFD, start: false, ..Setup::default() };
    let mut disk = Disk::open_with(context, &setup)?;
    let (log, description, file) = DirtyLog::create(Guest::BYTES)?;
    set_log_base(&mut disk.link, description, &file)?;
    let features = usual_features(disk.link.offered) | feature::LOG_ALL;
    disk.link.require(&SetFeatures(features), &[])?;
    disk.ring.start(&mut disk.link)?;
    let address = VringAddress { flags: VringAddress::LOG, ..disk.ring.address() };
    disk.link.require(&SetVringAddr(address), &[])?;
    Ok((disk, log))
}

fn log_marks_data(context: &mut Context<'_>) -> Outcome {
    let (mut disk, log) = logged(context)?;
    log.take();
    disk.read(0, 3 * 4096)?;
    let data = disk.data_at();
    let missing: Vec<u64> = (0..3).map(|page| data + page * 4096).filter(|page| !log.is_dirty(*page)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Stop::fail(format!(
        "a read wrote 3 pages, but {} of them are not marked, the first at {:#x}",
        missing.len(),
        missing[0]
    ))
}

fn log_marks_used_ring(context: &mut Context<'_>) -> Outcome {
    let (mut disk, log) = logged(context)?;
    log.take();
    disk.read(0, 512)?;
    let used = disk.ring.address().log;
    if log.is_dirty(used) {
        Ok(())
    } else {
        Stop::fail(format!("the used ring was written, but its page {used:#x} is not marked"))
    }
}

fn log_stops(context: &mut Context<'_>) -> Outcome {
    let (mut disk, log) = logged(context)?;
    disk.read(0, 512)?;
    let features = usual_features(disk.link.offered);
    disk.link.require(&SetFeatures(features), &[])?;
    let address = disk.ring.address();
    disk.link.require(&SetVringAddr(address), &[])?;
    log.take();
    disk.read(0, 512)?;
    match log.take().first() {
        None => Ok(()),
        Some(page) => Stop::fail(format!("logging was stopped, but page {page:#x} was marked afterwards")),
    }
}
