//! Images against other readers of EROFS: what we write, `fsck.erofs` extracts and Linux mounts with the same contents;
//! what mkfs.erofs writes, we read.

mod exported;
mod forest;
mod fsck;
mod host;
mod mounted;
mod properties;
mod refused;
mod seen;
mod written;
