//! SPECIFICATION.md against a report.
//!
//! In its tables a code span such as `flood_cold_ratio{of="p99", against="none"}.p50 <= 1.5` is a promise: every figure of
//! this name that has these labels, perhaps among others, has a value in this column that is within the bound. A figure with
//! fewer samples than its statistic needs is not judged.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Basis, samples_needed};

/// The columns that a promise may name, and the percentile that is in it.
const COLUMNS: [(&str, Option<f64>); 7] = [
    ("p50", Some(50.0)),
    ("p90", Some(90.0)),
    ("p95", Some(95.0)),
    ("p99", Some(99.0)),
    ("min", None),
    ("max", None),
    ("mean", None),
];

/// What is promised.
#[derive(Clone, Debug, PartialEq)]
pub struct Promise {
    /// As it is written.
    pub text: String,
    name: String,
    labels: BTreeMap<String, String>,
    column: String,
    at_most: bool,
    bound: f64,
}

/// What a report says to a promise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The value nearest to the bound.
    Held(f64),
    /// The value furthest beyond it.
    Broken(f64),
    /// No figure is beyond the bound, but this one has fewer samples than it needs.
    NotJudged(Basis),
    /// It has no such figure.
    NotMeasured,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(value) => write!(f, "held: {value}"),
            Self::Broken(value) => write!(f, "BROKEN: {value}"),
            Self::NotJudged(Basis { samples, needs }) => {
                write!(f, "not judged: {samples} samples, needs {needs}")
            }
            Self::NotMeasured => f.write_str("not measured"),
        }
    }
}

/// All promises of a specification.
pub fn promises(specification: &str) -> Result<Vec<Promise>> {
    let mut promises = Vec::new();
    for (number, line) in specification.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
        // Every other piece is between backquotes.
        let spans = line.split('`').skip(1).step_by(2);
        for span in spans.filter(|span| span.contains("<=") || span.contains(">=")) {
            let promise = Promise::parse(span);
            promises.push(promise.with_context(|| format!("SPECIFICATION.md:{}: `{span}`", number + 1))?);
        }
    }
    Ok(promises)
}

