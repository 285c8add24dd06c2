//! Homes of this user, of others and in between. Ownership is faked by judging as another user: only root could change
//! it.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

/// A directory that only this user can change, and what accounts there are.
struct Scene {
    _directory: tempfile::TempDir,
    root: Utf8PathBuf,
    user: u32,
    accounts: Accounts,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Utf8Path::from_path(directory.path()).expect("UTF-8").to_owned();
        Self { _directory: directory, root, user: rustix::process::geteuid().as_raw(), accounts: Accounts::default() }
    }

    /// Makes a directory with a mode.
    fn directory(&self, path: &str, mode: u32) -> Utf8PathBuf {
        let path = self.root.join(path);
        fs::create_dir_all(&path).expect("made");
        fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        path
    }

    fn check(&self, home: &Utf8Path) -> Result<(), HomeError> {
        check(home, &[home.join("images"), home.join("vms")], self.user, &self.accounts)
    }
}

#[test]
fn a_home_of_ones_own_is_trusted_also_if_it_does_not_exist_yet() {
    let scene = Scene::new();
    let home = scene.directory("home", 0o700);
    scene.check(&home).expect("is one's own");
    scene.check(&scene.directory("read", 0o755)).expect("others may look");
    scene.check(&scene.root.join("not/there/yet")).expect("will be one's own");
    symlink(&home, scene.root.join("link")).expect("made");
    symlink("link/../home", scene.root.join("relative")).expect("made");
    scene.check(&scene.root.join("link")).expect("leads to it");
    scene.check(&scene.root.join("relative")).expect("leads to it");
}

#[test]
fn a_home_that_others_may_write_to_is_refused_wherever_they_may() {
    let scene = Scene::new();
    for mode in [0o777, 0o1777, 0o770, 0o702] {
        let home = scene.directory(&format!("home-{mode:o}"), mode);
        let error = scene.check(&home).expect_err("is open");
        assert!(matches!(&error, HomeError::WritableByOthers { path, .. } if *path == home), "{error}");
        assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
    }
    scene.directory("open", 0o777);
    let home = scene.directory("open/home", 0o700);
    let error = scene.check(&home).expect_err("can be replaced");
    assert!(matches!(&error, HomeError::WritableByOthers { path, .. } if *path == scene.root.join("open")), "{error}");
    scene.directory("open", 0o1777);
    scene.check(&home).expect("a sticky directory keeps it");
    let below = scene.directory("open/home/vms", 0o777);
    let error = scene.check(&home).expect_err("is open below");
    assert!(matches!(&error, HomeError::WritableByOthers { path, .. } if *path == below), "{error}");
}

#[test]
fn a_home_of_another_user_is_refused_and_names_its_owner() {
    let mut scene = Scene::new();
    let home = scene.directory("home", 0o700);
    let owner = scene.user;
    scene.accounts.passwd = format!("other:x:{owner}:{owner}::/:/bin/sh\nme:x:4242:4242::/:/bin/sh\n");
    scene.user = 4242;
    let error = scene.check(&home).expect_err("is another's").to_string();
    assert!(error.contains(&format!("is owned by `other` (uid {owner})")), "{error}");
    assert!(error.contains("`me` (uid 4242)"), "{error}");
}

#[test]
fn a_file_in_the_way_and_links_in_a_circle_are_refused() {
    let scene = Scene::new();
    fs::write(scene.root.join("file"), "").expect("written");
    symlink("circle", scene.root.join("circle")).expect("made");
    for path in ["file", "file/home", "circle", "circle/home"] {
        let error = scene.check(&scene.root.join(path)).expect_err(path);
        assert!(matches!(error, HomeError::NotADirectory { .. }), "{error}");
    }
}

#[test]
fn a_file_in_place_of_a_directory_of_the_home_is_accepted() {
    let scene = Scene::new();
    let home = scene.directory("home", 0o700);
    fs::write(home.join("snapshots"), "no directory").expect("written");
    check(&home, &[home.join("snapshots")], scene.user, &scene.accounts).expect("nothing of another's is in it");
}

#[test]
fn a_group_of_one_counts_as_its_user() {
    let accounts = Accounts {
        passwd: "me:x:1000:1000::/:\nother:x:1001:1001::/:\nfriend:x:1002:1003::/:\n".into(),
        group: "me:x:1000:\nother:x:1001:me\nlone:x:1002:me,me\nfriends:x:1003:me\nbroken\n".into(),
        overflow_is_outside: false,
    };
    assert!(accounts.is_private(1000, 1000) && accounts.is_private(1002, 1000));
    for gid in [1001, 1003, 1004] {
        assert!(!accounts.is_private(gid, 1000), "{gid}");
    }
    assert!(!accounts.is_private(1000, 4242), "a user without an account has no group of their own");

    let mut scene = Scene::new();
    let home = scene.directory("home", 0o775);
    scene.check(&home).expect_err("others may be in that group");
    let (uid, gid) = (scene.user, fs::metadata(&home).expect("is there").gid());
    scene.accounts =
        Accounts { passwd: format!("me:x:{uid}:{gid}::/:\n"), group: format!("me:x:{gid}:\n"), ..Accounts::default() };
    scene.check(&home).expect("the group is this user");
}

#[test]
fn an_owner_outside_of_a_user_namespace_is_not_the_user_of_that_number() {
    assert!(maps("         0          0 4294967295\n", OVERFLOW_UID));
    assert!(!maps("         0       1000          1\n", OVERFLOW_UID));
    assert!(maps("0 100000 65536\n", OVERFLOW_UID) && !maps("rubbish\n1 2\n", OVERFLOW_UID));
}
