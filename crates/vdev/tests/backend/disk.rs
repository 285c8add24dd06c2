//! The disk: every request, in any layout, and what is no request.

use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};

use super::frontend::{Frontend, Ring, Served};

const IN: u32 = 0;
const OUT: u32 = 1;

fn disk_of(sectors: u64) -> (tempfile::NamedTempFile, Served) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(sectors * 512).expect("grows");
    let served = Served::new(Blk::open(&BlkOptions::new(Backing::File(file.path().to_owned()))).expect("a disk"));
    (file, served)
}

fn ready(served: &Served) -> (Frontend, Ring) {
    let mut frontend = served.frontend();
    frontend.negotiate();
    frontend.share_memory();
    let ring = frontend.ring(0, 16);
    (frontend, ring)
}

#[test]
fn what_is_written_is_read_back_and_is_in_the_file() {
    let (file, served) = disk_of(64);
    let (_frontend, mut ring) = ready(&served);
    ring.put(4096, &[0x5a; 1024]);
    assert_eq!(ring.request(OUT, 3, 1024, 0), (0, 1));
    ring.put(4096, &[0; 1024]);
    assert_eq!(ring.request(IN, 3, 0, 1024), (0, 1025));
    assert_eq!(ring.take(4096, 1024), [0x5a; 1024]);
    assert_eq!(std::fs::read(file.path()).expect("is read")[3 * 512..5 * 512], [0x5a; 1024]);
}
