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
        /// assert_eq!((kind.id(), kind.to_string().as_str()), (2, "blk"));
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

impl DeviceKind {
    /// How many queues the smallest useful device has. A backend that has `GET_QUEUE_NUM` reports how many it serves;
    /// some leave the control or event queue to the VMM.
    pub(crate) const fn queues_default(self) -> usize {
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
    fn names_lead_back_and_ids_ascend() {
        for kind in DeviceKind::ALL {
            assert_eq!(kind.name().parse(), Ok(*kind));
        }
        assert!(DeviceKind::ALL.is_sorted_by(|one, other| one.id() < other.id()));
        assert_eq!("BLOCK".parse(), Ok(DeviceKind::Blk));
    }

    #[test]
    fn a_name_that_is_none_is_answered_with_all_there_are() {
        let text = "disk".parse::<DeviceKind>().expect_err("no kind").to_string();
        assert!(text.starts_with("`disk` is not a kind of device; the kinds are `net`, `blk`,"), "{text}");
    }
}
