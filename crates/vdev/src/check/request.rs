//! One request for each kind of device: small, legal, and such that every device of the kind gives it back. What the rules of
//! rings need that hold for any device, and that a ring without requests can't show.
//!
//! A request is made of parts as drivers have them: header, data, room for an answer. What a device answers is not looked
//! at; an I2C adapter without a bus refuses, and uses the buffer all the same.

use super::facts::Facts;
use super::ring::Descriptor;
use crate::check::disk::size;
use crate::check::guest::Guest;
use crate::protocol::ProtocolFeatures;
use crate::virtio::{DeviceKind, feature};

/// A request that every device of a kind gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The ring that it goes by.
    pub queue: u32,
    /// What it is, for people.
    pub what: &'static str,
    /// What the device reads.
    readable: Vec<Vec<u8>>,
    /// How much the device may write, part by part.
    writable: Vec<u32>,
    /// Whether others than the device see it: what listens to a console, who is on a network.
    pub goes_out: bool,
}

/// A disk's answer: the data of a sector, and the status.
const SECTOR_AND_STATUS: [u32; 2] = [512, 1];
/// 7-bit addresses from 0x78 on are reserved, so nothing is at this one, which is shifted as the specification has it.
const I2C_ADDRESS: u16 = 0x7f << 1;
/// "Local experimental" frames, which no stack takes for its own.
const ETHERTYPE_EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

impl Request {
    /// A request to a device of this kind, if there is a harmless one.
    pub(super) fn of(kind: DeviceKind, facts: &Facts) -> Option<Self> {
        let reads = |queue, what, readable: Vec<u8>, writable: Vec<u32>| Self {
            queue,
            what,
            readable: if readable.is_empty() { Vec::new() } else { vec![readable] },
            writable,
            goes_out: false,
        };
        let sends = |queue, what, readable| Self { queue, what, readable, writable: Vec::new(), goes_out: true };
        Some(match kind {
            DeviceKind::Net => sends(1, "a frame", vec![vec![0; net_header_bytes(facts)], frame()]),
            // Type 0 is IN, of sector 0.
            DeviceKind::Blk => reads(0, "a read", vec![0; 16], SECTOR_AND_STATUS.to_vec()),
            DeviceKind::Console => sends(1, "a line", vec![b"kiln vhost check\r\n".to_vec()]),
            DeviceKind::Rng => reads(0, "a request for 64 bytes", Vec::new(), vec![64]),
            DeviceKind::Scsi => reads(2, "TEST UNIT READY", scsi_test_unit_ready(), vec![108]),
            // VIRTIO_GPU_CMD_RESOURCE_UNREF of resource 0, which never exists: header, resource and padding, answered
            // with a header. Requests about displays need the socket to the display, which is not sent to every
            // backend.
            DeviceKind::Gpu => reads(0, "RESOURCE_UNREF", number(0x102, 32), vec![24]),
            // EV_SYN has no effect.
            DeviceKind::Input => reads(1, "an empty event", vec![0; 8], Vec::new()),
            DeviceKind::Vsock => sends(1, "a packet for a connection that is not there", vsock_packet(facts)?),
            DeviceKind::Fs => reads(1, "FUSE_INIT", fuse_init(), vec![16, 64]),
            // VIRTIO_PMEM_REQ_TYPE_FLUSH.
            DeviceKind::Pmem => reads(0, "a flush", vec![0; 4], vec![4]),
            // PROTOCOL_VERSION of the base protocol 0x10, answered with header, status and version.
            DeviceKind::Scmi => reads(0, "PROTOCOL_VERSION", number(0x10 << 10, 4), vec![12]),
            DeviceKind::I2c if facts.features & feature::i2c::ZERO_LENGTH_REQUEST != 0 => {
                reads(0, "a request without data", number(I2C_ADDRESS.into(), 8), vec![1])
            }
            // VIRTIO_GPIO_MSG_GET_DIRECTION of line 0, answered with status and value.
            DeviceKind::Gpio => reads(0, "GET_DIRECTION", number(2, 8), vec![2]),
            // VIRTIO_SND_R_PCM_INFO of the first stream.
            DeviceKind::Sound if sound_streams(facts) > 0 => reads(0, "PCM_INFO", sound_pcm_info(), vec![4, 32]),
            _ => return None,
        })
    }

    /// How many queues the backend serves, as far as it is known: "Front-ends must not rely on MQ for devices with a fixed
    /// number of virtqueues."
    pub(super) fn queues(kind: DeviceKind, facts: &Facts) -> u64 {
        if facts.protocol_features.contains(ProtocolFeatures::MQ) { facts.queues } else { kind.queues_default() as u64 }
    }

    /// How many bytes the device may write.
    pub(super) fn writable_bytes(&self) -> u32 {
        self.writable.iter().sum()
    }

    /// Into a descriptor for each part, as drivers lay it out.
    pub(super) fn in_parts(&self, guest: &mut Guest) -> Vec<Descriptor> {
        let read: Vec<_> = self.readable.iter().map(Vec::len).collect();
        self.in_pieces_of(guest, &read, &self.writable)
    }

    /// Into two descriptors: what is read and what is written; or, if there is only one of them, two parts of it.
    pub(super) fn in_two(&self, guest: &mut Guest) -> Vec<Descriptor> {
        let (read, written) = (self.readable.concat(), self.writable_bytes());
        match (read.len(), written) {
            (1.., 1..) => self.in_pieces_of(guest, &[read.len()], &[written]),
            (0, _) => self.in_pieces_of(guest, &[], &[written / 2, written - written / 2]),
            (all, _) => {
                let first = if self.readable.len() > 1 { self.readable[0].len() } else { all / 2 };
                self.in_pieces_of(guest, &[first, all - first], &[])
            }
        }
    }

