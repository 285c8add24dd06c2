//! The link over virtio-serial: stale bytes, broken links, new ones.

use kiln_e2e::guest::{BOOT_DEADLINE, Guest, in_vm, shell};
use kiln_engine::link::{Event, GuestLink, LinkOptions, StreamError};
use kiln_wire::reset::MAGIC;
use kiln_wire::{AttachRequest, Channel, Kind, Message, SessionSpec, StreamId, encode};
use tokio::io::AsyncWriteExt as _;

#[test]
fn a_new_link_works_after_one_that_broke_inside_a_frame() {
    in_vm(async {
        let Guest { vm, link } = Guest::boot(|_| {}).await;
        drop(link);
        for cut in [1, 4, 9, 500] {
            let mut stale = vm.dial().await.expect("the port takes a connection");
            let mut frame = Vec::new();
            encode(Kind::DATA_IN, StreamId(1), &[0x55; 1000], &mut frame).expect("it fits");
            stale.write_all(&frame[..cut]).await.expect("the port takes bytes");
            drop(stale);
            let link = Guest::link(&vm).await;
            assert!(link.ping().await.is_ok(), "after {cut} bytes");
        }
    });
}

#[test]
fn garbage_on_the_port_does_not_end_the_agent() {
    in_vm(async {
        let Guest { vm, link } = Guest::boot(|_| {}).await;
        let pid_one = Guest { vm, link };
        let before = pid_one.text("cat /proc/1/stat | cut -d' ' -f22").await;
        let Guest { vm, link } = pid_one;
        drop(link);
        let mut stream = vm.dial().await.expect("the port takes a connection");
        let garbage: Vec<u8> = (0..300_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        stream.write_all(&garbage).await.expect("the port takes bytes");
        stream.write_all(&MAGIC).await.expect("the port takes bytes");
        drop(stream);
        let link = Guest::link(&vm).await;
        let guest = Guest { vm, link };
        assert_eq!(guest.text("cat /proc/1/stat | cut -d' ' -f22").await, before);
    });
}

#[test]
fn sessions_survive_a_new_link_and_plain_commands_do_not() {
    in_vm(async {
        let Guest { vm, link } = Guest::boot(|_| {}).await;
        let plain = link.exec(shell("exec sleep 1000")).await.expect("it starts");
        let mut request = shell("echo first; read line; echo got $line");
        request.stdin = kiln_wire::Stdin::Stream;
        request.session = Some(SessionSpec { name: Some("keep".into()), ..SessionSpec::default() });
        let mut session = link.exec(request).await.expect("it starts");
        assert!(matches!(session.output.next().await, Ok(Event::Data(Channel::Out, bytes)) if bytes == "first\n"));
        let pid = plain.started.pid;
        drop(link);

        let link = Guest::link(&vm).await;
        let attach = AttachRequest { session: "keep".into(), offset: None, write: true, steal: false };
        let (input, mut output) = link.open(&Message::Attach(attach)).expect("the link is up");
        input.send(b"again\n").await.expect("it takes input");
        let mut seen = Vec::new();
        loop {
            match output.next().await {
                Ok(Event::Data(_, bytes)) => seen.extend_from_slice(&bytes),
                Ok(Event::Exited(_)) => break,
                Ok(_) => {}
                Err(error) => panic!("the session is lost: {error}"),
            }
        }
        assert_eq!(String::from_utf8_lossy(&seen), "first\ngot again\n");
        let guest = Guest { vm, link };
        // The agent kills the command while the new link starts, so the script waits until the process is gone.
        let gone = guest.text(&format!("while [ -d /proc/{pid} ]; do usleep 10000; done; echo gone")).await;
        assert_eq!(gone, "gone");
    });
}

#[test]
fn a_second_link_waits_until_the_first_one_ends() {
    in_vm(async {
        let Guest { vm, link } = Guest::boot(|_| {}).await;
        let stream = vm.dial().await.expect("the port takes a connection");
        let waiting = tokio::spawn(GuestLink::connect(stream, LinkOptions::virtio_serial(BOOT_DEADLINE)));
        assert!(link.ping().await.is_ok(), "the first one is not disturbed");
        drop(link);
        let second = waiting.await.expect("no panic").expect("it is its turn");
        assert!(matches!(second.ping().await, Ok(_) | Err(StreamError::Ended)));
        drop(vm);
    });
}
