//! A disk as QEMU gets it: one JSON value for `-blockdev` and for QMP's `blockdev-add`. Pure: nothing is opened.
//!
//! ```text
//!   disk0 ── overlay N: the guest's writes ──▶ … ──▶ overlay 1 ──▶ the image, raw or qcow2 ──▶ nothing
//!                                              └── layers below the top are open for reading only ───┘
//! ```
//! Every layer is listed, with an explicit `null` below the lowest, so QEMU follows no backing file that an image
//! names. An image that names a backing file or a data file is refused before, by
//! `snapshot::overlay::refuse_other_files`: QEMU would follow the second. QEMU's locks stay on. So any number of VMMs
//! can read a layer together, and none of them can start while another writes to it. A VMM that waits for incoming
//! state has no locks yet. It takes them after it has loaded the state.

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use crate::spec::{Disk, DiskFormat, DiskRole};

/// What QEMU does when a guest discards blocks of a volume, or writes zeros to them: it punches a hole into the file. So
/// a volume takes no more space on the host than its guest has data.
const PUNCH: &str = "unmap";

/// A disk as the block node `node`: the image itself, or the newest of its qcow2 overlays, which are given from the
/// oldest to the newest. The top layer is writable unless the disk is read-only. All layers below are read-only.
pub(crate) fn blockdev(node: &str, disk: &Disk, overlays: &[Utf8PathBuf]) -> Value {
    let mut layers = vec![(disk.path.as_path(), disk.format)];
    layers.extend(overlays.iter().map(|path| (path.as_path(), DiskFormat::Qcow2)));
    let top = layers.len() - 1;

    let mut below = Value::Null;
    for (index, (path, format)) in layers.into_iter().enumerate() {
        let read_only = disk.role.is_read_only() || index != top;
        let mut file = json!({"driver": "file", "filename": absolute(path), "read-only": read_only});
        let mut layer = json!({"read-only": read_only});
        if disk.role == DiskRole::Volume && format == DiskFormat::Raw {
            // QEMU ignores a discard unless each layer allows it, down to the file.
            file["discard"] = PUNCH.into();
            layer["discard"] = PUNCH.into();
            layer["detect-zeroes"] = PUNCH.into();
        }
        layer["file"] = file;
        match format {
            // Only the lowest image can be raw, so it has no layer below.
            DiskFormat::Raw => layer["driver"] = "raw".into(),
            DiskFormat::Qcow2 => {
                layer["driver"] = "qcow2".into();
                layer["backing"] = below;
            }
        }
        if index == top {
            layer["node-name"] = node.into();
        }
        below = layer;
    }
    below
}

