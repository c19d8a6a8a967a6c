//! The whole file, and the rules between its sections.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use toml::de::DeTable;

use crate::image::ImageStore;
use crate::private::{check_owner, check_place};
use crate::table::{Report, Table};
use crate::{Agent, Backend, Errors, Front, Function, Problem, Syn, front};

mod users;

pub(crate) use users::USERS_EACH;

/// The most `[[backend]]` sections in a file.
pub const MAX_BACKENDS: usize = 256;

/// The most `[[function]]` sections in a file.
pub const MAX_FUNCTIONS: usize = 10_000;

/// The most `[[front]]` sections in a file.
pub(crate) const MAX_FRONTS: usize = 64;

/// The largest file that is read, in bytes: more than [`MAX_FUNCTIONS`] long sections need.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A configuration file without problems.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[agent]`: the daemon itself.
    pub agent: Agent,
    /// `[syn]`: how SYNs are watched.
    pub syn: Syn,
    /// `[[backend]]`: what functions get connections to, in the order of the file.
    pub backends: Vec<Backend>,
    /// `[[function]]`: what is started and served, in the order of the file.
    pub functions: Vec<Function>,
    /// `[[front]]`: addresses for many functions, in the order of the file.
    pub fronts: Vec<Front>,
}

impl Config {
    /// Reads and validates the file at `path`, which no user but root and the one of this process may be able to change.
    ///
    /// # Errors
    /// Every problem of the file, or the one reason why it cannot be read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Errors> {
        let path = path.as_ref();
        let name = path.display().to_string();
        match read(path) {
            Ok(text) => Self::parse(&name, &text).map(|mut config| {
                let images = ImageStore(config.agent.image_dir.clone());
                config.functions.iter_mut().for_each(|function| function.look(&images));
                config
            }),
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
        let syn = root.get("syn").map(|section| section.table("[syn]"));
        // If the section is no table, its keys are unknown: no function is wrong because of that.
        let syn_is_broken = matches!(syn, Some(None));
        let syn = Syn::read(syn.flatten().unwrap_or_else(|| Table::absent(&report, "syn")));
        let backends = root.tables("backend", "[[backend]]", MAX_BACKENDS);
        let functions = root.tables("function", "[[function]]", MAX_FUNCTIONS);
        let fronts = root.tables("front", "[[front]]", MAX_FRONTS);
        root.finish();

        let mut declared = Declarations::new(&agent, &syn);
        declared.keys |= syn_is_broken;
        let backends: Vec<_> =
            backends.into_iter().filter_map(|table| Backend::read(table, &mut declared)).collect();
        let mut functions: Vec<_> =
            functions.into_iter().filter_map(|table| Function::read(table, &mut declared)).collect();
        front::check_reachable(&report, &functions, fronts.len());
        let fronts: Vec<_> =
            fronts.into_iter().filter_map(|table| Front::read(table, &mut declared, &functions)).collect();
        if let Some(uids) = &agent.uids {
            users::assign(uids, agent.user_namespaces, &mut functions);
        }
        match report.into_errors() {
            None => Ok(Self { agent, syn, backends, functions, fronts }),
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
    let unreadable = |error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    // A pipe is its writer's own.
    if metadata.is_file() {
        check_owner(&metadata, path)?;
        check_place(path)?;
    }
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("is larger than {} MiB", MAX_FILE_BYTES >> 20));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        format!("is not UTF-8 (line {line})")
    })
}

/// What earlier sections have declared: names, IDs and addresses are unique in a file.
#[derive(Default)]
pub(crate) struct Declarations {
    /// Whether clients can have keys.
    pub(crate) keys: bool,
    /// Whether functions can share an address.
    lookup: bool,
    /// Backend name to the line of its section. Holds the names of broken sections too, so that one mistake
    /// is one message.
    pub(crate) backends: BTreeMap<String, usize>,
    pub(crate) functions: BTreeMap<String, usize>,
    /// Function ID to the function that has it, as messages call it.
    pub(crate) ids: HashMap<u32, String>,
    pub(crate) fronts: BTreeMap<String, usize>,
    /// Host and path, without the last "/", to the function that has them, as messages call it.
    pub(crate) routes: HashMap<(String, String), String>,
    listens: HashMap<u16, Vec<ClaimedAddress>>,
}

