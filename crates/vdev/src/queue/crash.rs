//! The points at which a device can be lost in a test: after each of its writes to memory that outlives it.

/// A write was made.
#[cfg(not(test))]
#[inline(always)]
pub(super) const fn point() {}

#[cfg(test)]
pub(super) use armed::{Lost, after, point};

#[cfg(test)]
mod armed {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    thread_local! {
        static WRITES_LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// The writer was lost in the middle.
    #[derive(Debug)]
    pub(crate) struct Lost;

    pub(crate) fn point() {
        WRITES_LEFT.with(|left| match left.get() {
            Some(0) => {
                left.set(None);
                resume_unwind(Box::new(Lost));
            }
            Some(writes) => left.set(Some(writes - 1)),
            None => {}
        });
    }

    /// Does this, and is lost behind so many writes, the first of which is 0.
    pub(crate) fn after<T>(writes: usize, act: impl FnOnce() -> T) -> Result<T, Lost> {
        WRITES_LEFT.with(|left| left.set(Some(writes)));
        let done = catch_unwind(AssertUnwindSafe(act));
        WRITES_LEFT.with(|left| left.set(None));
        match done {
            Ok(done) => Ok(done),
            Err(payload) if payload.is::<Lost>() => Err(Lost),
            Err(payload) => resume_unwind(payload),
        }
    }
}
