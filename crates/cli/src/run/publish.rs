//! `-p`: ports of the host that lead to ports of the guest.
//!
//! ```text
//!   client ──▶ 127.0.0.1:8080 on the host ──▶ kiln ──▶ link ──▶ agent ──▶ localhost:80 in the guest
//! ```
//! A connection goes through the link to the guest's agent, not through a network card. So it works without any network
//! and without root, the network's rules need no hole for it, and a fork gets its ports without any change inside.

use std::net::SocketAddr;
use std::sync::Arc;

use kiln_engine::link::GuestLink;
use kiln_wire::ForwardRequest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::args::publish::Publish;
use crate::failure::{Failure, HOST};

/// Connections of one run that are open at the same time. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;

/// The ports of a run, bound before its VM starts.
#[derive(Debug, Default)]
pub struct Ports {
    listeners: Vec<(TcpListener, u16)>,
}

/// Ports that lead to a guest. Dropping it closes them and all their connections.
#[derive(Debug)]
pub struct Published {
    _tasks: JoinSet<()>,
    /// The addresses of the host, in the order of the arguments.
    pub addresses: Vec<(SocketAddr, u16)>,
}

impl Ports {
    /// Binds the ports.
    pub async fn bind(wanted: &[Publish]) -> Result<Self, Failure> {
        let mut listeners = Vec::new();
        for publish in wanted {
            let bound = TcpListener::bind(publish.host).await.map_err(|error| {
                let error = anyhow::Error::new(error).context(format!("failed to listen on {} for -p", publish.host));
                Failure::new(HOST, error)
            });
            listeners.push((bound?, publish.guest));
        }
        Ok(Self { listeners })
    }

    /// Lets them lead to a guest.
    pub fn lead_to(self, link: &GuestLink) -> Result<Published, Failure> {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let (mut tasks, mut addresses) = (JoinSet::new(), Vec::new());
        for (listener, port) in self.listeners {
            addresses.push((listener.local_addr()?, port));
            tasks.spawn(accept(listener, port, link.clone(), Arc::clone(&permits)));
        }
        Ok(Published { _tasks: tasks, addresses })
    }
}

async fn accept(listener: TcpListener, port: u16, link: GuestLink, permits: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        // Ends of earlier connections are collected, so that the set does not grow.
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, port, "failed to accept a connection for the guest");
                // Out of descriptors, for example. Some are free again when a connection ends.
                if connections.join_next().await.is_none() {
                    return;
                }
                continue;
            }
        };
        let link = link.clone();
        connections.spawn(async move {
            if let Err(error) = connect(&link, port, client).await {
                tracing::info!(error, port, "a connection to the guest has ended");
            }
            drop(permit);
        });
    }
}

async fn connect(link: &GuestLink, port: u16, client: TcpStream) -> Result<(), String> {
    // Data of the guest comes in frames, so waiting for more only adds delay.
    client.set_nodelay(true).map_err(|error| error.to_string())?;
    let request = ForwardRequest::Tcp { host: "localhost".into(), port };
    let forward = link.forward(request).await.map_err(|error| error.to_string())?;
    forward.copy(client).await.map_err(|error| error.to_string())
}
