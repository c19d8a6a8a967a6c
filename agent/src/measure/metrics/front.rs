//! What fronts count.

use super::{
    FRONT_CONNECTIONS, FRONT_EXPIRY, FRONT_GUESSES, FRONT_HANDSHAKES, FRONT_REQUESTS, counter, gauge,
};

/// How a TLS handshake with a client of a front ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeOutcome {
    /// With a session.
    Done,
    /// The client named no host, or one that no function has.
    UnknownName,
    /// The client spoke something else than TLS.
    Plain,
    /// The two did not agree, or what came was no TLS.
    Failed,
    /// The client took too long.
    Timeout,
    /// The client left.
    Closed,
}

impl HandshakeOutcome {
    const ALL: [Self; 6] =
        [Self::Done, Self::UnknownName, Self::Plain, Self::Failed, Self::Timeout, Self::Closed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::UnknownName => "unknown_name",
            Self::Plain => "plain",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
        }
    }
}

/// Why the agent carries a connection itself, or why it has closed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CarryReason {
    /// Each of its requests may be for another function.
    Requests,
    /// All of its bytes are for one function.
    Bytes,
    /// Its source has too many.
    SourceLimit,
    /// Its function is not served.
    Unserved,
    /// Its function did not accept.
    Unreachable,
}

impl CarryReason {
    const ALL: [Self; 5] =
        [Self::Requests, Self::Bytes, Self::SourceLimit, Self::Unserved, Self::Unreachable];

    fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Bytes => "bytes",
            Self::SourceLimit => "source_limit",
            Self::Unserved => "unserved",
            Self::Unreachable => "unreachable",
        }
    }
}

/// What became of a request to a front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome {
    /// A function answered it.
    Carried,
    /// No function has its host and path.
    UnknownHost,
    /// Its host is not that of its TLS session.
    Misdirected,
    /// Its source has too many at a time.
    SourceLimit,
    /// Its function is not served.
    Unserved,
    /// Its function did not accept, or ended without an answer.
    Unreachable,
}

impl RequestOutcome {
    const ALL: [Self; 6] = [
        Self::Carried,
        Self::UnknownHost,
        Self::Misdirected,
        Self::SourceLimit,
        Self::Unserved,
        Self::Unreachable,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::UnknownHost => "unknown_host",
            Self::Misdirected => "misdirected",
            Self::SourceLimit => "source_limit",
            Self::Unserved => "unserved",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The outcomes of guesses.
const GUESSES: [&str; 2] = ["right", "wrong"];

/// Shows a front's counters before they count.
pub fn declare_front(front: &str) {
    let front = || front.to_owned();
    for outcome in HandshakeOutcome::ALL {
        counter!(FRONT_HANDSHAKES, "front" => front(), "outcome" => outcome.as_str()).increment(0);
    }
    for reason in CarryReason::ALL {
        counter!(FRONT_CONNECTIONS, "front" => front(), "reason" => reason.as_str()).increment(0);
    }
    for outcome in GUESSES {
        counter!(FRONT_GUESSES, "front" => front(), "outcome" => outcome).increment(0);
    }
    for outcome in RequestOutcome::ALL {
        counter!(FRONT_REQUESTS, "front" => front(), "outcome" => outcome.as_str()).increment(0);
    }
}

/// A TLS handshake is over.
pub fn record_front_handshake(front: &str, outcome: HandshakeOutcome) {
    counter!(FRONT_HANDSHAKES, "front" => front.to_owned(), "outcome" => outcome.as_str()).increment(1);
}

/// A connection is carried, or closed.
pub fn record_front_connection(front: &str, reason: CarryReason) {
    counter!(FRONT_CONNECTIONS, "front" => front.to_owned(), "reason" => reason.as_str()).increment(1);
}

/// A client has named a function, and another or the same was started at its SYN.
pub fn record_front_guess(front: &str, right: bool) {
    let [yes, no] = GUESSES;
    counter!(FRONT_GUESSES, "front" => front.to_owned(), "outcome" => if right { yes } else { no })
        .increment(1);
}

/// A request is answered.
pub fn record_front_request(front: &str, outcome: RequestOutcome) {
    counter!(FRONT_REQUESTS, "front" => front.to_owned(), "outcome" => outcome.as_str()).increment(1);
}

/// Until when a certificate of a front is valid.
#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^53")]
pub fn front_expiry(front: &str, certificate: &str, expires_unix: u64) {
    gauge!(FRONT_EXPIRY, "front" => front.to_owned(), "certificate" => certificate.to_owned())
        .set(expires_unix as f64);
}
