//! QEMU's monitor protocol (QMP): one JSON object per line over a Unix socket.
//!
//! ```text
//!   Qmp::execute ──requests──▶ task ──▶ {"execute": …, "id": 7}
//!        ◀──────reply 7──────── task ◀── {"return": …, "id": 7}
//!   QmpEvent ◀────events─────── task ◀── {"event": …}
//! ```
//! One task owns the socket. The peer is not trusted: lines are bounded, and the first line that is not QMP ends the
//! connection with an error, which every waiting command gets.
//!
//! QEMU answers commands in order, but events come between the answers, and a caller may give up before its answer
//! arrives. So each command has an id, and an answer goes to the command with its id. An answer without a waiting
//! command is late and is dropped. Without ids, a late answer would be taken for that of the next command.
//!
//! Events are delivered in the order in which QEMU sent them, relative to the answers too: the task forwards an event
//! before it reads the next line. If the queue of events is full, the task waits for its reader, and answers wait
//! behind it. That bounds the memory that a hostile VMM can use. The owner of a VM reads events while its commands run,
//! so commands don't wait for each other this way. And every command has a deadline, so a QEMU that floods its owner
//! with events only makes its own VM fail.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::vm::VmmError;

/// The longest line that is read. QEMU's own answers are much shorter.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Bytes that one read takes at most.
const READ_BYTES: usize = 8 << 10;
/// Commands that may wait for the task, and for an answer.
const COMMANDS_MAX: usize = 16;
/// Events that may wait for their reader. If there are more, QEMU has to wait.
const EVENT_QUEUE: usize = 64;
/// Bytes of a line that is not QMP that its error shows.
const GARBAGE_BYTES_SHOWN: usize = 80;

/// An event of QEMU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct QmpEvent {
    #[serde(rename = "event")]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) data: Value,
}

/// A handle to the task that owns the monitor connection. The task ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
    ended: Arc<OnceLock<String>>,
}

#[derive(Debug)]
struct Request {
    command: &'static str,
    arguments: Option<Value>,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Value, VmmError>>;

/// One line from QEMU.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Greeting {
        #[serde(rename = "QMP")]
        _qmp: Value,
    },
    Event(QmpEvent),
    Failed {
        error: Failure,
        id: Option<u64>,
    },
    Returned {
        #[serde(rename = "return")]
        value: Value,
        id: Option<u64>,
    },
}

#[derive(Debug, Deserialize)]
struct Failure {
    desc: String,
}

impl Qmp {
    /// Reads the greeting and leaves negotiation mode.
    pub(crate) async fn handshake(
        stream: UnixStream,
        deadline: Duration,
    ) -> Result<(Self, mpsc::Receiver<QmpEvent>), VmmError> {
        let mut connection = Connection { stream, buffer: BytesMut::new() };
        let late = |_| VmmError::Deadline { command: "greeting".into(), waited: deadline };
        let greeting = tokio::time::timeout(deadline, connection.next()).await.map_err(late)?;
        match greeting.map_err(|reason| VmmError::Closed { reason })? {
            Line::Greeting { .. } => {}
            other => return Err(VmmError::Closed { reason: format!("`{other:?}` is not a greeting") }),
        }
        let (requests, inbox) = mpsc::channel(COMMANDS_MAX);
        let (events, outbox) = mpsc::channel(EVENT_QUEUE);
        let ended = Arc::new(OnceLock::new());
        let qmp = Self { requests, ended: Arc::clone(&ended) };
        tokio::spawn(async move {
            let mut task = Task { connection, events, waiting: HashMap::new(), next_id: 0, ended };
            task.run(inbox).await;
        });
        qmp.execute("qmp_capabilities", None, deadline).await?;
        Ok((qmp, outbox))
    }

