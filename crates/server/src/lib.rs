//! Kiln's HTTP server: handlers, the supervisor of sandboxes, the store and the dashboard.
//!
//! Nothing of it is there yet. What its clients will see is in `kiln-api`, what it will run on is in `kiln-engine`.
