//! A hostile guest's rings: requests to a disk, frames and packets of any kind in buffers of any size, while a host
//! connects and sends data. For any input the rings continue or are stopped, and the session ends.
#![no_main]

mod hostile;

use hostile::input::Input;
use hostile::plan::Plan;
use hostile::{Act, GUEST, GUEST_CID, HOST_PORT, RING_BYTES, Servers};
use kiln_vdev::protocol::VringState;
use kiln_vdev::protocol::frontend::{GetVringBase, SetVringEnable};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static SERVERS: Servers = Servers::new();
}

/// Offset of the buffers in guest memory.
const BUFFERS: u64 = 0x4000;
const RING_SIZE: u16 = 16;
const ROUNDS_MAX: usize = 10;
/// Protocol features that are not negotiated.
const IN_BAND: u64 = 1 << 14;
const GUEST_ADDRESSES: u64 = 1 << 21;
const WRITE: u16 = 2;
const NEXT: u16 = 1;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (device, how) = (usize::from(input.u8()), input.u8());
    let mut plan = Plan::default();
    // Split rings at user addresses, notified by eventfds. The input decides on RING_EVENT_IDX and indirect tables.
    let without = 1 << 34 | 1 << 26 | u64::from(how & 3) << 28;
    plan.begin(without, IN_BAND | GUEST_ADDRESSES);
    let mut rings = [Guest::default(), Guest::default()];
    for index in 0..2 {
        plan.ring(index, RING_SIZE, 0);
    }
    for _ in 0..ROUNDS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            0 => {
                let bytes = input.some().to_vec();
                plan.act(Act::Host(bytes));
            }
            1 => plan.act(Act::Pause),
            2 => {
                let index = (input.u8() & 1).into();
                plan.send(&SetVringEnable(VringState { index, num: (input.u8() & 1).into() }), vec![]);
            }
            3 => {
                // Empty buffers for what the device receives.
                let size = 8 << (input.u8() % 9);
                let count = 1 + input.u8() % 8;
                for _ in 0..count {
                    rings[0].buffers(&[(size, WRITE)]);
                }
                rings[0].show(&mut plan, 0);
            }
            _ => {
                let packet = packet(device % Servers::DEVICES, &mut input);
                let ring = usize::from(device % Servers::DEVICES > 1);
                rings[ring].packet(&mut plan, &packet, &mut input);
                rings[ring].show(&mut plan, ring);
            }
        }
        // The acts are done when the server receives a message, so one is sent in each round.
        plan.send(&SetVringEnable(VringState { index: 3, num: 1 }), vec![]);
    }
    plan.act(Act::Pause);
    for index in 0..2 {
        plan.send(&GetVringBase(VringState { index, num: 0 }), vec![]);
    }
    SERVERS.with(|servers| servers.run(device, &mut plan));
    hostile::count_open();
});

/// The driver's side of one ring.
#[derive(Default)]
struct Guest {
    table: Vec<u8>,
    available: Vec<u8>,
    descriptors: u16,
    index: u16,
    data: u64,
}

