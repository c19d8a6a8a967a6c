//! What the agent tells about a connection that is logged in, by protocol.

use serde::{Deserialize, Serialize};

/// What a driver would have learned during the login that the agent did for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Session {
    /// A plain TCP stream: nothing was said on it yet.
    Tcp,
    /// A Redis connection that is logged in.
    Redis {
        /// The user of the access control list; `default` if none.
        #[serde(default)]
        user: Option<String>,
        /// The database that is selected.
        database: u32,
    },
    /// A MariaDB or MySQL connection (protocol 4.1) that is logged in.
    Mysql {
        /// As in the server's greeting.
        server_version: String,
        /// The server's number of this connection.
        connection_id: u32,
        /// User that is logged in.
        user: String,
        /// The default database, if any.
        #[serde(default)]
        database: Option<String>,
        /// The capability flags that both sides have agreed on: they say how results are laid out.
        capabilities: u32,
        /// Number of the connection's collation, and so its character set.
        collation: u8,
        /// Status flags after the login.
        status: u16,
    },
    /// A PostgreSQL session after its first `ReadyForQuery` (protocol 3.0).
    Postgres {
        /// Server process of this session. The cancel key stays in the agent.
        process_id: i32,
        /// Role that is logged in.
        user: String,
        /// Database it is connected to.
        database: String,
        /// `ParameterStatus` values that this very server connection reported.
        parameters: Vec<(String, String)>,
    },
}

impl Session {
    /// The protocol's name, as in the JSON and in `kind` of the configuration. A TLS stream is `tcp`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Redis { .. } => "redis",
            Self::Mysql { .. } => "mysql",
            Self::Postgres { .. } => "postgres",
        }
    }

    /// What an audit log says of this connection, so that it can be found in the server's own log.
    #[must_use]
    pub fn audit_fields(&self) -> AuditFields<'_> {
        match self {
            Self::Tcp | Self::Redis { .. } => AuditFields::default(),
            Self::Mysql { connection_id, user, .. } => AuditFields {
                connection_id: Some(*connection_id),
                user: Some(user),
                ..AuditFields::default()
            },
            Self::Postgres { process_id, user, database, .. } => AuditFields {
                process_id: Some(*process_id),
                user: Some(user),
                database: Some(database),
                ..AuditFields::default()
            },
        }
    }
}

/// The fields of an audit log line, in their order; each protocol has some of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AuditFields<'a> {
    /// The server process of the connection.
    pub process_id: Option<i32>,
    /// The server's number of the connection.
    pub connection_id: Option<u32>,
    /// The user that is logged in.
    pub user: Option<&'a str>,
    /// The database it is connected to.
    pub database: Option<&'a str>,
}
