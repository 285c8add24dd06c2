//! Durations, counted in buckets that are as wide as 1/32 of what is in them: percentiles of any number of samples in
//! the same memory, at most 3 % off.

use std::time::Duration;

/// Buckets for each power of two.
const PARTS: u64 = 32;
const PARTS_BITS: u32 = PARTS.trailing_zeros();
/// Powers of two: up to 2⁴⁴ ns, some five hours.
const POWERS: usize = 44;
const BUCKETS: usize = (POWERS - PARTS_BITS as usize) * PARTS as usize + PARTS as usize;

/// How often durations of each size were seen.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

impl Histogram {
    /// Counts a duration. What is longer than the last bucket is counted there.
    pub fn record(&mut self, duration: Duration) {
        self.record_nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// As [`record`](Self::record), in nanoseconds.
    fn record_nanos(&mut self, nanos: u64) {
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.sum += u128::from(nanos);
        self.min = self.min.min(nanos);
        self.max = self.max.max(nanos);
    }

    /// Counts what another one has counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many were counted.
    pub const fn count(&self) -> u64 {
        self.total
    }

    /// The shortest; zero if nothing was counted.
    pub(super) const fn min(&self) -> Duration {
        Duration::from_nanos(if self.total == 0 { 0 } else { self.min })
    }

    /// The longest.
    pub(super) const fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// Their mean.
    pub(super) fn mean(&self) -> Duration {
        let mean = self.sum.checked_div(self.total.into()).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// The duration that so many of a hundred do not pass.
    pub fn percentile(&self, percent: f64) -> Duration {
        let wanted = ((percent / 100.0 * self.total as f64).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(middle(bucket).clamp(self.min, self.max));
            }
        }
        self.max()
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < PARTS {
        return nanos as usize;
    }
    let power = nanos.ilog2();
    let part = nanos >> (power - PARTS_BITS) & (PARTS - 1);
    let index = u64::from(power - PARTS_BITS) * PARTS + PARTS + part;
    (index as usize).min(BUCKETS - 1)
}

/// The middle of what a bucket counts.
fn middle(bucket: usize) -> u64 {
    let (bucket, parts) = (bucket as u64, PARTS);
    if bucket < parts {
        return bucket;
    }
    let shift = (bucket - parts) / parts;
    let start = (parts + (bucket - parts) % parts) << shift;
    start + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_is_never_far_from_what_is_in_it(nanos in 0_u64..1 << 44) {
            let found = middle(bucket(nanos));
            prop_assert!(found.abs_diff(nanos) <= nanos / PARTS, "{nanos} {found}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let mut histogram = Histogram::default();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (percent, expected) in [(50.0, 500), (95.0, 950), (99.0, 990), (100.0, 1000)] {
            let found = histogram.percentile(percent).as_micros();
            assert!(found.abs_diff(expected) * 32 <= expected, "p{percent}: {found}");
        }
        assert_eq!((histogram.min().as_micros(), histogram.max().as_micros()), (1, 1000));
        assert_eq!(histogram.mean().as_nanos(), 500_500);
    }

    #[test]
    fn nothing_and_the_longest_have_their_place() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.percentile(50.0), histogram.min(), histogram.mean()), Default::default());
        histogram.record(Duration::MAX);
        let mut other = Histogram::default();
        other.merge(&histogram);
        assert_eq!(other.percentile(50.0), Duration::from_nanos(u64::MAX));
        assert_eq!(other.count(), 1);
    }
}