impl Guest {
    /// One chain of buffers of these sizes.
    fn buffers(&mut self, buffers: &[(u32, u16)]) {
        let head = self.descriptors % RING_SIZE;
        for (place, (bytes, flags)) in buffers.iter().enumerate() {
            let flags = if place + 1 < buffers.len() { flags | NEXT } else { *flags };
            let next = (self.descriptors + 1) % RING_SIZE;
            let address = GUEST + BUFFERS + self.data % 0x8000;
            self.table.truncate(usize::from(RING_SIZE) * 16);
            let at = usize::from(self.descriptors % RING_SIZE) * 16;
            self.table.resize(self.table.len().max(at + 16), 0);
            self.table[at..at + 8].copy_from_slice(&address.to_le_bytes());
            self.table[at + 8..at + 12].copy_from_slice(&bytes.to_le_bytes());
            self.table[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
            self.table[at + 14..at + 16].copy_from_slice(&next.to_le_bytes());
            self.descriptors += 1;
            self.data += u64::from(*bytes % 0x1000);
        }
        self.available.resize(usize::from(RING_SIZE) * 2, 0);
        let entry = usize::from(self.index % RING_SIZE) * 2;
        self.available[entry..entry + 2].copy_from_slice(&head.to_le_bytes());
        self.index += 1;
    }

    /// A packet in pieces, followed by writable buffers for a reply.
    fn packet(&mut self, plan: &mut Plan, packet: &[u8], input: &mut Input<'_>) {
        plan.act(Act::Poke(BUFFERS + self.data % 0x8000, packet.to_vec()));
        let whole = u32::try_from(packet.len()).expect("is short");
        let cut = u32::from(input.u8()).min(whole);
        let mut pieces = vec![(cut, 0), (whole - cut, 0)];
        match input.u8() & 3 {
            0 => pieces.push((u32::from(input.u8()) * 64, WRITE)),
            1 => pieces.extend([(512, WRITE), (1, WRITE)]),
            2 => pieces.push((input.odd() as u32, 0)),
            _ => {}
        }
        self.buffers(&pieces);
    }

    fn show(&self, plan: &mut Plan, ring: usize) {
        let start = ring as u64 * RING_BYTES;
        plan.act(Act::Poke(start, self.table.clone()));
        let available = [&[0, 0], &self.index.to_le_bytes()[..], &self.available].concat();
        plan.act(Act::Poke(start + 0x400, available));
        plan.act(Act::Signal(ring * 3));
    }
}

fn packet(device: usize, input: &mut Input<'_>) -> Vec<u8> {
    match device {
        0 | 1 => {
            let kinds = [0, 1, 4, 8, 11, 13, 0, 1];
            let kind: u32 = if input.u8() & 15 == 0 { input.u32() } else { kinds[usize::from(input.u8() & 7)] };
            let sector = input.odd();
            let mut request = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
            if kind >= 11 {
                for number in [input.odd(), input.odd()] {
                    request.extend_from_slice(&number.to_le_bytes());
                }
            }
            request.extend_from_slice(input.some());
            request
        }
        2 | 3 => {
            let mut frame = vec![0; 12];
            let kind = input.u8();
            if kind & 1 != 0 {
                frame.extend_from_slice(&[2, 0x6b, 0x69, 0x6c, 0x6e, 0xfe, 2, 0, 0, 0, 0, 1]);
                frame.extend_from_slice(if kind & 2 != 0 { &[8, 0] } else { &[8, 6] });
            }
            frame.extend_from_slice(input.some());
            frame
        }
        _ => {
            let length = if input.u8() & 7 == 0 { input.odd() as u32 } else { u32::from(input.u8() & 63) };
            let host_port = if input.u8() & 7 == 0 { input.odd() as u32 } else { HOST_PORT };
            let host_port = if input.u8() & 3 == 3 { 1 << 30 } else { host_port };
            let (op, kind) = (u16::from(input.u8() % 9), if input.u8() & 31 == 0 { 2_u16 } else { 1 });
            let (room, read) = (input.odd() as u32, input.odd() as u32);
            let parts: [&[u8]; 10] = [
                &GUEST_CID.to_le_bytes(),
                &2_u64.to_le_bytes(),
                &u32::from(input.u8() & 3).to_le_bytes(),
                &host_port.to_le_bytes(),
                &length.to_le_bytes(),
                &kind.to_le_bytes(),
                &op.to_le_bytes(),
                &u32::from(input.u8() & 3).to_le_bytes(),
                &room.to_le_bytes(),
                &read.to_le_bytes(),
            ];
            let mut packet = parts.concat();
            packet.extend((0..length.min(512)).map(|byte| byte as u8));
            packet
        }
    }
}
