//! Finds the virtio-serial port to the host.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Name of the port.
const PORT_NAME: &str = "kiln.agent.0";
/// First wait between two checks. The device announces its ports to the driver one by one, within milliseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Longest wait between two checks.
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(100);
/// How long the port may take to appear. Without it the guest can't be served.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for the port and returns its device.
///
/// # Errors
/// If the port doesn't appear within the deadline.
pub(super) async fn find() -> io::Result<PathBuf> {
    let search = async {
        let mut wait = POLL_INTERVAL;
        loop {
            if let Some(device) = look() {
                return device;
            }
            sleep(wait).await;
            wait = (wait * 2).min(POLL_INTERVAL_MAX);
        }
    };
    timeout_at(Instant::now() + DEADLINE, search)
        .await
        .map_err(|_| io::Error::other(format!("virtio-serial port `{PORT_NAME}` did not appear within {DEADLINE:?}")))
}

fn look() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        let device = PathBuf::from("/dev").join(port.file_name());
        (name.trim_end() == PORT_NAME && device.exists()).then_some(device)
    })
}
