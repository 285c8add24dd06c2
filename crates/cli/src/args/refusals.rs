//! Snapshots of the texts with which values on the command line are refused.

use super::quantities::{parse_duration, parse_grace, parse_memory_mib, parse_size_bytes};
use super::{Args, vhost_user};
use clap::Parser as _;

/// A line for each value that a parser refuses.
fn refused<T: std::fmt::Debug>(parse: impl Fn(&str) -> Result<T, String>, values: &[&str]) -> String {
    values.iter().map(|value| format!("{}\n", parse(value).expect_err(value))).collect()
}

#[test]
fn refused_times_and_sizes_read_like_this() {
    let lines = [
        refused(parse_duration, &["", "5x", "0", "-1s", "87601h"]),
        refused(parse_grace, &["soon"]),
        refused(parse_size_bytes, &["", "lots", "99999999999999T"]),
        refused(parse_memory_mib, &["5K"]),
    ];
    insta::assert_snapshot!(lines.concat());
}

#[test]
fn refused_devices_read_like_this() {
    let values = [
        "/run/b.sock",
        "gpu:/run/g.sock",
        "blk:",
        "blk:/b.sock,tag=x",
        "blk:/b.sock,queues=x",
        "blk:/b.sock,queues=1,queues=2",
        "net:/n.sock,mac=ff:ff",
        "net:/n.sock,tag=x",
        "vsock:/v.sock,cid=3",
        "vsock:/v.sock,queues=1",
        "fs:/f.sock",
        "fs:/f.sock,tag=x,mac=y",
    ];
    insta::assert_snapshot!(refused(vhost_user::parse, &values));
}

/// The words of clap and of Kiln's own parsers together, as on a terminal.
#[test]
fn refused_command_lines_read_like_this() {
    let lines = [
        "kiln run --hostname -a true",
        "kiln run --name _x true",
        "kiln run --label =b true",
        "kiln run -m 5K true",
        "kiln run --cpus many true",
        "kiln run --accel fast true",
        "kiln verify fork --forks 0",
        "kiln bench --samples 0",
        "kiln vhost check",
        "kiln vhost bench a.sock --bs 3",
        "kiln snapshot rm",
    ];
    let texts = lines.map(|line| {
        let error = Args::try_parse_from(line.split(' ')).expect_err(line);
        format!("$ {line}\n{}", error.render())
    });
    insta::assert_snapshot!(texts.join("\n"));
}
