//! Page numbers as runs without gaps, split into batches that fit a buffer.

use std::iter;
use std::ops::Range;

use super::page_file::PAGE_BYTES;

/// Pages that are moved at once. Even if each is a run of its own, they fit the 1024 vectors of a system call, and the
/// buffer fits the second-level cache.
pub(super) const BATCH_PAGES: usize = 256;
/// A buffer for a batch.
pub(super) const BATCH_BYTES: usize = BATCH_PAGES * PAGE_BYTES;

/// Runs of page numbers, ascending, with gaps between them.
pub(crate) type PageRuns = Vec<Range<u64>>;

/// Adds a page with a higher number than all others.
pub(super) fn push_page(runs: &mut PageRuns, page: u64) {
    push_run(runs, page..page + 1);
}

/// Adds a run above all others.
pub(super) fn push_run(runs: &mut PageRuns, run: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        last => {
            debug_assert!(last.is_none_or(|last| last.end < run.start), "pages ascend");
            runs.push(run);
        }
    }
}

/// The number of pages in the runs.
pub(super) fn page_count(runs: &[Range<u64>]) -> u64 {
    runs.iter().map(|run| run.end - run.start).sum()
}

/// The pages one by one.
pub(super) fn pages(runs: &[Range<u64>]) -> impl Iterator<Item = u64> {
    runs.iter().cloned().flatten()
}

/// Splits ascending pages into batches of [`BATCH_PAGES`].
pub(super) fn batches(mut pages: impl Iterator<Item = u64>) -> impl Iterator<Item = PageRuns> {
    iter::from_fn(move || {
        let mut runs = Vec::new();
        pages.by_ref().take(BATCH_PAGES).for_each(|page| push_page(&mut runs, page));
        (!runs.is_empty()).then_some(runs)
    })
}

/// The pages of both, each once. Both inputs ascend.
pub(super) fn union(left: impl Iterator<Item = u64>, right: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    iter::from_fn(move || {
        let page = match (left.peek(), right.peek()) {
            (Some(&left), Some(&right)) => left.min(right),
            (left, right) => *left.or(right)?,
        };
        left.next_if_eq(&page);
        right.next_if_eq(&page);
        Some(page)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_run_and_batches_are_bounded() {
        let numbers = [0, 1, 2, 5, 7, 8];
        assert_eq!(batches(numbers.into_iter()).collect::<Vec<_>>(), [vec![0..3, 5..6, 7..9]]);
        let many = batches(0..1000).collect::<Vec<_>>();
        assert_eq!(many.iter().map(|runs| page_count(runs)).collect::<Vec<_>>(), [256, 256, 256, 232]);
        assert!(many.iter().flat_map(|runs| pages(runs)).eq(0..1000));
    }

    #[test]
    fn a_page_of_both_comes_once() {
        let both = union([1, 3, 5].into_iter(), [0, 3, 4, 9].into_iter());
        assert_eq!(both.collect::<Vec<_>>(), [0, 1, 3, 4, 5, 9]);
    }
}
