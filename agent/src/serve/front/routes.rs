//! Which function a host and a path mean, and the way to it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use super::{Announce, Guess};
use crate::event::Trigger;
use crate::serve::Doorbell;

/// A full accept queue answers no SYN; the client is told then.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A function, and where it is connected to.
pub struct Target {
    /// Its name.
    pub function: String,
    /// Its own listener, as this host reaches it.
    pub address: SocketAddr,
    /// Tells whether it must be asked for.
    pub doorbell: Arc<Doorbell>,
    /// Only clients with a key may ask for it early.
    pub needs_key: bool,
}

impl Target {
    /// Asks for the function's start, if it is cold. Returns the socket whose connection is announced.
    pub(super) fn announce(
        &self,
        to: &dyn Announce,
        trigger: Trigger,
        client: SocketAddr,
        guess: Option<Guess>,
    ) -> Option<TcpSocket> {
        let function = self.doorbell.cold().filter(|_| !self.needs_key)?;
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.ok()?;
        // The sensors will see the SYN of this address: it is then no other client's.
        socket.bind(SocketAddr::new(self.address.ip(), 0)).ok()?;
        to.announce(function, trigger, client, socket.local_addr().ok()?, guess);
        Some(socket)
    }

    /// A connection to the function, which it accepts like any other.
    pub(super) async fn connect(&self, announced: Option<TcpSocket>) -> io::Result<TcpStream> {
        let connecting = async {
            if let Some(socket) = announced
                && let Ok(stream) = socket.connect(self.address).await
            {
                return Ok(stream);
            }
            TcpStream::connect(self.address).await
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// As this host reaches a listener that is bound to this address.
#[must_use]
pub fn reachable(bound: SocketAddr) -> SocketAddr {
    match bound.ip().to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, bound.port()).into(),
        // `[::]` takes IPv4 too.
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, bound.port()).into(),
        ip => (ip, bound.port()).into(),
    }
}

/// What is found for a host and a path.
#[derive(Clone)]
pub(super) enum Found {
    /// A function that is served.
    Target(Arc<Target>),
    /// A function that is configured and not served.
    Unserved,
}

/// The functions of a front, by host and path.
#[derive(Default)]
pub struct Routes {
    /// Hosts, and what follows `*.` of those that begin so, with paths, the longest first.
    exact: HashMap<String, Vec<(String, Found)>>,
    below: HashMap<String, Vec<(String, Found)>>,
    default: Option<Found>,
}

impl Routes {
    /// Adds a function that is found at `hosts`, and there at `paths`, or everywhere if there are none.
    pub fn add(&mut self, target: Option<Arc<Target>>, hosts: &[String], paths: &[String]) {
        let found = target.map_or(Found::Unserved, Found::Target);
        let everywhere = [String::new()];
        for host in hosts {
            let (map, key) = match host.strip_prefix("*.") {
                Some(parent) => (&mut self.below, parent),
                None => (&mut self.exact, host.as_str()),
            };
            let routes = map.entry(key.to_owned()).or_default();
            for path in if paths.is_empty() { &everywhere } else { paths } {
                routes.push((path.trim_end_matches('/').to_owned(), found.clone()));
            }
            routes.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        }
    }

    /// The function of clients that name none.
    pub fn set_default(&mut self, target: Option<Arc<Target>>) {
        self.default = Some(target.map_or(Found::Unserved, Found::Target));
    }

    /// What a host has. It is in lower case, without a port.
    fn of_host(&self, host: &str) -> Option<&Vec<(String, Found)>> {
        self.exact.get(host).or_else(|| self.below.get(host.split_once('.')?.1))
    }

    /// Whether a function has this host.
    pub(super) fn knows(&self, host: &str) -> bool {
        self.of_host(host).is_some()
    }

    /// The function that has a host alone; that of clients which name none if there is no such host.
    pub(super) fn alone(&self, host: Option<&str>) -> Option<Found> {
        match host.and_then(|host| self.of_host(host)).map(Vec::as_slice) {
            Some([(path, found)]) => path.is_empty().then(|| found.clone()),
            Some(_) => None,
            None => self.default.clone(),
        }
    }

    /// The function of a request.
    pub(super) fn of_request(&self, host: &str, path: &str) -> Option<Found> {
        let begins = |route: &str| {
            path.strip_prefix(route)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || route.is_empty())
        };
        let routes = self.of_host(host).into_iter().flatten();
        let mut found = routes.filter(|(route, _)| begins(route)).map(|(_, found)| found);
        found.next().or(self.default.as_ref()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str) -> Option<Arc<Target>> {
        let address = "127.0.0.1:1".parse().unwrap();
        Some(Arc::new(Target {
            function: name.to_owned(),
            address,
            doorbell: Arc::default(),
            needs_key: false,
        }))
    }

    fn name(found: Option<Found>) -> String {
        match found {
            Some(Found::Target(target)) => target.function.clone(),
            Some(Found::Unserved) => "unserved".to_owned(),
            None => String::new(),
        }
    }

    #[test]
    fn the_exact_host_and_the_longest_path_decide() {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let mut routes = Routes::default();
        routes.add(target("shop"), &owned(&["*.example", "example"]), &[]);
        routes.add(target("api"), &owned(&["a.example"]), &owned(&["/api/", "/v1/x"]));
        routes.add(None, &owned(&["a.example"]), &owned(&["/"]));
        for (host, path, found) in [
            ("example", "/", "shop"),
            ("b.example", "/api", "shop"),
            ("b.b.example", "/", ""),
            ("a.example", "/", "unserved"),
            ("a.example", "/api", "api"),
            ("a.example", "/api/1", "api"),
            ("a.example", "/apis", "unserved"),
            ("a.example", "/v1/x/y", "api"),
            ("other", "/", ""),
        ] {
            assert_eq!(name(routes.of_request(host, path)), found, "{host}{path}");
        }
        assert_eq!(name(routes.alone(Some("c.example"))), "shop");
        assert_eq!(name(routes.alone(Some("a.example"))), "", "its path decides");
        assert_eq!(name(routes.alone(None)), "");
        routes.set_default(target("shop"));
        assert_eq!(name(routes.alone(None)), "shop");
        assert_eq!(name(routes.of_request("other", "*")), "shop");
    }

    #[test]
    fn a_listener_of_all_addresses_is_reached_on_loopback() {
        for (bound, reached) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
        ] {
            assert_eq!(reachable(bound.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
