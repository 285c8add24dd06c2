//! Our backends, seen from outside: by a frontend made of raw messages, by our own frontend, by hostile ones, and by real
//! guests.

mod conformance;
mod disk;
mod frontend;
mod guest;
mod hostile;
mod lifecycle;
mod misbehave;
mod protocol;
mod rings;
mod waits;
mod watch;
