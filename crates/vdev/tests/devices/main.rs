//! Our network card and socket device, served by our server to our frontend: what a guest's driver would see.

mod driver;
mod net;
mod vsock;
