//! Reasons of fallbacks, discards and failures: closed sets, for logs, errors and metric labels alike.

use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$why:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$why])* $variant,)+ }

        impl $name {
            /// All of them, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The metric label.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why a lease was not served by an idle connection.
    FallbackReason {
        /// Nothing was idle: a connection was made on the spot, and the lease succeeded.
        PoolEmpty = "pool_empty",
        /// All `max` connections were in use for as long as a lease may wait.
        PoolExhausted = "pool_exhausted",
        /// The function had all that one function may have, for as long as a lease may wait.
        ShareExhausted = "share_exhausted",
        /// The backend could not be reached or refused the login.
        ConnectFailed = "connect_failed",
        /// The pool was closed.
        PoolClosed = "pool_closed",
    }
}

reasons! {
    /// Why the pool gave up a connection.
    DiscardReason {
        /// It was leased, and its lease has ended.
        Used = "used",
        /// It was idle for its whole time to live.
        Expired = "expired",
        /// The server closed it while it was idle.
        ClosedByServer = "closed_by_server",
        /// The server sent something while it was idle: the receiver would read it as an answer.
        UnreadMessage = "unread_message",
        /// The socket reports an error (reset, keep-alive timeout).
        SocketError = "socket_error",
        /// It was begun for a lease that was withdrawn, and enough others are idle; or another lease needed its place.
        Surplus = "surplus",
        /// Its server is now a replica; the backend's name may lead to another server.
        ReadOnly = "read_only",
        /// The pool was closed.
        PoolClosed = "pool_closed",
    }
}

reasons! {
    /// Why a connection could not be made.
    FailureReason {
        /// The host name does not resolve.
        Resolve = "resolve",
        /// The transport connection failed.
        Dial = "dial",
        /// No finished login within the connect timeout.
        Timeout = "timeout",
        /// The connection was lost during the login.
        Lost = "lost",
        /// The server answered with an error.
        Server = "server",
        /// Authentication is impossible as configured, or the server failed to prove itself.
        Auth = "auth",
        /// No TLS session could be made, or not with a trusted server.
        Tls = "tls",
        /// The server does not speak the protocol.
        Protocol = "protocol",
        /// A defect on our side.
        Internal = "internal",
    }
}
