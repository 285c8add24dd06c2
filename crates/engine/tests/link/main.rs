//! The host's end of the link against agents that are none. The real agent is met in `e2e/`.

mod agents;
mod ends;
mod floods;
mod peer;