    /// Runs one command.
    pub(crate) async fn execute(
        &self,
        command: &'static str,
        arguments: Option<Value>,
        deadline: Duration,
    ) -> Result<Value, VmmError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let request = Request { command, arguments, reply };
            self.requests.send(request).await.map_err(|_| self.closed())?;
            answer.await.map_err(|_| self.closed())?
        };
        let late = |_| VmmError::Deadline { command: command.into(), waited: deadline };
        tokio::time::timeout(deadline, exchange).await.map_err(late)?
    }

    fn closed(&self) -> VmmError {
        let reason = self.ended.get().cloned().unwrap_or_else(|| "the VM has ended".into());
        VmmError::Closed { reason }
    }
}

struct Task {
    connection: Connection,
    events: mpsc::Sender<QmpEvent>,
    waiting: HashMap<u64, (&'static str, Reply)>,
    next_id: u64,
    ended: Arc<OnceLock<String>>,
}

impl Task {
    /// Runs until the peer or the last handle is gone.
    async fn run(&mut self, mut inbox: mpsc::Receiver<Request>) {
        let reason = loop {
            tokio::select! {
                line = self.connection.next() => match line {
                    Ok(line) => if let Err(reason) = self.receive(line).await { break reason },
                    Err(reason) => break reason,
                },
                request = inbox.recv() => match request {
                    Some(request) => if let Err(reason) = self.send(request).await { break reason },
                    None => break "the VM's owner has ended".into(),
                },
            }
        };
        tracing::debug!(%reason, "the monitor connection ended");
        for (_, (_, reply)) in self.waiting.drain() {
            // This fails if the caller has given up.
            drop(reply.send(Err(VmmError::Closed { reason: reason.clone() })));
        }
        // Set before `inbox` is closed, so a caller that finds it closed finds the reason.
        drop(self.ended.set(reason));
    }

    async fn send(&mut self, request: Request) -> Result<(), String> {
        let Request { command, arguments, reply } = request;
        // If a caller gave up at its deadline, its answer may come later, or never.
        self.waiting.retain(|_, (_, reply)| !reply.is_closed());
        if self.waiting.len() >= COMMANDS_MAX {
            drop(reply.send(Err(VmmError::TooMany { max: COMMANDS_MAX })));
            return Ok(());
        }
        self.next_id += 1;
        let mut line = json!({ "execute": command, "id": self.next_id });
        if let Some(arguments) = arguments {
            line["arguments"] = arguments;
        }
        self.waiting.insert(self.next_id, (command, reply));
        let written = self.connection.stream.write_all(format!("{line}\r\n").as_bytes()).await;
        written.map_err(|error| error.to_string())
    }

