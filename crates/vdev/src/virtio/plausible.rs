//! Which kinds of device a backend may be that was not introduced. vhost-user has no message for it: a guess from what
//! the backend offers, with its reasons, never a fact.

use super::feature::{OF_KINDS, blk, gpu, known, net};
use super::{DeviceKind, config};

/// A kind that a backend may be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// The kind.
    pub kind: DeviceKind,
    /// The evidence.
    pub reason: String,
    /// Whether that fits no other kind. The configuration of one kind can look like that of another: the size of a
    /// console is the capacity of a disk of 2 TiB.
    pub is_sure: bool,
}

/// What a backend reported of itself.
struct Told<'a> {
    features: u64,
    queues: Option<u64>,
    config: &'a [u8],
}

/// The kinds that fit what a backend offers, the likeliest first: its features, the number of its queues if it has
/// `GET_QUEUE_NUM`, and the configuration that it returned, empty if it has none. No kind fits if there is no evidence
/// for one.
pub fn plausible(features: u64, queues: Option<u64>, config: &[u8]) -> Vec<Candidate> {
    let told = Told { features: features & OF_KINDS, queues, config };
    let rules: [(DeviceKind, Rule, Sure); 7] = [
        (DeviceKind::Fs, is_fs, |_| true),
        (DeviceKind::Scsi, is_scsi, |_| true),
        (DeviceKind::Gpu, is_gpu, |_| true),
        (DeviceKind::Net, is_net, is_surely_net),
        (DeviceKind::Vsock, is_vsock, is_surely_vsock),
        (DeviceKind::Blk, is_blk, is_surely_blk),
        (DeviceKind::Rng, is_rng, |_| false),
    ];
    let fitting = rules.iter().filter(|(kind, ..)| told.features & !known(*kind) == 0);
    let found = fitting
        .filter_map(|(kind, rule, sure)| Some(Candidate { kind: *kind, reason: rule(&told)?, is_sure: sure(&told) }));
    found.collect()
}