    /// Into many descriptors, none of which ends where a part does.
    pub(super) fn in_many(&self, guest: &mut Guest) -> Vec<Descriptor> {
        let read = odd_pieces(size(self.readable.concat().len()));
        let read: Vec<_> = read.into_iter().map(|piece| piece as usize).collect();
        self.in_pieces_of(guest, &read, &odd_pieces(self.writable_bytes()))
    }

    fn in_pieces_of(&self, guest: &mut Guest, read: &[usize], written: &[u32]) -> Vec<Descriptor> {
        let bytes = self.readable.concat();
        let mut rest = &bytes[..];
        let mut chain = Vec::new();
        for piece in read {
            let (here, after) = rest.split_at(*piece);
            chain.push(Descriptor::readable(guest.put(here), size(here.len())));
            rest = after;
        }
        chain.extend(written.iter().map(|bytes| Descriptor::writable(guest.take((*bytes).into(), 16), *bytes)));
        chain
    }
}

/// 1, 2, 5 and so on, up to as many bytes as there are.
fn odd_pieces(bytes: u32) -> Vec<u32> {
    let mut left = bytes;
    let mut pieces = Vec::new();
    for piece in [1, 2, 5, 3, 11, u32::MAX] {
        let piece = piece.min(left);
        if piece > 0 {
            pieces.push(piece);
        }
        left -= piece;
    }
    pieces
}

/// A number, and zeros after it up to so many bytes.
fn number(number: u32, bytes: usize) -> Vec<u8> {
    let mut all = number.to_le_bytes().to_vec();
    all.resize(bytes, 0);
    all
}

/// `virtio_net_hdr`, whose length depends on what was taken of these features.
const fn net_header_bytes(facts: &Facts) -> usize {
    if facts.features & feature::net::HASH_REPORT != 0 {
        20
    } else if facts.features & (feature::VERSION_1 | feature::net::MRG_RXBUF) != 0 {
        12
    } else {
        10
    }
}

/// From one locally administered address to another.
fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ETHERTYPE_EXPERIMENTAL);
    frame.resize(60, 0);
    frame
}

/// Target 0, LUN 0, and a command of 32 zeros.
fn scsi_test_unit_ready() -> Vec<u8> {
    let mut request = vec![1, 0, 0x40, 0, 0, 0, 0, 0];
    request.resize(19 + 32, 0);
    request
}

/// Header and data: an RW packet of a stream. A device answers with a reset, when it has a buffer to answer in.
fn vsock_packet(facts: &Facts) -> Option<Vec<Vec<u8>>> {
    let cid = facts.config.first_chunk::<8>()?;
    let data = b"unread".to_vec();
    let host = 2_u64.to_le_bytes();
    let ports = [1_u32, 1].map(u32::to_le_bytes).concat();
    let (stream, read_write) = (1_u16.to_le_bytes(), 5_u16.to_le_bytes());
    let header = [&cid[..], &host, &ports, &size(data.len()).to_le_bytes(), &stream, &read_write, &[0; 12]].concat();
    Some(vec![header, data])
}

/// `fuse_in_header` and `fuse_init_in` of FUSE 7.31.
fn fuse_init() -> Vec<u8> {
    const INIT: u32 = 26;
    let numbers: [u32; 14] = [56, INIT, 1, 0, 0, 0, 0, 0, 0, 0, 7, 31, 0, 0];
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn sound_streams(facts: &Facts) -> u32 {
    facts.config.get(4..8).map_or(0, |bytes| bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

fn sound_pcm_info() -> Vec<u8> {
    const PCM_INFO: u32 = 0x100;
    [PCM_INFO, 0, 1, 32].iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { features: feature::VERSION_1 | 1, config: vec![3; 96], ..Facts::default() }
    }

    fn bytes(chain: &[Descriptor]) -> (u32, u32) {
        let of = |flags| chain.iter().filter(|one| one.flags == flags).map(|one| one.bytes).sum();
        (of(0), of(super::super::ring::WRITE))
    }

    #[test]
    fn a_request_has_the_same_bytes_however_it_is_divided() {
        let mut known = 0;
        for kind in DeviceKind::ALL {
            let Some(request) = Request::of(*kind, &facts()) else { continue };
            known += 1;
            let mut guest = Guest::new().expect("memory");
            let two = request.in_two(&mut guest);
            let many = request.in_many(&mut guest);
            assert_eq!(two.len(), 2, "{kind}");
            assert!(many.len() > 2 && many.len() <= 12, "{kind}: {}", many.len());
            assert_eq!(bytes(&two), bytes(&many), "{kind}");
            let readable = request.readable.concat();
            let mut read = Vec::new();
            for one in many.iter().filter(|one| one.flags == 0) {
                read.extend(guest.read(one.address, one.bytes as usize));
            }
            assert_eq!(read, readable, "{kind}");
            assert!(u64::from(request.queue) < Request::queues(*kind, &Facts::default()), "{kind}");
        }
        assert!(known >= 14, "{known}");
    }

    #[test]
    fn structures_have_the_sizes_of_the_specification() {
        let of = |kind| {
            let mut guest = Guest::new().expect("memory");
            bytes(&Request::of(kind, &facts()).expect("is known").in_two(&mut guest))
        };
        assert_eq!(of(DeviceKind::Net), (12 + 60, 0));
        assert_eq!(of(DeviceKind::Scsi), (51, 108));
        assert_eq!(of(DeviceKind::Vsock), (44 + 6, 0));
        assert_eq!(of(DeviceKind::Fs), (40 + 16, 16 + 64));
        assert_eq!(of(DeviceKind::Gpu), (32, 24));
        assert_eq!(of(DeviceKind::Sound), (16, 36));
        assert_eq!(of(DeviceKind::I2c), (8, 1));
    }
}
