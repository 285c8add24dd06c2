//! Commands in the guest, with an interface like [`std::process::Command`].
//!
//! ```text
//!   guest.command("sh") ─ arg, env, current_dir, user, stdin ─┬─ output() ──▶ what it wrote, how it ended
//!                                                             ├─ status() ──▶ how it ended
//!                                                             └─ spawn() ───▶ Child: stdin, stdout, stderr, wait, kill
//! ```

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use kiln_wire::{Channel, ExecRequest, ExitStatus, Exited, Limits, SessionSpec, Stdin, Text, Tty};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::exec::{Exec, ExecOutput};
use super::stream::{Event, StreamError, StreamReceiver, StreamSender};
use super::transport::GuestLink;

/// Bytes that wait between a child's stream and its reader or writer, like in a pipe.
const PIPE_BYTES: usize = 64 << 10;
/// Output that [`Command::output`] keeps if no other bound is set.
pub const OUTPUT_BYTES_DEFAULT: u64 = 16 << 20;

/// A value that lives as long as a command.
type Hold = Arc<dyn Any + Send + Sync>;

/// A command to run in a guest.
///
/// ```no_run
/// # async fn example(guest: kiln_engine::Guest) -> Result<(), Box<dyn std::error::Error>> {
/// let output = guest
///     .command("sh")
///     .args(["-c", "echo $GREETING; cat; exit 3"])
///     .env("GREETING", "hello")
///     .current_dir("/tmp")
///     .user("nobody")
///     .stdin("from the host")
///     .output()
///     .await?;
/// assert_eq!(output.stdout, b"hello\nfrom the host");
/// assert_eq!(output.code(), Some(3));
///
/// let status = guest.command("make").arg("test").status().await?;
/// println!("the tests {}", if status == kiln_wire::ExitStatus::Code(0) { "pass" } else { "fail" });
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Command {
    link: GuestLink,
    request: ExecRequest,
    input: Input,
    output_bytes_max: u64,
    hold: Option<Hold>,
}

/// What a command reads from its standard input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    #[default]
    Null,
    /// What is written to [`Child::stdin`].
    Piped,
    /// These bytes.
    Bytes(Vec<u8>),
}

/// A running command. Dropping it kills the command and all its processes, unless it has a session.
///
/// ```no_run
/// # async fn example(guest: kiln_engine::Guest) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::link::Input;
/// use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
///
/// let mut child = guest.command("sort").stdin(Input::Piped).spawn().await?;
/// let mut stdin = child.stdin.take().expect("it is piped");
/// stdin.write_all(b"b\na\n").await?;
/// drop(stdin); // the end of its input
///
/// let mut lines = BufReader::new(child.stdout.take().expect("it is taken once")).lines();
/// while let Some(line) = lines.next_line().await? {
///     println!("{line}");
/// }
/// println!("{:?}", child.wait().await?.status);
/// # Ok(())
/// # }
/// ```
pub struct Child {
    /// Its standard input, if it is [`Input::Piped`]. Dropping it is the end of the input.
    pub stdin: Option<ChildStdin>,
    /// Its standard output. If it is dropped, what the command writes there is discarded.
    pub stdout: Option<ChildStdout>,
    /// Its standard error; `None` if it has a terminal.
    pub stderr: Option<ChildStderr>,
    pid: u32,
    session: Option<String>,
    control: StreamSender,
    end: oneshot::Receiver<Result<Exited, StreamError>>,
    ended: Option<Result<Exited, StreamError>>,
    // Dropping this also drops its halves of the stream, which ends the command.
    _reader: Task,
    _feeder: Task,
    _hold: Option<Hold>,
}

/// The standard input of a [`Child`].
#[derive(Debug)]
pub struct ChildStdin(DuplexStream);

/// The standard output of a [`Child`].
#[derive(Debug)]
pub struct ChildStdout(DuplexStream);

/// The standard error of a [`Child`].
#[derive(Debug)]
pub struct ChildStderr(DuplexStream);

/// A task that ends with this.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl GuestLink {
    /// A command to run in the guest. A program without a slash is looked up in the command's own `PATH`.
    pub fn command(&self, program: impl Into<Text>) -> Command {
        let request = ExecRequest { argv: vec![program.into()], ..ExecRequest::default() };
        let (input, output_bytes_max) = (Input::Null, OUTPUT_BYTES_DEFAULT);
        Command { link: self.clone(), request, input, output_bytes_max, hold: None }
    }
}

