//! What keeps a VMM from the host, also one that its guest has taken over.

mod exec;

pub(crate) use self::exec::{Launch, Request, Steps};
