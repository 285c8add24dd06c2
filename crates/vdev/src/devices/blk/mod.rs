//! A disk ("Block Device" in the VIRTIO specification), in a file or in nothing at all.
//!
//! ```text
//!    request: header of 16 bytes, data …, status byte, cut into buffers anyhow
//!    read      file ──preadv──▶ guest memory          write     guest memory ──pwritev──▶ file
//! ```
//! A request is done before the next one is looked at, on the queue's own thread: a file in the page cache is read
//! faster than a request can be handed over. Each queue has a thread of its own.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use kiln_vdev::backend::{Options, Server};
//! use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
//! use kiln_vdev::socket::{Event, Listener};
//!
//! let stop = Event::new()?;
//! let disk = Blk::open(&BlkOptions::new(Backing::File("disk.img".into())))?;
//! let server = Server::new(Arc::new(disk), Options::default())?;
//! server.serve(&Listener::bind("disk.sock".as_ref())?, &stop)?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod config;
mod device;
mod disk;
mod lock;
mod options;
mod queue;

pub use device::Blk;
pub use options::{Backing, BlkError, BlkOptions};
