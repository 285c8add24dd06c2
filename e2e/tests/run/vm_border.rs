//! A VM uses no file of the directory in which kiln was started.

use kiln_e2e::Kiln;

/// Files that QEMU searches by name, some of them only on other machines.
const DATA_FILES: [&str; 12] = [
    "bios.bin",
    "bios-256k.bin",
    "bios-microvm.bin",
    "qboot.rom",
    "kvmvapic.bin",
    "linuxboot.bin",
    "linuxboot_dma.bin",
    "multiboot.bin",
    "multiboot_dma.bin",
    "pvh.bin",
    "efi-virtio.rom",
    "vgabios-stdvga.bin",
];

#[test]
fn firmware_in_the_working_directory_is_not_used() {
    let decoys = tempfile::tempdir().expect("a directory");
    let installed = ["/usr/share/qemu", "/usr/share/seabios"].map(|path| std::fs::read_dir(path).into_iter().flatten());
    let installed = installed.into_iter().flatten().map(|entry| entry.expect("lists").file_name());
    for name in DATA_FILES.map(Into::into).into_iter().chain(installed) {
        // A guest that began with one of these would halt at once.
        std::fs::write(decoys.path().join(name), [0xf4; 65536]).expect("written");
    }
    let run = Kiln::new(["run", "--cold", "--", "echo", "own firmware"]).in_directory(decoys.path()).run();
    assert_eq!((run.code, run.text().as_str()), (0, "own firmware"), "{}", run.stderr);
}
