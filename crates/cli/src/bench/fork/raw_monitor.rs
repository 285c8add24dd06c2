//! A minimal QMP client: one command after another, on a blocking socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A monitor connection after the greeting.
pub struct RawMonitor {
    stream: BufReader<UnixStream>,
}

impl RawMonitor {
    /// Waits for QEMU's greeting and enables commands.
    pub fn greet(stream: UnixStream) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        let mut monitor = Self { stream: BufReader::new(stream) };
        monitor.line()?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs a command and waits for its reply. Drops events in between.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<()> {
        writeln!(self.stream.get_ref(), "{}", json!({"execute": command, "arguments": arguments}))?;
        loop {
            let line = self.line()?;
            if let Some(error) = line.get("error") {
                bail!("QEMU refused `{command}`: {error}");
            }
            if line.get("return").is_some() {
                return Ok(());
            }
        }
    }

    /// Waits until the state of the devices is loaded.
    pub fn loaded(&mut self) -> anyhow::Result<()> {
        loop {
            match self.line()?.pointer("/data/status").and_then(Value::as_str) {
                Some("completed") => return Ok(()),
                Some("failed") => bail!("QEMU did not load the state of the devices"),
                _ => {}
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        let count = self.stream.read_line(&mut line).context("QEMU's monitor does not answer")?;
        anyhow::ensure!(count > 0, "QEMU closed its monitor");
        Ok(serde_json::from_str(&line)?)
    }
}
