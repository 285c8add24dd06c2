//! Only this user can write to what Kiln makes below its home, whatever the umask is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kiln_e2e::TestHome;

/// What others may do below a directory that they should not.
fn loose(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("lists").flatten() {
        let meta = entry.metadata().expect("is there");
        if meta.permissions().mode() & 0o022 != 0 && !meta.is_symlink() {
            found.push(format!("{} {:o}", entry.path().display(), meta.permissions().mode()));
        }
        if meta.is_dir() {
            loose(&entry.path(), found);
        }
    }
}

#[test]
fn only_this_user_can_use_a_home_with_any_umask() {
    for umask in [0, 0o777] {
        let shared = TestHome::with_image();
        // Only files that this kiln made are checked: the test copied the image under its own umask.
        let kiln = |args: &[&'static str]| shared.kiln(args.iter().copied()).umask(umask).run();
        let fork = kiln(&["run", "--", "echo", "here"]);
        assert_eq!((fork.code, fork.text().as_str()), (0, "here"), "umask {umask:o}: {}", fork.stderr);
        let again = kiln(&["run", "--", "echo", "again"]);
        assert_eq!((again.code, again.text().as_str()), (0, "again"), "umask {umask:o}: {}", again.stderr);
        let mut found = Vec::new();
        loose(shared.path(), &mut found);
        assert!(found.is_empty(), "umask {umask:o}: {found:?}");
        let snapshots = shared.path().join("snapshots");
        assert_eq!(fs::metadata(&snapshots).expect("is there").permissions().mode() & 0o777, 0o700);
    }
}