impl Promise {
    fn parse(text: &str) -> Result<Self> {
        let form = "a promise is NAME{LABEL=\"VALUE\", ..}.COLUMN <= BOUND, or >=";
        let at_most = text.contains("<=");
        let (figure, bound) = text.split_once(if at_most { "<=" } else { ">=" }).context(form)?;
        let bound = bound.trim().parse().with_context(|| format!("{form}: the bound is no number"))?;
        let (figure, column) = figure.trim().rsplit_once('.').context(form)?;
        ensure!(COLUMNS.iter().any(|(name, _)| *name == column), "no column {column:?}");
        let (name, labels) = match figure.split_once('{') {
            None => (figure, ""),
            Some((name, labels)) => (name, labels.strip_suffix('}').context(form)?),
        };
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        ensure!(is_name(name), "no name of a figure: {name:?}");
        let mut pairs = BTreeMap::new();
        for pair in labels.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').context(form)?;
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).context(form)?;
            if !is_name(key) || pairs.insert(key.to_owned(), value.to_owned()).is_some() {
                bail!("{form}: {key:?}");
            }
        }
        let (name, column) = (name.to_owned(), column.to_owned());
        Ok(Self { text: text.to_owned(), name, labels: pairs, column, at_most, bound })
    }

    /// What a report, as in `report.json`, says to it.
    pub fn verdict(&self, report: &Value) -> Verdict {
        let figures = report["figures"].as_array().into_iter().flatten();
        let matching = figures.filter(|figure| {
            figure["name"] == *self.name
                && self.labels.iter().all(|(key, value)| figure["labels"][key] == *value)
        });
        let matching: Vec<&Value> = matching.collect();
        let values = matching.iter().filter(|figure| self.lacking(figure).is_none());
        let values = values.map(|figure| figure[&self.column].as_f64().unwrap_or(f64::NAN));
        // What is not a number is not within any bound.
        let worst = if self.at_most {
            values.reduce(|worst, value| if value <= worst { worst } else { value })
        } else {
            values.reduce(|worst, value| if value >= worst { worst } else { value })
        };
        let within = |value: f64| if self.at_most { value <= self.bound } else { value >= self.bound };
        match (worst, matching.iter().find_map(|figure| self.lacking(figure))) {
            (Some(value), _) if !within(value) => Verdict::Broken(value),
            (_, Some(basis)) => Verdict::NotJudged(basis),
            (Some(value), None) => Verdict::Held(value),
            (None, None) => Verdict::NotMeasured,
        }
    }

    /// The basis of a figure that has fewer samples than it needs to be judged.
    fn lacking(&self, figure: &Value) -> Option<Basis> {
        let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
        let percent = COLUMNS.iter().find(|(name, _)| *name == self.column).and_then(|(_, percent)| *percent);
        let own = number(&figure["n"]).zip(percent).map(|(samples, percent)| Basis {
            samples,
            // The median of a figure that was computed once is that figure.
            needs: if percent > 50.0 { samples_needed(percent) } else { 1 },
        });
        let basis = number(&figure["basis"]["n"]).zip(number(&figure["basis"]["needs"]));
        let basis = basis.map(|(samples, needs)| Basis { samples, needs });
        [own, basis].into_iter().flatten().find(|basis| basis.samples < basis.needs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn one(text: &str) -> Result<Promise> {
        Ok(promises(&format!("| a | `{text}` |"))?.remove(0))
    }

    #[test]
    fn a_promise_is_held_by_all_figures_it_names() {
        let report = json!({ "figures": [
            { "name": "x_ms", "labels": { "way": "a", "at": "0" }, "p50": 1.0 },
            { "name": "x_ms", "labels": { "way": "a", "at": "1" }, "p50": 3.0 },
            { "name": "x_ms", "labels": { "way": "b", "at": "0" }, "p50": -5.0 },
            { "name": "y", "labels": {}, "p50": null },
        ]});
        for (text, verdict) in [
            (r#"x_ms{way="a"}.p50 <= 3"#, Verdict::Held(3.0)),
            (r#"x_ms{way="a"}.p50 <= 2.5"#, Verdict::Broken(3.0)),
            (r#"x_ms{way="a", at="0"}.p50 <= 2.5"#, Verdict::Held(1.0)),
            (r#"x_ms{way="a"}.p50 >= 1"#, Verdict::Held(1.0)),
            ("x_ms.p50 >= 1", Verdict::Broken(-5.0)),
            (r#"x_ms{way="c"}.p50 <= 3"#, Verdict::NotMeasured),
        ] {
            assert_eq!(one(text).unwrap().verdict(&report), verdict, "{text}");
        }
        for text in ["y.p50 <= 1", "y.p50 >= 1", "y.p99 <= 1"] {
            assert!(matches!(one(text).unwrap().verdict(&report), Verdict::Broken(_)), "{text}");
        }
    }

    #[test]
    fn what_has_too_few_samples_is_not_judged() {
        let few = |n: u64, needs: u64| json!({ "n": n, "needs": needs });
        let report = json!({ "figures": [
            { "name": "few_p", "labels": { "at": "0" }, "n": 1, "p50": 0.12, "basis": few(10, 60) },
            { "name": "few_p", "labels": { "at": "1" }, "n": 1, "p50": 0.5, "basis": few(60, 60) },
            { "name": "x_ms", "labels": {}, "n": 99, "p50": 1.0, "p99": 9.0 },
        ]});
        let lacks = |samples, needs| Verdict::NotJudged(Basis { samples, needs });
        for (text, verdict) in [
            (r#"few_p{at="0"}.p50 <= 0.01"#, lacks(10, 60)),
            (r#"few_p{at="1"}.p50 <= 0.01"#, Verdict::Broken(0.5)),
            // What can be judged is.
            ("few_p.p50 <= 0.01", Verdict::Broken(0.5)),
            ("few_p.p50 <= 0.6", lacks(10, 60)),
            ("x_ms.p50 <= 2", Verdict::Held(1.0)),
            ("x_ms.p99 <= 2", lacks(99, 100)),
        ] {
            assert_eq!(one(text).unwrap().verdict(&report), verdict, "{text}");
        }
        assert_eq!(lacks(10, 60).to_string(), "not judged: 10 samples, needs 60");
    }

    #[test]
    fn a_malformed_promise_is_an_error_that_names_its_line() {
        for text in [
            "x_ms <= 3",
            "x_ms.p51 <= 3",
            "x_ms{way=a}.p50 <= 3",
            "x_ms{way=\"a\".p50 <= 3",
            "x.p50 <= a bit",
            "<= 3",
        ] {
            let error = promises(&format!("text\n| a | `{text}` |")).unwrap_err();
            assert!(format!("{error:#}").starts_with("SPECIFICATION.md:2: "), "{error:#}");
        }
        assert_eq!(promises("| a | `code` <= 3 |\n`x <= 3`").unwrap(), []);
    }

    #[test]
    fn the_specification_is_well_formed() {
        let text = fs::read_to_string(crate::lab::workspace().join("SPECIFICATION.md")).unwrap();
        assert!(promises(&text).unwrap().len() > 5);
    }
}
