//! Text of others, for a terminal or a line of a log.

use std::borrow::Cow;

/// The text with every character escaped that controls a terminal, ends a line, or changes the direction of what follows.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    escape(text, false)
}

/// As [`printable`]; `colours` says that escape sequences for colours are the agent's own.
pub(super) fn escape(text: &str, colours: bool) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let (taken, left) = rest.split_at(character.len_utf8());
        match colour(rest).filter(|_| colours) {
            Some(length) => {
                let (sequence, left) = rest.split_at(length);
                escaped.push_str(sequence);
                rest = left;
            }
            None => {
                if is_control(character) {
                    escaped.extend(character.escape_default());
                } else {
                    escaped.push_str(taken);
                }
                rest = left;
            }
        }
    }
    Cow::Owned(escaped)
}

/// The bytes of the sequence for colours with which the text begins (ECMA-48, 8.3.117).
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|character: char| !character.is_ascii_digit() && character != ';')?;
    parameters.get(end..)?.starts_with('m').then_some(text.len() - parameters.len() + end + 1)
}

fn is_control(character: char) -> bool {
    let invisible = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    invisible || (character.is_control() && character != '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_controls_a_terminal_is_left() {
        for (text, shown) in [
            ("plain \u{fc}\ttext", "plain \u{fc}\ttext"),
            ("one\ntwo\r\0", "one\\ntwo\\r\\u{0}"),
            ("\u{1b}[2J\u{1b}]0;title\u{7}", "\\u{1b}[2J\\u{1b}]0;title\\u{7}"),
            ("\u{9b}2J \u{7f}", "\\u{9b}2J \\u{7f}"),
            ("a\u{2028}b\u{202e}c\u{2066}d", "a\\u{2028}b\\u{202e}c\\u{2066}d"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn colours_stay_where_they_are_our_own_and_nothing_else_does() {
        assert_eq!(
            escape("\u{1b}[1;31mred\u{1b}[0m\u{1b}[2J\u{1b}[", true),
            "\u{1b}[1;31mred\u{1b}[0m\\u{1b}[2J\\u{1b}["
        );
        assert_eq!(escape("\u{1b}[31mred", false), "\\u{1b}[31mred");
    }
}
