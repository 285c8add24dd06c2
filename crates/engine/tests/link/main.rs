//! The host's end of the link, against scripted agents. Tests in `e2e/` use the real agent.

mod agents;
mod ends;
mod floods;
mod peer;
