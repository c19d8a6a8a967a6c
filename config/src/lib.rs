//! Typed configuration of the Headstart agent.
//!
//! A file is read in one pass which collects *every* problem with its file, line and key, so that an
//! operator corrects a file once and not once per mistake. The modules, in reading order:
//!
//! - [`Config`] is the whole file: one [`Agent`], one [`Syn`], the [`Backend`]s, the [`Function`]s and the [`Front`]s;
//! - `table` walks the TOML tree and collects [`Problem`]s, `units` reads `"10m"` and `"64MiB"`;
//! - `fingerprint` tells agents which instances they can take over ([`Config::fingerprint`]);
//! - `host` asks the host what the file alone cannot tell ([`Config::check_host`]);
//! - [`image`] names images, and reads what the store knows of them;
//! - `private` reads files with secrets, and looks who else can change a file;
//! - [`keys`] reads the file with the keys of clients, which agents and clients share.
//!
//! Reading a file needs nothing from the host but the file: [`Config::parse`] does no I/O at all.
//!
//! Messages never repeat a value that may hold a secret (an address, an environment variable), and
//! no password or key is ever part of the configuration: only the path of the file that holds it.
//!
//! ```
//! let problems = headstart_config::Config::parse("headstart.toml", "[agent]\nadmim = \"[::]:9464\"\n")
//!     .expect_err("the key is misspelt");
//! assert_eq!(
//!     problems.to_string(),
//!     "headstart.toml:2: agent.admim: unknown key, did you mean \"admin\"?"
//! );
//! ```

mod config;

mod agent;
mod syn;

pub mod backend;
mod front;
mod function;

mod problem;
mod table;
mod units;

mod host;
pub mod image;
mod subuid;

mod fingerprint;

mod private;

pub mod keys;

pub use agent::{Agent, Interfaces, LogFormat};
pub use backend::{Address, Backend, Pool, Protocol, Tls};
pub use config::{Config, MAX_BACKENDS, MAX_FILE_BYTES, MAX_FUNCTIONS};
pub use front::{Carry, Front, host_matches};
pub use function::{
    Contract, DockerNetwork, Env, FreezeBackends, Function, LAMBDA_CONCURRENCY_MAX, MAX_FUNCTION_BACKENDS,
    Mount, NOBODY, NOBODY_ID, Overload, RequireAuth, Runtime, SECRETS_PATH, Secret, StopSignal,
};
pub use host::MAX_SECRET_BYTES;
pub use private::{PrivateFileError, PrivateFileFault, check_place, read_private};
pub use problem::{Errors, Origin, Problem};
pub use syn::{BudgetRange, Cidr, EventLimits, MAX_CIDRS, StartBudget, Syn};
pub use table::closest;
