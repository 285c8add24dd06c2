//! Why memory could not be shared or reached.

use std::io;

/// Why memory could not be shared or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No memory at all.
    #[error("the memory region at guest address {guest_address:#x} has no bytes")]
    EmptyRegion {
        /// Where it would be.
        guest_address: u64,
    },
    /// It would end beyond the last address.
    #[error("the memory region at guest address {guest_address:#x} ends beyond the last address: {size:#x} bytes")]
    EndlessRegion {
        /// Where it begins.
        guest_address: u64,
        /// Its bytes.
        size: u64,
    },
    /// The file is shorter than the memory that is to be in it.
    #[error(
        "the memory region at guest address {guest_address:#x} ends at {end:#x} of a file of {file_bytes:#x} bytes"
    )]
    PastFile {
        /// Where it begins.
        guest_address: u64,
        /// Where it would end in the file.
        end: u64,
        /// The file's size.
        file_bytes: u64,
    },
    /// The descriptor is not of memory.
    #[error("the memory region at guest address {guest_address:#x} is not in a file that can be shared")]
    NoFile {
        /// Where it begins.
        guest_address: u64,
    },
    /// The system can't map it.
    #[error("failed to map the memory region at guest address {guest_address:#x}")]
    Map {
        /// Where it begins.
        guest_address: u64,
        /// Why.
        source: io::Error,
    },
    /// Two regions share addresses.
    #[error("two memory regions share the address {address:#x}")]
    Overlap {
        /// The first address that both have.
        address: u64,
    },
    /// No region of this place and size is there.
    #[error("no memory region at guest address {guest_address:#x}")]
    UnknownRegion {
        /// Where it would be.
        guest_address: u64,
    },
    /// There are as many as there may be.
    #[error("more than {max} memory regions")]
    TooManyRegions {
        /// The bound.
        max: usize,
    },
    /// An address that is in no region.
    #[error("{bytes} bytes at {kind} address {address:#x} are not in guest memory")]
    Outside {
        /// `guest` or `user`.
        kind: &'static str,
        /// The address.
        address: u64,
        /// How much was to be reached.
        bytes: u64,
    },
    /// Its file has become shorter since it was shared.
    #[error("the file of the memory region at guest address {guest_address:#x} was truncated")]
    Cut {
        /// Where it begins.
        guest_address: u64,
    },
    /// An address that must be a multiple.
    #[error("the address {address:#x} is not a multiple of {alignment}")]
    Unaligned {
        /// The address.
        address: u64,
        /// Of what.
        alignment: u64,
    },
    /// A file could not be made or measured.
    #[error("failed to make shared memory")]
    File(#[from] io::Error),
}
