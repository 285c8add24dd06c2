//! The resolver that guests use.
//!
//! ```text
//!   guest ──query──▶ message ──▶ the policy: may this name be resolved? ──no──▶ REFUSED, nothing is forwarded
//!                                     │ yes
//!                                     ▼
//!                               upstream (the host's resolvers) ──answer──▶ answer: only records that were asked for,
//!                                                                           only addresses that may be open
//!                                     ┌────────────────────────────────────────┘
//!                                     ▼
//!                               Opens: each address on the ports of its rule ──done──▶ the guest gets the answer
//! ```
//!
//! Queries and answers are hostile. An answer is never passed on: the records that were asked for are read from it, and
//! a new answer is written.
//!
//! | record | |
//! |---|---|
//! | A, AAAA | forwarded, checked against the policy, opened. AAAA is empty without a request if the policy has no IPv6 |
//! | CNAME, TXT, MX, NS, SOA, PTR, SRV, CAA | forwarded. They open nothing: the guest must ask for the names in them |
//! | HTTPS, SVCB | empty, without a request: their hints of addresses would go around the policy |
//! | all others, ANY, AXFR | REFUSED |
//!
//! There is no cache: the host's resolvers have one, and an answer that is not kept can't be poisoned.

mod answer;
mod limits;
mod message;
mod name;
mod opens;
mod resolver;
mod serve;
#[cfg(test)]
mod tests;
mod upstream;
mod write;

pub use answer::{Answer, AnswerFault, Judged, LASTS_MAX, LASTS_MIN, judge, read};
pub use limits::{IN_FLIGHT_MAX, QUERIES_BURST, QUERIES_PER_SECOND};
pub use message::{Kind, QUERY_BYTES_MAX, Query, QueryFault};
pub use opens::{Grant, Neighbours, NoSink, Opens};
pub use resolver::{Resolver, Transport};
pub use serve::{serve_stream, serve_tcp, serve_udp};
pub use upstream::{SERVERS_MAX, Upstream};
