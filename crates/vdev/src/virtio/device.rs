//! The kinds of device that a vhost-user backend serves or could serve ("Device Types" in the VIRTIO specification).

use std::fmt;
use std::str::FromStr;

macro_rules! kinds {
    ($($kind:ident = $id:literal $name:literal, $doc:literal, config $config:literal;)*) => {
        /// A kind of device.
        ///
        /// ```
        /// use kiln_vdev::virtio::DeviceKind;
        ///
        /// let kind: DeviceKind = "blk".parse().expect("a kind");
        /// assert_eq!((kind.id(), kind.queue_name(0, 1).as_str()), (2, "request0"));
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DeviceKind {
            $(#[doc = $doc] $kind,)*
        }

        impl DeviceKind {
            /// Every kind, in the order of ids.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// The number by which a driver identifies it.
            pub const fn id(self) -> u32 {
                match self { $(Self::$kind => $id,)* }
            }

            /// The name that we and QEMU (`vhost-user-NAME`) use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// The size of its configuration with all that is defined; older devices have less, some kinds have no
            /// configuration.
            pub const fn config_bytes(self) -> usize {
                match self { $(Self::$kind => $config,)* }
            }
        }
    };
}

kinds! {
    Net = 1 "net", "A network card.", config 28;
    Blk = 2 "blk", "A disk.", config 96;
    Console = 3 "console", "A console, or serial ports.", config 12;
    Rng = 4 "rng", "A source of random bytes.", config 0;
    Balloon = 5 "balloon", "Takes memory from a guest and gives it back.", config 16;
    Scsi = 8 "scsi", "A SCSI host bus adapter.", config 36;
    P9 = 9 "9p", "A directory, over 9P.", config 2;
    Gpu = 16 "gpu", "A display and its renderer.", config 16;
    Rtc = 17 "rtc", "Clocks.", config 0;
    Input = 18 "input", "A keyboard, mouse or tablet.", config 136;
    Vsock = 19 "vsock", "Sockets between host and guest.", config 8;
    Crypto = 20 "crypto", "A cryptographic accelerator.", config 56;
    Iommu = 23 "iommu", "Translates the addresses of other devices.", config 40;
    Mem = 24 "mem", "Memory that is hot-plugged in blocks.", config 56;
    Sound = 25 "sound", "A sound card.", config 16;
    Fs = 26 "fs", "A directory, over FUSE.", config 44;
    Pmem = 27 "pmem", "Persistent memory.", config 16;
    Rpmb = 28 "rpmb", "Memory that cannot be replayed.", config 3;
    Scmi = 32 "scmi", "System control and management.", config 0;
    I2c = 34 "i2c", "An I2C adapter.", config 0;
    Can = 36 "can", "A controller of a CAN bus.", config 2;
    Bt = 40 "bt", "A Bluetooth controller.", config 6;
    Gpio = 41 "gpio", "General-purpose input and output lines.", config 8;
    Spi = 45 "spi", "An SPI controller.", config 32;
    Media = 48 "media", "A camera or codec, over V4L2.", config 40;
}

/// A name that is no kind's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a kind of device; the kinds are {}", names())]
pub struct UnknownDevice {
    /// The requested name.
    pub name: String,
}

/// The queues of a kind: some that every device has, then some that repeat, then some that features bring.
struct Queues {
    /// By place.
    first: &'static [&'static str],
    /// Repeated with a number for the rest of the queues.
    repeated: &'static [&'static str],
}

