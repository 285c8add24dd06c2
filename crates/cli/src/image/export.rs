//! `kiln image export`: an image as a file for docker, podman and skopeo.

use std::io::{self, Seek as _, Write};

use kiln_oci::{Reference, write_archive};
use kiln_rootfs::{erofs, export};

use super::find::home;
use super::root::find_root;
use crate::args::image::ImageExportArgs;
use crate::failure::{Failure, HOST, USAGE};
use crate::output::{Progress, say};

/// The archive goes to stdout.
const STDOUT: &str = "-";

/// Runs `kiln image export`.
pub(super) fn export(args: &ImageExportArgs) -> Result<u8, Failure> {
    let home = home()?;
    let image = find_root(&home, &args.name)?;
    let progress = Progress::start(format!("exporting {}", args.name));
    let failed = |error: anyhow::Error| Failure::new(HOST, error.context(format!("failed to export `{}`", args.name)));
    // The layer's digest comes before its bytes in the archive, so it is written to a file first.
    let root = fs_err::File::open(&image.root)?;
    let tree = erofs::read(root.file(), root.metadata()?.len(), &erofs::ReadLimits::default());
    let tree = tree.map_err(|error| failed(error.into()))?;
    fs_err::create_dir_all(home.cache())?;
    let mut layer = tempfile::tempfile_in(home.cache())?;
    export::tar(&tree, root.file(), io::BufWriter::new(&mut layer)).map_err(|error| failed(error.into()))?;
    layer.rewind()?;
    let names: Vec<Reference> = image.name.parse().into_iter().collect();
    let mut write = |output: &mut dyn Write| {
        write_archive(output, &mut layer, &image.config, &names).map_err(|error| failed(error.into()))
    };
    if args.file == STDOUT {
        write(&mut io::stdout().lock())?;
    } else {
        let folder = args.file.parent().filter(|folder| !folder.as_str().is_empty()).unwrap_or(".".into());
        if !folder.is_dir() {
            return Err(Failure::words(USAGE, format!("`{folder}` is not a directory")));
        }
        // The file appears when it is whole.
        let mut new = tempfile::NamedTempFile::new_in(folder)?;
        write(&mut io::BufWriter::new(new.as_file_mut()))?;
        new.persist(&args.file).map_err(|error| failed(error.into()))?;
    }
    drop(progress);
    if args.file != STDOUT {
        say(format_args!("exported {} to {}", image.name, args.file));
    }
    Ok(0)
}
