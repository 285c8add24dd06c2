//! Raw samples, their percentiles, and promises about them.

use serde::Serialize;

/// All samples of one measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// What was measured.
    pub name: &'static str,
    /// Unit of the samples.
    pub unit: Unit,
    /// In the order they were taken.
    pub samples: Vec<f64>,
}

/// Unit of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// MiB each second.
    MibPerS,
    /// MiB.
    Mib,
    /// One measurement against another of the same round.
    Ratio,
}

impl Unit {
    /// The unit in a table.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::MibPerS => "MiB/s",
            Self::Mib => "MiB",
            Self::Ratio => "×",
        }
    }
}

/// A promise of SPECIFICATION.md, with the number of this run.
#[derive(Debug, Clone, Serialize)]
pub struct Promise {
    /// What is promised.
    pub claim: &'static str,
    /// The number of this run.
    pub seen: f64,
    /// The bound.
    pub bound: f64,
    /// Whether less or more is better.
    pub sense: Sense,
}

/// On which side of the bound a number must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sense {
    /// At most the bound.
    AtMost,
    /// At least the bound.
    AtLeast,
}

impl Promise {
    /// Whether this run kept it.
    pub fn kept(&self) -> bool {
        match self.sense {
            Sense::AtMost => self.seen <= self.bound,
            Sense::AtLeast => self.seen >= self.bound,
        }
    }
}

impl Series {
    /// An empty series.
    pub const fn new(name: &'static str, unit: Unit) -> Self {
        Self { name, unit, samples: Vec::new() }
    }

    /// The nearest-rank percentile; `percent` is 0 to 100. NaN if there are no samples.
    pub fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0);
        // A rank is a small positive whole number, so the cast is exact.
        sorted.get(rank as usize - 1).copied().unwrap_or(f64::NAN)
    }

    /// The median.
    pub fn p50(&self) -> f64 {
        self.percentile(50.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let mut series = Series::new("x", Unit::Ms);
        series.samples = (1..=100).rev().map(f64::from).collect();
        assert_eq!((series.p50(), series.percentile(95.0), series.percentile(99.0)), (50.0, 95.0, 99.0));
        assert_eq!(series.percentile(100.0), 100.0);
        series.samples = vec![3.0];
        assert_eq!((series.p50(), series.percentile(99.0)), (3.0, 3.0));
        series.samples.clear();
        assert!(series.p50().is_nan());
    }
}