type Rule = fn(&Told<'_>) -> Option<String>;
/// Whether nothing else that there is fits as well.
type Sure = fn(&Told<'_>) -> bool;

impl Told<'_> {
    fn number(&self, kind: DeviceKind, name: &str) -> Option<u64> {
        let field = config::layout(kind).iter().find(|field| field.name == name)?;
        let bytes = self.config.get(field.range())?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Whether nothing follows what the configuration of this kind has.
    fn ends_with(&self, kind: DeviceKind) -> bool {
        self.config.iter().skip(kind.config_bytes()).all(|byte| *byte == 0)
    }
}

/// A tag of text that is padded with NULs, then a small number of queues.
fn is_fs(told: &Told<'_>) -> Option<String> {
    let tag = told.config.get(..36)?;
    let text = tag.split(|byte| *byte == 0).next().filter(|text| !text.is_empty())?;
    let text = std::str::from_utf8(text).ok().filter(|text| !text.chars().any(char::is_control))?;
    let is_padded = tag[text.len()..].iter().all(|byte| *byte == 0);
    let queues = told.number(DeviceKind::Fs, "num_request_queues")?;
    // One more than the request queues, or two with notifications.
    let queues_fit = told.queues.is_none_or(|served| served > queues);
    let fits = is_padded && (1..=1024).contains(&queues) && queues_fit && told.ends_with(DeviceKind::Fs);
    fits.then(|| format!("the configuration begins with the tag {text:?} and {queues} request queues"))
}

/// Sizes of sense data and commands, which hardly any device changes.
fn is_scsi(told: &Told<'_>) -> Option<String> {
    let sense = told.number(DeviceKind::Scsi, "sense_size")?;
    let command = told.number(DeviceKind::Scsi, "cdb_size")?;
    ((sense, command) == (96, 32)).then(|| "the configuration has sense data of 96 bytes and commands of 32".to_owned())
}

fn is_gpu(told: &Told<'_>) -> Option<String> {
    let scanouts = told.number(DeviceKind::Gpu, "num_scanouts")?;
    let fits = (1..=16).contains(&scanouts)
        && told.features & (gpu::VIRGL | gpu::EDID) != 0
        && told.number(DeviceKind::Gpu, "num_capsets")? <= 16
        && told.number(DeviceKind::Gpu, "events_clear")? == 0
        && told.ends_with(DeviceKind::Gpu);
    fits.then(|| format!("the configuration has {scanouts} displays"))
}

const OFFLOADS: u64 = net::MRG_RXBUF | net::GUEST_TSO4 | net::GUEST_TSO6 | net::CTRL_VQ | net::GUEST_ANNOUNCE;
/// These bits no disk has.
const OF_CARDS: u64 = net::GUEST_TSO6 | net::CTRL_RX | net::CTRL_VLAN | net::CTRL_MAC_ADDR | net::GUEST_ANNOUNCE;

/// No other kind has defined bits there: one may be a mistake, two are not.
fn is_surely_net(told: &Told<'_>) -> bool {
    (told.features & (OFFLOADS | OF_CARDS | net::STATUS)).count_ones() >= 2
}

fn is_net(told: &Told<'_>) -> Option<String> {
    let reason = "its features are a network card's".to_owned();
    if told.features & !known(DeviceKind::Blk) & (OFFLOADS | OF_CARDS) != 0 {
        return Some(reason);
    }
    // Most cards leave their configuration to the VMM.
    (told.config.is_empty() && told.features & OFFLOADS != 0).then_some(reason)
}

/// A capacity, and blocks of a size that disks have.
fn is_blk(told: &Told<'_>) -> Option<String> {
    const OF_DISKS: u64 = blk::SEG_MAX | blk::BLK_SIZE | blk::FLUSH | blk::TOPOLOGY | blk::CONFIG_WCE | blk::SIZE_MAX;
    let capacity = told.number(DeviceKind::Blk, "capacity")?;
    let block = told.number(DeviceKind::Blk, "blk_size").filter(|_| told.features & blk::BLK_SIZE != 0);
    let block_fits = block.is_none_or(|bytes| bytes.is_power_of_two() && (512..=1 << 16).contains(&bytes));
    let fits = capacity < 1 << 52 && block_fits && told.features & OF_DISKS != 0;
    fits.then(|| format!("its features are a disk's and the configuration has a capacity of {capacity} sectors"))
}

/// Blocks of a size that disks have lie where no other kind that has this bit has a power of 2.
fn is_surely_blk(told: &Told<'_>) -> bool {
    let capacity = told.number(DeviceKind::Blk, "capacity");
    told.features & blk::BLK_SIZE != 0 && told.config.len() >= 24 && capacity.is_some_and(|sectors| sectors > 0)
}

/// A gpio's number of lines looks like a guest's number too; it has two queues at most.
fn is_surely_vsock(told: &Told<'_>) -> bool {
    told.queues == Some(3) && told.config.len() >= 8
}

/// A number that guests may have, alone.
fn is_vsock(told: &Told<'_>) -> Option<String> {
    let cid = told.number(DeviceKind::Vsock, "guest_cid")?;
    let fits = (3..u64::from(u32::MAX)).contains(&cid) && told.ends_with(DeviceKind::Vsock);
    let queues_fit = told.queues.is_none_or(|queues| (2..=3).contains(&queues));
    (fits && queues_fit).then(|| format!("the configuration is only the guest's CID {cid}"))
}

/// Nothing at all.
fn is_rng(told: &Told<'_>) -> Option<String> {
    (told.config.is_empty() && told.features == 0 && told.queues == Some(1))
        .then(|| "it has one queue, no configuration and no device features".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::feature;
    use super::*;

    fn likeliest(features: u64, queues: Option<u64>, config: &[u8]) -> Option<DeviceKind> {
        plausible(features | feature::VERSION_1 | feature::PROTOCOL_FEATURES, queues, config).first().map(|it| it.kind)
    }

    /// A configuration with these numbers at these places.
    fn config<const N: usize>(bytes: usize, numbers: [(usize, u32); N]) -> Vec<u8> {
        let mut config = vec![0; bytes];
        for (offset, number) in numbers {
            config[offset..offset + 4].copy_from_slice(&number.to_le_bytes());
        }
        config
    }

    #[test]
    fn the_storage_daemons_disk_is_a_disk() {
        let features = blk::SIZE_MAX | blk::SEG_MAX | blk::TOPOLOGY | blk::BLK_SIZE | blk::FLUSH | blk::CONFIG_WCE;
        let features = features | blk::DISCARD | blk::WRITE_ZEROES | blk::MQ;
        let config = config(60, [(0, 131_072), (12, 126), (20, 512)]);
        assert_eq!(likeliest(features, Some(1), &config), Some(DeviceKind::Blk));
    }

    #[test]
    fn a_directory_is_known_by_its_tag() {
        let mut bytes = config(40, [(36, 1)]);
        bytes[..4].copy_from_slice(b"myfs");
        assert_eq!(likeliest(0, Some(2), &bytes), Some(DeviceKind::Fs));
        bytes[20] = 1;
        assert_eq!(likeliest(0, Some(2), &bytes), None);
    }

    #[test]
    fn sockets_are_known_by_a_number_that_guests_have() {
        assert_eq!(likeliest(feature::vsock::SEQPACKET, None, &config(8, [(0, 3)])), Some(DeviceKind::Vsock));
        assert_eq!(likeliest(0, None, &config(8, [(0, 2)])), None);
    }

    #[test]
    fn other_kinds_are_known_too() {
        let scsi = config(36, [(0, 1), (4, 126), (20, 96), (24, 32)]);
        assert_eq!(likeliest(feature::scsi::HOTPLUG, Some(3), &scsi), Some(DeviceKind::Scsi));
        assert_eq!(likeliest(gpu::EDID, Some(2), &config(16, [(8, 1)])), Some(DeviceKind::Gpu));
        assert_eq!(likeliest(net::MRG_RXBUF | net::GUEST_TSO4 | net::MQ, Some(2), &[]), Some(DeviceKind::Net));
        assert_eq!(likeliest(0, Some(1), &[]), Some(DeviceKind::Rng));
    }

    #[test]
    fn a_console_is_not_surely_a_disk() {
        // MULTIPORT is the bit of SIZE_MAX. 0 columns, 0 rows, 512 ports: a capacity of 2 TiB.
        let console = plausible(1 << 1, Some(4), &config(12, [(4, 1)]));
        assert!(console.iter().all(|candidate| !candidate.is_sure), "{console:?}");
        let gpio = plausible(0, Some(2), &config(8, [(0, 8)]));
        assert!(!gpio.is_empty() && gpio.iter().all(|candidate| !candidate.is_sure), "{gpio:?}");
        let rng = plausible(0, Some(1), &[]);
        assert!(!rng.is_empty() && rng.iter().all(|candidate| !candidate.is_sure), "{rng:?}");
        let disk = plausible(blk::BLK_SIZE | blk::FLUSH, Some(1), &config(60, [(0, 8192), (20, 512)]));
        assert!(disk[0].is_sure && disk[0].kind == DeviceKind::Blk);
        let card = plausible(net::MRG_RXBUF | net::CTRL_VQ, Some(2), &[]);
        assert!(card[0].is_sure && card[0].kind == DeviceKind::Net);
    }

    #[test]
    fn what_nothing_speaks_for_is_not_guessed() {
        assert_eq!(plausible(0, None, &[]), []);
        assert_eq!(plausible(u64::MAX, Some(u64::MAX), &[0xff; 256]), []);
    }
}
