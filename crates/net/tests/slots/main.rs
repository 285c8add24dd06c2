//! Networks in the kernel: what a guest reaches under a policy, what is left of a slot, and what others do to it.

mod labs;
mod lives;
mod policies;
mod support;
mod user;
