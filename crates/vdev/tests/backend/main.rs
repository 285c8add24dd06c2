//! Our backends, seen from outside: by a frontend made of raw messages, by hostile ones, and by real guests.

mod disk;
mod frontend;
mod guest;
mod protocol;
