//! Users and groups of the guest, read from `/etc/passwd` and `/etc/group`: a static program can't load the C library's
//! name services.

use std::fs;

use kiln_wire::{ErrorCode, Fault};

/// Larger files are not read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Groups beside it.
    pub groups: Vec<u32>,
    /// Login name; empty for a bare number that nobody has.
    pub name: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Finds `name`, `uid` or `uid:gid`.
///
/// # Errors
/// `unknown_user` where nobody has the name, `invalid_request` for text that can't be a user.
pub fn find(wanted: &str) -> Result<User, Fault> {
    let read = |path: &str| match fs::metadata(path) {
        Ok(meta) if meta.len() <= FILE_BYTES_MAX => fs::read(path).unwrap_or_default(),
        _ => Vec::new(),
    };
    let passwd = read("/etc/passwd");
    let group = read("/etc/group");
    look_up(wanted, &String::from_utf8_lossy(&passwd), &String::from_utf8_lossy(&group))
}

fn look_up(wanted: &str, passwd: &str, group: &str) -> Result<User, Fault> {
    let unknown = || Fault::new(ErrorCode::UnknownUser, format!("no user `{wanted}` in the guest"));
    let invalid = || Fault::new(ErrorCode::InvalidRequest, format!("`{wanted}` is no user: name, uid or uid:gid"));
    let (user, asked_gid) = match wanted.split_once(':') {
        Some((user, gid)) => (user, Some(gid.parse::<u32>().map_err(|_| invalid())?)),
        None => (wanted, None),
    };
    let mut entries = passwd.lines().filter_map(entry);
    let mut found = if user.is_empty() {
        return Err(invalid());
    } else if user.bytes().all(|byte| byte.is_ascii_digit()) {
        let uid = user.parse::<u32>().map_err(|_| invalid())?;
        entries.find(|entry| entry.uid == uid).unwrap_or_else(|| User {
            uid,
            gid: uid,
            groups: vec![],
            name: String::new(),
            home: "/".into(),
            shell: "/bin/sh".into(),
        })
    } else if asked_gid.is_some() {
        return Err(invalid());
    } else {
        entries.find(|entry| entry.name == user).ok_or_else(unknown)?
    };
    match asked_gid {
        Some(gid) => found.gid = gid,
        None => found.groups = groups_of(&found.name, group),
    }
    Ok(found)
}

fn entry(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
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

fn groups_of(name: &str, group: &str) -> Vec<u32> {
    const GROUPS_MAX: usize = 65_536;
    let of_line = |line: &str| {
        let mut fields = line.split(':');
        let gid = fields.nth(2)?.parse().ok()?;
        let members = fields.next()?.trim_end();
        members.split(',').any(|member| member == name).then_some(gid)
    };
    if name.is_empty() { vec![] } else { group.lines().filter_map(of_line).take(GROUPS_MAX).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbad line\njob:x:1000:1001:,,,:/home/job:\n";
    const GROUP: &str = "root:x:0:\ndisk:x:6:job\nmany:x:7:a,job,b\nother:x:8:jobs\n";

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let user = look_up("job", PASSWD, GROUP).expect("job is known");
        assert_eq!((user.uid, user.gid, user.groups), (1000, 1001, vec![6, 7]));
        assert_eq!((user.home.as_str(), user.shell.as_str()), ("/home/job", "/bin/sh"));
    }

    #[test]
    fn a_number_needs_no_entry() {
        let user = look_up("4242", PASSWD, GROUP).expect("any number will do");
        assert_eq!((user.uid, user.gid, user.home.as_str()), (4242, 4242, "/"));
        let user = look_up("1000:5", PASSWD, GROUP).expect("a group may be given");
        assert_eq!((user.uid, user.gid, user.groups), (1000, 5, vec![]));
    }

    #[test]
    fn what_is_no_user_is_told_apart_from_one_that_is_missing() {
        let code = |wanted| look_up(wanted, PASSWD, GROUP).expect_err("refused").code;
        assert_eq!(code("nobody-here"), ErrorCode::UnknownUser);
        for wrong in ["", ":", "1:", ":1", "1:x", "job:1", "99999999999"] {
            assert_eq!(code(wrong), ErrorCode::InvalidRequest, "{wrong}");
        }
    }
}