/// An address with the functions at it, or the agent.
struct ClaimedAddress {
    address: SocketAddr,
    first: Claimant,
    /// The function that gets the connections that name none.
    default: Option<String>,
}

/// What claims an address.
pub(crate) enum Claimant {
    /// The agent itself.
    Agent,
    /// A function.
    Function {
        /// How messages call it.
        owner: String,
        /// Whether it has an ID, by which it can be told from others at the address.
        names_itself: bool,
    },
    /// A front, as messages call it.
    Front(String),
}

impl Declarations {
    fn new(agent: &Agent, syn: &Syn) -> Self {
        let admin = ClaimedAddress { address: agent.admin, first: Claimant::Agent, default: None };
        Self {
            keys: syn.has_key_file(),
            lookup: syn.lookup,
            listens: HashMap::from([(agent.admin.port(), vec![admin])]),
            ..Self::default()
        }
    }

    /// Claims `address`; the error says which earlier claim is in the way.
    ///
    /// The any-address takes the port on every address. `[::]` counts as any-address of IPv4 too, as it is on
    /// Linux unless `net.ipv6.bindv6only` is set (ipv6(7)). Functions that name themselves share an address
    /// with each other and with one function that does not.
    pub(crate) fn listen(&mut self, address: SocketAddr, claimant: Claimant) -> Result<(), String> {
        let ip = address.ip().to_canonical();
        let claims = self.listens.entry(address.port()).or_default();
        let both = |any: IpAddr, other: IpAddr| any.is_unspecified() && (any.is_ipv6() || other.is_ipv4());
        let overlaps = |other: IpAddr| other == ip || both(other, ip) || both(ip, other);
        match claims.iter_mut().find(|claimed| overlaps(claimed.address.ip().to_canonical())) {
            None => {
                claims.push(ClaimedAddress::new(address, claimant));
                Ok(())
            }
            Some(claimed) => claimed.share(address, claimant, self.lookup),
        }
    }
}

impl ClaimedAddress {
    fn new(address: SocketAddr, first: Claimant) -> Self {
        let default = first.default().cloned();
        Self { address, first, default }
    }

    /// Adds `claimant` at `address`, or says why that is not possible.
    fn share(&mut self, address: SocketAddr, claimant: Claimant, lookup: bool) -> Result<(), String> {
        let first = match (&self.first, &claimant) {
            (Claimant::Agent, _) => return Err("overlaps with agent.admin".to_owned()),
            (Claimant::Front(owner), _) | (Claimant::Function { owner, .. }, Claimant::Front(_)) => {
                return Err(format!("overlaps with {} of {owner}", self.address));
            }
            (Claimant::Function { owner, .. }, _) => owner,
        };
        if address != self.address {
            return Err(format!("overlaps with {} of {first}", self.address));
        }
        match (&self.default, claimant.default()) {
            (Some(owner), Some(_)) => {
                return Err(format!(
                    "overlaps with {address} of {owner}: of the functions that share an address, all but one \
                     need an id"
                ));
            }
            (None, Some(owner)) => self.default = Some(owner.clone()),
            (_, None) => {}
        }
        if lookup {
            Ok(())
        } else {
            Err(format!("shares {address} with {first}, which needs lookup = true in [syn]"))
        }
    }
}

impl Claimant {
    /// The function that connections without an ID mean, if this is one.
    fn default(&self) -> Option<&String> {
        match self {
            Self::Function { owner, names_itself: false } => Some(owner),
            Self::Function { .. } | Self::Front(_) | Self::Agent => None,
        }
    }
}
