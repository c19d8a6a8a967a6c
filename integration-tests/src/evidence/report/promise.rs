//! SPECIFICATION.md against a report.
//!
//! In its tables a code span such as `flood_cold_ratio{of="p99", against="none"}.p50 <= 1.5` is a promise: every figure of
//! this name that has these labels, perhaps among others, has a value in this column that is within the bound.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

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
    /// It has no such figure.
    NotMeasured,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(value) => write!(f, "held: {value}"),
            Self::Broken(value) => write!(f, "BROKEN: {value}"),
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
        ensure!(["p50", "p90", "p95", "p99", "min", "max", "mean"].contains(&column), "no column {column:?}");
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
        let values = matching.map(|figure| figure[&self.column].as_f64().unwrap_or(f64::NAN));
        // What is not a number is not within any bound.
        let worst = if self.at_most {
            values.reduce(|worst, value| if value <= worst { worst } else { value })
        } else {
            values.reduce(|worst, value| if value >= worst { worst } else { value })
        };
        match worst {
            None => Verdict::NotMeasured,
            Some(value) if self.at_most && value <= self.bound => Verdict::Held(value),
            Some(value) if !self.at_most && value >= self.bound => Verdict::Held(value),
            Some(value) => Verdict::Broken(value),
        }
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
