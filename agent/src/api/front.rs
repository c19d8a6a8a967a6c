//! What the API tells of fronts.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A front, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontStatus {
    /// Configured name.
    pub name: String,
    /// Where it accepts.
    pub listen: SocketAddr,
    /// `requests` or `bytes`.
    pub carry: String,
    /// Connections that are open.
    pub connections: usize,
    /// The most connections.
    pub connections_max: u32,
    /// Its certificates; none if it speaks plain HTTP.
    pub certificates: Vec<CertificateStatus>,
    /// The functions that it leads to.
    pub functions: Vec<String>,
    /// Why it does not accept.
    pub error: Option<String>,
}

/// A certificate of a front.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Where it is.
    pub file: String,
    /// The hosts that it is for.
    pub names: Vec<String>,
    /// Until when it is valid, in seconds since 1970.
    pub expires_unix: u64,
    /// What is wrong with it, or soon will be.
    pub complaint: Option<String>,
}
