//! Users and groups of the guest, read from `/etc/passwd` and `/etc/group`: a static program can't load the C library's
//! name services.

use std::fs::File;
use std::io::Read as _;

use kiln_wire::{ErrorCode, Fault, NameOrId, UserRef, UserRefError, parse_id};
use rustix::fs::{Mode, OFlags};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// Larger files are ignored.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A user that a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Login name. Empty for a number without an entry.
    pub name: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Finds the user of a request, written in the form of [`UserRef`].
///
/// # Errors
/// `unknown_user` if the guest has no such user or group, `invalid_request` if the text is not a [`UserRef`].
pub fn find(wanted: &str) -> Result<User, Fault> {
    let wanted =
        wanted.parse().map_err(|error: UserRefError| Fault::new(ErrorCode::InvalidRequest, error.to_string()))?;
    look_up(&wanted, own_uid(), &read(PASSWD), &read(GROUP))
}

/// The agent's own user.
pub fn own() -> User {
    by_id(own_uid(), &read(PASSWD))
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Reads a file that commands of root can replace by anything. A file that is too long or not a plain file reads as
/// empty, and a FIFO doesn't block.
fn read(path: &str) -> String {
    let open = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        if file.metadata()?.is_file() {
            file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        }
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = open().ok().filter(|bytes| bytes.len() as u64 <= FILE_BYTES_MAX).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn look_up(wanted: &UserRef, own_uid: u32, passwd: &str, group: &str) -> Result<User, Fault> {
    let mut found = match &wanted.user {
        None => by_id(own_uid, passwd),
        Some(NameOrId::Id(uid)) => by_id(*uid, passwd),
        Some(NameOrId::Name(name)) => passwd
            .lines()
            .filter_map(entry)
            .find(|entry| entry.name == *name)
            .ok_or_else(|| Fault::new(ErrorCode::UnknownUser, format!("no user `{name}` in the guest")))?,
    };
    match &wanted.group {
        None => found.groups = groups_of(&found.name, group),
        Some(NameOrId::Id(gid)) => found.gid = *gid,
        Some(NameOrId::Name(name)) => {
            let gid = group.lines().find_map(|line| group_entry(line).filter(|(found, ..)| found == name));
            let (_, gid, _) =
                gid.ok_or_else(|| Fault::new(ErrorCode::UnknownUser, format!("no group `{name}` in the guest")))?;
            found.gid = gid;
        }
    }
    Ok(found)
}

/// The user with this id. An id without an entry is a user too.
fn by_id(uid: u32, passwd: &str) -> User {
    passwd.lines().filter_map(entry).find(|entry| entry.uid == uid).unwrap_or_else(|| User {
        uid,
        gid: uid,
        groups: vec![],
        name: String::new(),
        home: "/".into(),
        shell: "/bin/sh".into(),
    })
}

/// Parses one line of `/etc/passwd`. A line whose id the kernel takes as "unchanged" (2³² − 1) is ignored: otherwise a
/// command for that user would run as root.
fn entry(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = parse_id(fields.nth(1)?)?;
    let gid = parse_id(fields.next()?)?;
    let home = fields.nth(1)?;
    let shell = fields.next().unwrap_or_default().trim_end();
    Some(User {
        uid,
        gid,
        groups: vec![],
        name,
        home: if home.is_empty() { "/" } else { home }.to_owned(),
        shell: if shell.is_empty() { "/bin/sh" } else { shell }.to_owned(),
    })
}

/// Name, id and members of one line of `/etc/group`.
fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let gid = parse_id(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or_default().trim_end()))
}

fn groups_of(name: &str, group: &str) -> Vec<u32> {
    const GROUPS_MAX: usize = 65_536;
    let has_member = |(_, gid, members): (_, u32, &str)| members.split(',').any(|member| member == name).then_some(gid);
    if name.is_empty() {
        return vec![];
    }
    group.lines().filter_map(group_entry).filter_map(has_member).take(GROUPS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 0;

    fn find(wanted: &str) -> Result<User, Fault> {
        const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbad line\njob:x:1000:1001:,,,:/home/job:\n\
            ghost:x:4294967295:1001::/:\nspirit:x:1002:-1::/:\n";
        const GROUP: &str = "root:x:0:\ndisk:x:6:job\nmany:x:7:a,job,b\nother:x:8:jobs\nghosts:x:4294967295:job\n";
        match wanted.parse() {
            Ok(wanted) => look_up(&wanted, OWN, PASSWD, GROUP),
            Err(_) => super::find(wanted),
        }
    }

    #[test]
    fn a_name_is_found_with_its_groups_and_home() {
        let user = find("job").expect("job is known");
        assert_eq!((user.uid, user.gid, user.groups), (1000, 1001, vec![6, 7]));
        assert_eq!((user.home.as_str(), user.shell.as_str()), ("/home/job", "/bin/sh"));
    }

    #[test]
    fn a_number_needs_no_entry() {
        let user = find("4242").expect("any number is a user");
        assert_eq!((user.uid, user.gid, user.home.as_str()), (4242, 4242, "/"));
        let user = find("1000:5").expect("a group may be given");
        assert_eq!((user.uid, user.gid, user.groups), (1000, 5, vec![]));
    }

    #[test]
    fn a_group_may_be_given_by_its_name() {
        let ids = |wanted| find(wanted).map(|user| (user.uid, user.gid, user.groups));
        assert_eq!(ids("job:disk"), Ok((1000, 6, vec![])));
        assert_eq!(ids("job:4"), Ok((1000, 4, vec![])));
        assert_eq!(ids("4242:many"), Ok((4242, 7, vec![])));
        assert_eq!(ids(":many"), Ok((OWN, 7, vec![])), "the agent's own user");
    }

    #[test]
    fn invalid_text_and_a_missing_user_are_different_errors() {
        let code = |wanted| find(wanted).expect_err("refused").code;
        for missing in ["missing", "missing:0", "job:missing", ":missing"] {
            assert_eq!(code(missing), ErrorCode::UnknownUser, "{missing}");
        }
        for wrong in ["", ":", "1:", "job:", "99999999999", "-1"] {
            assert_eq!(code(wrong), ErrorCode::InvalidRequest, "{wrong}");
        }
    }

    #[test]
    fn no_command_gets_the_id_that_changes_nothing() {
        for wanted in ["4294967295", "1000:4294967295", ":4294967295", "job:4294967295"] {
            assert_eq!(find(wanted).expect_err("refused").code, ErrorCode::InvalidRequest, "{wanted}");
        }
        // Also not by a name that the guest has given to the id.
        for wanted in ["ghost", "spirit", "job:ghosts"] {
            assert_eq!(find(wanted).expect_err("refused").code, ErrorCode::UnknownUser, "{wanted}");
        }
        assert_eq!(find("job").expect("known").groups, [6, 7], "a group with that id is ignored");
    }

    #[test]
    fn a_file_that_is_not_a_plain_file_reads_as_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("passwd");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0).expect("a FIFO");
        assert_eq!(read(fifo.to_str().expect("UTF-8")), "");
        assert_eq!(read("/dev/zero"), "");
    }
}
