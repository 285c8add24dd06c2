//! Answers questions about the network of this process's VM, and changes its policy.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use kiln_engine::home::Home;
use kiln_engine::network::{NetworkError, NetworkStatus, VmNetwork};
use kiln_net::explain::{Explanation, Question, explain};
use kiln_net::policy::Verdict;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::message::{LINE_BYTES_MAX, Reply, Request, Status};

/// How long a client may take to send its line and read the reply.
const CLIENT_DEADLINE: Duration = Duration::from_secs(10);
/// Clients that are served at once.
const CLIENTS_MAX: usize = 16;
/// Denials that a reply lists.
const DENIALS_SHOWN: usize = 20;

/// Where the sockets of running VMs are.
pub fn directory(home: &Home) -> Utf8PathBuf {
    home.networks().join("control")
}

/// The socket of this process's VM. Dropping it removes the socket.
#[derive(Debug)]
pub struct Control {
    path: Utf8PathBuf,
    task: JoinHandle<()>,
}

impl Control {
    /// Starts to answer.
    pub fn start(home: &Home, vm: &str, name: Option<String>, network: Arc<VmNetwork>) -> io::Result<Self> {
        let directory = directory(home);
        fs_err::create_dir_all(&directory)?;
        let path = directory.join(vm);
        let open = fs_err::File::open(&directory)?;
        // See `client::connect` for the path. The directory's home is closed to other users.
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{vm}", open.file().as_raw_fd()))?;
        let about = About { vm: vm.to_owned(), name, network };
        Ok(Self { path, task: tokio::spawn(serve(listener, Arc::new(about))) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs_err::remove_file(&self.path);
    }
}

struct About {
    vm: String,
    name: Option<String>,
    network: Arc<VmNetwork>,
}

async fn serve(listener: UnixListener, about: Arc<About>) {
    let mut clients = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while clients.len() >= CLIENTS_MAX {
            clients.join_next().await;
        }
        let about = Arc::clone(&about);
        clients.spawn(async move {
            match timeout(CLIENT_DEADLINE, client(stream, &about)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(%error, "a client of the VM's network has gone"),
                Err(_) => tracing::info!("a client of the VM's network is too slow"),
            }
        });
    }
}

async fn client(mut stream: UnixStream, about: &About) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = Vec::new();
    BufReader::new(read.take(LINE_BYTES_MAX)).read_until(b'\n', &mut line).await?;
    let reply = match serde_json::from_slice(&line) {
        Ok(request) => about.answer(request).await,
        Err(error) => Reply::Refused { error: error.to_string(), hint: None },
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    write.write_all(&line).await
}

impl About {
    async fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Status => self.status().await,
            Request::Explain { host, port, protocol } => match Question::new(&host, protocol, Some(port)) {
                Ok(question) => explained(&explain(self.network.gate(), &question, Instant::now())),
                Err(error) => Reply::Refused { error: error.to_string(), hint: Some(error.hint().to_owned()) },
            },
            Request::Change(change) => match self.network.change(&change).await {
                Ok(_) => self.status().await,
                Err(error) => refused(error),
            },
        }
    }

    async fn status(&self) -> Reply {
        match self.network.status().await {
            Ok(NetworkStatus { kind, network, policy, denied, mut denials }) => {
                denials.truncate(DENIALS_SHOWN);
                let (vm, name, policy) = (self.vm.clone(), self.name.clone(), (*policy).clone());
                Reply::Status(Box::new(Status { vm, name, kind, network, policy, denied, denials }))
            }
            Err(error) => refused(error),
        }
    }
}

fn refused(error: NetworkError) -> Reply {
    Reply::Refused { hint: error.hint(), error: format!("{:#}", anyhow::Error::new(error)) }
}

fn explained(explanation: &Explanation) -> Reply {
    match serde_json::to_value(explanation) {
        Ok(report) => Reply::Explained {
            is_allowed: explanation.verdict == Verdict::Allow,
            text: explanation.to_string(),
            report,
        },
        Err(error) => Reply::Refused { error: error.to_string(), hint: None },
    }
}
