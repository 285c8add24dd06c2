//! The network without root: this process makes each connection of the guest, if the policy allows it.

use std::sync::Arc;

use camino::Utf8PathBuf;
use kiln_net::gate::Gate;
use kiln_net::inner::MTU;
use kiln_net::names::{NoSink, Resolver, Upstream};
use kiln_net::user::UserNetwork;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::error::NetworkError;
use crate::blocking::{OffRuntime, blocking};
use crate::files::private_file;
use crate::hex_id::random_hex;
use crate::home::Home;
use crate::spec::Attachment;

/// The socket to which the VM's card connects, and what serves it.
#[derive(Debug)]
pub(super) struct User {
    path: Utf8PathBuf,
    /// Removes the socket's directory.
    _directory: OffRuntime<tempfile::TempDir>,
    serving: JoinHandle<()>,
}

impl User {
    pub(super) async fn start(home: &Home, gate: &Arc<Gate>) -> Result<Self, NetworkError> {
        let directory = home.networks();
        let failed = |path: &Utf8PathBuf, source| NetworkError::Socket { path: path.clone(), source };
        let (holder, path, listener) = blocking(move || {
            let make = || {
                private_file::create_dir_all(&directory)?;
                let name = format!("user-{}-", random_hex::<4>());
                let holder = tempfile::Builder::new().prefix(&name).tempdir_in(&directory)?;
                let path = Utf8PathBuf::try_from(holder.path().join("s")).map_err(std::io::Error::other)?;
                let listener = std::os::unix::net::UnixListener::bind(&path)?;
                listener.set_nonblocking(true)?;
                Ok((OffRuntime::new(holder), path, listener))
            };
            make().map_err(|source| failed(&directory, source))
        })
        .await?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(|source| failed(&path, source))?;
        let serving = tokio::spawn(serve(listener, Arc::clone(gate)));
        Ok(Self { path, _directory: holder, serving })
    }

    pub(super) fn attachment(&self) -> Attachment {
        Attachment::Stream { socket: self.path.clone() }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Serves one card after the other: a VM that could not be forked boots and connects again.
async fn serve(listener: tokio::net::UnixListener, gate: Arc<Gate>) {
    let mut current: Option<OffRuntime<UserNetwork>> = None;
    loop {
        let accepted = listener.accept().await.and_then(|(stream, _)| stream.into_std());
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "the card of a VM can't connect to its network");
                return;
            }
        };
        drop(current.take());
        let resolver = Arc::new(Resolver::new(Arc::clone(&gate), Arc::new(NoSink), Upstream::default()));
        match UserNetwork::start(stream.into(), Arc::clone(&gate), resolver, Vec::new(), MTU, Handle::current()) {
            Ok(network) => current = Some(OffRuntime::new(network)),
            Err(error) => tracing::warn!(%error, "a VM's network can't be started"),
        }
    }
}
