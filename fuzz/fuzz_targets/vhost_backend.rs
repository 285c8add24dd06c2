//! A hostile frontend: any messages with any descriptors, and rings that change during the session, sent to servers of
//! a disk, a network card and a vsock device. Each session ends in time, nothing stays open, and the next one is
//! served.
#![no_main]

mod hostile;

use hostile::Servers;
use hostile::input::Input;
use hostile::plan::Plan;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static SERVERS: Servers = Servers::new();
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (device, how) = (usize::from(input.u8()), input.u8());
    let mut plan = Plan::default();
    if how & 3 != 0 {
        // Without logging, packed rings, notifications by message and guest addresses, unless the input enables them.
        let (without, protocol) = (input.u8(), input.u8());
        let bits = [26, 34, 29, 28, 30, 32].iter().enumerate();
        let without = bits.fold(0, |all, (place, bit)| all | u64::from(!without >> place & 1) << bit);
        let bits = [14, 21, 3, 12].iter().enumerate();
        let without_protocol = bits.fold(0, |all, (place, bit)| all | u64::from(!protocol >> place & 1) << bit);
        plan.begin(without ^ 0x0001_7000_0000, without_protocol ^ (1 << 3 | 1 << 12));
    }
    if how & 4 != 0 {
        for index in 0..1 + how % 3 {
            plan.ring(index, 16, plan.base());
        }
    }
    plan.fill(&mut input);
    SERVERS.with(|servers| servers.run(device, &mut plan));
    hostile::count_open();
});
