//! Our frontend beside one made of the crates that others use, on the same storage daemon and the same disk: handshakes
//! beside `vhost`'s, 4 KiB reads beside `virtio-driver`'s. Then our backend beside the storage daemon, on the same disk
//! and with our frontend. All take turns; the median of the rounds' ratios counts.
//!
//! `cargo bench --package kiln-vdev --bench vhost_frontend [-- ROUNDS]`

mod crates;
mod daemon;
mod ours;

use std::time::Duration;

use daemon::Daemon;

/// Turns of each side. They are short and many, so that all sides see the same of what else the machine does.
const ROUNDS: usize = 31;
const HANDSHAKES: u32 = 15;
const TIME: Duration = Duration::from_millis(200);
const WARM_UP: Duration = Duration::from_millis(30);
const DEPTHS: [u16; 2] = [1, 32];
const QUEUE_SIZE: u16 = 128;
const BLOCK_BYTES: u32 = 4096;
/// How long either side looks before it sleeps, if it looks.
const SPIN: Duration = Duration::from_micros(100);

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [daemon::SERVE, disk, socket] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return daemon::serve(disk, socket);
    }
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    let daemon = Daemon::start();
    println!("storage daemon {}, disk of {} MiB in the page cache, {rounds} rounds", daemon.version, daemon::DISK_MIB);
    handshakes(&daemon, rounds);
    for depth in DEPTHS {
        reads(&daemon, rounds, depth);
    }
    for depth in DEPTHS {
        backends(&daemon, rounds, depth);
    }
}

fn handshakes(daemon: &Daemon, rounds: usize) {
    for (title, acknowledged) in [
        ("handshake, p50 of each round, each message acknowledged", true),
        ("handshake, p50 of each round, only the last answered", false),
    ] {
        handshakes_of(daemon, rounds, title, acknowledged);
    }
}

fn handshakes_of(daemon: &Daemon, rounds: usize, title: &str, acknowledged: bool) {
    let mut table = Table::new(title, "µs", false, &["kiln", "vhost"]);
    for round in 0..rounds {
        table.turns(round, |side| {
            let once = || match side {
                0 => ours::handshake(&daemon.socket, acknowledged),
                _ => crates::handshake(&daemon.socket, acknowledged),
            };
            let mut took: Vec<_> = (0..HANDSHAKES).map(|_| once().as_secs_f64() * 1e6).collect();
            took.sort_by(f64::total_cmp);
            took[took.len() / 2]
        });
    }
    table.print();
}

fn reads(daemon: &Daemon, rounds: usize, depth: u16) {
    let title = format!("4 KiB reads anywhere, {depth} under way");
    let mut table = Table::new(&title, "IOPS", true, &["kiln", "virtio-driver", "virtio-driver, looking"]);
    let mut latencies = [String::new(), String::new(), String::new()];
    for round in 0..rounds {
        table.turns(round, |side| {
            let (iops, latency) = match side {
                0 => ours::reads(&daemon.socket, depth, round as u64),
                1 => crates::reads(&daemon.socket, depth, round as u64, Duration::ZERO),
                _ => crates::reads(&daemon.socket, depth, round as u64, SPIN),
            };
            latencies[side] = latency;
            iops
        });
    }
    table.print();
    for (side, latency) in table.names.iter().zip(latencies) {
        println!("  {side:<24} last round: {latency}");
    }
}

fn backends(daemon: &Daemon, rounds: usize, depth: u16) {
    let title = format!("backends: 4 KiB reads anywhere, {depth} under way");
    let mut table = Table::new(&title, "IOPS", true, &["kiln", "storage daemon"]);
    for round in 0..rounds {
        let socket = |side| if side == 0 { &daemon.own_socket } else { &daemon.socket };
        table.turns(round, |side| ours::reads(socket(side), depth, round as u64).0);
    }
    table.print();
}

/// What each side came to in each round.
struct Table {
    title: String,
    unit: &'static str,
    more_is_better: bool,
    names: Vec<&'static str>,
    values: Vec<Vec<f64>>,
}

impl Table {
    fn new(title: &str, unit: &'static str, more_is_better: bool, names: &[&'static str]) -> Self {
        let values = vec![Vec::new(); names.len()];
        Self { title: title.to_owned(), unit, more_is_better, names: names.to_vec(), values }
    }

    /// Gives each side its turn; who is first changes from round to round.
    fn turns(&mut self, round: usize, mut turn: impl FnMut(usize) -> f64) {
        let sides = self.names.len();
        for place in 0..sides {
            let side = (round + place) % sides;
            let value = turn(side);
            self.values[side].push(value);
        }
    }

    fn print(&self) {
        println!("\n{} ({})", self.title, self.unit);
        for (name, values) in self.names.iter().zip(&self.values) {
            let [low, median, high] = [0.1, 0.5, 0.9].map(|at| quantile(values, at));
            // Of each round for itself: what slowed one side down there slowed the other one, too.
            let ratios: Vec<_> = self.values[0]
                .iter()
                .zip(values)
                .map(|(ours, theirs)| if self.more_is_better { ours / theirs } else { theirs / ours })
                .collect();
            let ratio = quantile(&ratios, 0.5);
            println!(
                "  {name:<24} median {median:>9.0}   p10 {low:>9.0}   p90 {high:>9.0}   n {}   kiln is {ratio:.2} x",
                values.len()
            );
        }
    }
}

fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * at).round() as usize]
}
