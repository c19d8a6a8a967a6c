//! What clients ask for at their login, and cannot have later as a login gives it.

use std::sync::Arc;

/// What a login carries beside what is configured. Sessions are of the same kind if this is equal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum LoginVariant {
    /// Nothing.
    #[default]
    Plain,
    /// Start-up parameters of PostgreSQL: what `RESET` goes back to.
    Parameters(Arc<[(String, String)]>),
    /// Capabilities of MariaDB and MySQL beside the usual ones, and the collation.
    Capabilities { flags: u32, collation: u8 },
}
