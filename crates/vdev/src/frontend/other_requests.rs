//! Requests that none of our tools sends: only for tests.

use std::os::fd::OwnedFd;

use super::error::FrontendError;
use super::session::Frontend;
use crate::protocol::{
    Empty, ProtocolFeatures, SharedMemoryConfig, SharedObject,
    frontend::{GetSharedObject, GetShmemConfig, GetStatus, ResetDevice},
};

/// VIRTIO shared memory regions that a device may have: ids are one byte.
const SHARED_MEMORY_REGIONS_MAX: usize = 256;

impl Frontend {
    /// `GET_STATUS`: the virtio status byte.
    ///
    /// # Errors
    /// If `STATUS` was not negotiated, or the backend does not answer with a byte.
    pub fn get_status(&mut self) -> Result<u8, FrontendError> {
        self.need("GET_STATUS", ProtocolFeatures::STATUS, "STATUS")?;
        let status = self.ask_plain(None, &GetStatus(Empty), &[])?;
        u8::try_from(status).map_err(|_| self.answer_error("GET_STATUS", format!("{status:#x} does not fit a byte")))
    }

    /// `RESET_DEVICE`: all rings stop, features are forgotten; the connection and what was negotiated for it stay.
    ///
    /// # Errors
    /// If `RESET_DEVICE` was not negotiated, or the backend refuses.
    pub fn reset_device(&mut self) -> Result<(), FrontendError> {
        self.need("RESET_DEVICE", ProtocolFeatures::RESET_DEVICE, "RESET_DEVICE")?;
        self.tell(None, &ResetDevice(Empty), &[])?;
        self.said.rings.clear();
        Ok(())
    }

    /// `GET_SHARED_OBJECT`: the descriptor of an object that the backend has added, `None` if it does not have it any
    /// more.
    ///
    /// # Errors
    /// If `SHARED_OBJECT` was not negotiated, or the backend answers with more than one descriptor.
    pub fn get_shared_object(&mut self, uuid: [u8; 16]) -> Result<Option<OwnedFd>, FrontendError> {
        self.need("GET_SHARED_OBJECT", ProtocolFeatures::SHARED_OBJECT, "SHARED_OBJECT")?;
        let (_, mut fds) = self.ask(None, &GetSharedObject(SharedObject { uuid }), &[])?;
        if fds.len() > 1 {
            return Err(self.answer_error("GET_SHARED_OBJECT", format!("it has {} descriptors", fds.len())));
        }
        Ok(fds.pop())
    }

    /// `GET_SHMEM_CONFIG`: the sizes of the device's VIRTIO shared memory regions, each at its id.
    ///
    /// # Errors
    /// If `SHMEM` was not negotiated, or the backend contradicts itself.
    pub fn get_shmem_config(&mut self) -> Result<Vec<u64>, FrontendError> {
        self.need("GET_SHMEM_CONFIG", ProtocolFeatures::SHMEM, "SHMEM")?;
        let SharedMemoryConfig { regions, sizes } = self.ask_plain(None, &GetShmemConfig(Empty), &[])?;
        let there = sizes.iter().filter(|size| **size != 0).count();
        if there != regions as usize || sizes.len() > SHARED_MEMORY_REGIONS_MAX {
            let what = format!("it announces {regions} regions, but {there} of {} sizes are not 0", sizes.len());
            return Err(self.answer_error("GET_SHMEM_CONFIG", what));
        }
        Ok(sizes)
    }
}
