//! A cursor over the TOML tree which collects every problem.
//!
//! A section asks its [`Table`] for each key it knows, by name; [`Table::finish`] then reports the keys that
//! were not asked for. A reader that returns `None` has already reported why, so sections carry on with the
//! next key and give up only when they build their value.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::problem::{Errors, Origin, Problem};

mod value;
pub(crate) use value::Value;

/// The collector of one file's problems.
pub(crate) struct Report {
    file: Arc<str>,
    /// Offset of the first byte of each line.
    line_starts: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
}

impl Report {
    pub(crate) fn new(file: &str, text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self {
            file: file.into(),
            line_starts: std::iter::once(0).chain(breaks).collect(),
            problems: RefCell::default(),
        }
    }

    /// The line, from 1, of the byte at `offset`.
    fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    pub(crate) fn add(&self, line: usize, key: &str, message: impl Into<String>) {
        let problem = Problem { file: self.file.clone(), line, key: key.to_owned(), message: message.into() };
        self.problems.borrow_mut().push(problem);
    }

    /// Text that is not TOML. Only the position and the parser's reason are shown: the text may hold a
    /// secret.
    pub(crate) fn syntax(self, error: &toml::de::Error, text: &str) -> Errors {
        let offset = error.span().map_or(0, |span| span.start).min(text.len());
        let line = self.line(offset);
        let start = self.line_starts[line - 1];
        let column = 1 + text.get(start..offset).map_or(offset - start, |before| before.chars().count());
        let message = format!("column {column}: {}", error.message());
        Errors::from(Problem { file: self.file, line, key: String::new(), message })
    }

    pub(crate) fn into_errors(self) -> Option<Errors> {
        Errors::new(self.problems.into_inner())
    }
}

/// A section, as `[agent]` or `pool = { .. }`.
pub(crate) struct Table<'a> {
    report: &'a Report,
    path: String,
    line: usize,
    /// `None` for a section that is not written, of which every key has its default.
    entries: Option<&'a DeTable<'a>>,
    /// Every key the section knows, and its line if it is present.
    asked: BTreeMap<&'static str, Option<usize>>,
}

impl<'a> Table<'a> {
    pub(crate) fn root(report: &'a Report, entries: &'a DeTable<'a>) -> Self {
        Self { report, path: String::new(), line: 1, entries: Some(entries), asked: BTreeMap::new() }
    }

    pub(crate) fn absent(report: &'a Report, path: &str) -> Self {
        Self { report, path: path.to_owned(), line: 0, entries: None, asked: BTreeMap::new() }
    }

    /// Names the section in messages, as `function.orders`.
    pub(crate) fn rename(&mut self, path: String) {
        self.path = path;
    }

    /// Line of the section's header.
    pub(crate) fn line(&self) -> usize {
        self.line
    }

    /// The value of `key`, if it is written.
    pub(crate) fn get(&mut self, key: &'static str) -> Option<Value<'a>> {
        let found = self.entries.and_then(|entries| entries.get_key_value(key));
        let line = found.map(|(name, _)| self.report.line(name.span().start));
        self.asked.insert(key, line);
        let (_, value) = found?;
        Some(Value { report: self.report, path: self.join(key), line: line?, value: value.get_ref() })
    }

    /// The value of a required key; `why` completes the message "is required".
    pub(crate) fn require<T>(
        &mut self,
        key: &'static str,
        why: &str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Option<T> {
        let Some(value) = self.get(key) else {
            self.report.add(self.line, &self.join(key), format!("is required{why}"));
            return None;
        };
        read(value)
    }

    /// The value of a key, or `default` where it is not written (or is wrong, which has been reported).
    pub(crate) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> T {
        self.get(key).and_then(read).unwrap_or(default)
    }

    /// The sections under `header`, as `[[function]]`, of which there are at most `max`.
    pub(crate) fn tables(&mut self, key: &'static str, header: &str, max: usize) -> Vec<Table<'a>> {
        self.get(key).map_or(Vec::new(), |value| value.tables(header, max))
    }

    /// Reports `key` if it is written: it belongs to another kind of section.
    pub(crate) fn refuse(&mut self, key: &'static str, message: &str) {
        if let Some(value) = self.get(key) {
            value.fail::<()>(message);
        }
    }

    /// Every entry, for tables whose keys are the user's own.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.entries.into_iter().flat_map(|entries| entries.iter()).map(|(name, value)| {
            let path = self.join(name.get_ref());
            let line = self.report.line(name.span().start);
            (name.get_ref().as_ref(), Value { report: self.report, path, line, value: value.get_ref() })
        })
    }

    /// Reports the keys that were not asked for, and gives the section's place for later problems.
    pub(crate) fn finish(self) -> Origin {
        for (name, value) in self.entries() {
            if !self.asked.contains_key(name) {
                value.fail::<()>(self.unknown(name));
            }
        }
        let lines = self.asked.into_iter().filter_map(|(key, line)| Some((key, line?))).collect();
        Origin { file: self.report.file.clone(), path: self.path, line: self.line, lines }
    }

    fn unknown(&self, name: &str) -> String {
        match closest(name, self.asked.keys().copied()) {
            Some(known) => format!("unknown key, did you mean \"{known}\"?"),
            None => {
                let known: Vec<_> = self.asked.keys().copied().collect();
                format!("unknown key; the keys here are {}", known.join(", "))
            }
        }
    }

    fn join(&self, key: &str) -> String {
        let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let separator = if self.path.is_empty() { "" } else { "." };
        if !key.is_empty() && key.bytes().all(bare) {
            format!("{}{separator}{key}", self.path)
        } else {
            format!("{}{separator}{key:?}", self.path)
        }
    }
}

/// The word that was probably meant by `typed`.
pub fn closest<'w>(typed: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    /// Similarity, of 1, from which a suggestion helps more than a list of all words does.
    const ALIKE: f64 = 0.85;
    words
        .map(|word| (strsim::jaro_winkler(typed, word), word))
        .filter(|(score, _)| *score >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}
