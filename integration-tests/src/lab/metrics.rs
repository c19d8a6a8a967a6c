//! Reads the Prometheus text format, as far as looking up samples needs.

use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// One line of `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricSample {
    /// The name, with the `_bucket`, `_sum` or `_count` of a histogram.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// Everything `/metrics` said at one time.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// All samples, in order.
    pub samples: Vec<MetricSample>,
}

impl Metrics {
    /// Reads the text format; comments are skipped.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).with_context(|| format!("not a sample: {line}")));
        Ok(Self { samples: samples.collect::<Result<_>>()? })
    }

    /// The samples called `name` that have all of `labels`, whatever else they have.
    pub fn find<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a MetricSample> {
        self.samples.iter().filter(move |sample| {
            let has =
                |(key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|found| found == value);
            sample.name == name && labels.iter().all(has)
        })
    }

    /// The sum of those samples; none if there are none.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.find(name, labels).map(|sample| sample.value).reduce(|sum, value| sum + value)
    }

    /// As [`Metrics::get`], where a counter that was never incremented may be absent.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or(0.0)
    }
}

/// `name{key="value",...} value [timestamp]`
fn sample(line: &str) -> Option<MetricSample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquote(quoted)?;
            labels.insert(key.trim().to_owned(), value);
            rest = after.trim_start_matches([',', ' ']);
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(MetricSample { name: name.to_owned(), labels, value })
}

/// The text up to the closing quote, and what follows it.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let text = "# HELP a_total Things.\n# TYPE a_total counter\n\
                    a_total{function=\"orders\",kind=\"syn\"} 3\na_total{kind=\"lookup\",function=\"orders\",} 4 17\n\
                    a_seconds_bucket{le=\"+Inf\",path=\"a\\\"b\\\\c\\nd, {e}\"} 1.5e3\nup 1\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.get("a_total", &[("function", "orders")]), Some(7.0));
        assert_eq!(metrics.get("a_total", &[("kind", "syn"), ("function", "orders")]), Some(3.0));
        assert_eq!(metrics.get("a_total", &[("kind", "other")]), None);
        assert_eq!(metrics.sum("b_total", &[]), 0.0);
        assert_eq!(metrics.get("a_seconds_bucket", &[("path", "a\"b\\c\nd, {e}")]), Some(1500.0));
        assert_eq!(metrics.get("up", &[]), Some(1.0));
        assert!(Metrics::parse("a_total{function=\"orders} 3").is_err());
    }
}
