//! An HTTP server of a test, whose answers are bytes that the test chooses.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// With the query.
    pub path: String,
    /// All other lines of the head, in lower case up to the colon.
    pub headers: Vec<(String, String)>,
    /// As long as the head has it.
    pub body: String,
}

impl Request {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A part of an answer.
#[derive(Debug, Clone)]
pub enum Part {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes again and again, with a pause in between, until the client is gone.
    Forever(Vec<u8>, Duration),
    /// Nothing, until the client is gone.
    Silence,
}

/// An answer. The connection is closed after it.
pub type Reply = Vec<Part>;

/// A server on loopback. It ends with its owner.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server that answers each request by a function.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = listener.local_addr().expect("is bound");
        let (requests, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, end, answer) = (Arc::clone(&requests), Arc::clone(&ended), Arc::new(answer));
        let accept = move || {
            let mut connections = Vec::new();
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                let (log, end, answer) = (Arc::clone(&log), Arc::clone(&end), Arc::clone(&answer));
                let stream = stream.expect("is a connection");
                // A client that goes away early is part of many tests.
                connections.push(std::thread::spawn(move || drop(serve(&stream, &log, &end, &*answer))));
            }
            for connection in connections {
                connection.join().expect("an answer does not panic");
            }
        };
        Self { address, requests, ended, thread: Some(std::thread::spawn(accept)) }
    }

    /// Host and port.
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no test panics with it").clone()
    }

    /// How many requests there were for paths with this text.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.requests().iter().filter(|request| request.method == method && request.path.contains(path)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking());
        }
    }
}

fn serve(
    stream: &TcpStream,
    log: &Mutex<Vec<Request>>,
    end: &AtomicBool,
    answer: &dyn Fn(&Request) -> Reply,
) -> std::io::Result<()> {
    const STEP: Duration = Duration::from_millis(20);
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        // The first bytes of TLS have no line end that a server would wait for.
        if reader.fill_buf()?.first() == Some(&0x16) && lines.is_empty() {
            (&mut &*stream).write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nspeak plainly\n")?;
            return Ok(());
        }
        reader.read_until(b'\n', &mut line)?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let Some(first) = lines.first() else { return Ok(()) };
    let mut words = first.split(' ').map(str::to_owned);
    let headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
    let mut request = Request {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        headers: headers.map(|(key, value)| (key.to_lowercase(), value.trim().to_owned())).collect(),
        body: String::new(),
    };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    std::io::Read::read_exact(&mut reader, &mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    // The question whether there is TLS is not part of a script.
    if request.path != "/v2/" {
        log.lock().expect("no test panics with it").push(request.clone());
    }
    let mut output = stream;
    for part in answer(&request) {
        match part {
            Part::Bytes(bytes) => output.write_all(&bytes)?,
            Part::Forever(bytes, pause) => {
                while !end.load(Ordering::Relaxed) {
                    output.write_all(&bytes)?;
                    std::thread::sleep(pause);
                }
            }
            Part::Silence => {
                stream.set_read_timeout(Some(STEP))?;
                let mut byte = [0];
                while !end.load(Ordering::Relaxed) {
                    match std::io::Read::read(&mut output, &mut byte) {
                        Ok(0) => break,
                        Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
                        _ => {}
                    }
                }
            }
        }
    }
    Ok(())
}

/// A whole answer with a length.
pub fn reply(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    for (key, value) in headers {
        head += &format!("{key}: {value}\r\n");
    }
    vec![Part::Bytes([head.as_bytes(), b"\r\n", body].concat())]
}

/// The head of an answer whose body the test writes itself.
pub fn head(status: u16, headers: &[(&str, &str)]) -> Part {
    let lines: String = headers.iter().map(|(key, value)| format!("{key}: {value}\r\n")).collect();
    Part::Bytes(format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{lines}\r\n").into_bytes())
}
