//! Files below a home: created for this user only, read as hostile, published by a rename, and facts about them.

pub(crate) mod plain_file;
pub(crate) mod private_file;

mod file_facts;
mod partial;

pub(crate) use self::file_facts::{FileFacts, Witness};
pub(crate) use self::partial::{
    PARTIAL_SUFFIX, Partial, create_partial_file, is_still, partials, sweep, try_lock_together,
};
