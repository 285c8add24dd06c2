//! Counts what there is now: each thing holds a guard, and its end can't be forgotten.

use std::cell::Cell;
use std::rc::Rc;

/// How many there are.
#[derive(Debug, Default)]
pub struct Tally(Rc<Cell<u32>>);

/// One of them, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Counted(Rc<Cell<u32>>);

impl Tally {
    /// Counts one more.
    pub fn one(&self) -> Counted {
        self.0.set(self.0.get() + 1);
        Counted(Rc::clone(&self.0))
    }

    /// How many there are now.
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
    fn what_ended_is_not_counted() {
        let tally = Tally::default();
        let first = tally.one();
        drop(tally.one());
        assert_eq!(tally.count(), 1);
        drop(first);
        assert_eq!(tally.count(), 0);
    }
}
