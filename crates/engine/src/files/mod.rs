//! Files below a home: made for this user alone, read without trust, published whole, and what is known of them.

pub(crate) mod plain_file;
pub(crate) mod private_file;

mod file_facts;
mod partial;

pub(crate) use self::file_facts::{FileFacts, Witness};
pub(crate) use self::partial::{PARTIAL_SUFFIX, Partial, partials, sweep};
