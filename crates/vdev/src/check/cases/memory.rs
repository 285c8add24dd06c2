//! The memory table, and regions that come and go one by one.

use std::os::fd::{AsFd as _, OwnedFd};

use super::prelude::*;
use crate::check::guest::Guest;
use crate::memory::SharedFile;

const ACK: Need = Need::Protocol(ProtocolFeatures::REPLY_ACK);
const SLOTS: Need = Need::Protocol(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
const MEM_TABLE: &str = "VHOST_USER_SET_MEM_TABLE";
const ADD: &str = "VHOST_USER_ADD_MEM_REG";
const REMOVE: &str = "VHOST_USER_REM_MEM_REG";

cases! {
    "memory.one-region" Must [ACK] one_region,
        MEM_TABLE => "one memory region is the simplest guest";
    "memory.eight-regions" Must [ACK] eight_regions,
        "Memory regions description" => "a table has up to 8 regions, and a VMM uses them";
    "memory.table-replaced" Must [ACK] table_replaced,
        MEM_TABLE => "a VMM sends the whole table again when memory is hot-plugged";
    "memory.offset-in-file" Must [ACK] offset_in_file,
        "Memory regions description" =>
            "\"mmap offset\" is the region's start in its file; QEMU has memory below and above 4 GiB in one file";
    "memory.high-addresses" Should [ACK] high_addresses,
        "Memory regions description" =>
            "addresses have 64 bits; memory above 4 GiB is common, and device memory may be above 1 TiB";
    "memory.table-after-rings" Should [ACK] table_after_rings,
        "Ring states" => "\"the back-end must support changing some configuration aspects on the fly\"";
    "memory.table-filled-up" May [ACK] table_filled_up,
        "C structure" => "a frontend may send the whole C struct; regions beyond the count are ignored";
    "memory.fd-missing" Should [ACK] fd_missing,
        MEM_TABLE =>
            "\"The size and ordering of the fds matches the number and ordering of memory regions\"; without its \
             descriptor a region cannot be mapped";
    "memory.fd-surplus" Should [ACK] fd_surplus,
        MEM_TABLE => "\"The size and ordering of the fds matches the number and ordering of memory regions\"";
    "memory.nine-regions" Should [ACK] nine_regions,
        "Memory regions description" =>
            "a table has at most 8 regions; a backend that accepts more without an error has lost some";
    "memory.no-memory-file" Should [ACK] no_memory_file,
        MEM_TABLE =>
            "a region that cannot be mapped is an error, and \"the payload should be set to ... non-zero on failure\"";
    "memory.past-file" Should [ACK] past_file,
        MEM_TABLE => "the first access to memory beyond the end of its file raises SIGBUS";
    "memory.size-zero" Should [ACK] size_zero,
        MEM_TABLE => "a region of 0 bytes cannot be mapped";
    "memory.endless" Should [ACK] endless,
        MEM_TABLE => "a region that ends beyond the last address overflows bounds checks";
    "memory.overlap" May [ACK] overlap,
        MEM_TABLE => "an address in two regions is ambiguous";
    "memory.max-slots" Must [SLOTS] max_slots,
        "VHOST_USER_GET_MAX_MEM_SLOTS" => "a VMM hot-plugs at most this number of regions";
    "memory.add-region" Must [ACK, SLOTS] add_region,
        ADD => "if the feature is negotiated, a VMM adds even the first region this way";
    "memory.add-all-slots" Should [ACK, SLOTS] add_all_slots,
        "VHOST_USER_GET_MAX_MEM_SLOTS" => "a frontend may add as many regions as GET_MAX_MEM_SLOTS returns";
    "memory.add-without-fd" Should [ACK, SLOTS] add_without_fd,
        ADD => "\"Exactly one file descriptor from which the memory is mapped is passed\"";
    "memory.add-past-file" Should [ACK, SLOTS] add_past_file,
        ADD => "the first access to memory beyond the end of its file raises SIGBUS";
    "memory.add-twice" Should [ACK, SLOTS] add_twice,
        ADD => "two equal regions cannot be told apart when one is removed";
    "memory.remove-region" Must [ACK, SLOTS] remove_region,
        REMOVE => "a VMM removes unplugged memory by its addresses and size";
    "memory.remove-ignores-offset" Must [ACK, SLOTS] remove_ignores_offset,
        REMOVE => "\"The mmap offset is ignored\"";
    "memory.remove-unknown" Should [ACK, SLOTS] remove_unknown,
        REMOVE => "an unknown region cannot be removed; success would hide that both sides have different tables";
    "memory.remove-and-add" Must [ACK, SLOTS] remove_and_add,
        REMOVE => "memory that was unplugged may be plugged again";
    "memory.remove-unmaps" Must [ACK, SLOTS, Need::Process] remove_unmaps,
        REMOVE =>
            "a region \"which the back-end device must unmap\": as long as it is mapped, the memory is not freed";
    "memory.remove-closes-fd" Must [ACK, SLOTS, Need::Process] remove_closes_fd,
        REMOVE => "\"If a file descriptor is passed, the back-end MUST close it without using it otherwise\"";
}

/// A session, and a file of some pages.
fn file(context: &mut Context<'_>) -> Outcome<(Link, SharedFile)> {
    Ok((context.open_device()?, SharedFile::new(FILE_BYTES)?))
}

const FILE_BYTES: u64 = 1 << 20;

const fn region(guest_address: u64, size: u64) -> MemoryRegion {
    MemoryRegion { guest_address, size, user_address: 0x7000_0000_0000_u64.wrapping_add(guest_address), mmap_offset: 0 }
}

fn table(regions: &[MemoryRegion]) -> SetMemTable {
    SetMemTable(MemoryTable(regions.to_vec()))
}

fn one_region(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    link.require(&table(&[region(0, FILE_BYTES)]), &[file.as_fd()])
}

fn eight_regions(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let places: Vec<_> = (0..8).map(|place| (place * 0x20_0000, 0x10_0000)).collect();
    Guest::with_regions(&places)?.share(&mut link)
}

fn table_replaced(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    Guest::new()?.share(&mut link)?;
    Guest::with_regions(&[(0, 1 << 20), (1 << 32, 1 << 20)])?.share(&mut link)
}

fn offset_in_file(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    let below = region(0, FILE_BYTES / 2);
    let above = MemoryRegion { mmap_offset: FILE_BYTES / 2, ..region(1 << 32, FILE_BYTES / 2) };
    link.require(&table(&[below, above]), &[file.as_fd(), file.as_fd()])
}

fn high_addresses(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    let high = MemoryRegion { user_address: 0x7fff_0000_0000, ..region(1 << 40, FILE_BYTES) };
    link.require(&table(&[high]), &[file.as_fd()])
}

fn table_after_rings(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = crate::check::ring::SplitRing::new(&mut guest, 0, 64)?;
    ring.start(&mut link)?;
    // The ring's own memory stays; more comes.
    guest.add(1 << 32, 1 << 20)?;
    guest.share(&mut link)?;
    ring.stop(&mut link).map(drop)
}

fn table_filled_up(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    let mut payload = table(&[region(0, FILE_BYTES)]).payload();
    payload.resize(8 + 8 * 32, 0);
    let answer = link.ask_raw(5, Flags::request_with_reply(), &payload, &[file.as_fd()])?;
    if answer.is_accepted() {
        Ok(())
    } else {
        Stop::fail(format!("a table of 1 region in the space of 8: the backend {answer}"))
    }
}

fn fd_missing(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    let regions = [region(0, FILE_BYTES), region(1 << 32, FILE_BYTES)];
    link.require_refusal(&table(&regions), &[file.as_fd()], "two regions with one descriptor")
}

fn fd_surplus(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    link.require_refusal(
        &table(&[region(0, FILE_BYTES)]),
        &[file.as_fd(), file.as_fd()],
        "one region with two descriptors",
    )
}

fn nine_regions(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    let regions: Vec<_> = (0..9).map(|place| region(place << 32, FILE_BYTES)).collect();
    link.require_refusal(&table(&regions), &[file.as_fd(); 9], "nine regions")
}

fn no_memory_file(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let (pipe, _other) = std::io::pipe()?;
    let pipe = OwnedFd::from(pipe);
    link.require_refusal(&table(&[region(0, FILE_BYTES)]), &[pipe.as_fd()], "a region in a pipe")
}

fn past_file(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    let larger = region(0, FILE_BYTES + 4096);
    link.require_refusal(&table(&[larger]), &[file.as_fd()], "a region that is larger than its file")
}

fn size_zero(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    link.require_refusal(&table(&[region(0, 0)]), &[file.as_fd()], "a region of 0 bytes")
}

fn endless(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    let endless = MemoryRegion { user_address: u64::MAX - 4095, ..region(u64::MAX - 4095, FILE_BYTES) };
    link.require_refusal(&table(&[endless]), &[file.as_fd()], "a region that ends beyond the last address")
}

fn overlap(context: &mut Context<'_>) -> Outcome {
    let (mut link, file) = file(context)?;
    let regions = [region(0, FILE_BYTES), region(FILE_BYTES / 2, FILE_BYTES)];
    link.require_refusal(&table(&regions), &[file.as_fd(), file.as_fd()], "two regions that share addresses")
}

/// A session with memory slots.
fn slots(context: &mut Context<'_>) -> Outcome<Link> {
    let mut link = context.open_with(USUAL | ProtocolFeatures::CONFIGURE_MEM_SLOTS)?;
    let features = usual_features(link.offered);
    link.require(&SetFeatures(features), &[])?;
    Ok(link)
}

fn max_slots(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    match link.call(&GetMaxMemSlots(Empty))? {
        0 => Stop::fail("GET_MAX_MEM_SLOTS returned 0"),
        slots => {
            link.note(format!("{slots} slots"));
            Ok(())
        }
    }
}

const fn add(region: MemoryRegion) -> AddMemReg {
    AddMemReg(SingleRegion(region))
}

const fn remove(region: MemoryRegion) -> RemMemReg {
    RemMemReg(SingleRegion(region))
}

fn add_region(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    let file = SharedFile::new(FILE_BYTES)?;
    link.require(&add(region(0, FILE_BYTES)), &[file.as_fd()])
}

fn add_all_slots(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    let file = SharedFile::new(4096)?;
    // A backend may allow as many as there is memory; more than any VMM has proves nothing.
    let slots = link.call(&GetMaxMemSlots(Empty))?.min(64);
    for slot in 0..slots {
        link.require(&add(region(slot << 32, 4096)), &[file.as_fd()])?;
    }
    Ok(())
}

fn add_without_fd(context: &mut Context<'_>) -> Outcome {
    slots(context)?.require_refusal(&add(region(0, FILE_BYTES)), &[], "ADD_MEM_REG without a descriptor")
}

fn add_past_file(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    let file = SharedFile::new(FILE_BYTES)?;
    link.require_refusal(&add(region(0, FILE_BYTES + 4096)), &[file.as_fd()], "a region that is larger than its file")
}

fn add_twice(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    let file = SharedFile::new(FILE_BYTES)?;
    link.require(&add(region(0, FILE_BYTES)), &[file.as_fd()])?;
    link.require_refusal(&add(region(0, FILE_BYTES)), &[file.as_fd()], "a region that was already added")
}

fn remove_region(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    let file = SharedFile::new(FILE_BYTES)?;
    link.require(&add(region(0, FILE_BYTES)), &[file.as_fd()])?;
    link.require(&remove(region(0, FILE_BYTES)), &[])
}

fn remove_ignores_offset(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    let file = SharedFile::new(FILE_BYTES)?;
    let region = MemoryRegion { mmap_offset: 4096, ..region(0, 4096) };
    link.require(&add(region), &[file.as_fd()])?;
    link.require(&remove(MemoryRegion { mmap_offset: 0, ..region }), &[])
}

fn remove_unknown(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    let file = SharedFile::new(FILE_BYTES)?;
    link.require(&add(region(0, FILE_BYTES)), &[file.as_fd()])?;
    link.require_refusal(&remove(region(1 << 32, FILE_BYTES)), &[], "REM_MEM_REG of an unknown region")
}

fn remove_and_add(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    let file = SharedFile::new(FILE_BYTES)?;
    for _ in 0..3 {
        link.require(&add(region(0, FILE_BYTES)), &[file.as_fd()])?;
        link.require(&remove(region(0, FILE_BYTES)), &[])?;
    }
    Ok(())
}

fn remove_unmaps(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    let file = SharedFile::new(FILE_BYTES)?;
    let kept = SharedFile::new(FILE_BYTES)?;
    link.require(&add(region(1 << 32, FILE_BYTES)), &[kept.as_fd()])?;
    let before = guest_mappings(context)?;
    link.require(&add(region(0, FILE_BYTES)), &[file.as_fd()])?;
    if guest_mappings(context)? == before {
        return Stop::skip("the backend's mappings of guest memory are not visible in `/proc`");
    }
    link.require(&remove(region(0, FILE_BYTES)), &[])?;
    let after = guest_mappings(context)?;
    if after > before {
        Stop::fail(format!("{before} mappings of guest memory before a region was added and removed, {after} after"))
    } else {
        Ok(())
    }
}

/// Mappings of our memory files that the backend has.
fn guest_mappings(context: &Context<'_>) -> Outcome<usize> {
    let Some(pid) = context.target.pid() else { return Stop::skip("the backend's process cannot be inspected") };
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(maps.lines().filter(|line| line.contains("memfd:kiln-memory")).count())
}

fn remove_closes_fd(context: &mut Context<'_>) -> Outcome {
    let mut link = slots(context)?;
    let file = SharedFile::new(FILE_BYTES)?;
    let before = context.resources()?.descriptors;
    for _ in 0..10 {
        link.require(&add(region(0, FILE_BYTES)), &[file.as_fd()])?;
        let answer = link.ask(&remove(region(0, FILE_BYTES)), &[file.as_fd()])?;
        if !answer.is_accepted() {
            // It MAY take a descriptor; a backend that refuses must still not keep it.
            break;
        }
    }
    let after = context.descriptors_fall_to(before)?;
    if after > before {
        Stop::fail(format!("{before} descriptors before, {after} after 10 times REM_MEM_REG with one"))
    } else {
        Ok(())
    }
}
