//! The network card.

use std::time::Duration;

use kiln_vdev::devices::net::{Behind, Net, NetOptions};

use crate::driver::{DEADLINE, Driver, Served};

const HEADER: usize = 12;

fn card(behind: Behind, loss_permille: u16) -> NetOptions {
    NetOptions { behind, loss_permille, ..NetOptions::default() }
}

fn frame(number: u16, bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend_from_slice(&number.to_le_bytes());
    frame.resize(HEADER + bytes, number as u8);
    frame
}

#[test]
fn frames_of_any_size_and_layout_come_back_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("net");
    let _served = Served::new(Net::new(card(Behind::Reflection, 0)).expect("a card"), &socket);
    let mut driver = Driver::new(&socket);
    for (number, bytes) in [60, 61, 1514, 4096 - HEADER, 4097, 20_000, 65_549].into_iter().enumerate() {
        for pieces in [1, 2, 3, 17] {
            let sent = frame(number as u16, bytes);
            driver.send(&sent, pieces);
            let first = driver.receive(DEADLINE).expect("comes back");
            let buffers = u16::from_le_bytes([first[10], first[11]]);
            let mut whole = first;
            for _ in 1..buffers {
                whole.extend(driver.receive(DEADLINE).expect("comes back whole"));
            }
            assert_eq!(whole[HEADER..HEADER + 6], sent[HEADER + 6..HEADER + 12]);
            assert_eq!(whole[HEADER + 12..], sent[HEADER + 12..], "{bytes} bytes in {pieces} pieces");
        }
    }
}

#[test]
fn each_pair_of_queues_is_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("net");
    let options = NetOptions { pairs: 3, ..card(Behind::Reflection, 0) };
    let _served = Served::new(Net::new(options).expect("a card"), &socket);
    for pair in 0..3 {
        let mut driver = Driver::on(&socket, 4, pair);
        driver.send(&frame(7, 60), 1);
        let back = driver.receive(DEADLINE).expect("comes back to the pair that sent it");
        assert_eq!(back[HEADER + 14], 7);
    }
}

#[test]
fn what_is_no_frame_is_taken_and_forgotten() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("net");
    let _served = Served::new(Net::new(card(Behind::Reflection, 0)).expect("a card"), &socket);
    let mut driver = Driver::new(&socket);
    for bytes in [1, HEADER - 1, HEADER, HEADER + 11, HEADER + 70_000] {
        driver.send(&vec![7; bytes], 1);
    }
    driver.send(&frame(5, 60), 1);
    let back = driver.receive(DEADLINE).expect("comes back");
    assert_eq!(back[HEADER + 14], 5);
    assert_eq!(driver.receive(Duration::from_millis(20)), None);
}

#[test]
fn frames_that_find_no_room_wait_and_come_in_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("net");
    let _served = Served::new(Net::new(card(Behind::Reflection, 0)).expect("a card"), &socket);
    let mut driver = Driver::with(&socket, 2);
    for number in 0..200 {
        driver.send(&frame(number, 60), 1);
    }
    for number in 0..200_u16 {
        let back = driver.receive(DEADLINE).expect("comes back");
        assert_eq!(back[HEADER + 14..HEADER + 16], number.to_le_bytes());
    }
}

#[test]
fn a_frame_waits_for_the_buffers_that_it_lacks_and_holds_up_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("net");
    let _served = Served::new(Net::new(card(Behind::Reflection, 0)).expect("a card"), &socket);
    let mut driver = Driver::with(&socket, 1);
    let sent = frame(1, 10_000);
    driver.send(&sent, 1);
    // Sent and taken while the first one lacks two buffers.
    driver.send(&frame(2, 60), 1);
    assert_eq!(driver.receive(Duration::from_millis(20)), None);
    driver.give_buffer();
    assert_eq!(driver.receive(Duration::from_millis(20)), None);
    driver.give_buffer();
    let whole: Vec<u8> = (0..3).flat_map(|_| driver.receive(DEADLINE).expect("comes back whole")).collect();
    assert_eq!(whole[HEADER + 12..], sent[HEADER + 12..]);
    assert_eq!(driver.receive(DEADLINE).expect("comes back")[HEADER + 14], 2);
}

/// A sender that numbers its frames and sends each again until it gets a reply gets all of them over, even if one in
/// three is lost.
#[test]
fn all_comes_over_a_wire_that_loses_frames_when_it_is_sent_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("net");
    let _served = Served::new(Net::new(card(Behind::Reflection, 180)).expect("a card"), &socket);
    let mut driver = Driver::new(&socket);
    let mut lost = 0;
    for number in 0..200_u16 {
        for attempt in 0.. {
            assert!(attempt < 100, "frame {number} is lost forever");
            driver.send(&frame(number, 200), 3);
            match driver.receive(Duration::from_millis(20)) {
                Some(back) if back[HEADER + 14..HEADER + 16] == number.to_le_bytes() => break,
                // The answer to an earlier attempt, which was late.
                Some(_) => {}
                None => lost += 1,
            }
        }
    }
    assert!(lost > 10, "{lost} of 200 frames were lost, with a loss of 18 % each way");
}
