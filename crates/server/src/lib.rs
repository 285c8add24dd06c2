//! Kiln's HTTP server: handlers, the supervisor of sandboxes, the store and the dashboard.
//!
//! It is not implemented yet. Its interface will be that of `kiln-api`, and it will use `kiln-engine`.
