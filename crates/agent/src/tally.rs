//! Counts existing things by guards: each thing holds a guard, and dropping it counts down.

use std::cell::Cell;
use std::rc::Rc;

/// The number of guards that exist.
#[derive(Debug, Default)]
pub struct Tally(Rc<Cell<u32>>);

/// A guard that counts until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Counted(Rc<Cell<u32>>);

impl Tally {
    /// Creates a guard.
    pub fn one(&self) -> Counted {
        self.0.set(self.0.get() + 1);
        Counted(Rc::clone(&self.0))
    }

    /// The number of guards.
    pub fn count(&self) -> u32 {
        self.0.get()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_guard_is_not_counted() {
        let tally = Tally::default();
        let first = tally.one();
        drop(tally.one());
        assert_eq!(tally.count(), 1);
        drop(first);
        assert_eq!(tally.count(), 0);
    }
}
