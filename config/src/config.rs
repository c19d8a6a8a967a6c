//! The whole file, and what holds between its sections.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use toml::de::DeTable;

use crate::table::{Report, Table};
use crate::{Agent, Backend, Errors, Function, Problem};

/// The most `[[backend]]` sections in a file.
pub const MAX_BACKENDS: usize = 256;

/// The most `[[function]]` sections in a file.
pub const MAX_FUNCTIONS: usize = 10_000;

/// The largest file that is read, in bytes: more than [`MAX_FUNCTIONS`] long sections need.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A configuration file without problems.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[agent]`: the daemon itself.
    pub agent: Agent,
    /// `[[backend]]`: what functions get connections to, in the order of the file.
    pub backends: Vec<Backend>,
    /// `[[function]]`: what is started and served, in the order of the file.
    pub functions: Vec<Function>,
}

impl Config {
    /// Reads and validates the file at `path`.
    ///
    /// # Errors
    /// Every problem of the file, or the one reason why it cannot be read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Errors> {
        let path = path.as_ref();
        let name = path.display().to_string();
        match read(path) {
            Ok(text) => Self::parse(&name, &text),
            Err(message) => {
                Err(Errors::from(Problem { file: name.into(), line: 0, key: String::new(), message }))
            }
        }
    }

    /// Validates `text`; `source_name` is what messages call the file.
    ///
    /// # Errors
    /// Every problem of the text, in the order of its lines. Where the text is not TOML that is one problem,
    /// the first.
    pub fn parse(source_name: &str, text: &str) -> Result<Self, Errors> {
        let report = Report::new(source_name, text);
        let document = match DeTable::parse(text) {
            Ok(document) => document,
            Err(error) => return Err(report.syntax(&error, text)),
        };
        let mut root = Table::root(&report, document.get_ref());
        let agent = root.get("agent").and_then(|section| section.table("[agent]"));
        let agent = Agent::read(agent.unwrap_or_else(|| Table::absent(&report, "agent")));
        let backends = root.tables("backend", "[[backend]]", MAX_BACKENDS);
        let functions = root.tables("function", "[[function]]", MAX_FUNCTIONS);
        root.finish();

        let mut known = Known::default();
        known.listen(agent.admin, || "agent.admin".to_owned());
        let backends: Vec<_> =
            backends.into_iter().filter_map(|table| Backend::read(table, &mut known)).collect();
        let functions: Vec<_> =
            functions.into_iter().filter_map(|table| Function::read(table, &mut known)).collect();
        match report.into_errors() {
            None => Ok(Self { agent, backends, functions }),
            Some(errors) => Err(errors),
        }
    }

    /// The backend called `name`.
    pub fn backend(&self, name: &str) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.name == name)
    }

    /// The function called `name`.
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|function| function.name == name)
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("is larger than {} MiB", MAX_FILE_BYTES >> 20));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        format!("is not UTF-8 (line {line})")
    })
}

/// What earlier sections have taken: names and addresses are unique in a file.
#[derive(Default)]
pub(crate) struct Known {
    /// Backend name to the line of its section. Holds the names of broken sections too, so that one mistake
    /// is one message.
    pub(crate) backends: BTreeMap<String, usize>,
    pub(crate) functions: BTreeMap<String, usize>,
    listens: HashMap<u16, Vec<(IpAddr, String)>>,
}

impl Known {
    /// Takes `address` for `owner`, or says which earlier owner has it.
    ///
    /// The any-address takes the port on every address. `[::]` counts as any-address of IPv4 too, as it is on
    /// Linux unless `net.ipv6.bindv6only` is set (ipv6(7)).
    pub(crate) fn listen(&mut self, address: SocketAddr, owner: impl FnOnce() -> String) -> Option<String> {
        let ip = address.ip().to_canonical();
        let taken = self.listens.entry(address.port()).or_default();
        let both = |any: IpAddr, other: IpAddr| any.is_unspecified() && (any.is_ipv6() || other.is_ipv4());
        let clash = taken.iter().find(|(other, _)| *other == ip || both(*other, ip) || both(ip, *other));
        let clash = clash.map(|(_, owner)| owner.clone());
        if clash.is_none() && address.port() != 0 {
            taken.push((ip, owner()));
        }
        clash
    }
}
