//! The middle and the extremes of some figures.

use serde::Serialize;

/// Of several rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The one in the middle, or between the two there.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of figures that are numbers; none, if there is no such figure.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<_> = figures.into_iter().filter(|figure| figure.is_finite()).collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let upper = *figures.get(middle)?;
        let median = if figures.len() % 2 == 1 { upper } else { f64::midpoint(figures[middle - 1], upper) };
        Some(Self { min: figures[0], median, max: figures[figures.len() - 1] })
    }

    /// Of our figures by theirs, round by round, so that what slows a round down slows both.
    pub fn of_ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        Self::of(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs))
    }

    /// All three by a number.
    #[must_use]
    pub fn by(self, number: f64) -> Self {
        Self { min: self.min / number, median: self.median / number, max: self.max / number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_ones() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]), Some(Spread { min: 1.0, median: 2.5, max: 4.0 }));
        assert_eq!(Spread::of([3.0, f64::NAN, 1.0, 2.0]), Some(Spread { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(Spread::of([f64::NAN]), None);
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_and_not_of_the_rates() {
        // A machine that was twice as slow in the second round.
        let ratio = Spread::of_ratios(&[10.0, 5.0, 12.0], &[5.0, 2.5, 4.0]).unwrap();
        assert_eq!((ratio.median, ratio.max), (2.0, 3.0));
    }
}
