//! Prints what a slot costs: from nothing, from the pool, its removal, one learned address, a new policy. The floor is
//! what `ip` needs for a namespace and a pair of links, in the same run.
//!
//! It works in a network namespace and a mount namespace of its own, so the host's links are not touched. It needs
//! root: `cargo run --release --package kiln-net --example slot_costs [ROUNDS]`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use kiln_net::policy::{Domain, Opening, Policy};
use kiln_net::slots::{SlotPool, Slots, SlotsConfig};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

const ROUNDS: usize = 40;
const POOL: usize = 4;
const POLICY: &str = r#"{"default":"public","allow":["example.org:443","10.1.0.0/16:5432"],"deny":["*:25"]}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    #[expect(unsafe_code, reason = "rustix marks every unshare as unsafe, because some share memory no more")]
    // SAFETY: this thread gets other namespaces. It shares all memory and descriptors still.
    unsafe {
        unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS)?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    sh("ip link set lo up; ip link add wan0 type veth peer name lan0; ip addr add 203.0.113.5/24 dev wan0")?;
    sh("ip link set wan0 up; ip link set lan0 up; ip route add default via 203.0.113.1")?;
    let directory = tempfile::tempdir()?;
    let directory = camino::Utf8Path::from_path(directory.path()).ok_or("the directory is not UTF-8")?;
    let config = SlotsConfig { shared: directory.join("shared"), ..SlotsConfig::new(directory.join("net")) };
    let slots = Slots::open(config)?;
    let policy: Policy = serde_json::from_str(POLICY)?;

    let mut floor = Vec::new();
    let (mut cold, mut release) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        floor.push(
            timed(|| sh("ip netns add kiln-floor && ip link add kiln-floor type veth peer name b netns kiln-floor"))?.1,
        );
        sh("ip link del kiln-floor; ip netns del kiln-floor")?;
        let (slot, took) = timed(|| slots.acquire("bench", &policy))?;
        cold.push(took);
        release.push(timed(|| slot.release())?.1);
    }
    print("floor: ip netns add, ip link add", floor);
    print("slot from nothing", cold);
    print("release", release);

    let pool = SlotPool::start(slots.clone(), POOL);
    let (mut warm, mut learned, mut changed, mut checked) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        while pool.ready_count() < POOL {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (mut slot, took) = timed(|| pool.acquire(&policy))?;
        warm.push(took);
        let address = std::net::Ipv4Addr::from_bits(0xc633_6400 + u32::try_from(round)?).into();
        let opening = Opening {
            name: Domain::new("example.org").map_err(|fault| fault.to_string())?,
            address,
            lasts: Duration::from_secs(60),
        };
        learned.push(timed(|| slot.open(&[opening]))?.1);
        changed.push(timed(|| slot.apply(&policy, &[]))?.1);
        checked.push(timed(|| slot.check())?.1);
    }
    print("slot from the pool", warm);
    print("one learned address", learned);
    print("a new policy", changed);
    print("a check of the rules", checked);
    Ok(())
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(T, Duration), E> {
    let start = Instant::now();
    work().map(|done| (done, start.elapsed()))
}

fn print(what: &str, times: Vec<Duration>) {
    let mut times = times;
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!("{what:36} p50 {:8.3} ms  p95 {:8.3} ms  n {}", at(50), at(95), times.len());
}

fn sh(script: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut shell = kiln_programs::command("sh", kiln_programs::PATH_ONLY);
    let status = shell.args(["-c", script]).stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("`{script}` failed").into()) }
}