fn absolute(path: &Utf8Path) -> String {
    // QEMU reads `name:rest` as a protocol. A path that starts with `/` or `.` is never read like that.
    if path.is_absolute() { path.to_string() } else { format!("./{path}") }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Child, Command, Output, Stdio};

    use fs_err as fs;

    use super::super::QEMU_PROGRAM;
    use super::*;
    use crate::snapshot::overlay;

    const MIB: usize = 1 << 20;

    fn directory() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8PathBuf::try_from(directory.path().to_owned()).expect("UTF-8");
        (directory, path)
    }

    fn disk(path: &Utf8Path, format: DiskFormat) -> Disk {
        Disk { path: path.to_owned(), format, role: DiskRole::Scratch }
    }

    fn overlay(directory: &Utf8Path, name: &str, bytes: usize) -> Utf8PathBuf {
        let path = directory.join(name);
        overlay::create(&path, bytes as u64).expect("an overlay");
        path
    }

    /// Bytes that differ in each sector.
    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes as u64 / 8).flat_map(|index| (index * 0x9e37_79b9 + 1).to_le_bytes()).collect()
    }

    fn run(program: &str, arguments: &[&str]) -> Output {
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("`{program}`: {error}"))
    }

    fn text(output: &Output) -> String {
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
    }

    fn spec(node: &Value) -> String {
        format!("json:{node}")
    }

    fn content(node: &Value, directory: &Utf8Path) -> Vec<u8> {
        let copy = directory.join("copy");
        let output = run("qemu-img", &["convert", "-O", "raw", &spec(node), copy.as_str()]);
        assert!(output.status.success(), "{}", text(&output));
        fs::read(copy).expect("the copy")
    }

    fn write(node: &Value, byte: u8, offset: usize, bytes: usize) {
        let output = run("qemu-io", &["-c", &format!("write -P {byte} {offset} {bytes}"), &spec(node)]);
        assert!(output.status.success(), "{}", text(&output));
    }

    fn check(image: &Utf8Path) {
        let output = run("qemu-img", &["check", image.as_str()]);
        assert!(output.status.success(), "{}", text(&output));
    }

    /// A VMM that has the node as its guest's disk until it is dropped. The guest stays paused.
    struct Vmm(Child);

    impl Vmm {
        fn start(node: &Value) -> Self {
            let mut command = Command::new(QEMU_PROGRAM);
            command.args("-machine q35 -m 32 -nodefaults -display none -S -qmp stdio".split(' '));
            command.args(["-blockdev", &node.to_string(), "-device", "virtio-blk-pci,drive=disk0"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
            let mut vmm = Self(command.spawn().expect("QEMU"));
            // QEMU greets when every device has what it needs.
            let stdout = vmm.0.stdout.as_mut().expect("a pipe");
            stdout.read_exact(&mut [0]).expect("a greeting");
            vmm
        }
    }

    impl Drop for Vmm {
        fn drop(&mut self) {
            // If `kill` failed, there is no process to wait for.
            let _ = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    #[test]
    fn every_layer_is_spelled_out() {
        let chain = blockdev("disk0", &disk("/i/root.qcow2".into(), DiskFormat::Qcow2), &["/s/1".into(), "v/2".into()]);
        let file = |name, read_only| json!({"driver": "file", "filename": name, "read-only": read_only});
        let root =
            json!({"driver": "qcow2", "read-only": true, "file": file("/i/root.qcow2", true), "backing": Value::Null});
        let middle = json!({"driver": "qcow2", "read-only": true, "file": file("/s/1", true), "backing": root});
        let top = json!({
            "driver": "qcow2", "node-name": "disk0", "read-only": false, "file": file("./v/2", false), "backing": middle,
        });
        assert_eq!(chain, top);
    }

    #[test]
    fn a_disk_without_overlays_is_its_image() {
        let raw = Disk { role: DiskRole::Shared, ..disk("a,b:\"c\"".into(), DiskFormat::Raw) };
        let file = json!({"driver": "file", "filename": "./a,b:\"c\"", "read-only": true});
        let expected = json!({"driver": "raw", "node-name": "disk3", "read-only": true, "file": file});
        assert_eq!(blockdev("disk3", &raw, &[]), expected);
    }

    #[test]
    fn a_raw_volume_gives_back_what_its_guest_discards_and_a_read_only_one_is_never_written() {
        let volume = |role| blockdev("disk0", &Disk { role, ..disk("/v".into(), DiskFormat::Raw) }, &[]);
        let writable = volume(DiskRole::Volume);
        assert_eq!(
            writable,
            json!({
                "driver": "raw", "node-name": "disk0", "read-only": false, "discard": "unmap", "detect-zeroes": "unmap",
                "file": {"driver": "file", "filename": "/v", "read-only": false, "discard": "unmap"},
            })
        );
        let lent = volume(DiskRole::VolumeReadOnly);
        assert_eq!(lent, volume(DiskRole::Shared));
        assert_eq!(lent["file"]["read-only"], true);

        let (_guard, directory) = directory();
        let path = directory.join("volume");
        fs::write(&path, vec![7; MIB]).expect("a disk");
        let blocks = || {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(&path).expect("is there").blocks()
        };
        let before = blocks();
        let node = |role| blockdev("disk0", &Disk { role, ..disk(&path, DiskFormat::Raw) }, &[]);
        let output = run("qemu-io", &["-c", "write -z -u 0 512k", &spec(&node(DiskRole::Volume))]);
        assert!(output.status.success(), "{}", text(&output));
        assert!(blocks() < before, "{before} blocks stay");

        let readers = [(); 2].map(|()| Vmm::start(&node(DiskRole::VolumeReadOnly)));
        let writer = run("qemu-io", &["-c", "write 0 512", &spec(&node(DiskRole::Volume))]);
        assert!(text(&writer).contains("Failed to get \"write\" lock"), "{}", text(&writer));
        drop(readers);
    }

    #[test]
    fn reads_fall_through_and_writes_stay_in_the_newest_overlay() {
        let (_guard, directory) = directory();
        let raw = directory.join("a,b:\"c\" é.raw");
        fs::write(&raw, pattern(MIB)).expect("a disk");
        let qcow2 = directory.join("root.qcow2");
        let made = run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw.as_str(), qcow2.as_str()]);
        assert!(made.status.success(), "{}", text(&made));

        for root in [disk(&raw, DiskFormat::Raw), disk(&qcow2, DiskFormat::Qcow2)] {
            let before = fs::read(&root.path).expect("the root");
            let name = |layer| format!("{:?}-{layer}", root.format);
            let first = overlay(&directory, &name(1), MIB);
            let node = blockdev("disk0", &root, std::slice::from_ref(&first));
            assert!(content(&node, &directory) == pattern(MIB), "an empty overlay shows what is below");

            // Less than a cluster: the rest of the cluster is copied from below.
            write(&node, 0x11, 70_000, 1000);
            let mut model = pattern(MIB);
            model[70_000..71_000].fill(0x11);
            assert!(content(&node, &directory) == model);

            // The next overlay is larger than the layer below it.
            let first_before = fs::read(&first).expect("the overlay");
            let second = overlay(&directory, &name(2), 2 * MIB);
            let node = blockdev("disk0", &root, &[first.clone(), second.clone()]);
            model.resize(2 * MIB, 0);
            assert!(content(&node, &directory) == model);
            write(&node, 0x22, MIB - 512, 1024);
            model[MIB - 512..MIB + 512].fill(0x22);
            assert!(content(&node, &directory) == model);

            assert!(fs::read(&root.path).expect("the root") == before);
            assert!(fs::read(&first).expect("the overlay") == first_before);
            check(&first);
            check(&second);
        }
    }

    #[test]
    fn an_overlay_of_an_odd_size_shows_zeros_after_the_end() {
        let (_guard, directory) = directory();
        let root = directory.join("odd.raw");
        fs::write(&root, [7; 1000]).expect("a disk");
        let layer = overlay(&directory, "overlay", 1000);
        let node = blockdev("disk0", &disk(&root, DiskFormat::Raw), &[layer]);
        assert_eq!(content(&node, &directory), [[7; 1000].as_slice(), &[0; 24]].concat());
    }

    #[test]
    fn a_large_overlay_takes_writes_at_its_ends() {
        let (_guard, directory) = directory();
        let root = directory.join("root.raw");
        fs::write(&root, pattern(MIB)).expect("a disk");
        for bytes in [64 << 30, overlay::OVERLAY_BYTES_MAX as usize] {
            let layer = overlay(&directory, &bytes.to_string(), bytes);
            let node = blockdev("disk0", &disk(&root, DiskFormat::Raw), std::slice::from_ref(&layer));
            write(&node, 0x33, bytes - 512, 512);
            write(&node, 0x44, 0, 512);
            let read = run("qemu-io", &["-c", &format!("read -P 0x33 {} 512", bytes - 512), &spec(&node)]);
            assert!(read.status.success() && !text(&read).contains("failed"), "{}", text(&read));
            check(&layer);
        }
    }

    #[test]
    fn no_name_within_an_image_is_followed() {
        let (_guard, directory) = directory();
        let secret = directory.join("secret");
        fs::write(&secret, pattern(MIB)).expect("a file of the host");
        let image = directory.join("image");
        let made = run("qemu-img", &["create", "-f", "qcow2", "-b", secret.as_str(), "-F", "raw", image.as_str()]);
        assert!(made.status.success(), "{}", text(&made));

        let root = disk(&image, DiskFormat::Qcow2);
        let layer = overlay(&directory, "overlay", MIB);
        assert!(content(&blockdev("disk0", &root, &[]), &directory) == vec![0; MIB]);
        assert!(content(&blockdev("disk0", &root, std::slice::from_ref(&layer)), &directory) == vec![0; MIB]);
        assert!(content(&blockdev("disk0", &disk(&layer, DiskFormat::Qcow2), &[image]), &directory) == vec![0; MIB]);
    }

    #[test]
    fn vm_forks_share_a_root_that_none_may_write() {
        let (_guard, directory) = directory();
        let path = directory.join("root.raw");
        fs::write(&path, pattern(MIB)).expect("a disk");
        let root = disk(&path, DiskFormat::Raw);
        let layers = ["one", "two"].map(|name| overlay(&directory, name, MIB));
        let nodes = layers.each_ref().map(|layer| blockdev("disk0", &root, std::slice::from_ref(layer)));

        let forks = nodes.each_ref().map(Vmm::start);
        for held in [&blockdev("disk0", &root, &[]), &nodes[0], &nodes[1]] {
            let writer = run("qemu-io", &["-c", "write 0 512", &spec(held)]);
            assert!(text(&writer).contains("Failed to get \"write\" lock"), "{}", text(&writer));
        }
        drop(forks);

        assert!(fs::read(&path).expect("the root") == pattern(MIB));
    }
}
