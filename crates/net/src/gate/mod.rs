//! The border of one VM's network: its policy at this moment, what the resolver learned, and what was denied.
//!
//! The resolver, the user-mode network and `explain` share one [`Gate`]. A change of the policy is visible to the next
//! decision of each of them.

mod border;
mod denials;

pub use border::{Gate, RENEWED_MAX, RENEWED_TIME};
pub use denials::{DENIALS_MAX, Denial, Denials, Denied};
