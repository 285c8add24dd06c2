//! The content of the image `mini`: all choices, and no access to the host.

use super::cpio::{Node, Tree};
use super::modules::Chosen;
use super::packages::Busybox;

/// The name of the image of this recipe.
pub const MINI: &str = "mini";
/// Increased whenever the same inputs give another image.
pub(crate) const VERSION: u32 = 2;
/// The kernel command line, less what the engine adds. Each word is measured in docs/design/0002-boot-time.md: messages
/// of an ordinary boot stay in `dmesg` (warnings and worse go to the console), the kernel's cryptography is not tested
/// at each boot, and code is not rewritten for a guest that happens to have one CPU.
pub(crate) const CMDLINE: &str = "loglevel=5 cryptomgr.notests noreplace-smp";

/// Without these a guest can't communicate with its host.
pub(crate) const MODULES_REQUIRED: [&str; 2] = ["virtio_pci", "virtio_console"];
/// Modules for devices of a VM, for root filesystems, and for what containers and networks in a guest need most. Every
/// module takes memory in each guest, so larger ones are left to other images.
pub(crate) const MODULES_OPTIONAL: [&str; 15] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "overlay",
    "squashfs",
    "erofs",
    "ext4",
    "isofs",
    "fuse",
    "virtiofs",
    "loop",
    "tun",
];

const DIRECTORIES: [(&str, u32); 16] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

const FILES: [(&str, &str); 8] = [
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("etc/hostname", "kiln\n"),
    ("etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tkiln\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("etc/os-release", "NAME=Kiln\nID=kiln\nPRETTY_NAME=\"Kiln mini\"\n"),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"),
    ("etc/profile", "export PATH=/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w\\$ '\n"),
    ("etc/shells", "/bin/sh\n/bin/ash\n"),
];

const SYMLINKS: [(&str, &str); 2] = [("etc/mtab", "/proc/self/mounts"), ("var/run", "/run")];

/// The initramfs.
pub(crate) fn initramfs(agent: Vec<u8>, busybox: Busybox, release: &str, modules: &Chosen) -> Tree {
    let mut tree = Tree::default();
    for (path, mode) in DIRECTORIES {
        tree.insert(path, Node::Directory { mode });
    }
    for (path, text) in FILES {
        tree.insert(path, Node::File { mode: 0o644, bytes: text.into() });
    }
    for (path, target) in SYMLINKS {
        tree.insert(path, Node::Symlink { target: target.into() });
    }
    // The kernel opens these before anything is mounted.
    tree.insert("dev/console", Node::CharacterDevice { mode: 0o600, major: 5, minor: 1 });
    tree.insert("dev/null", Node::CharacterDevice { mode: 0o666, major: 1, minor: 3 });
    tree.insert("init", Node::File { mode: 0o755, bytes: agent });
    tree.insert("bin/busybox", Node::File { mode: 0o755, bytes: busybox.bytes });
    for applet in busybox.applets {
        if !tree.contains(&applet) {
            tree.insert(applet, Node::Symlink { target: "/bin/busybox".into() });
        }
    }
    for (path, bytes) in &modules.files {
        let path = format!("lib/modules/{release}/{path}");
        tree.insert(path, Node::File { mode: 0o644, bytes: bytes.clone() });
    }
    tree
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;

    #[test]
    fn an_initramfs_has_what_the_kernel_and_the_agent_expect() {
        let busybox = Busybox { bytes: b"busybox".into(), applets: vec!["bin/sh".into(), "usr/sbin/chroot".into()] };
        let mut modules = Chosen::default();
        modules.files.insert("kernel/virtio.ko".into(), b"module".into());
        let tree = initramfs(b"agent".into(), busybox, "6.1.0", &modules);
        for path in [
            "init",
            "dev/console",
            "dev/null",
            "proc",
            "sys",
            "tmp",
            "run",
            "root",
            "mnt",
            "var/log",
            "bin/busybox",
            "bin/sh",
            "usr/sbin/chroot",
            "etc/passwd",
            "etc/os-release",
            "lib/modules/6.1.0/kernel/virtio.ko",
        ] {
            assert!(tree.contains(Utf8Path::new(path)), "{path}");
        }
    }
}
