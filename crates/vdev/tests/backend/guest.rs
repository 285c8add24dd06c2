//! Real guests on our backends.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use kiln_vdev::check::Level;
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::mock::{Mock, Watch};

use super::frontend::{Served, eventually};

/// Reads sector 1, writes it to sector 2, prints it to the serial port, and ends QEMU with 33; with 65 if that fails.
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
    0xf4, 0xeb, 0xfd, // forever
];

const TEXT: &[u8] = b"read from our disk\n\0";

/// A disk that boots, its file, and what is to be on it.
fn image() -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().expect("a file");
    let mut bytes = vec![0; 1 << 20];
    bytes[..BOOT_SECTOR.len()].copy_from_slice(BOOT_SECTOR);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes[512..512 + TEXT.len()].copy_from_slice(TEXT);
    std::fs::write(image.path(), &bytes).expect("is written");
    image
}

/// Boots a guest from the disk at a socket, until it ends QEMU.
fn boot(socket: &Path, options: &str) -> Output {
    let chardev = format!("socket,id=c,path={}", socket.display());
    let device = format!("vhost-user-blk-pci,chardev=c,bootindex=0{options}");
    Command::new("timeout")
        .args(["60", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .args(["-M", "q35,memory-backend=m0", "-m", "256M", "-no-reboot"])
        .args(["-object", "memory-backend-memfd,id=m0,size=256M,share=on"])
        .args(["-chardev", &chardev, "-device", &device])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .stdin(Stdio::null())
        .output()
        .expect("QEMU runs")
}

#[test]
fn vm_a_guest_boots_from_our_disk_and_writes_to_it() {
    for options in [",num-queues=1", ",num-queues=4,queue-size=256", ",num-queues=1,packed=on"] {
        let image = image();
        let disk = Blk::open(&BlkOptions::new(Backing::File(image.path().to_owned()))).expect("a disk");
        let served = Served::new(disk);
        let output = boot(&served.socket(), options);
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(33), "{options}: {said}\n{errors}");
        assert_eq!(errors, "", "{options}");
        assert!(said.contains("read from our disk"), "{options}: {said}");
        let after = std::fs::read(image.path()).expect("is read");
        assert_eq!(&after[1024..1024 + TEXT.len()], TEXT, "{options}");
        assert_eq!(served.stop(), 1);
    }
}

#[test]
fn vm_qemu_is_judged_as_a_frontend() {
    let image = image();
    let disk = || Arc::new(Blk::open(&BlkOptions::new(Backing::File(image.path().to_owned()))).expect("a disk"));
    let watch = Arc::new(Watch::new("QEMU"));
    let disk = disk();
    let mut mock = Mock::new(Arc::clone(&disk) as _).observer(Arc::clone(&watch) as _);
    let served = Served::of(mock.options_mut().clone(), disk);
    let output = boot(&served.socket(), ",num-queues=1");
    assert_eq!(output.status.code(), Some(33), "{}", String::from_utf8_lossy(&output.stderr));
    eventually("it has gone", || served.is_idle());
    let report = watch.report();
    let failed = |level| {
        let cases = report.cases.iter().filter(move |case| case.level == level && case.verdict.is_failure());
        cases.map(|case| (case.id, case.verdict.because().unwrap_or_default())).collect::<Vec<_>>()
    };
    assert_eq!(failed(Level::Must), [], "{}", report.to_text());
    // QEMU that is ended in the middle of a guest's life stops nothing.
    let known = ["rings.stop-before-close"];
    let unknown: Vec<_> = failed(Level::Should).into_iter().filter(|(id, _)| !known.contains(id)).collect();
    assert_eq!(unknown, []);
    let passed = report.counts().passed;
    assert!(passed >= 25, "{passed} rules had an occasion: {}", report.to_text());
}
