//! One frontend's session: takes messages one by one, does all or nothing of each, and replies.
//!
//! ```text
//!    message ─▶ header, descriptors, payload right? ─▶ negotiated? ─▶ can it be done? ─▶ done ─▶ answer, or 0 (need_reply)
//!                      └────────────────┴───────────────────┴──▶ refused ─▶ 1 (need_reply), else the session ends
//! ```
//! A ring, as a session sees it:
//! ```text
//!    stopped ──── kick known, and size, addresses, memory too ───▶ running, enabled or not
//!       ▲                                                               │
//!       └───── GET_VRING_BASE, RESET_DEVICE, SET_STATUS 0 ──────────────┘
//! ```

mod control;
mod memory;
mod messages;
mod negotiate;
mod rings;
mod wrong;

pub(super) use messages::Session;