impl Command {
    /// Adds an argument.
    pub fn arg(&mut self, argument: impl Into<Text>) -> &mut Self {
        self.request.argv.push(argument.into());
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, arguments: impl IntoIterator<Item = impl Into<Text>>) -> &mut Self {
        self.request.argv.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(&mut self, name: impl Into<Text>, value: impl Into<Text>) -> &mut Self {
        self.request.env.push((name.into(), value.into()));
        self
    }

    /// Sets variables of its environment.
    pub fn envs(&mut self, variables: impl IntoIterator<Item = (impl Into<Text>, impl Into<Text>)>) -> &mut Self {
        self.request.env.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Starts from an empty environment instead of the agent's defaults.
    pub fn env_clear(&mut self) -> &mut Self {
        self.request.env_clear = true;
        self.request.env.clear();
        self
    }

    /// Its working directory. The default is the user's home, or `/`.
    pub fn current_dir(&mut self, directory: impl Into<Text>) -> &mut Self {
        self.request.cwd = Some(directory.into());
        self
    }

    /// The user that runs it: a name or a number, optionally with a group after a colon. The default is the agent's
    /// user, root.
    pub fn user(&mut self, user: impl Into<String>) -> &mut Self {
        self.request.user = Some(user.into());
        self
    }

    /// What it reads. The default is nothing.
    pub fn stdin(&mut self, input: impl Into<Input>) -> &mut Self {
        self.input = input.into();
        self
    }

    /// Kills it and all its processes after this time. [`Exited::timed_out`] reports that.
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.request.limits.wall_ms = Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// What it may use. Replaces all limits.
    pub fn limits(&mut self, limits: Limits) -> &mut Self {
        self.request.limits = limits;
        self
    }

    /// Bytes of output that [`output`](Self::output) keeps. The rest is dropped, and [`Exited::truncated`] reports it.
    /// The default is [`OUTPUT_BYTES_DEFAULT`].
    pub fn output_bytes_max(&mut self, bytes: u64) -> &mut Self {
        self.output_bytes_max = bytes;
        self
    }

    /// Gives it a terminal of this size instead of pipes. All its output arrives on [`Child::stdout`].
    pub fn terminal(&mut self, rows: u16, cols: u16) -> &mut Self {
        self.request.tty = Some(Tty { rows, cols, term: String::new() });
        self
    }

    /// Lets it outlive its [`Child`] as a session of this name.
    pub fn session(&mut self, name: impl Into<String>) -> &mut Self {
        self.request.session = Some(SessionSpec { name: Some(name.into()), ..SessionSpec::default() });
        self
    }

    /// The request as it is sent to the agent.
    pub fn as_request(&self) -> ExecRequest {
        let stdin = if self.input == Input::Null { Stdin::None } else { Stdin::Stream };
        ExecRequest { stdin, ..self.request.clone() }
    }

    /// Keeps a value for as long as the command and each [`Child`] of it live.
    pub(crate) fn hold(mut self, hold: Hold) -> Self {
        self.hold = Some(hold);
        self
    }

    /// Runs it to its end. If the input is [`Input::Piped`], it is empty.
    ///
    /// # Errors
    /// [`StreamError::Fault`] with `command_not_found`, `not_executable`, … if it did not start; or the link is lost.
    pub fn output(&mut self) -> impl Future<Output = Result<ExecOutput, StreamError>> + Send + use<> {
        self.clone().run(self.output_bytes_max)
    }

    /// Runs it to its end, and discards its output.
    ///
    /// # Errors
    /// See [`output`](Self::output).
    pub fn status(&mut self) -> impl Future<Output = Result<ExitStatus, StreamError>> + Send + use<> {
        let running = self.clone().run(0);
        async move { Ok(running.await?.exited.status) }
    }

    /// Starts it.
    ///
    /// # Errors
    /// See [`output`](Self::output).
    pub fn spawn(&mut self) -> impl Future<Output = Result<Child, StreamError>> + Send + use<> {
        self.clone().start()
    }

    async fn run(self, output_bytes_max: u64) -> Result<ExecOutput, StreamError> {
        let input: &[u8] = if let Input::Bytes(bytes) = &self.input { bytes } else { &[] };
        self.link.run(self.as_request(), input, output_bytes_max).await
    }

    async fn start(self) -> Result<Child, StreamError> {
        let Exec { started, input, output } = self.link.exec(self.as_request()).await?;
        let (stdin, feed) = match self.input {
            Input::Null => (None, None),
            Input::Piped => {
                let (ours, theirs) = duplex(PIPE_BYTES);
                (Some(ChildStdin(ours)), Some(Feed::Stream(theirs)))
            }
            Input::Bytes(bytes) => (None, Some(Feed::Bytes(bytes))),
        };
        let ((stdout, out), (stderr, err)) = (duplex(PIPE_BYTES), duplex(PIPE_BYTES));
        let (sender, end) = oneshot::channel();
        let reader = tokio::spawn(async move {
            let ended = read(output, out, err).await;
            // The receiver may have been dropped.
            drop(sender.send(ended));
        });
        let feeder = tokio::spawn(feed_all(feed, input.clone()));
        Ok(Child {
            stdin,
            stdout: Some(ChildStdout(stdout)),
            stderr: Some(ChildStderr(stderr)),
            pid: started.pid,
            session: started.session,
            control: input,
            end,
            ended: None,
            _reader: Task(reader),
            _feeder: Task(feeder),
            _hold: self.hold,
        })
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command").field("request", &self.request).finish_non_exhaustive()
    }
}

impl From<Vec<u8>> for Input {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for Input {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<&str> for Input {
    fn from(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }
}

impl Child {
    /// Its pid in the guest; also the id of its process group.
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// The name of its session, if it has one.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Closes its input if [`stdin`](Self::stdin) was not taken, and waits for its end. Safe to cancel, and to call
    /// more than once.
    ///
    /// A command that has written more than a pipe holds blocks until its output is read. So read or drop
    /// [`stdout`](Self::stdout) and [`stderr`](Self::stderr) meanwhile, or use
    /// [`wait_with_output`](Self::wait_with_output).
    ///
    /// # Errors
    /// How the command ended without an exit status: the link was lost, or the agent ended the stream with an error.
    pub async fn wait(&mut self) -> Result<Exited, StreamError> {
        self.stdin = None;
        if self.ended.is_none() {
            let ended = (&mut self.end).await.unwrap_or(Err(StreamError::Ended));
            self.ended = Some(ended);
        }
        self.ended.clone().unwrap_or(Err(StreamError::Ended))
    }

    /// Reads its output until its end. Keeps at most `bytes_max` of both streams together.
    ///
    /// # Errors
    /// See [`wait`](Self::wait).
    pub async fn wait_with_output(mut self, bytes_max: usize) -> Result<ExecOutput, StreamError> {
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let left = std::sync::atomic::AtomicUsize::new(bytes_max);
        let (exited, stdout, stderr) = tokio::join!(self.wait(), keep(stdout, &left), keep(stderr, &left));
        let mut exited = exited?;
        exited.truncated |= stdout.1 || stderr.1;
        Ok(ExecOutput { stdout: stdout.0, stderr: stderr.0, exited })
    }

    /// Kills it and all its processes. Its end still arrives, see [`wait`](Self::wait).
    ///
    /// # Errors
    /// The command has ended, or the link is lost.
    pub fn start_kill(&self) -> Result<(), StreamError> {
        self.signal(libc::SIGKILL)
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// See [`wait`](Self::wait).
    pub async fn kill(&mut self) -> Result<Exited, StreamError> {
        match self.start_kill() {
            Ok(()) | Err(StreamError::Ended) => {}
            Err(error) => return Err(error),
        }
        // With open pipes, `wait` would block until their content was read.
        (self.stdout, self.stderr) = (None, None);
        self.wait().await
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// The command has ended, or the link is lost.
    pub fn signal(&self, signal: i32) -> Result<(), StreamError> {
        self.control.signal(signal)
    }

    /// Resizes its terminal.
    ///
    /// # Errors
    /// The command has ended, or the link is lost.
    pub fn resize(&self, rows: u16, cols: u16) -> Result<(), StreamError> {
        self.control.resize(rows, cols)
    }
}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Child").field("pid", &self.pid).field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// What goes to a command's input.
enum Feed {
    Stream(DuplexStream),
    Bytes(Vec<u8>),
}

/// Sends all of it. It is not an error if the command ends before it has read all its input.
async fn feed_all(feed: Option<Feed>, input: StreamSender) {
    match feed {
        None => return,
        Some(Feed::Bytes(bytes)) => {
            if input.send(&bytes).await.is_err() {
                return;
            }
        }
        Some(Feed::Stream(mut stream)) => {
            let mut buffer = vec![0; PIPE_BYTES];
            loop {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) if input.send(&buffer[..count]).await.is_err() => return,
                    Ok(_) => {}
                }
            }
        }
    }
    let _ = input.eof().await;
}

/// Copies a command's output to its readers, up to its end. Output without a reader is discarded.
async fn read(mut output: StreamReceiver, out: DuplexStream, err: DuplexStream) -> Result<Exited, StreamError> {
    let (mut out, mut err) = (Some(out), Some(err));
    loop {
        match output.next().await? {
            Event::Data(channel, bytes) => {
                let pipe = if channel == Channel::Err { &mut err } else { &mut out };
                if let Some(open) = pipe
                    && open.write_all(&bytes).await.is_err()
                {
                    *pipe = None;
                }
            }
            Event::Eof => {}
            Event::Exited(exited) => return Ok(exited),
            other => return Err(StreamError::Unexpected(format!("{other:?}"))),
        }
    }
}

/// Reads a stream to its end and keeps what there is room for. Returns also whether it left anything out.
async fn keep(stream: Option<impl AsyncRead + Unpin>, left: &std::sync::atomic::AtomicUsize) -> (Vec<u8>, bool) {
    use std::sync::atomic::Ordering;
    let (mut kept, mut truncated) = (Vec::new(), false);
    let Some(mut stream) = stream else { return (kept, truncated) };
    let mut buffer = vec![0; PIPE_BYTES];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        // All readers run in one task, so the value can't change between the load and the store.
        let room = left.load(Ordering::Relaxed).min(count);
        left.fetch_sub(room, Ordering::Relaxed);
        kept.extend_from_slice(&buffer[..room]);
        truncated |= room < count;
    }
    (kept, truncated)
}

impl AsyncRead for ChildStdout {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncRead for ChildStderr {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ChildStdin {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
