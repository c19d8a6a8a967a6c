//! One value, and the ways to read it.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::{BTreeMap, DeValue, Report, Table, closest};
use crate::units;

/// A value and where it is. Every method that returns `None` has reported why.
pub(crate) struct Value<'a> {
    pub(super) report: &'a Report,
    pub(super) path: String,
    pub(super) line: usize,
    pub(super) value: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    /// Reports that the value is wrong. The message must not repeat a value that may be secret.
    pub(crate) fn fail<T>(&self, message: impl Into<String>) -> Option<T> {
        self.report.add(self.line, &self.path, message);
        None
    }

    /// Line of the value's key.
    pub(crate) fn line(&self) -> usize {
        self.line
    }

    fn mistyped<T>(&self, expected: &str) -> Option<T> {
        let found = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.fail(format!("must be {expected}, not {found}"))
    }

    /// A string as the kernel can take it: without NUL bytes.
    pub(crate) fn string(&self) -> Option<&'a str> {
        match self.value.as_str() {
            Some(text) if text.contains('\0') => self.fail("must not contain a NUL character"),
            Some(text) => Some(text),
            None => self.mistyped("a string"),
        }
    }

    /// A string that is not empty.
    pub(crate) fn text(&self) -> Option<&'a str> {
        self.string().filter(|text| !text.is_empty() || self.fail::<()>("must not be empty").is_some())
    }

    /// A string for which `valid` holds; `rule` says what it must be.
    pub(crate) fn matching(&self, rule: &str, valid: impl FnOnce(&str) -> bool) -> Option<String> {
        let text = self.string()?;
        if valid(text) { Some(text.to_owned()) } else { self.fail(format!("must be {rule}")) }
    }

    /// The name of a backend or a function. It becomes a metric label and a part of file and container names.
    pub(crate) fn name(&self) -> Option<String> {
        self.matching("1 to 63 of a-z, 0-9 and \"-\", and begin with a letter or a digit", |text| {
            let plain = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
            plain && (1..=63).contains(&text.len()) && !text.starts_with('-')
        })
    }

    /// A path from the root.
    pub(crate) fn absolute_path(&self) -> Option<PathBuf> {
        self.matching("an absolute path", |text| text.starts_with('/')).map(PathBuf::from)
    }

    /// An address to listen on.
    pub(crate) fn socket_address(&self) -> Option<SocketAddr> {
        let text = self.string()?;
        match text.parse() {
            Ok(address) => Some(address),
            Err(_) => self.fail("must be an IP address and a port, as in \"0.0.0.0:8081\" or \"[::]:8081\""),
        }
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        if let Some((_, choice)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        match closest(text, words.iter().map(|(word, _)| *word)) {
            Some(word) => self.fail(format!("unknown value {text:?}, did you mean \"{word}\"?")),
            None => {
                let words: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                self.fail(format!("unknown value {text:?}; must be {}", words.join(" or ")))
            }
        }
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.mistyped("true or false"))
    }

    /// `false`, or one of a few words.
    pub(crate) fn false_or<T: Copy>(&self, no: T, words: &[(&str, T)]) -> Option<T> {
        match self.value {
            DeValue::Boolean(false) => return Some(no),
            DeValue::String(text) => {
                if let Some((_, choice)) = words.iter().find(|(word, _)| word == text) {
                    return Some(*choice);
                }
                if let Some(word) = closest(text, words.iter().map(|(word, _)| *word)) {
                    return self.fail(format!("unknown value {text:?}, did you mean \"{word}\"?"));
                }
            }
            _ => {}
        }
        let words: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.fail(format!("must be false or {}", words.join(" or ")))
    }

    /// A whole number within `range`.
    pub(crate) fn integer<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        if !self.value.is_integer() {
            return self.mistyped("a whole number");
        }
        let message = || format!("must be {} to {}", range.start(), range.end());
        self.integer_in(&range).or_else(|| self.fail(message()))
    }

    /// A whole number within `range`, or `word` for none.
    pub(crate) fn integer_or<T>(&self, word: &str, range: RangeInclusive<T>) -> Option<Option<T>>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        if self.value.as_str() == Some(word) {
            return Some(None);
        }
        let message = || format!("must be {} to {} or \"{word}\"", range.start(), range.end());
        self.integer_in(&range).map(Some).or_else(|| self.fail(message()))
    }

    /// The value, if it is a whole number within `range`; nothing is reported.
    fn integer_in<T: TryFrom<i64> + PartialOrd>(&self, range: &RangeInclusive<T>) -> Option<T> {
        let integer = self.value.as_integer()?;
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
        T::try_from(number).ok().filter(|number| range.contains(number))
    }

    /// A duration within `range`.
    pub(crate) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.quantity("", units::DURATION, units::duration, range, units::show_duration)
    }

    /// `false` for none, or a duration within `range`.
    pub(crate) fn false_or_duration(&self, range: RangeInclusive<Duration>) -> Option<Option<Duration>> {
        if self.value.as_bool() == Some(false) {
            return Some(None);
        }
        self.quantity("false or ", units::DURATION, units::duration, range, units::show_duration).map(Some)
    }

    /// `false`, or a size within `range`, in bytes.
    pub(crate) fn false_or_size(&self, range: RangeInclusive<u64>) -> Option<Option<u64>> {
        if self.value.as_bool() == Some(false) {
            return Some(None);
        }
        self.quantity("false or ", units::SIZE, units::size, range, units::show_size).map(Some)
    }

    /// A size within `range`, in bytes.
    pub(crate) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        self.quantity("", units::SIZE, units::size, range, units::show_size)
    }

    /// A number with a unit; `or` is what messages say may stand in its place.
    fn quantity<T: PartialOrd + Copy>(
        &self,
        or: &str,
        form: &str,
        read: fn(&str) -> Option<T>,
        range: RangeInclusive<T>,
        show: fn(T) -> String,
    ) -> Option<T> {
        if self.value.is_integer() || self.value.is_float() {
            return self.fail(format!("has no unit: must be {or}{form}"));
        }
        let Some(text) = self.value.as_str() else {
            return self.mistyped(&format!("{or}{form}"));
        };
        match read(text) {
            Some(quantity) if range.contains(&quantity) => Some(quantity),
            Some(_) => self.fail(format!("must be {or}{} to {}", show(*range.start()), show(*range.end()))),
            None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                self.fail(format!("has no unit: must be {or}{form}"))
            }
            None => self.fail(format!("must be {or}{form}")),
        }
    }

    /// The items of a list, each on its own line where it is written so.
    pub(crate) fn list(&self) -> Option<Vec<Value<'a>>> {
        let Some(items) = self.value.as_array() else {
            return self.mistyped("a list");
        };
        let item = |(i, item): (usize, &'a toml::Spanned<DeValue<'a>>)| Value {
            report: self.report,
            path: format!("{}[{i}]", self.path),
            line: self.report.line(item.span().start),
            value: item.get_ref(),
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// `true`, `false`, or a table, which is as good as `true`; `form` shows how it is written.
    pub(crate) fn boolean_or_table(&self, form: &str) -> Option<(bool, Option<Table<'a>>)> {
        match self.value {
            DeValue::Boolean(on) => Some((*on, None)),
            DeValue::Table(_) => {
                let again = Value {
                    report: self.report,
                    path: self.path.clone(),
                    line: self.line,
                    value: self.value,
                };
                Some((true, again.table(form)))
            }
            _ => self.mistyped(&format!("true, false or a table, as {form}")),
        }
    }

    /// A table; `form` shows how it is written.
    pub(crate) fn table(self, form: &str) -> Option<Table<'a>> {
        match self.value {
            DeValue::Table(entries) => Some(Table {
                report: self.report,
                path: self.path,
                line: self.line,
                entries: Some(entries),
                asked: BTreeMap::new(),
            }),
            DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_table()) => {
                self.fail(format!("must be written once, as {form}"))
            }
            _ => self.mistyped(&format!("a table, as {form}")),
        }
    }

    /// As [`Table::tables`].
    pub(super) fn tables(&self, header: &str, max: usize) -> Vec<Table<'a>> {
        if self.value.is_table() {
            self.fail::<()>(format!("must be written as {header}, with two brackets"));
            return Vec::new();
        }
        let Some(items) = self.list() else { return Vec::new() };
        if items.len() > max {
            self.fail::<()>(format!("must be at most {max} sections, not {}", items.len()));
            return Vec::new();
        }
        items.into_iter().filter_map(|item| item.table(header)).collect()
    }
}
