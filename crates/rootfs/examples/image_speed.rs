//! How long an image takes: a layer as a tar file, through the tree to EROFS, next to other programs on the same files.
//!
//! ```text
//!   cargo run --release --package kiln-rootfs --example image_speed -- LAYER.tar [RUNS]
//! ```
//! The runs of all programs alternate, so that a busy moment of the host hits all of them. Each program is measured with
//! its inputs in the page cache. It needs mkfs.erofs, tar2sqfs and GNU tar, and root to unpack owners and devices. Its
//! output is a table with times in milliseconds.

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kiln_programs::{PATH_ONLY, command};
use kiln_rootfs::erofs::{Options, ReadLimits, read, write};
use kiln_rootfs::{Layers, Limits, Spool, SpoolLimits};

/// Runs of each program if none are given.
const RUNS_DEFAULT: usize = 9;

/// What is measured, in the order of the table.
const ROWS: [&str; 6] = [
    "kiln: tar to image",
    "  of it tar to tree",
    "  of it tree to image",
    "kiln: image to tree",
    "mkfs.erofs on the unpacked files",
    "tar2sqfs, lz4",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let layer = arguments.next().ok_or("usage: image_speed LAYER.tar [RUNS]")?;
    let runs = arguments.next().map_or(Ok(RUNS_DEFAULT), |runs| runs.parse())?;
    let scratch = tempfile::tempdir()?;
    let unpacked = scratch.path().join("unpacked");
    std::fs::create_dir(&unpacked)?;
    run(
        "tar",
        &[
            "--extract",
            "--preserve-permissions",
            "--xattrs",
            "--xattrs-include=*",
            "--file",
            &layer,
            "--directory",
            text(&unpacked),
        ],
    )?;

    let mut times: [Vec<Duration>; ROWS.len()] = Default::default();
    let mut sizes = [0; 3];
    for _ in 0..runs {
        let image = scratch.path().join("image");
        let [to_tree, to_image] = ours(&layer, scratch.path(), &image)?;
        let start = Instant::now();
        let bytes = image.metadata()?.len();
        let tree = read(&File::open(&image)?, bytes, &ReadLimits::default())?;
        let measured = [to_tree + to_image, to_tree, to_image, start.elapsed()];
        measured.into_iter().zip(&mut times).for_each(|(time, times)| times.push(time));
        sizes[0] = bytes;
        drop(tree);

        let others = [scratch.path().join("erofs"), scratch.path().join("squashfs")];
        let start = Instant::now();
        run("mkfs.erofs", &[text(&others[0]), text(&unpacked)])?;
        times[4].push(start.elapsed());
        let start = Instant::now();
        let tar2sqfs = command("tar2sqfs", PATH_ONLY)
            .args(["--force", "--quiet", "--compressor", "lz4", text(&others[1])])
            .stdin(File::open(&layer)?)
            .stdout(Stdio::null())
            .status()?;
        times[5].push(start.elapsed());
        if !tar2sqfs.success() {
            return Err("tar2sqfs failed".into());
        }
        for (size, path) in sizes[1..].iter_mut().zip(&others) {
            *size = path.metadata()?.len();
        }
    }
    report(&layer, runs, &mut times, sizes)
}

/// From a layer to an image: the time to the tree, and from it.
fn ours(layer: &str, scratch: &Path, image: &Path) -> Result<[Duration; 2], Box<dyn Error>> {
    let start = Instant::now();
    let spool = Spool::new(scratch, SpoolLimits::default())?;
    let mut layers = Layers::new(spool, Limits::default());
    layers.apply(File::open(layer)?)?;
    let (tree, spool, _) = layers.finish();
    let to_tree = start.elapsed();
    let start = Instant::now();
    write(&tree, &spool, File::create(image)?, &Options::default())?;
    Ok([to_tree, start.elapsed()])
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let status = command(program, PATH_ONLY).args(arguments).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("`{program}` failed").into()) }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

fn report(layer: &str, runs: usize, times: &mut [Vec<Duration>], sizes: [u64; 3]) -> Result<(), Box<dyn Error>> {
    let bytes = std::fs::metadata(layer)?.len();
    println!("a layer of {} MB, {runs} runs of each, milliseconds", bytes / 1_000_000);
    println!("{:<34} {:>7} {:>7} {:>7} {:>7}", "", "p50", "p95", "MB/s", "MiB");
    let sizes = [Some(sizes[0]), None, None, None, Some(sizes[1]), Some(sizes[2])];
    for ((row, times), size) in ROWS.iter().zip(times).zip(sizes) {
        times.sort_unstable();
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        let speed = bytes as f64 / 1e6 / at(50).as_secs_f64();
        let size = size.map_or_else(String::new, |size| (size >> 20).to_string());
        println!("{row:<34} {:>7.0} {:>7.0} {speed:>7.0} {size:>7}", millis(at(50)), millis(at(95)));
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
