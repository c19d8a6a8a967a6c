//! Reads the `[syn]` section.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::{BudgetRange, Cidr, EventLimits, MAX_CIDRS, StartBudget, Syn};
use crate::table::{Table, Value};

impl Syn {
    pub(crate) fn read(mut table: Table<'_>) -> Self {
        let (secs, mins, hours) = (Duration::from_secs, Duration::from_mins, Duration::from_hours);
        let key_file = table.get("key_file");
        let without_keys = key_file.is_none();
        let mut allowed = HashMap::new();
        Self {
            pin_dir: table.or("pin_dir", "/sys/fs/bpf/headstart".into(), |v| v.absolute_path()),
            lookup: table.or("lookup", true, |v| v.boolean()),
            key_file: key_file.and_then(|v| v.absolute_path()),
            audience: table.get("audience").and_then(|v| {
                let name = v.name()?;
                if without_keys { v.fail("needs key_file: it makes other keys of those") } else { Some(name) }
            }),
            knock_port: table.get("knock_port").and_then(|v| {
                let port = v.integer(1..=u16::MAX)?;
                let message = "needs key_file: a knock proves that its sender has a key";
                if without_keys { v.fail(message) } else { Some(port) }
            }),
            knock_opens: table.or("knock_opens", secs(30), |v| v.duration(secs(1)..=hours(1))),
            allow: table.or("allow", Vec::new(), |v| {
                let list = cidrs(&v, &HashMap::new())?;
                allowed.extend(list.iter().map(|cidr| (*cidr, v.line())));
                Some(list)
            }),
            ignore: table.or("ignore", Vec::new(), |v| cidrs(&v, &allowed)),
            unused_after: table.or("unused_after", secs(10), |v| v.duration(secs(1)..=mins(5))),
            events: table.or("events", EventLimits::default(), |v| {
                v.table("events = { source = 64 }").map(EventLimits::read)
            }),
            starts: table.or("starts", StartBudget::default(), |v| {
                v.table("starts = { global = { max = 128 } }").map(StartBudget::read)
            }),
            origin: table.finish(),
        }
    }
}

impl EventLimits {
    fn read(mut table: Table<'_>) -> Self {
        let default = Self::default();
        let mut limit = |key, default| table.or(key, default, |v| v.integer(1..=1_000_000));
        let limits = Self {
            source: limit("source", default.source),
            function: limit("function", default.function),
            global: limit("global", default.global),
        };
        table.finish();
        limits
    }
}

impl StartBudget {
    fn read(mut table: Table<'_>) -> Self {
        let default = Self::default();
        let mut range = |key, form: &str, default: BudgetRange| {
            table.or(key, default, |v| v.table(form).map(|table| BudgetRange::read(table, default)))
        };
        let budget = Self {
            function: range("function", "function = { min = 1, max = 16 }", default.function),
            global: range("global", "global = { min = 8, max = 128 }", default.global),
            allow: range("allow", "allow = { min = 64, max = 1024 }", default.allow),
        };
        table.finish();
        budget
    }
}

impl BudgetRange {
    fn read(mut table: Table<'_>, default: Self) -> Self {
        let max = table.or("max", default.max, |v| v.integer(1..=100_000));
        let min = table.or("min", default.min.min(max), |v| {
            let min = v.integer(1..=100_000)?;
            let message = || format!("must be at most max, which is {max}");
            if min <= max { Some(min) } else { v.fail(message()) }
        });
        table.finish();
        Self { min, max }
    }
}

/// The prefixes of a list. `allowed` are those of the other list, with its line.
fn cidrs(value: &Value<'_>, allowed: &HashMap<Cidr, usize>) -> Option<Vec<Cidr>> {
    let items = value.list()?;
    if items.len() > MAX_CIDRS {
        return value.fail(format!("must be at most {MAX_CIDRS} networks, not {}", items.len()));
    }
    let mut seen = HashSet::new();
    let read = |item: Value<'_>| {
        let cidr = match Cidr::parse(item.string()?) {
            Ok(cidr) => cidr,
            Err(message) => return item.fail(message),
        };
        if !seen.insert(cidr) {
            return item.fail(format!("{cidr} is listed twice"));
        }
        match allowed.get(&cidr) {
            Some(line) => {
                item.fail(format!("{cidr} is in allow on line {line} too: remove it from one of the two"))
            }
            None => Some(cidr),
        }
    };
    Some(items.into_iter().filter_map(read).collect())
}
