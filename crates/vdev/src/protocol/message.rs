//! One struct for each message, so that a message with the wrong payload or the wrong reply does not compile.
//!
//! ```
//! use kiln_vdev::protocol::{Message, VringState, frontend::SetVringNum};
//!
//! let message = SetVringNum(VringState { index: 0, num: 256 });
//! assert_eq!(SetVringNum::decode(&message.payload()), Ok(message));
//! ```

use std::ops::RangeInclusive;

use super::payload::{
    Config, CryptoSession, DeviceStateTransfer, Empty, Inflight, Iotlb, Log, MemoryTable, Payload, PayloadError,
    REGIONS_MAX, SharedMemoryConfig, SharedMemoryMap, SharedObject, SingleRegion, VringAddress, VringArea, VringFile,
    VringState,
};
use super::request::{BackendRequest, FrontendRequest, Request};

/// A message with its number, payload and reply.
pub trait Message: Sized {
    /// Its number.
    const REQUEST: Request;
    /// Whether it has a reply even without `REPLY_ACK`.
    const HAS_REPLY: bool;
    /// The payload of that reply; [`Empty`] if it has no reply.
    type Reply: Payload;
    /// Its content.
    type Payload: Payload;

    /// Its payload as it goes onto the socket.
    fn payload(&self) -> Vec<u8>;

    /// The content of a payload.
    ///
    /// # Errors
    /// If it is not one of this message.
    fn decode(bytes: &[u8]) -> Result<Self, PayloadError>;
}

