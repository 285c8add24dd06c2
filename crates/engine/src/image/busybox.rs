//! A static busybox, and the list of its programs.
//!
//! The names are read from the file, where they follow each other in the order of busybox's table. Busybox is not run
//! for that: files for guests may come from a package or a home, and no program of these runs on the host.

use std::collections::BTreeSet;

use camino::Utf8PathBuf;

use crate::kernel::elf::Elf;

/// Debian's has 2 MiB.
const BYTES_MAX: u64 = 64 << 20;
/// Debian's `busybox-static` is some 270 programs.
const APPLETS_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 32;
/// Every busybox has these names, which distinguishes its table from other sorted words.
const EVERY_BUSYBOX: [&str; 2] = ["busybox", "sh"];
/// The directories of the programs, as busybox installs them. All others go to [`ELSEWHERE`].
const PLACES: [(&str, &str); 3] = [
    (
        "bin",
        "arch ash base64 cat chgrp chmod chown cp cpio cttyhack date dd df dmesg dnsdomainname dumpkmap echo ed egrep \
         false fatattr fgrep getopt grep gunzip gzip hostname hush ionice ipcalc kill link linux32 linux64 ln login ls \
         lsattr lzop makemime mkdir mknod mktemp more mount mountpoint mpstat mt mv netstat nice nuke pidof ping ping6 \
         pipe_progress printenv ps pwd readlink reformime resume rev rm rmdir rpm run-parts scriptreplay sed setarch \
         setpriv setserial sh sleep stat stty su sync tar touch true umount uname uncompress usleep vi watch zcat",
    ),
    (
        "sbin",
        "acpid adjtimex arp blkid blockdev bootchartd depmod devmem fbsplash fdisk findfs freeramdisk fsck fsck.minix \
         fstrim getty halt hdparm hwclock ifconfig ifdown ifenslave ifup init insmod ip ipaddr iplink ipneigh iproute \
         iprule iptunnel klogd loadkmap logread losetup lsmod makedevs mdev mkdosfs mke2fs mkfs.ext2 mkfs.minix \
         mkfs.vfat mkswap modinfo modprobe nameif pivot_root poweroff raidautorun reboot rmmod route run-init runlevel \
         setconsole slattach start-stop-daemon sulogin swapoff swapon switch_root sysctl syslogd tc tunctl udhcpc \
         udhcpc6 uevent vconfig watchdog zcip",
    ),
    (
        "usr/sbin",
        "addgroup add-shell adduser arping brctl chat chpasswd chroot crond delgroup deluser dhcprelay dnsd \
         ether-wake fakeidentd fbset fsfreeze ftpd httpd i2cdetect i2cdump i2cget i2cset i2ctransfer inetd \
         killall5 loadfont lpd mim nanddump nandwrite nbd-client nologin ntpd partprobe popmaildir powertop rdate \
         rdev readahead readprofile remove-shell rtcwake sendmail seedrng setfont setlogcons svlogd telnetd tftpd \
         ubiattach ubidetach ubimkvol ubirename ubirmvol ubirsvol ubiupdatevol udhcpd",
    ),
];
const ELSEWHERE: &str = "usr/bin";
/// The program itself, and a name for the root directory.
const LEFT_OUT: [&str; 2] = ["busybox", "linuxrc"];

/// Whether the program needs no libraries. A guest has none.
pub(crate) fn is_static(bytes: &[u8]) -> bool {
    bytes.len() as u64 <= BYTES_MAX && Elf::parse(bytes).is_some_and(|elf| !elf.has_interpreter())
}

/// The paths of links to a busybox, such as `usr/bin/awk`. `None` if the file has no table of names.
pub(crate) fn applets(bytes: &[u8]) -> Option<Vec<Utf8PathBuf>> {
    let names = names(bytes)?;
    let place = |name: &str| {
        let is_in = |(_, list): &&(&str, &str)| list.split(' ').any(|listed| listed == name);
        PLACES.iter().find(is_in).map_or(ELSEWHERE, |(place, _)| *place)
    };
    let wanted = names.into_iter().filter(|name| !LEFT_OUT.contains(&name.as_str()));
    Some(wanted.map(|name| Utf8PathBuf::from(place(&name)).join(name)).collect())
}

/// The longest run of names in ascending order that contains those of every busybox. Each name ends with a zero byte.
fn names(bytes: &[u8]) -> Option<BTreeSet<String>> {
    let mut row: Vec<&str> = Vec::new();
    let mut best: Vec<&str> = Vec::new();
    let mut words = bytes.split(|byte| *byte == 0);
    // The bytes after the last zero byte are not a name.
    let _ = words.next_back();
    for word in words.map(as_name).chain([None]) {
        let goes_on = word.is_some_and(|word| row.last().is_none_or(|before| *before < word));
        if !goes_on {
            if row.len() > best.len() && EVERY_BUSYBOX.iter().all(|name| row.contains(name)) {
                best.clone_from(&row);
            }
            row.clear();
        }
        row.extend(word);
    }
    (!best.is_empty() && best.len() <= APPLETS_MAX).then(|| best.into_iter().map(str::to_owned).collect())
}

fn as_name(word: &[u8]) -> Option<&str> {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"[._-+".contains(byte);
    let name = (1..=NAME_BYTES_MAX).contains(&word.len()) && word.iter().all(good);
    name.then(|| std::str::from_utf8(word).expect("ASCII is UTF-8")).filter(|name| !name.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn found(text: &str) -> Option<Vec<String>> {
        applets(text.as_bytes()).map(|paths| paths.into_iter().map(Utf8PathBuf::into_string).collect())
    }

    #[test]
    fn programs_are_read_from_the_table_and_get_their_usual_directories() {
        let table = "noise\0zzz\0[\0awk\0busybox\0chroot\0init\0linuxrc\0sh\0after\0";
        let expected = ["usr/bin/[", "usr/bin/awk", "usr/sbin/chroot", "sbin/init", "bin/sh"];
        assert_eq!(found(table), Some(expected.map(str::to_owned).into()));
    }

    #[test]
    fn a_file_without_that_table_names_no_programs() {
        for none in
            ["", "\0", "#!/bin/sh\necho busybox sh\n", "awk\0busybox\0", "sh\0busybox\0", "../sh\0busybox\0/sh\0"]
        {
            assert_eq!(found(none), None, "{none:?}");
        }
        assert_eq!(found("busybox\0s/h\0sh\0"), None, "a path is no name");
    }

    #[test]
    fn the_programs_of_an_installed_busybox_are_those_that_it_lists() {
        let bytes = fs_err::read("/bin/busybox").expect("busybox-static is installed");
        let own = Command::new("/bin/busybox").arg("--list-full").output().expect("runs").stdout;
        let own: BTreeSet<_> = String::from_utf8(own).expect("text").lines().map(Utf8PathBuf::from).collect();
        let left_out = |path: &&Utf8PathBuf| !LEFT_OUT.contains(&path.file_name().unwrap_or_default());
        let read = applets(&bytes).expect("has a table");
        assert_eq!(read.iter().collect::<BTreeSet<_>>(), own.iter().filter(left_out).collect::<BTreeSet<_>>());
    }
}
