//! The memory of a fork on the host: proc(5) `smaps`, with the snapshot's image counted separately.

use camino::Utf8Path;

const KIB_PER_MIB: f64 = 1024.0;

/// Memory of one process, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Footprint {
    /// Its proportional set: what is shared counts by its share.
    pub pss_mib: f64,
    /// The same without its share of the image.
    pub own_mib: f64,
    /// Pages that only it has and that it has written.
    pub private_dirty_mib: f64,
    /// Pages of the image that it maps, also if other processes map them.
    pub image_mib: f64,
}

impl Footprint {
    /// Reads that of a process that maps the memory file `image`.
    pub fn of(pid: u32, image: &Utf8Path) -> anyhow::Result<Self> {
        Ok(parse(&fs_err::read_to_string(format!("/proc/{pid}/smaps"))?, image.as_str()))
    }
}

fn parse(smaps: &str, image: &str) -> Footprint {
    let mut footprint = Footprint::default();
    let mut in_image = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        let Some(field) = first.strip_suffix(':') else {
            in_image = line.ends_with(image);
            continue;
        };
        let Ok(mib) = second.parse::<f64>().map(|kib| kib / KIB_PER_MIB) else { continue };
        // Pages that the guest has written are anonymous: the kernel has copied them for this fork.
        match (field, in_image) {
            ("Pss", false) => {
                footprint.pss_mib += mib;
                footprint.own_mib += mib;
            }
            ("Pss", true) => footprint.pss_mib += mib,
            ("Anonymous", true) => {
                footprint.own_mib += mib;
                footprint.image_mib -= mib;
            }
            ("Rss", true) => footprint.image_mib += mib,
            ("Private_Dirty", _) => footprint.private_dirty_mib += mib,
            _ => {}
        }
    }
    footprint
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0010000000 rw-p 00000000 fe:00 42                         /home/snapshots/a/memory
Size:             262144 kB
Rss:               30720 kB
Pss:               12288 kB
Pss_Dirty:         10240 kB
Shared_Clean:      20480 kB
Private_Dirty:     10240 kB
Anonymous:         10240 kB
VmFlags: rd wr mr mw me ac sd
55d000000000-55d000100000 r-xp 00000000 fe:00 7                          /usr/bin/qemu-system-x86_64
Rss:                8192 kB
Pss:                4096 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
55d010000000-55d010100000 rw-p 00000000 00:00 0                          [heap]
Rss:                1024 kB
Pss:                1024 kB
Private_Dirty:      1024 kB
Anonymous:          1024 kB
";

    #[test]
    fn the_image_is_counted_apart_from_what_a_fork_wrote_to() {
        let found = parse(SMAPS, "/home/snapshots/a/memory");
        let wanted = Footprint { pss_mib: 17.0, own_mib: 15.0, private_dirty_mib: 11.0, image_mib: 20.0 };
        assert_eq!(found, wanted);
    }

    #[test]
    fn lines_of_another_shape_count_nothing() {
        assert_eq!(parse("", "/m"), Footprint::default());
        assert_eq!(parse("Pss: x kB\n\nPss:\n: 4 kB\nRss 4 kB\n", "/m"), Footprint::default());
    }
}
