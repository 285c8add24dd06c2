//! Requests about the device as a whole that are sent at any time of a session.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::error::FrontendError;
use super::session::Frontend;
use crate::protocol::{
    Config, CryptoSession, Empty, Iotlb, IotlbKind, IotlbPermission, ProtocolFeatures, SharedMemoryConfig,
    SharedObject, VringState,
    frontend::{
        CloseCryptoSession, CreateCryptoSession, GetSharedObject, GetShmemConfig, GetStatus, GpuSetSocket, IotlbMsg,
        NetSetMtu, ResetDevice, SendRarp, SetConfig, SetStatus, SetVringEndian,
    },
};
use crate::virtio::feature;

/// VIRTIO shared memory regions that a device may have: ids are one byte.
const SHARED_MEMORY_REGIONS_MAX: usize = 256;

impl Frontend {
    /// `SET_CONFIG`: writes a piece of the configuration. `flags` is 0 for a write of the guest's, or
    /// [`Config::MIGRATION`].
    ///
    /// # Errors
    /// If `CONFIG` was not negotiated, it is too much, or the backend refuses.
    pub fn set_config(&mut self, offset: u32, flags: u32, bytes: &[u8]) -> Result<(), FrontendError> {
        self.need("SET_CONFIG", ProtocolFeatures::CONFIG, "CONFIG")?;
        let end = u64::from(offset) + bytes.len() as u64;
        self.bound("SET_CONFIG", "bytes", end, Config::BYTES_MAX as u64)?;
        self.tell(None, &SetConfig(Config { offset, flags, bytes: bytes.to_vec() }), &[])
    }

    /// `GET_STATUS`: the virtio status byte.
    ///
    /// # Errors
    /// If `STATUS` was not negotiated, or the backend does not answer with a byte.
    pub fn get_status(&mut self) -> Result<u8, FrontendError> {
        self.need("GET_STATUS", ProtocolFeatures::STATUS, "STATUS")?;
        let status = self.ask_plain(None, &GetStatus(Empty), &[])?;
        u8::try_from(status).map_err(|_| self.answer_error("GET_STATUS", format!("{status:#x} does not fit a byte")))
    }

