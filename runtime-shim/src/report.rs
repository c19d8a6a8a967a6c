//! Messages on standard error.

use std::error::Error;
use std::io::Write;

/// Writes one line. Ignores a closed standard error: the agent may have held the other
/// end, and a function outlives the agent.
pub(crate) fn line(text: &str) {
    let text = format!("headstart: {}\n", text.replace('\n', " "));
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// An error and its causes, without repetitions.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
