//! Makes the entries of the kernel's table from the served functions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use headstart_config::RequireAuth;
use headstart_ebpf::maps::{
    FUNCTION_AUTH_CONNECT, FUNCTION_AUTH_WAKE, FUNCTION_NONE, FUNCTION_OPTION, FunctionEntry, PORT_WORDS,
    PortKey,
};

use crate::event::FunctionId;

/// How clients reach one function.
#[derive(Debug, Clone)]
pub struct Route {
    /// The configured address. Functions may share it.
    pub listen: SocketAddr,
    /// The ID that clients may name.
    pub id: Option<u32>,
    /// Whether clients need a key.
    pub auth: RequireAuth,
    /// Whether `listener` is a hidden one, to which the socket lookup gives the connections that name the ID. Otherwise it
    /// is bound to `listen`, and the function gets that port's connections without an ID.
    pub steered: bool,
    /// The socket that instances accept from.
    pub listener: Arc<OwnedFd>,
}

/// The routes of all functions, by function number.
pub type Routes = BTreeMap<FunctionId, Route>;

/// The kernel's entries of all functions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FunctionTable {
    /// By function number, as for cold functions.
    pub(super) functions: BTreeMap<FunctionId, Vec<(PortKey, FunctionEntry)>>,
    /// Ports that several functions share, none of them by default.
    pub(super) without_default: Vec<(PortKey, FunctionEntry)>,
    /// All ports of functions.
    pub(super) ports: BTreeSet<u16>,
}

impl FunctionTable {
    /// The table for these functions. With `keys`, clients may have keys.
    pub(super) fn new(routes: &Routes, keys: bool) -> Self {
        let mut addresses: BTreeMap<SocketAddr, Vec<&Route>> = BTreeMap::new();
        for route in routes.values() {
            addresses.entry(route.listen).or_default().push(route);
        }
        let option = |listen: &SocketAddr| {
            let named =
                addresses.get(listen).is_some_and(|routes| routes.iter().any(|route| route.id.is_some()));
            if named || keys { FUNCTION_OPTION } else { 0 }
        };
        let functions = routes.iter().map(|(&function, route)| {
            let flags = option(&route.listen) | auth(route.auth);
            let entries = keys_of(route).into_iter().map(|key| (key, FunctionEntry { function, flags }));
            (function, entries.collect())
        });
        let without_default = addresses.iter().filter(|(_, routes)| routes.iter().all(|route| route.steered));
        let without_default = without_default.map(|(listen, _)| {
            let flags = FUNCTION_NONE | FUNCTION_OPTION;
            (PortKey::listener(*listen), FunctionEntry { function: 0, flags })
        });
        Self {
            functions: functions.collect(),
            without_default: without_default.collect(),
            ports: routes.values().map(|route| route.listen.port()).collect(),
        }
    }

    /// Every entry.
    pub(super) fn entries(&self) -> impl Iterator<Item = (PortKey, FunctionEntry)> {
        self.functions.values().flatten().chain(&self.without_default).copied()
    }

    /// The bits of the kernel's port map.
    pub(super) fn port_words(&self) -> [u64; PORT_WORDS] {
        let mut words = [0; PORT_WORDS];
        for port in &self.ports {
            words[usize::from(port / 64)] |= 1 << (port % 64);
        }
        words
    }
}

/// The functions to which the socket lookup may give connections.
pub(super) fn named(routes: &Routes) -> impl Iterator<Item = (FunctionId, &Arc<OwnedFd>)> {
    routes.iter().filter(|(_, route)| route.id.is_some()).map(|(number, route)| (*number, &route.listener))
}

fn keys_of(route: &Route) -> Vec<PortKey> {
    let port = PortKey::listener(route.listen);
    let mut keys = Vec::new();
    if !route.steered {
        keys.push(port);
    }
    if let Some(id) = route.id {
        keys.extend([port.with_id(id), PortKey::id(id)]);
    }
    keys
}

fn auth(auth: RequireAuth) -> u32 {
    match auth {
        RequireAuth::No => 0,
        RequireAuth::Wake => FUNCTION_AUTH_WAKE,
        RequireAuth::Connect => FUNCTION_AUTH_CONNECT,
    }
}

#[cfg(test)]
mod tests;
