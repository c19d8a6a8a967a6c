//! What is wrong, and where.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// One mistake, where it is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named on the command line.
    pub file: Arc<str>,
    /// Line of the key, or of its section's header where the key is missing; counted from 1, and 0 where no
    /// line is to blame.
    pub line: usize,
    /// The key in full, as `function.orders.listen`. A section without a usable name is counted from 0, as
    /// `function[1].listen`. Empty where the whole file is to blame.
    pub key: String,
    /// One line, without secrets.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// At least one [`Problem`], in the order of the lines. Displays as one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(Vec<Problem>);

impl Errors {
    pub(crate) fn new(mut problems: Vec<Problem>) -> Option<Self> {
        problems.sort_by_key(|problem| problem.line);
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// The problems; never empty.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl From<Problem> for Errors {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Where a section was written, kept so that what is found out later (by [`Config::check_host`] or when the
/// agent binds a port) is reported with file, line and key as well. The default is "nowhere".
///
/// All origins are equal: sections that say the same are, wherever they stand.
///
/// [`Config::check_host`]: crate::Config::check_host
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub(crate) file: Arc<str>,
    /// The section, as `function.orders`.
    pub(crate) path: String,
    /// Line of the section's header.
    pub(crate) line: usize,
    /// Lines of the keys that are present.
    pub(crate) lines: BTreeMap<&'static str, usize>,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Origin {}

impl Origin {
    /// A problem with `key` of this section, on the key's line, or on the section's where the key is not
    /// written.
    pub fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        Problem {
            file: self.file.clone(),
            line: self.lines.get(key).copied().unwrap_or(self.line),
            key: format!("{}.{key}", self.path),
            message: message.into(),
        }
    }
}
