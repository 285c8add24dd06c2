//! Homes that Kiln refuses to use.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use kiln_e2e::Kiln;

/// A user who does not run the tests.
const OTHER_USER: u32 = 65534;

/// A directory of another user: root makes one, and other users take one of root's.
fn of_another_user() -> (Option<tempfile::TempDir>, PathBuf, &'static str) {
    if !rustix::process::geteuid().is_root() {
        return (None, "/usr".into(), "uid 0");
    }
    let directory = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::chown(directory.path(), Some(OTHER_USER), Some(OTHER_USER)).expect("root may");
    let path = directory.path().to_owned();
    (Some(directory), path, "uid 65534")
}

#[test]
fn a_home_of_another_user_is_refused_with_its_owner_and_what_to_do() {
    let (_directory, home, owner) = of_another_user();
    for args in [&["run", "--", "true"][..], &["image", "ls"], &["image", "build", "mini"], &["snapshot", "ls"]] {
        let outcome = Kiln::new(args).env("KILN_HOME", &home).run();
        let words = &outcome.stderr;
        assert_eq!(outcome.code, 69, "{args:?}: {words}");
        assert!(words.contains("is owned by") && words.contains(owner), "{args:?}: {words}");
        assert!(words.contains("hint: export KILN_HOME="), "{args:?}: {words}");
    }
    let doctor = Kiln::new(["doctor"]).env("KILN_HOME", &home).run();
    assert_eq!(doctor.code, 69, "{}", doctor.stderr);
    assert!(doctor.text().contains("is owned by"), "{}", doctor.text());
}

#[test]
fn a_home_that_others_may_write_to_is_refused_and_not_changed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (open, home) = (directory.path().join("open"), directory.path().join("open/home"));
    fs::create_dir_all(&home).expect("made");
    for (loose, mode) in [(&home, 0o777), (&home, 0o1777), (&open, 0o777)] {
        for path in [&open, &home] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("set");
        }
        fs::set_permissions(loose, fs::Permissions::from_mode(mode)).expect("set");
        let outcome = Kiln::new(["run", "--", "true"]).env("KILN_HOME", &home).run();
        assert_eq!(outcome.code, 69, "{}", outcome.stderr);
        let expected = format!("other users may write to `{}` (mode {mode:04o}", loose.display());
        assert!(outcome.stderr.contains(&expected), "{}", outcome.stderr);
        assert_eq!(fs::read_dir(&home).expect("lists").count(), 0, "nothing was made there");
    }
}