impl DeviceKind {
    /// The kind with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.id() == id)
    }

    /// How many queues the smallest useful device has. A backend that has `GET_QUEUE_NUM` reports how many it serves;
    /// some leave the control or event queue to the VMM.
    pub const fn queues_default(self) -> usize {
        match self {
            Self::Blk
            | Self::Rng
            | Self::P9
            | Self::Crypto
            | Self::Mem
            | Self::Pmem
            | Self::Rpmb
            | Self::Scmi
            | Self::I2c
            | Self::Gpio
            | Self::Rtc
            | Self::Spi => 1,
            Self::Net
            | Self::Console
            | Self::Balloon
            | Self::Gpu
            | Self::Input
            | Self::Iommu
            | Self::Fs
            | Self::Bt
            | Self::Media => 2,
            Self::Scsi | Self::Vsock | Self::Can => 3,
            Self::Sound => 4,
        }
    }

    /// What queue `index` of `count` is for: `rx0`, `request3`, or `queue9` beyond what the kind defines. An odd queue
    /// at the end of a network card's pairs is the control queue.
    pub fn queue_name(self, index: usize, count: usize) -> String {
        if self == Self::Net && count % 2 == 1 && count > 1 && index + 1 == count {
            return "ctrl".to_owned();
        }
        let Queues { first, repeated } = self.queues();
        if let Some(name) = first.get(index) {
            return (*name).to_owned();
        }
        match (index - first.len(), repeated.len()) {
            (_, 0) => format!("queue{index}"),
            (place, length) => {
                // The first port of a console stands before its control queues.
                let number = place / length + usize::from(self == Self::Console);
                format!("{}{number}", repeated[place % length])
            }
        }
    }

    const fn queues(self) -> Queues {
        let (first, repeated): (&[&str], &[&str]) = match self {
            Self::Net => (&[], &["rx", "tx"]),
            Self::Blk => (&[], &["request"]),
            Self::Console => (&["rx0", "tx0", "ctrl_rx", "ctrl_tx"], &["rx", "tx"]),
            Self::Rng | Self::P9 | Self::Pmem | Self::Rpmb | Self::I2c | Self::Spi => (&["request"], &[]),
            Self::Balloon => (&["inflate", "deflate", "stats", "free_page", "reporting"], &[]),
            Self::Scsi => (&["ctrl", "event"], &["request"]),
            Self::Gpu => (&["ctrl", "cursor"], &[]),
            Self::Rtc => (&["request", "alarm"], &[]),
            Self::Input => (&["event", "status"], &[]),
            Self::Vsock => (&["rx", "tx", "event"], &[]),
            Self::Crypto => (&[], &["data"]),
            Self::Iommu | Self::Gpio => (&["request", "event"], &[]),
            Self::Mem => (&["guest_request"], &[]),
            Self::Sound => (&["ctrl", "event", "tx", "rx"], &[]),
            Self::Fs => (&["hiprio"], &["request"]),
            Self::Scmi | Self::Media => (&["command", "event"], &[]),
            Self::Can => (&["tx", "rx", "ctrl"], &[]),
            Self::Bt => (&["tx", "rx"], &[]),
        };
        Queues { first, repeated }
    }
}

impl FromStr for DeviceKind {
    type Err = UnknownDevice;

    /// A kind by its name, in any case; `block`, `snd` and the like are understood too.
    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        let lower = name.to_ascii_lowercase();
        let wanted = match lower.as_str() {
            "block" => "blk",
            "network" => "net",
            "snd" => "sound",
            "p9" => "9p",
            "bluetooth" => "bt",
            other => other,
        };
        let found = Self::ALL.iter().copied().find(|kind| kind.name() == wanted);
        found.ok_or_else(|| UnknownDevice { name: name.to_owned() })
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

fn names() -> String {
    let names: Vec<_> = DeviceKind::ALL.iter().map(|kind| format!("`{kind}`")).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_lead_back() {
        for kind in DeviceKind::ALL {
            assert_eq!(kind.name().parse(), Ok(*kind));
            assert_eq!(DeviceKind::from_id(kind.id()), Some(*kind));
        }
        assert!(DeviceKind::ALL.is_sorted_by_key(|kind| kind.id()));
        assert_eq!("BLOCK".parse(), Ok(DeviceKind::Blk));
        assert_eq!(DeviceKind::from_id(0), None);
    }

    #[test]
    fn a_name_that_is_none_is_answered_with_all_there_are() {
        let text = "disk".parse::<DeviceKind>().expect_err("no kind").to_string();
        assert!(text.starts_with("`disk` is not a kind of device; the kinds are `net`, `blk`,"), "{text}");
    }

    #[test]
    fn queues_are_named_by_their_place() {
        let names = |kind: DeviceKind, count| (0..count).map(|i| kind.queue_name(i, count)).collect::<Vec<_>>();
        assert_eq!(names(DeviceKind::Net, 5), ["rx0", "tx0", "rx1", "tx1", "ctrl"]);
        assert_eq!(names(DeviceKind::Fs, 3), ["hiprio", "request0", "request1"]);
        assert_eq!(names(DeviceKind::Scsi, 4), ["ctrl", "event", "request0", "request1"]);
        assert_eq!(names(DeviceKind::Vsock, 3), ["rx", "tx", "event"]);
        assert_eq!(names(DeviceKind::Console, 6), ["rx0", "tx0", "ctrl_rx", "ctrl_tx", "rx1", "tx1"]);
        assert_eq!(names(DeviceKind::Rng, 2), ["request", "queue1"]);
    }

    #[test]
    fn every_kind_names_the_queues_that_it_has() {
        for kind in DeviceKind::ALL {
            let count = kind.queues_default();
            for index in 0..count {
                assert!(!kind.queue_name(index, count).starts_with("queue"), "{kind} {index}");
            }
        }
    }
}
