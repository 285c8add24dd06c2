//! Images in files and directories: real ones of several programs, and hostile ones.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use kiln_oci::{Digest, Image, OpenError, OpenOptions, Origin, Reference, Source, write_archive};
use support::tools::{Images, path, run, write};
use support::{chain, gzip};
use tar::{Builder, EntryType, Header};

fn options(home: &Path, name: Option<&str>) -> OpenOptions {
    OpenOptions { name: name.map(str::to_owned), ..OpenOptions::new(home) }
}

/// Digests of the contents of all layers, after they were read.
fn contents(image: &Image) -> Vec<Digest> {
    image.layers().map(|layer| layer.open(1 << 30).expect("opens").finish().expect("is whole").diff_id).collect()
}

fn copy_folder(from: &Path) -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().expect("a directory");
    run("cp", &["-a", &path(from), &path(&home.path().join("image"))]);
    let copy = home.path().join("image");
    (home, copy)
}

#[test]
fn the_same_image_is_found_in_every_form() {
    let images = Images::get();
    let home = tempfile::tempdir().expect("a directory");
    let folder = |name: &str, tag| Image::open_folder(&images.path(name), &options(home.path(), tag)).expect("opens");
    let archive = |path: &Path| Image::open_archive(path, &options(home.path(), None)).expect("opens");
    let two = folder("layout", Some("two"));
    let expected = contents(&two);
    assert_eq!(expected.len(), 2);
    assert_eq!(contents(&folder("zstd", None)), expected);
    assert_eq!(contents(&folder("both", None)), expected, "the one for amd64");
    assert_eq!(contents(&folder("layout", Some("base"))), expected[..1]);

    let docker = archive(&images.path("docker.tar"));
    assert_eq!(
        (docker.origin, docker.names.as_slice()),
        (Origin::DockerArchive, &["docker.io/library/two:1".to_owned()][..])
    );
    assert_eq!(contents(&docker), expected);
    assert_eq!(docker.config.entrypoint, two.config.entrypoint);
    let oci = archive(&images.path("oci.tar"));
    assert_eq!((oci.origin, contents(&oci)), (Origin::Layout, expected.clone()));

    for (program, name) in [("gzip", "x.gz"), ("xz", "x.xz"), ("zstd", "x.zst")] {
        let packed = home.path().join(name);
        let command = format!("{program} -1 -c {} > {}", path(&images.path("docker.tar")), path(&packed));
        run("sh", &["-c", &command]);
        assert_eq!(contents(&archive(&packed)), expected, "{program}");
    }
    let several = Image::open_folder(&images.path("layout"), &options(home.path(), None)).expect_err("has two");
    insta::assert_snapshot!(chain(&several));
}

#[test]
fn skopeo_reads_what_is_exported() {
    let home = tempfile::tempdir().expect("a directory");
    let tree = home.path().join("tree");
    std::fs::create_dir_all(&tree).expect("a directory");
    write(&tree.join("file"), b"content");
    let layer = home.path().join("layer.tar");
    run("tar", &["-C", &path(&tree), "-cf", &path(&layer), "."]);
    let config = kiln_oci::ImageConfig { cmd: vec!["/x".to_owned()], ..kiln_oci::ImageConfig::bare() };
    let name: Reference = "exported:1".parse().expect("is a reference");
    let target = home.path().join("out.tar");
    let mut output = std::fs::File::create(&target).expect("a file");
    let mut layer = std::fs::File::open(&layer).expect("a file");
    let exported = write_archive(&mut output, &mut layer, &config, &[name]).expect("is written");
    for form in ["docker-archive", "oci-archive"] {
        let copied = path(&home.path().join(form));
        run("skopeo", &["copy", "--insecure-policy", &format!("{form}:{}", path(&target)), &format!("oci:{copied}:1")]);
        let image = Image::open_folder(Path::new(&copied), &options(home.path(), None)).expect("opens");
        assert_eq!(contents(&image), std::slice::from_ref(&exported.diff_id));
        assert_eq!(image.config.cmd, ["/x"]);
    }
}

#[test]
fn a_file_system_alone_is_an_image_of_one_layer() {
    let home = tempfile::tempdir().expect("a directory");
    let plain = archive_of(&[(EntryType::Directory, "./etc/", ""), (EntryType::Regular, "./etc/x", "y")]);
    for (name, bytes) in [("plain.tar", plain.clone()), ("packed.tar.gz", gzip(&plain))] {
        let file = home.path().join(name);
        write(&file, &bytes);
        let image = Image::open_archive(&file, &options(home.path(), None)).expect("opens");
        assert_eq!((image.origin, image.config_digest.is_none()), (Origin::RootArchive, true));
        assert_eq!(contents(&image), [Digest::sha256(&plain)]);
    }
    let image = Image::read_archive(plain.as_slice(), &options(home.path(), None)).expect("opens");
    let mut read = Vec::new();
    image.layers().next().expect("has one").open(1 << 20).expect("opens").read_to_end(&mut read).expect("is whole");
    assert_eq!(read, plain);
    assert_eq!(std::fs::read_dir(home.path()).expect("exists").count(), 2, "nothing is left of the unpacked form");
}

