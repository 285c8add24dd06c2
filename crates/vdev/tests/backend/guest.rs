//! Real guests on our backends.

use std::process::{Command, Stdio};

use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};

use super::frontend::Served;

/// Reads sector 1, writes it to sector 2, prints it to the serial port, and ends QEMU with 33; with 65 where that fails.
const BOOT_SECTOR: &[u8] = &[
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, // ds = es = 0
    0xb8, 0x01, 0x02, 0xb9, 0x02, 0x00, 0xb6, 0x00, 0xbb, 0x00, 0x7e, 0xcd, 0x13, // read one sector to 0x7e00
    0x72, 0x1e, // fail
    0xb8, 0x01, 0x03, 0xb9, 0x03, 0x00, 0xb6, 0x00, 0xcd, 0x13, // write it to the next
    0x72, 0x12, // fail
    0xbe, 0x00, 0x7e, 0xba, 0xf8, 0x03, // si = text, dx = serial port
    0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // print until 0
    0xb0, 0x10, 0xe6, 0xf4, // end: exit
    0xb0, 0x20, 0xe6, 0xf4, // fail: exit
    0xf4, 0xeb, 0xfd, // for ever
];

const TEXT: &[u8] = b"read from our disk\n\0";

#[test]
fn vm_a_guest_boots_from_our_disk_and_writes_to_it() {
    let image = tempfile::NamedTempFile::new().expect("a file");
    let mut bytes = vec![0; 1 << 20];
    bytes[..BOOT_SECTOR.len()].copy_from_slice(BOOT_SECTOR);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes[512..512 + TEXT.len()].copy_from_slice(TEXT);
    std::fs::write(image.path(), &bytes).expect("is written");
    let disk = Blk::open(&BlkOptions::new(Backing::File(image.path().to_owned()))).expect("a disk");
    let served = Served::new(disk);

    let chardev = format!("socket,id=c,path={}", served.socket().display());
    let output = Command::new("timeout")
        .args(["60", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .args(["-M", "q35,memory-backend=m0", "-m", "256M", "-no-reboot"])
        .args(["-object", "memory-backend-memfd,id=m0,size=256M,share=on"])
        .args(["-chardev", &chardev, "-device", "vhost-user-blk-pci,chardev=c,num-queues=1,bootindex=0"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .stdin(Stdio::null())
        .output()
        .expect("QEMU runs");

    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(33), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("read from our disk"), "{said}");
    let after = std::fs::read(image.path()).expect("is read");
    assert_eq!(&after[1024..1024 + TEXT.len()], TEXT);
    assert_eq!(served.stop(), 1);
}