    /// `SET_STATUS`: sends the virtio status byte.
    ///
    /// # Errors
    /// If `STATUS` was not negotiated, or the backend refuses.
    pub fn set_status(&mut self, status: u8) -> Result<(), FrontendError> {
        self.need("SET_STATUS", ProtocolFeatures::STATUS, "STATUS")?;
        self.tell(None, &SetStatus(status.into()), &[])
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

    /// `SEND_RARP`: announces a guest with this MAC address after a migration.
    ///
    /// # Errors
    /// If `RARP` was not negotiated, or the backend refuses.
    pub fn send_rarp(&mut self, mac: [u8; 6]) -> Result<(), FrontendError> {
        self.need("SEND_RARP", ProtocolFeatures::RARP, "RARP")?;
        let [a, b, c, d, e, f] = mac;
        self.tell(None, &SendRarp(u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])), &[])
    }

    /// `NET_SET_MTU`.
    ///
    /// # Errors
    /// If `NET_MTU` was not negotiated, or the backend refuses.
    pub fn net_set_mtu(&mut self, mtu: u16) -> Result<(), FrontendError> {
        self.need("NET_SET_MTU", ProtocolFeatures::NET_MTU, "NET_MTU")?;
        self.tell(None, &NetSetMtu(mtu.into()), &[])
    }

    /// `SET_VRING_ENDIAN`: the byte order of a legacy device's ring.
    ///
    /// # Errors
    /// If `CROSS_ENDIAN` was not negotiated, or the backend refuses.
    pub fn set_vring_endian(&mut self, ring: u32, big: bool) -> Result<(), FrontendError> {
        self.need("SET_VRING_ENDIAN", ProtocolFeatures::CROSS_ENDIAN, "CROSS_ENDIAN")?;
        self.tell(Some(ring), &SetVringEndian(VringState { index: ring, num: big.into() }), &[])
    }

    /// `CREATE_CRYPTO_SESSION`: parameters in, the same with the session's id out. Their layout is the VMM's.
    ///
    /// # Errors
    /// If `CRYPTO_SESSION` was not negotiated, or the backend does not answer.
    pub fn create_crypto_session(&mut self, parameters: Vec<u8>) -> Result<Vec<u8>, FrontendError> {
        self.need("CREATE_CRYPTO_SESSION", ProtocolFeatures::CRYPTO_SESSION, "CRYPTO_SESSION")?;
        let max = u64::from(crate::protocol::PAYLOAD_BYTES_MAX);
        self.bound("CREATE_CRYPTO_SESSION", "bytes", parameters.len() as u64, max)?;
        Ok(self.ask_plain(None, &CreateCryptoSession(CryptoSession(parameters)), &[])?.0)
    }

    /// `CLOSE_CRYPTO_SESSION`.
    ///
    /// # Errors
    /// If `CRYPTO_SESSION` was not negotiated, or the backend refuses.
    pub fn close_crypto_session(&mut self, session: u64) -> Result<(), FrontendError> {
        self.need("CLOSE_CRYPTO_SESSION", ProtocolFeatures::CRYPTO_SESSION, "CRYPTO_SESSION")?;
        self.tell(None, &CloseCryptoSession(session), &[])
    }

    /// `GPU_SET_SOCKET`: hands a GPU backend the socket that it draws to.
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn gpu_set_socket(&mut self, socket: BorrowedFd<'_>) -> Result<(), FrontendError> {
        self.tell(None, &GpuSetSocket(Empty), &[socket])
    }

    /// `IOTLB_MSG`: here is what an address of the IOMMU's means.
    ///
    /// # Errors
    /// If addresses go through no IOMMU (`VIRTIO_F_ACCESS_PLATFORM`), or the backend refuses.
    pub fn iotlb_update(
        &mut self,
        iova: u64,
        size: u64,
        user_address: u64,
        permission: IotlbPermission,
    ) -> Result<(), FrontendError> {
        self.iotlb(Iotlb { iova, size, user_address, permission, kind: IotlbKind::Update })
    }

    /// `IOTLB_MSG`: earlier messages about these addresses no longer hold.
    ///
    /// # Errors
    /// As [`iotlb_update`](Self::iotlb_update).
    pub fn iotlb_invalidate(&mut self, iova: u64, size: u64) -> Result<(), FrontendError> {
        let (permission, kind) = (IotlbPermission::None, IotlbKind::Invalidate);
        self.iotlb(Iotlb { iova, size, user_address: 0, permission, kind })
    }

    fn iotlb(&mut self, message: Iotlb) -> Result<(), FrontendError> {
        if !self.has_features(feature::ACCESS_PLATFORM) {
            let (socket, request) = (self.name().to_owned(), "IOTLB_MSG");
            return Err(FrontendError::NotNegotiated { socket, request, feature: "VIRTIO_F_ACCESS_PLATFORM" });
        }
        match self.ask_plain(None, &IotlbMsg(message), &[])? {
            0 => Ok(()),
            code => Err(self.answer_error("IOTLB_MSG", format!("{code} for {message:?}"))),
        }
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

    /// `POSTCOPY_ADVISE`, which is not done here.
    ///
    /// # Errors
    /// Always: see [`FrontendError::Postcopy`].
    pub fn postcopy_advise(&mut self) -> Result<OwnedFd, FrontendError> {
        Err(self.no_postcopy("POSTCOPY_ADVISE"))
    }

    /// `POSTCOPY_LISTEN`, which is not done here.
    ///
    /// # Errors
    /// Always: see [`FrontendError::Postcopy`].
    pub fn postcopy_listen(&mut self) -> Result<(), FrontendError> {
        Err(self.no_postcopy("POSTCOPY_LISTEN"))
    }

    /// `POSTCOPY_END`, which is not done here.
    ///
    /// # Errors
    /// Always: see [`FrontendError::Postcopy`].
    pub fn postcopy_end(&mut self) -> Result<(), FrontendError> {
        Err(self.no_postcopy("POSTCOPY_END"))
    }

    fn no_postcopy(&self, request: &'static str) -> FrontendError {
        FrontendError::Postcopy { socket: self.name().to_owned(), request }
    }

    /// Sends the backend the other end of a channel for its own requests (`SET_BACKEND_REQ_FD`). Afterwards these are
    /// served by [`serve_backend_requests`](Self::serve_backend_requests), and while replies are awaited.
    ///
    /// # Errors
    /// If `BACKEND_REQ` was not negotiated, or the backend refuses.
    pub fn open_backend_channel(&mut self) -> Result<(), FrontendError> {
        self.need("SET_BACKEND_REQ_FD", ProtocolFeatures::BACKEND_REQ, "BACKEND_REQ")?;
        let name = format!("{} (its own channel)", self.name());
        let theirs = self.backend.open(name, self.options.timeout);
        let theirs = theirs.map_err(|source| self.system("making a channel for the backend", source))?;
        let message = crate::protocol::frontend::SetBackendReqFd(Empty);
        self.tell(None, &message, &[theirs.as_fd()])
    }
}
