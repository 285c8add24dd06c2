//! The user and groups of a command, by the guest's own `/etc/passwd` and `/etc/group`.

use std::fs;

use kiln_e2e::Kiln;

const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/sh\njob:x:1000:1001::/tmp:/bin/sh\nghost:x:4294967295:1001::/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nteam:x:2000:job\nghosts:x:4294967295:job\n";

/// The ids of a command that runs as `user`, or the exit code and the error.
fn ids(user: &str) -> (i32, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let (passwd, group) = (folder.path().join("passwd"), folder.path().join("group"));
    fs::write(&passwd, PASSWD).expect("the folder is ours");
    fs::write(&group, GROUP).expect("the folder is ours");
    let (passwd, group) = (format!("{}:/etc/passwd", passwd.display()), format!("{}:/etc/group", group.display()));
    let outcome = Kiln::shell(&["--in", &passwd, "--in", &group, "-u", user], "id -u; id -g; id -G").run();
    let said = if outcome.code == 0 { outcome.text().replace('\n', " ") } else { outcome.stderr };
    (outcome.code, said)
}

#[test]
fn users_and_groups_are_found_by_name_and_number() {
    for (user, expected) in [
        ("job", "1000 1001 1001 2000"),
        ("job:team", "1000 2000 2000"),
        ("1000:team", "1000 2000 2000"),
        ("job:7", "1000 7 7"),
        (":team", "0 2000 2000"),
        ("4294967294", "4294967294 4294967294 4294967294"),
    ] {
        assert_eq!(ids(user), (0, expected.into()), "{user}");
    }
}

#[test]
fn no_user_becomes_root_by_the_id_that_changes_nothing() {
    for user in ["4294967295", "0:4294967295", "job:4294967295", ":4294967295", "-1"] {
        let outcome = Kiln::new(["run", &format!("--user={user}"), "--", "id"]).run();
        assert_eq!(outcome.code, 2, "{user}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("--user"), "{}", outcome.stderr);
    }
    for user in ["ghost", "job:ghosts"] {
        let (code, said) = ids(user);
        assert_eq!(code, 125, "{user}: {said}");
        assert!(said.contains("ghost"), "{said}");
    }
}
