//! The meaning of a configuration field, if its value alone does not show it.

use super::DeviceKind;
use super::config::FieldValue;

/// The sector that every disk counts in, whatever its blocks are.
const SECTOR_BYTES: u64 = 512;
/// The page that a balloon counts in.
const BALLOON_PAGE_BYTES: u64 = 4096;
/// The unit for the size of memory that can't be replayed.
const RPMB_UNIT_BYTES: u64 = 128 << 10;

const LINK: &[&str] = &["link up", "announce"];
const HASHES: &[&str] = &["IPv4", "TCPv4", "UDPv4", "IPv6", "TCPv6", "UDPv6", "IP_EX", "TCP_EX", "UDP_EX"];
const SERVICES: &[&str] = &["cipher", "hash", "mac", "aead", "akcipher"];

/// A few words on what this value means.
pub(super) fn note(kind: DeviceKind, name: &str, value: &FieldValue) -> Option<String> {
    let number = value.number()?;
    let words = |words: &str| Some(words.to_owned());
    match (kind, name) {
        (DeviceKind::Blk, "capacity") => Some(size(number.checked_mul(SECTOR_BYTES)?)),
        (DeviceKind::Blk, "topology.physical_block_exp") if number < 32 => Some(format!("{} blocks", 1_u64 << number)),
        (DeviceKind::Blk, "writeback") => words(if number == 0 { "write-through" } else { "write-back" }),
        (DeviceKind::Blk, "write_zeroes_may_unmap") => words(yes_or_no(number)),
        (DeviceKind::Blk, "zoned.model") => words(one_of(&["none", "host-managed", "host-aware"], number)),
        (DeviceKind::Net, "status") => bits(LINK, number).or_else(|| words("link down")),
        (DeviceKind::Net, "speed") if i32::try_from(number).is_err() => words("unknown"),
        (DeviceKind::Net, "speed") => Some(format!("{number} Mbit/s")),
        (DeviceKind::Net, "duplex") => words(one_of(&["half", "full"], number)),
        (DeviceKind::Net, "supported_hash_types") => bits(HASHES, number),
        (DeviceKind::Vsock, "guest_cid") if number <= 2 || number >= u64::from(u32::MAX) => words("reserved"),
        (DeviceKind::Crypto, "status") => words(if number & 1 == 1 { "ready" } else { "not ready" }),
        (DeviceKind::Crypto, "crypto_services") => bits(SERVICES, number),
        (DeviceKind::Iommu, "page_size_mask") => Some(format!("{number:#x}")),
        (DeviceKind::Iommu, "bypass") => words(yes_or_no(number)),
        (DeviceKind::Balloon, "num_pages" | "actual") => Some(size(number.checked_mul(BALLOON_PAGE_BYTES)?)),
        (DeviceKind::Input, "select") => words(one_of(INPUT_SELECT, number)).filter(|name| !name.is_empty()),
        (DeviceKind::Mem, name) if name.ends_with("_size") => Some(size(number)),
        (DeviceKind::Pmem, "size") => Some(size(number)),
        (DeviceKind::Mem, "addr") | (DeviceKind::Pmem, "start") => Some(format!("{number:#x}")),
        (DeviceKind::Rpmb, "capacity") => Some(size(number * RPMB_UNIT_BYTES)),
        (DeviceKind::Can, "status") if number & 1 == 1 => words("bus off"),
        (DeviceKind::Media, "device_caps") => Some(format!("{number:#x}")),
        (DeviceKind::Media, "device_type") => words(one_of(MEDIA_TYPES, number)),
        _ => None,
    }
}

/// By number; numbers in between have no name.
const INPUT_SELECT: &[&str] = &[
    "unset",
    "name",
    "serial",
    "device ids",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "properties",
    "event bits",
    "absolute axes",
];
const MEDIA_TYPES: &[&str] = &["video", "vbi", "radio", "subdevice", "sdr", "touch"];

fn yes_or_no(number: u64) -> &'static str {
    if number == 0 { "no" } else { "yes" }
}

fn one_of(names: &'static [&'static str], number: u64) -> &'static str {
    usize::try_from(number).ok().and_then(|place| names.get(place)).copied().unwrap_or("unknown")
}

/// The names of the bits that are set; a bit without a name is shown as a number.
fn bits(names: &[&str], number: u64) -> Option<String> {
    let mut words: Vec<String> =
        (0_u32..).zip(names).filter(|(bit, _)| number >> bit & 1 == 1).map(|(_, name)| (*name).to_owned()).collect();
    let rest = number >> names.len() << names.len();
    if rest != 0 {
        words.push(format!("{rest:#x}"));
    }
    (!words.is_empty()).then(|| words.join(", "))
}

/// `64 MiB`, `1.5 GiB`, `513 B`: in the largest unit of which there is at least one, with what rounding leaves.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(power) = bytes.checked_ilog2().map(|log| log / 10).filter(|power| *power > 0) else {
        return format!("{bytes} B");
    };
    let unit = UNITS[power as usize - 1];
    let whole = bytes >> (10 * power);
    // Two digits after the point, cut and not rounded, so that nothing is shown larger than it is.
    let hundredths = ((u128::from(bytes) * 100) >> (10 * power)) % 100;
    match hundredths {
        0 => format!("{whole} {unit}"),
        _ => format!("{whole}.{hundredths:02} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_the_largest_unit_and_never_too_large() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (64 << 20, "64 MiB"),
            (3 << 29, "1.50 GiB"),
            ((1 << 30) - 1, "1023.99 MiB"),
            (u64::MAX, "15.99 EiB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
    }

    #[test]
    fn values_have_words() {
        let says = |kind, name, number| note(kind, name, &FieldValue::Number(number));
        assert_eq!(says(DeviceKind::Net, "status", 0).as_deref(), Some("link down"));
        assert_eq!(says(DeviceKind::Net, "status", 7).as_deref(), Some("link up, announce, 0x4"));
        assert_eq!(says(DeviceKind::Crypto, "crypto_services", 0b1001).as_deref(), Some("cipher, aead"));
        assert_eq!(says(DeviceKind::Vsock, "guest_cid", 2).as_deref(), Some("reserved"));
        assert_eq!(says(DeviceKind::Vsock, "guest_cid", 42), None);
        assert_eq!(says(DeviceKind::Blk, "capacity", u64::MAX), None);
        assert_eq!(says(DeviceKind::Input, "select", 0x11).as_deref(), Some("event bits"));
        assert_eq!(says(DeviceKind::Input, "select", 5), None);
        assert_eq!(says(DeviceKind::Blk, "topology.physical_block_exp", 255), None);
    }
}
