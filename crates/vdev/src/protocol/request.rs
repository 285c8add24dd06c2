//! The numbers of messages ("Front-end message types", "Back-end message types").

use std::fmt;

macro_rules! requests {
    ($(#[$attribute:meta])* $type:ident { $($variant:ident = $number:literal $name:literal;)* }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $type {
            $(#[doc = concat!("`VHOST_USER_", $name, "`.")] $variant = $number,)*
        }

        impl $type {
            /// Every one there is, in the order of numbers.
            #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "only tests need it of both sides"))]
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The number on the socket.
            pub const fn number(self) -> u32 {
                self as u32
            }

            /// What has this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The specification's name, without `VHOST_USER_`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What has this name.
            #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "only tests need it of both sides"))]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|request| request.name() == name)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

requests! {
    /// Requests of a frontend to a backend.
    FrontendRequest {
        GetFeatures = 1 "GET_FEATURES";
        SetFeatures = 2 "SET_FEATURES";
        SetOwner = 3 "SET_OWNER";
        ResetOwner = 4 "RESET_OWNER";
        SetMemTable = 5 "SET_MEM_TABLE";
        SetLogBase = 6 "SET_LOG_BASE";
        SetLogFd = 7 "SET_LOG_FD";
        SetVringNum = 8 "SET_VRING_NUM";
        SetVringAddr = 9 "SET_VRING_ADDR";
        SetVringBase = 10 "SET_VRING_BASE";
        GetVringBase = 11 "GET_VRING_BASE";
        SetVringKick = 12 "SET_VRING_KICK";
        SetVringCall = 13 "SET_VRING_CALL";
        SetVringErr = 14 "SET_VRING_ERR";
        GetProtocolFeatures = 15 "GET_PROTOCOL_FEATURES";
        SetProtocolFeatures = 16 "SET_PROTOCOL_FEATURES";
        GetQueueNum = 17 "GET_QUEUE_NUM";
        SetVringEnable = 18 "SET_VRING_ENABLE";
        SendRarp = 19 "SEND_RARP";
        NetSetMtu = 20 "NET_SET_MTU";
        SetBackendReqFd = 21 "SET_BACKEND_REQ_FD";
        IotlbMsg = 22 "IOTLB_MSG";
        SetVringEndian = 23 "SET_VRING_ENDIAN";
        GetConfig = 24 "GET_CONFIG";
        SetConfig = 25 "SET_CONFIG";
        CreateCryptoSession = 26 "CREATE_CRYPTO_SESSION";
        CloseCryptoSession = 27 "CLOSE_CRYPTO_SESSION";
        PostcopyAdvise = 28 "POSTCOPY_ADVISE";
        PostcopyListen = 29 "POSTCOPY_LISTEN";
        PostcopyEnd = 30 "POSTCOPY_END";
        GetInflightFd = 31 "GET_INFLIGHT_FD";
        SetInflightFd = 32 "SET_INFLIGHT_FD";
        GpuSetSocket = 33 "GPU_SET_SOCKET";
        ResetDevice = 34 "RESET_DEVICE";
        VringKick = 35 "VRING_KICK";
        GetMaxMemSlots = 36 "GET_MAX_MEM_SLOTS";
        AddMemReg = 37 "ADD_MEM_REG";
        RemMemReg = 38 "REM_MEM_REG";
        SetStatus = 39 "SET_STATUS";
        GetStatus = 40 "GET_STATUS";
        GetSharedObject = 41 "GET_SHARED_OBJECT";
        SetDeviceStateFd = 42 "SET_DEVICE_STATE_FD";
        CheckDeviceState = 43 "CHECK_DEVICE_STATE";
        GetShmemConfig = 44 "GET_SHMEM_CONFIG";
        GetVringBaseSkipDrain = 45 "GET_VRING_BASE_SKIP_DRAIN";
    }
}

requests! {
    /// Requests of a backend to a frontend, on a channel of its own.
    BackendRequest {
        IotlbMsg = 1 "BACKEND_IOTLB_MSG";
        ConfigChangeMsg = 2 "BACKEND_CONFIG_CHANGE_MSG";
        VringHostNotifierMsg = 3 "BACKEND_VRING_HOST_NOTIFIER_MSG";
        VringCall = 4 "BACKEND_VRING_CALL";
        VringErr = 5 "BACKEND_VRING_ERR";
        SharedObjectAdd = 6 "BACKEND_SHARED_OBJECT_ADD";
        SharedObjectRemove = 7 "BACKEND_SHARED_OBJECT_REMOVE";
        SharedObjectLookup = 8 "BACKEND_SHARED_OBJECT_LOOKUP";
        ShmemMap = 9 "BACKEND_SHMEM_MAP";
        ShmemUnmap = 10 "BACKEND_SHMEM_UNMAP";
    }
}

/// A message of either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// A frontend's.
    Frontend(FrontendRequest),
    /// A backend's.
    Backend(BackendRequest),
}

impl Request {
    /// The number on the socket.
    pub const fn number(self) -> u32 {
        match self {
            Self::Frontend(request) => request.number(),
            Self::Backend(request) => request.number(),
        }
    }

    /// The specification's name, without `VHOST_USER_`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Frontend(request) => request.name(),
            Self::Backend(request) => request.name(),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_without_a_gap_and_lead_back() {
        for (place, request) in FrontendRequest::ALL.iter().enumerate() {
            assert_eq!(request.number() as usize, place + 1);
            assert_eq!(FrontendRequest::from_number(request.number()), Some(*request));
            assert_eq!(FrontendRequest::from_name(request.name()), Some(*request));
        }
        for (place, request) in BackendRequest::ALL.iter().enumerate() {
            assert_eq!(request.number() as usize, place + 1);
            assert_eq!(BackendRequest::from_number(request.number()), Some(*request));
        }
        assert_eq!((FrontendRequest::ALL.len(), BackendRequest::ALL.len()), (45, 10));
        for number in [0, 46, 200, u32::MAX] {
            assert_eq!(FrontendRequest::from_number(number), None);
        }
    }
}