    async fn receive(&mut self, line: Line) -> Result<(), String> {
        let (id, result) = match line {
            Line::Greeting { .. } => return Err("a second greeting".into()),
            Line::Event(event) => {
                // This fails if the events have no reader. Commands are answered nevertheless.
                drop(self.events.send(event).await);
                return Ok(());
            }
            Line::Failed { error, id } => (id, Err(error.desc)),
            Line::Returned { value, id } => (id, Ok(value)),
        };
        let id = id.ok_or("an answer without an id")?;
        // An answer without a waiting command came after its deadline.
        if let Some((command, reply)) = self.waiting.remove(&id) {
            let refused = |description| VmmError::Refused { command: command.into(), description };
            drop(reply.send(result.map_err(refused)));
        }
        Ok(())
    }
}

/// A socket, and the bytes of the next line so far.
struct Connection {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Connection {
    /// The next line. Safe to cancel: no bytes are lost.
    async fn next(&mut self) -> Result<Line, String> {
        let mut scanned = 0;
        loop {
            if let Some(end) = self.buffer[scanned..].iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(scanned + end);
                self.buffer.advance(1);
                return parse(&line);
            }
            scanned = self.buffer.len();
            if scanned >= LINE_BYTES_MAX {
                return Err(format!("a line is longer than {LINE_BYTES_MAX} bytes"));
            }
            self.buffer.reserve(READ_BYTES);
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err("the peer closed the connection".into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<Line, String> {
    serde_json::from_slice(line).map_err(|_| {
        let shown = &line[..line.len().min(GARBAGE_BYTES_SHOWN)];
        format!("`{}` is not QMP", shown.escape_ascii())
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22}}, "capabilities": []}}"#;

    /// Plays one script: sends the greeting, then one answer for each command that it reads.
    async fn peer(stream: UnixStream, greeting: &str, answers: &[&str]) -> Vec<Value> {
        let mut stream = BufReader::new(stream);
        let mut heard = Vec::new();
        stream.write_all(format!("{greeting}\r\n").as_bytes()).await.expect("the client reads");
        for answer in answers {
            let mut line = String::new();
            stream.read_line(&mut line).await.expect("the client writes");
            heard.push(serde_json::from_str(&line).expect("the client writes JSON"));
            // The client may have ended the connection because of an earlier answer.
            drop(stream.write_all(answer.as_bytes()).await);
        }
        heard
    }

    const READY: &str = "{\"return\": {}, \"id\": 1}\r\n";

    #[tokio::test]
    async fn commands_get_their_own_answers_and_events_go_aside() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let answer = "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": {\"status\": \"paused\"}, \"id\": 2}\n";
        let client = async {
            let (qmp, mut events) = Qmp::handshake(ours, SOON).await.expect("greets");
            let answer = qmp.execute("stop", None, SOON).await.expect("answers");
            assert_eq!(answer["status"], "paused");
            assert_eq!(events.recv().await.expect("an event").name, "STOP");
            let refused = qmp.execute("quit", Some(json!({"now": true})), SOON).await.expect_err("refused");
            assert_eq!(refused, VmmError::Refused { command: "quit".into(), description: "not now".into() });
        };
        let refusal = r#"{"error": {"class": "GenericError", "desc": "not now"}, "id": 3}"#.to_owned() + "\n";
        let answers = [READY, answer, &refusal];
        let (heard, ()) = tokio::join!(peer(theirs, GREETING, &answers), client);
        assert_eq!(heard[0]["execute"], "qmp_capabilities");
        assert_eq!(heard[2], json!({"execute": "quit", "id": 3, "arguments": {"now": true}}));
    }

    #[tokio::test]
    async fn garbage_instead_of_a_greeting_is_an_error_that_shows_it() {
        for garbage in ["hello\x07", "[]", "{}", r#"{"return": {}}"#, "\u{0}"] {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            let (_, result) = tokio::join!(peer(theirs, garbage, &[]), Qmp::handshake(ours, SOON));
            assert!(matches!(result, Err(VmmError::Closed { .. })), "{garbage:?}");
        }
    }

    #[tokio::test]
    async fn garbage_later_ends_every_waiting_command() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let client = async {
            let (qmp, mut events) = Qmp::handshake(ours, SOON).await.expect("greets");
            let error = qmp.execute("stop", None, SOON).await.expect_err("garbage");
            assert!(error.to_string().contains("not QMP"), "{error}");
            assert_eq!(events.recv().await, None);
            let error = qmp.execute("cont", None, SOON).await.expect_err("ended");
            assert!(error.to_string().contains("not QMP"), "{error}");
        };
        tokio::join!(peer(theirs, GREETING, &[READY, "\u{1}\u{2}{{\n"]), client);
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_off() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let flood = async {
            let chunk = vec![b'x'; 64 << 10];
            // Ends when the client closes the connection.
            while theirs.write_all(&chunk).await.is_ok() {}
        };
        let (result, ()) = tokio::join!(Qmp::handshake(ours, SOON), flood);
        let error = result.expect_err("too long");
        assert!(error.to_string().contains("longer than"), "{error}");
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline() {
        let waited = Duration::from_millis(20);
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let error = Qmp::handshake(ours, waited).await.expect_err("no greeting comes");
        assert_eq!(error, VmmError::Deadline { command: "greeting".into(), waited });
    }

    #[tokio::test]
    async fn the_end_of_the_peer_ends_every_waiting_command() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let client = async {
            let (qmp, _events) = Qmp::handshake(ours, SOON).await.expect("greets");
            qmp.execute("stop", None, SOON).await.expect_err("gone")
        };
        let (_, error) = tokio::join!(peer(theirs, GREETING, &[READY]), client);
        assert!(matches!(error, VmmError::Closed { .. }), "{error}");
    }
}