#[test]
fn special_files_in_a_layout_are_refused() {
    let images = Images::get();
    let replace = |what: &str, with: &dyn Fn(&Path)| {
        let (home, folder) = copy_folder(&images.path("umoci"));
        let target = match what {
            "blob" => largest_blob(&folder),
            name => folder.join(name),
        };
        let aside = home.path().join("aside");
        std::fs::rename(&target, &aside).expect("is there");
        with(&target);
        let error = Image::open_folder(&folder, &options(home.path(), None)).expect_err("is refused");
        without_digests(&chain(&error).replace(&path(&folder), "LAYOUT"))
    };
    let fifo = |target: &Path| {
        run("mkfifo", &[&path(target)]);
    };
    let lines = [
        replace("index.json", &|target| symlink("../aside", target).expect("a link")),
        replace("index.json", &fifo),
        replace("index.json", &|target| std::fs::create_dir(target).expect("a directory")),
        replace("oci-layout", &|target| symlink("/dev/zero", target).expect("a link")),
        replace("oci-layout", &|target| write(target, br#"{"imageLayoutVersion":"2.0.0"}"#)),
        replace("blob", &|target| symlink("/etc/shadow", target).expect("a link")),
        replace("blob", &fifo),
        replace("blobs", &|target| symlink("../aside", target).expect("a link")),
        replace("blob", &|_| {}),
    ];
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_blob_that_changes_is_found_when_it_is_read() {
    let images = Images::get();
    let (home, folder) = copy_folder(&images.path("umoci"));
    let blob = largest_blob(&folder);
    let image = Image::open_folder(&folder, &options(home.path(), None)).expect("opens");
    // Swapped between the check of the documents and the use of the layer.
    let mut bytes = std::fs::read(&blob).expect("is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    write(&blob, &bytes);
    let layer = image.layers().next().expect("has one");
    assert!(layer.open(1 << 30).and_then(kiln_oci::LayerReader::finish).is_err());
    std::fs::remove_file(&blob).expect("is there");
    symlink("/etc/shadow", &blob).expect("a link");
    assert!(layer.open(1 << 30).is_err());
}

/// The digests of images differ between two makings of them.
fn without_digests(text: &str) -> String {
    let parts = text.split_inclusive(['/', '`', ':', ' ']);
    let is_digest = |part: &str| part.len() > 64 && part[..64].bytes().all(|byte| byte.is_ascii_hexdigit());
    parts.map(|part| if is_digest(part) { format!("HEX{}", &part[64..]) } else { part.to_owned() }).collect()
}

fn largest_blob(folder: &Path) -> PathBuf {
    let entries =
        std::fs::read_dir(folder.join("blobs/sha256")).expect("exists").map(|entry| entry.expect("is listed"));
    entries.max_by_key(|entry| entry.metadata().expect("is there").len()).expect("has blobs").path()
}

/// An archive of members: kind, name, content or target.
fn archive_of(members: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, text) in members {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        let content = if *kind == EntryType::Regular { text.as_bytes() } else { b"" };
        if *kind == EntryType::Symlink {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

/// A configuration of layers with this content.
fn config(layers: &[&str]) -> String {
    let digests: Vec<String> = layers.iter().map(|layer| format!("\"{}\"", Digest::sha256(layer.as_bytes()))).collect();
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/x"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        digests.join(",")
    )
}

/// Opens an archive of docker's old form. The error and what it names, or the number of layers that are whole.
fn open_docker(members: &[(EntryType, &str, &str)], name: Option<&str>) -> Result<usize, String> {
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("image.tar");
    write(&file, &archive_of(members));
    let image = Image::open_archive(&file, &options(home.path(), name)).map_err(|error| chain(&error))?;
    let read = image.layers().map(|layer| layer.open(1 << 20).and_then(kiln_oci::LayerReader::finish));
    let read: Result<Vec<_>, _> = read.collect();
    read.map(|layers| layers.len()).map_err(|error| chain(&error))
}

const FILE: EntryType = EntryType::Regular;
const LINK: EntryType = EntryType::Symlink;
const MANIFEST: &str = r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["1/layer.tar","2/layer.tar"]}]"#;

#[test]
fn links_between_layers_are_followed_within_the_archive() {
    let config = config(&["same", "same"]);
    let layers = open_docker(
        &[
            (FILE, "1/layer.tar", "same"),
            (LINK, "2/layer.tar", "../1/layer.tar"),
            (FILE, "c.json", &config),
            (FILE, "manifest.json", MANIFEST),
        ],
        None,
    );
    assert_eq!(layers, Ok(2));
}

#[test]
fn hostile_archives_are_refused_by_name() {
    let two = config(&["same", "same"]);
    let one = config(&["same"]);
    let with = |layer: (EntryType, &str, &str), config: &str| {
        let members =
            [(FILE, "1/layer.tar", "same"), layer, (FILE, "c.json", config), (FILE, "manifest.json", MANIFEST)];
        open_docker(&members, None).expect_err("is refused")
    };
    let only = |manifest: &str| open_docker(&[(FILE, "manifest.json", manifest)], None).expect_err("is refused");
    let named = format!("{}.json", "0".repeat(64));
    let lines = [
        ("a link out", with((LINK, "2/layer.tar", "../../etc/shadow"), &two)),
        ("an absolute link", with((LINK, "2/layer.tar", "/etc/shadow"), &two)),
        ("a link to itself", with((LINK, "2/layer.tar", "layer.tar"), &two)),
        ("a FIFO", with((EntryType::Fifo, "2/layer.tar", ""), &two)),
        ("a layer twice", with((FILE, "1/layer.tar", "other"), &two)),
        ("no layer", with((FILE, "x", ""), &two)),
        ("another layer", with((FILE, "2/layer.tar", "other"), &two)),
        ("too few digests", with((FILE, "2/layer.tar", "same"), &one)),
        ("a name that leaves the archive", with((FILE, "../x", ""), &two)),
        ("no image", only("[]")),
        ("a configuration outside", only(r#"[{"Config":"../../etc/shadow","Layers":[]}]"#)),
        ("a list as image", only(r#"[["c.json",null,[]]]"#)),
        ("an object", only("{}")),
        (
            "a configuration with another digest",
            open_docker(
                &[
                    (FILE, &named, &config(&[])),
                    (FILE, "manifest.json", &format!(r#"[{{"Config":"{named}","Layers":null}}]"#)),
                ],
                None,
            )
            .expect_err("is refused"),
        ),
        ("no archive", open_bytes(b"not a tar archive, although it is long enough to be one")),
        ("a compressed one that is cut", open_bytes(&gzip(&archive_of(&[(FILE, "x", "y")]))[..30])),
        ("bzip2", open_bytes(b"BZh91AY&SY")),
    ];
    insta::assert_snapshot!(lines.map(|(what, text)| format!("{what}: {text}")).join("\n"));
}

fn open_bytes(bytes: &[u8]) -> String {
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("x");
    write(&file, bytes);
    let error = Image::open_archive(&file, &options(home.path(), None)).expect_err("is refused");
    chain(&error).replace(&path(home.path()), "DIR")
}

#[test]
fn one_of_several_images_is_chosen_by_name() {
    let config = config(&["same"]);
    let manifest = r#"[{"Config":"c.json","RepoTags":["a:1","ghcr.io/b/c:2"],"Layers":["l"]},
        {"Config":"c.json","RepoTags":null,"Layers":[]}]"#;
    let members = [(FILE, "l", "same"), (FILE, "c.json", config.as_str()), (FILE, "manifest.json", manifest)];
    for name in ["a:1", "docker.io/library/a:1", "ghcr.io/b/c:2"] {
        assert_eq!(open_docker(&members, Some(name)), Ok(1), "{name}");
    }
    let lines =
        [open_docker(&members, None), open_docker(&members, Some("a:2")), open_docker(&members, Some("\u{1b}[31m"))];
    insta::assert_snapshot!(lines.map(|outcome| outcome.expect_err("is refused")).join("\n"));
}

#[test]
fn a_bomb_is_bounded_by_the_caller() {
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("bomb.tar.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..64 {
        encoder.write_all(&[0; 1 << 16]).expect("in memory");
    }
    write(&file, &encoder.finish().expect("in memory"));
    let options = OpenOptions { archive_bytes_max: 1 << 20, ..options(home.path(), None) };
    let error = Image::open_archive(&file, &options).expect_err("is too large");
    assert!(matches!(error, OpenError::TooLarge { limit: 1_048_576, .. }), "{error}");
}

#[test]
fn a_source_is_guessed_from_what_exists() {
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("x.tar");
    write(&file, b"");
    let text = path(&file);
    assert_eq!(Source::guess(&text).expect("exists"), Source::Archive(file.clone()));
    assert_eq!(Source::guess(&path(home.path())).expect("exists"), Source::Folder(home.path().to_owned()));
    assert_eq!(Source::guess("python").expect("is a name"), Source::Registry("python".parse().expect("is one")));
    assert_eq!(Source::guess("docker://a:1").expect("is a name"), Source::Registry("a:1".parse().expect("is one")));
    assert_eq!(Source::guess("oci:dir").expect("is a path"), Source::Folder("dir".into()));
    assert_eq!(Source::guess("docker-archive:f").expect("is a path"), Source::Archive("f".into()));
    assert!(matches!(Source::guess("./nothing"), Err(OpenError::File(_))));
    assert!(matches!(Source::guess("Not A Name"), Err(OpenError::Guess { .. })));
}
