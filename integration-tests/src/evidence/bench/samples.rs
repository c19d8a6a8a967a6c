//! What was measured so far, by figure.

use anyhow::Result;

use crate::evidence::report::{Basis, Figure, samples_needed};

/// Series of samples in the order in which they began.
#[derive(Debug, Default)]
pub struct Samples(Vec<SampleSeries>);

#[derive(Debug)]
struct SampleSeries {
    name: &'static str,
    labels: Vec<(&'static str, String)>,
    unit: &'static str,
    samples: Vec<f64>,
    basis: Option<Basis>,
}

impl Samples {
    /// Adds a sample to the series of this name and these labels.
    pub fn add(
        &mut self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        unit: &'static str,
        sample: f64,
    ) {
        let found = self.0.iter_mut().find(|series| series.is(name, labels));
        if let Some(series) = found {
            series.samples.push(sample);
            return;
        }
        let labels = labels.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        self.0.push(SampleSeries { name, labels, unit, samples: vec![sample], basis: None });
    }

    /// Adds a figure that was computed from the samples of others.
    pub fn derive(
        &mut self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        unit: &'static str,
        value: f64,
        basis: Basis,
    ) {
        self.add(name, labels, unit, value);
        if let Some(series) = self.0.iter_mut().find(|series| series.is(name, labels)) {
            series.basis = Some(basis);
        }
    }

    /// The ratio of a percentile of two series, as a figure of its own.
    pub fn derive_ratio(
        &mut self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        percent: f64,
        of: (&str, &[(&'static str, &str)]),
        to: (&str, &[(&'static str, &str)]),
    ) {
        let samples = self.get(of.0, of.1).len().min(self.get(to.0, to.1).len());
        let basis = Basis { samples, needs: samples_needed(percent) };
        let ratio = self.percentile(of.0, of.1, percent) / self.percentile(to.0, to.1, percent);
        self.derive(name, labels, "ratio", ratio, basis);
    }

    /// The samples of a series in the order in which they came; none of one that has not begun.
    pub fn get(&self, name: &str, labels: &[(&'static str, &str)]) -> &[f64] {
        self.0.iter().find(|series| series.is(name, labels)).map_or(&[], |series| &series.samples)
    }

    /// The median of a series; `NaN` of one that has not begun.
    pub fn median(&self, name: &str, labels: &[(&'static str, &str)]) -> f64 {
        self.percentile(name, labels, 50.0)
    }

    /// A percentile of a series, by nearest rank; `NaN` of one that has not begun.
    pub fn percentile(&self, name: &str, labels: &[(&'static str, &str)], percent: f64) -> f64 {
        let mut sorted = self.get(name, labels).to_vec();
        sorted.sort_by(f64::total_cmp);
        headstart_statistics::percentile(&sorted, percent)
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A figure for each series.
    pub fn figures(&self) -> Result<Vec<Figure>> {
        let figure = |series: &SampleSeries| {
            let labels: Vec<_> = series.labels.iter().map(|(key, value)| (*key, value.as_str())).collect();
            Ok(Figure::new(series.name, &labels, series.unit, &series.samples)?.based_on(series.basis))
        };
        self.0.iter().map(figure).collect()
    }
}

impl SampleSeries {
    fn is(&self, name: &str, labels: &[(&'static str, &str)]) -> bool {
        let same = |(mine, other): (&(&str, String), &(&str, &str))| mine.0 == other.0 && mine.1 == other.1;
        self.name == name && self.labels.len() == labels.len() && self.labels.iter().zip(labels).all(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_go_to_their_series() {
        let mut samples = Samples::default();
        for (way, value) in [("a", 3.0), ("b", 9.0), ("a", 1.0), ("a", 2.0)] {
            samples.add("x_ms", &[("way", way)], "ms", value);
        }
        assert_eq!(samples.get("x_ms", &[("way", "a")]), [3.0, 1.0, 2.0]);
        assert!((samples.median("x_ms", &[("way", "a")]) - 2.0).abs() < f64::EPSILON);
        assert!(samples.get("x_ms", &[]).is_empty() && samples.median("y_ms", &[]).is_nan());
        let names: Vec<_> =
            samples.figures().unwrap().iter().map(|figure| figure.labels["way"].clone()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn a_ratio_knows_how_many_samples_it_is_of() {
        let mut samples = Samples::default();
        for value in [2.0, 4.0, 6.0] {
            samples.add("x_ms", &[("way", "a")], "ms", value);
        }
        samples.add("x_ms", &[("way", "b")], "ms", 2.0);
        let (a, b) = (("x_ms", &[("way", "a")][..]), ("x_ms", &[("way", "b")][..]));
        samples.derive_ratio("x_ratio", &[], 99.0, a, b);
        let value = samples.figures().unwrap().pop().unwrap().value();
        assert_eq!((value["p50"].as_f64(), &value["basis"]["n"]), (Some(3.0), &1.into()));
        assert_eq!(value["basis"]["needs"], 100);
    }
}