macro_rules! messages {
    (
        $(#[$attribute:meta])* $module:ident, $call:ident, $side:ident, $request:ident;
        $($name:ident($payload:ty), descriptors $fds:expr $(, reply $reply:ty)?;)*
    ) => {
        $(#[$attribute])*
        pub mod $module {
            use super::*;

            $(
                #[doc = concat!("`", stringify!($name), "` with its payload.")]
                #[derive(Debug, Clone, PartialEq, Eq, Hash)]
                pub struct $name(pub $payload);

                impl Message for $name {
                    const REQUEST: Request = Request::$side($request::$name);
                    const HAS_REPLY: bool = messages!(@has $($reply)?);
                    type Reply = messages!(@reply $($reply)?);
                    type Payload = $payload;

                    fn payload(&self) -> Vec<u8> {
                        let mut bytes = Vec::new();
                        self.0.encode(&mut bytes);
                        bytes
                    }

                    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
                        Payload::decode(bytes).map(Self)
                    }
                }
            )*
        }

        #[doc = concat!("Any message of [`", stringify!($request), "`], decoded.")]
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum $call {
            $(#[doc = concat!("`", stringify!($name), "`.")] $name($module::$name),)*
        }

        impl $call {
            /// The payload, as one of this request.
            ///
            /// # Errors
            /// If it is not one of this request.
            pub fn decode(request: $request, bytes: &[u8]) -> Result<Self, PayloadError> {
                match request {
                    $($request::$name => Message::decode(bytes).map(Self::$name),)*
                }
            }

            /// Which request it is.
            pub const fn request(&self) -> $request {
                match self {
                    $(Self::$name(_) => $request::$name,)*
                }
            }

            /// Its payload as it goes onto the socket.
            #[cfg(feature = "testing")]
            pub fn payload(&self) -> Vec<u8> {
                match self {
                    $(Self::$name(message) => message.payload(),)*
                }
            }
        }

        impl $request {
            /// How many descriptors may come with it.
            pub const fn descriptors(self) -> RangeInclusive<usize> {
                match self {
                    $(Self::$name => $fds,)*
                }
            }

            /// Whether it is answered without `REPLY_ACK`.
            pub const fn has_reply(self) -> bool {
                match self {
                    $(Self::$name => messages!(@has $($reply)?),)*
                }
            }
        }
    };
    (@has) => { false };
    (@has $reply:ty) => { true };
    (@reply) => { Empty };
    (@reply $reply:ty) => { $reply };
}

messages! {
    /// Requests of a frontend.
    frontend, FrontendCall, Frontend, FrontendRequest;
    GetFeatures(Empty), descriptors 0..=0, reply u64;
    SetFeatures(u64), descriptors 0..=0;
    SetOwner(Empty), descriptors 0..=0;
    ResetOwner(Empty), descriptors 0..=0;
    SetMemTable(MemoryTable), descriptors 0..=REGIONS_MAX;
    SetLogBase(Log), descriptors 0..=1, reply u64;
    SetLogFd(Empty), descriptors 1..=1;
    SetVringNum(VringState), descriptors 0..=0;
    SetVringAddr(VringAddress), descriptors 0..=0;
    SetVringBase(VringState), descriptors 0..=0;
    GetVringBase(VringState), descriptors 0..=0, reply VringState;
    SetVringKick(VringFile), descriptors 0..=1;
    SetVringCall(VringFile), descriptors 0..=1;
    SetVringErr(VringFile), descriptors 0..=1;
    GetProtocolFeatures(Empty), descriptors 0..=0, reply u64;
    SetProtocolFeatures(u64), descriptors 0..=0;
    GetQueueNum(Empty), descriptors 0..=0, reply u64;
    SetVringEnable(VringState), descriptors 0..=0;
    SendRarp(u64), descriptors 0..=0;
    NetSetMtu(u64), descriptors 0..=0;
    SetBackendReqFd(Empty), descriptors 1..=1;
    IotlbMsg(Iotlb), descriptors 0..=0, reply u64;
    SetVringEndian(VringState), descriptors 0..=0;
    GetConfig(Config), descriptors 0..=0, reply Config;
    SetConfig(Config), descriptors 0..=0;
    CreateCryptoSession(CryptoSession), descriptors 0..=0, reply CryptoSession;
    CloseCryptoSession(u64), descriptors 0..=0;
    PostcopyAdvise(Empty), descriptors 0..=0, reply Empty;
    PostcopyListen(Empty), descriptors 0..=0;
    PostcopyEnd(Empty), descriptors 0..=0, reply u64;
    GetInflightFd(Inflight), descriptors 0..=0, reply Inflight;
    SetInflightFd(Inflight), descriptors 1..=1;
    GpuSetSocket(Empty), descriptors 1..=1;
    ResetDevice(Empty), descriptors 0..=0;
    VringKick(VringState), descriptors 0..=0;
    GetMaxMemSlots(Empty), descriptors 0..=0, reply u64;
    AddMemReg(SingleRegion), descriptors 1..=1;
    RemMemReg(SingleRegion), descriptors 0..=1;
    SetStatus(u64), descriptors 0..=0;
    GetStatus(Empty), descriptors 0..=0, reply u64;
    GetSharedObject(SharedObject), descriptors 0..=0, reply Empty;
    SetDeviceStateFd(DeviceStateTransfer), descriptors 1..=1, reply u64;
    CheckDeviceState(Empty), descriptors 0..=0, reply u64;
    GetShmemConfig(Empty), descriptors 0..=0, reply SharedMemoryConfig;
    GetVringBaseSkipDrain(VringState), descriptors 0..=0, reply VringState;
}

messages! {
    /// Requests of a backend on its own channel.
    backend, BackendCall, Backend, BackendRequest;
    IotlbMsg(Iotlb), descriptors 0..=0;
    ConfigChangeMsg(Empty), descriptors 0..=0;
    VringHostNotifierMsg(VringArea), descriptors 0..=1;
    VringCall(VringState), descriptors 0..=0;
    VringErr(VringState), descriptors 0..=0;
    SharedObjectAdd(SharedObject), descriptors 0..=0;
    SharedObjectRemove(SharedObject), descriptors 0..=0;
    SharedObjectLookup(SharedObject), descriptors 0..=0, reply u64;
    ShmemMap(SharedMemoryMap), descriptors 1..=1;
    ShmemUnmap(SharedMemoryMap), descriptors 0..=0;
}
