//! The hosts and paths by which clients of fronts name functions.

use crate::config::Declarations;
use crate::table::Value;

/// The most hosts, and the most paths, of one function.
const MOST: usize = 64;

/// Whether `pattern`, a host of a function or a name in a certificate, is for the host `name`. `*` stands for one label
/// (RFC 6125, 6.4.3). Both are in lower case.
#[must_use]
pub fn host_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => pattern == name,
    }
}

/// Reads `hosts`, in lower case.
pub(crate) fn hosts(value: &Value<'_>) -> Option<Vec<String>> {
    let items = value.list()?;
    if items.is_empty() || items.len() > MOST {
        return value.fail(format!("must be 1 to {MOST} names"));
    }
    let rule = "a host as in \"orders.example.com\" or \"*.shop.example.com\", without a port";
    items
        .iter()
        .map(|item| item.matching(rule, |text| is_host(&text.to_ascii_lowercase())))
        .map(|host| host.map(|host| host.to_ascii_lowercase()))
        .collect()
}

/// Reads `paths`.
pub(crate) fn paths(value: &Value<'_>) -> Option<Vec<String>> {
    let items = value.list()?;
    if items.is_empty() || items.len() > MOST {
        return value.fail(format!("must be 1 to {MOST} paths"));
    }
    let rule = "the beginning of a path as in \"/api/\", without \"?\" and \"#\"";
    items
        .iter()
        .map(|item| {
            item.matching(rule, |text| {
                text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#')
            })
        })
        .collect()
}

/// Claims each host with each path for the function on `line`; the error says which function has one of them already.
pub(crate) fn claim(
    declared: &mut Declarations,
    owner: &str,
    hosts: &[String],
    paths: &[String],
) -> Result<(), String> {
    let whole = [String::from("/")];
    let paths = if paths.is_empty() { &whole } else { paths };
    for host in hosts {
        for path in paths {
            let route = (host.clone(), path.trim_end_matches('/').to_owned());
            if let Some(other) = declared.routes.insert(route, owner.to_owned()) {
                return Err(format!("{host}{path} is already that of {other}"));
            }
        }
    }
    Ok(())
}

/// A name of labels (RFC 1123, 2.1), perhaps with `*` in the place of the first, or an address of IPv4.
fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_label() {
        for (pattern, name, same) in [
            ("a.example", "a.example", true),
            ("a.example", "b.example", false),
            ("*.example", "a.example", true),
            ("*.example", "b.a.example", false),
            ("*.example", "example", false),
            ("*.example", ".example", false),
        ] {
            assert_eq!(host_matches(pattern, name), same, "{pattern} {name}");
        }
    }

    #[test]
    fn hosts_are_names_without_a_port() {
        for good in ["a", "orders.example.com", "*.shop.example.com", "127.0.0.1", "my_app.local"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "*", "*.", "a.*.com", "a:443", "a..b", "-a.b", "a/b", "http://a"] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
