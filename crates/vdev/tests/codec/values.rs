//! Any value of each payload, and any message of each request.

use kiln_vdev::protocol::{
    BackendCall, BackendRequest, Config, CryptoSession, DeviceStateTransfer, Empty, FrontendCall, FrontendRequest,
    Inflight, Iotlb, IotlbKind, IotlbPermission, Log, MemoryRegion, MemoryTable, PAYLOAD_BYTES_MAX, Payload,
    REGIONS_MAX, SharedMemoryConfig, SharedMemoryMap, SharedObject, SingleRegion, VringAddress, VringArea, VringFile,
    VringState, backend, frontend,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// A payload of which any value can be made.
pub trait AnyPayload: Payload + std::fmt::Debug + PartialEq + 'static {
    /// Any value.
    fn any() -> BoxedStrategy<Self>;
}

/// Every message, by its name: `$use!(frontend …)` and `$use!(backend …)` get the lists.
macro_rules! for_each_frontend_message {
    ($use:ident) => {
        $use! {
            GetFeatures SetFeatures SetOwner ResetOwner SetMemTable SetLogBase SetLogFd SetVringNum SetVringAddr
            SetVringBase GetVringBase SetVringKick SetVringCall SetVringErr GetProtocolFeatures SetProtocolFeatures
            GetQueueNum SetVringEnable SendRarp NetSetMtu SetBackendReqFd IotlbMsg SetVringEndian GetConfig SetConfig
            CreateCryptoSession CloseCryptoSession PostcopyAdvise PostcopyListen PostcopyEnd GetInflightFd
            SetInflightFd GpuSetSocket ResetDevice VringKick GetMaxMemSlots AddMemReg RemMemReg SetStatus GetStatus
            GetSharedObject SetDeviceStateFd CheckDeviceState GetShmemConfig GetVringBaseSkipDrain
        }
    };
}
macro_rules! for_each_backend_message {
    ($use:ident) => {
        $use! {
            IotlbMsg ConfigChangeMsg VringHostNotifierMsg VringCall VringErr SharedObjectAdd SharedObjectRemove
            SharedObjectLookup ShmemMap ShmemUnmap
        }
    };
}
pub(crate) use {for_each_backend_message, for_each_frontend_message};

/// Any message of this request.
pub fn frontend_call(request: FrontendRequest) -> BoxedStrategy<FrontendCall> {
    macro_rules! by_request {
        ($($name:ident)*) => {
            match request {
                $(FrontendRequest::$name => {
                    AnyPayload::any().prop_map(|it| FrontendCall::$name(frontend::$name(it))).boxed()
                })*
            }
        };
    }
    for_each_frontend_message!(by_request)
}

/// Any message of this request.
pub fn backend_call(request: BackendRequest) -> BoxedStrategy<BackendCall> {
    macro_rules! by_request {
        ($($name:ident)*) => {
            match request {
                $(BackendRequest::$name => {
                    AnyPayload::any().prop_map(|it| BackendCall::$name(backend::$name(it))).boxed()
                })*
            }
        };
    }
    for_each_backend_message!(by_request)
}

macro_rules! any_payload {
    ($($type:ty => $strategy:expr;)*) => {
        $(impl AnyPayload for $type {
            fn any() -> BoxedStrategy<Self> {
                $strategy.boxed()
            }
        })*
    };
}

any_payload! {
    Empty => Just(Self);
    u64 => any::<Self>();
    VringState => any::<[u32; 2]>().prop_map(|[index, num]| Self { index, num });
    VringAddress => any::<([u32; 2], [u64; 4])>().prop_map(|([index, flags], [descriptor, used, available, log])| Self {
        index, flags, descriptor, used, available, log,
    });
    SingleRegion => region().prop_map(Self);
    MemoryTable => vec(region(), 0..=REGIONS_MAX).prop_map(Self);
    Log => any::<[u64; 2]>().prop_map(|[size, offset]| Self { size, offset });
    Iotlb => (any::<[u64; 3]>(), select(PERMISSIONS), select(KINDS)).prop_map(
        |([iova, size, user_address], permission, kind)| Self { iova, size, user_address, permission, kind },
    );
    Config => (any::<[u32; 2]>(), vec(any::<u8>(), 0..=Self::BYTES_MAX))
        .prop_map(|([offset, flags], bytes)| Self { offset, flags, bytes });
    VringArea => any::<[u64; 3]>().prop_map(|[ring, size, offset]| Self { ring, size, offset });
    Inflight => any::<([u64; 2], [u16; 2])>().prop_map(|([mmap_size, mmap_offset], [num_queues, queue_size])| Self {
        mmap_size, mmap_offset, num_queues, queue_size,
    });
    VringFile => any::<(u8, bool, u64)>().prop_map(|(index, no_descriptor, bits)| Self {
        index, no_descriptor, reserved: bits >> 9 << 9,
    });
    CryptoSession => vec(any::<u8>(), 0..=PAYLOAD_BYTES_MAX as usize).prop_map(Self);
    SharedObject => any::<[u8; 16]>().prop_map(|uuid| Self { uuid });
    DeviceStateTransfer => any::<[u32; 2]>().prop_map(|[direction, phase]| Self { direction, phase });
    SharedMemoryConfig => (any::<u32>(), vec(any::<u64>(), 0..=256))
        .prop_map(|(regions, sizes)| Self { regions, sizes });
    SharedMemoryMap => any::<(u8, [u64; 4])>().prop_map(|(region, [fd_offset, region_offset, size, flags])| Self {
        region, fd_offset, region_offset, size, flags,
    });
}

const PERMISSIONS: &[IotlbPermission] =
    &[IotlbPermission::None, IotlbPermission::Read, IotlbPermission::Write, IotlbPermission::ReadWrite];
const KINDS: &[IotlbKind] = &[IotlbKind::Miss, IotlbKind::Update, IotlbKind::Invalidate, IotlbKind::AccessFail];

fn region() -> impl Strategy<Value = MemoryRegion> {
    any::<[u64; 4]>().prop_map(|[guest_address, size, user_address, mmap_offset]| MemoryRegion {
        guest_address,
        size,
        user_address,
        mmap_offset,
    })
}
