//! `--vhost-user DEVICE:SOCKET[,KEY=VALUE…]`: from a word to a device of a VM.

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::{MacAddress, VhostUser, VhostUserDevice};

const FORMS: &str = "write blk:SOCKET, net:SOCKET, vsock:SOCKET or fs:SOCKET,tag=NAME";

/// Parses one `--vhost-user`. A path may have commas: text after a comma is an option only if it has a `=`.
pub fn parse(text: &str) -> Result<VhostUser, String> {
    let (kind, mut path) = text.split_once(':').ok_or_else(|| format!("`{text}` does not name a device: {FORMS}"))?;
    let (mut mac, mut tag, mut queues) = (None, None, None);
    while let Some((before, option)) = path.rsplit_once(',') {
        let Some((key, value)) = option.split_once('=') else { break };
        let slot = match (kind, key) {
            ("net", "mac") => &mut mac,
            ("fs", "tag") => &mut tag,
            ("blk" | "net" | "fs", "queues") => &mut queues,
            ("vsock", "cid") => {
                return Err("the CID of a vhost-user device is set by its backend, not by the VM \
                            (vhost-device-vsock has --guest-cid)"
                    .into());
            }
            _ => return Err(format!("a {kind} device has no option `{key}`: {}", options_of(kind))),
        };
        if slot.replace(value).is_some() {
            return Err(format!("`{key}` is given twice"));
        }
        path = before;
    }
    let device = match kind {
        "blk" => VhostUserDevice::Blk,
        "net" => VhostUserDevice::Net {
            mac: match mac {
                Some(mac) => mac.parse().map_err(|error| format!("{error}"))?,
                None => MacAddress::random(),
            },
        },
        "vsock" => VhostUserDevice::Vsock,
        "fs" => {
            let tag = tag.ok_or("a share needs a name for the guest to mount it by: write fs:SOCKET,tag=NAME")?;
            VhostUserDevice::Fs { tag: tag.to_owned() }
        }
        other => return Err(format!("`{other}` is not a device: {FORMS}")),
    };
    if path.is_empty() {
        return Err(format!("`{text}` does not name a socket: {FORMS}"));
    }
    let device = VhostUser::new(device, absolute(path)?);
    match queues {
        Some(queues) => {
            Ok(VhostUser { queues: queues.parse().map_err(|_| format!("`{queues}` is not a number"))?, ..device })
        }
        None => Ok(device),
    }
}

fn options_of(kind: &str) -> &'static str {
    match kind {
        "blk" => "it has queues=N",
        "net" => "it has mac=ADDRESS and queues=N",
        "fs" => "it has tag=NAME and queues=N",
        "vsock" => "it has no options",
        _ => FORMS,
    }
}

/// The VMM has a working directory of its own.
fn absolute(path: &str) -> Result<Utf8PathBuf, String> {
    let path = std::path::absolute(Utf8Path::new(path)).map_err(|error| error.to_string())?;
    Utf8PathBuf::from_path_buf(path).map_err(|path| format!("`{}` is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_is_parsed_with_its_options() {
        let mac = "52:54:00:12:34:56";
        let net = VhostUserDevice::Net { mac: mac.parse().expect("an address") };
        let share = VhostUserDevice::Fs { tag: "share".into() };
        let cases = [
            ("blk:/run/b.sock".to_owned(), VhostUserDevice::Blk, "/run/b.sock", 1),
            ("blk:/run/b.sock,queues=4".into(), VhostUserDevice::Blk, "/run/b.sock", 4),
            (format!("net:/run/n.sock,mac={mac},queues=2"), net, "/run/n.sock", 2),
            ("vsock:/run/v.sock".into(), VhostUserDevice::Vsock, "/run/v.sock", 1),
            ("fs:/run/f.sock,tag=share".into(), share, "/run/f.sock", 1),
        ];
        for (text, device, socket, queues) in cases {
            let expected = VhostUser { queues, ..VhostUser::new(device, socket) };
            assert_eq!(parse(&text).expect("is read"), expected, "{text}");
        }
    }

    #[test]
    fn a_path_may_be_relative_and_have_colons_and_commas() {
        assert_eq!(parse("blk:/a:b,c.sock").expect("is read").socket, "/a:b,c.sock");
        assert_eq!(parse("blk:/a=b,c.sock,queues=2").expect("is read").socket, "/a=b,c.sock");
        let here = std::env::current_dir().expect("there is one");
        assert_eq!(parse("blk:b.sock").expect("is read").socket.as_std_path(), here.join("b.sock"));
    }

    #[test]
    fn every_network_card_has_its_own_address() {
        assert_ne!(parse("net:/n.sock").expect("is read").device, parse("net:/n.sock").expect("is read").device);
    }

    #[test]
    fn a_wrong_device_is_refused_with_the_right_form() {
        for (text, words) in [
            ("", "blk:SOCKET"),
            ("/run/b.sock", "blk:SOCKET"),
            ("gpu:/run/g.sock", "`gpu` is not a device"),
            ("blk:", "does not name a socket"),
            ("blk:,queues=1", "does not name a socket"),
            ("blk:/b.sock,tag=x", "it has queues=N"),
            ("blk:/b.sock,queues=x", "`x` is not a number"),
            ("blk:/b.sock,queues=-1", "`-1` is not a number"),
            ("blk:/b.sock,queues=1,queues=2", "twice"),
            ("net:/n.sock,mac=ff:ff", "is not the address of a network card"),
            ("vsock:/v.sock,cid=3", "--guest-cid"),
            ("vsock:/v.sock,queues=1", "it has no options"),
            ("fs:/f.sock", "tag=NAME"),
        ] {
            let error = parse(text).expect_err("is refused");
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
