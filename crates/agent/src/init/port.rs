//! Finds the virtio-serial port that leads to the host.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Name of the port.
const PORT_NAME: &str = "kiln.agent.0";
/// The device tells the driver about its ports one message at a time, within milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Longest wait between two looks.
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(100);
/// A machine without the port can't be served.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until the port is there, and returns its device.
///
/// # Errors
/// It never came.
pub(super) async fn find() -> io::Result<PathBuf> {
    let search = async {
        let mut wait = LOOK_AGAIN;
        loop {
            if let Some(device) = look() {
                return device;
            }
            sleep(wait).await;
            wait = (wait * 2).min(LOOK_AGAIN_MAX);
        }
    };
    timeout_at(Instant::now() + DEADLINE, search)
        .await
        .map_err(|_| io::Error::other(format!("no virtio-serial port `{PORT_NAME}` within {DEADLINE:?}")))
}

fn look() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        let device = PathBuf::from("/dev").join(port.file_name());
        (name.trim_end() == PORT_NAME && device.exists()).then_some(device)
    })
}
