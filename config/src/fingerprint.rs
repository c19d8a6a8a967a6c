//! What an instance was started with, in one word.
//!
//! An agent that takes over an instance compares the fingerprint that was kept with it to that of the function
//! as it is configured now. Agents of different versions must agree, so what is hashed is spelt out here: each
//! setting is its key and its value, both after their length in bytes (64 bits, little-endian), in the order
//! below. A setting that is absent is left out; so should be one that a later version adds, where it has its
//! default.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::function::NOBODY_ID;
use crate::{Backend, Config, Contract, Function, Runtime, Tls};

impl Config {
    /// The SHA-256, in hexadecimal, of what instances of `function` depend on: its settings, except those that
    /// only the agent's decisions use, and its backends, except their pools. It does not depend on where
    /// things stand in the file.
    ///
    /// Values of the environment are hashed too. They cannot be read from it, but short ones could be guessed:
    /// keep it where only the agent looks.
    #[must_use]
    pub fn fingerprint(&self, function: &Function) -> String {
        let mut hash = Fingerprint(Sha256::new());
        hash.function(function);
        for backend in function.backends.iter().filter_map(|name| self.backend(name)) {
            hash.backend(backend);
        }
        hash.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The hash of what was added so far. Every field of a section is named, so that a new one has to take a side.
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    pub(crate) fn add(&mut self, key: &str, value: impl AsRef<[u8]>) {
        for part in [key.as_bytes(), value.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    pub(crate) fn add_path(&mut self, key: &str, path: Option<&Path>) {
        if let Some(path) = path {
            self.add(key, path.as_os_str().as_bytes());
        }
    }

    fn function(&mut self, function: &Function) {
        let Function {
            name,
            runtime,
            contract,
            handler,
            init_timeout,
            workdir,
            user,
            group,
            namespace_root,
            command,
            env,
            mounts,
            secrets,
            backends,
            memory_bytes,
            cpu_millis,
            cpu_weight,
            io_weight,
            pids,
            concurrency,
            freeze_backends,
            backend_sockets,
            backend_ports,
            tls_hand_over,
            found,
            stop_signal,
            id: _,
            listen: _,
            hosts: _,
            paths: _,
            require_auth: _,
            prepared: _,
            stop_grace: _,
            backlog: _,
            retry_max: _,
            min_ready: _,
            standby: _,
            max_instances: _,
            queue_timeout: _,
            overload: _,
            freeze_after: _,
            hibernate_after,
            stop_after: _,
            start_attempts: _,
            cooldown: _,
            origin: _,
        } = function;
        self.add("function", name);
        self.runtime(runtime);
        // The cgroup of an instance may use swap.
        if hibernate_after.is_some() {
            self.add("hibernates", "true");
        }
        if *contract != Contract::Headstart {
            self.add("contract", contract.as_str());
        }
        if let Contract::Port(port) = contract {
            self.add("port", port.to_string());
        }
        if let Contract::Lambda { timeout } = contract {
            // An instance starts its handler anew by itself, within init_timeout.
            for (key, time) in [("timeout", timeout), ("init_timeout", init_timeout)] {
                self.add(key, time.as_millis().to_string());
            }
        }
        if let Some(signal) = stop_signal {
            self.add("stop_signal", signal.as_str());
        }
        if let Some(handler) = handler {
            self.add("handler", handler);
        }
        if workdir != Path::new("/") {
            self.add_path("workdir", Some(workdir));
        }
        if *user != NOBODY_ID {
            self.add("user", user.to_string());
        }
        if group != user {
            self.add("group", group.to_string());
        }
        if let Some(root) = namespace_root {
            self.add("namespace_root", root.to_string());
        }
        for word in command {
            self.add("command", word);
        }
        for (name, value) in env.iter() {
            self.add(&format!("env.{name}"), value);
        }
        for mount in mounts {
            self.add(&format!("mounts.{}", mount.target.display()), mount.source.as_os_str().as_bytes());
            if !mount.read_only {
                self.add("read_only", "false");
            }
        }
        for secret in secrets {
            self.add(&format!("secrets.{}", secret.name), secret.file.as_os_str().as_bytes());
        }
        for name in backends {
            self.add("backends", name);
        }
        self.add("memory", memory_bytes.to_string());
        self.add("pids", pids.to_string());
        self.add("concurrency", concurrency.map_or("unlimited".to_owned(), |most| most.to_string()));
        self.add("freeze_backends", freeze_backends.as_str());
        for (key, share) in [("cpu", cpu_millis), ("cpu_weight", cpu_weight), ("io_weight", io_weight)] {
            if let Some(share) = share {
                self.add(key, share.to_string());
            }
        }
        if *backend_sockets {
            self.add("backend_sockets", "");
        }
        for (name, port) in backend_ports {
            self.add(&format!("backend_ports.{name}"), port.to_string());
        }
        if !found.is_empty() {
            self.add("found", found);
        }
        if *tls_hand_over {
            self.add("tls_hand_over", "");
        }
    }

    fn runtime(&mut self, runtime: &Runtime) {
        self.add("runtime", runtime.as_str());
        for (key, value) in runtime.settings() {
            self.add(key, value);
        }
    }

    fn backend(&mut self, backend: &Backend) {
        let Backend { name, protocol, address, tls, pool: _, origin: _ } = backend;
        self.add("backend", name);
        self.add("address", address.to_string());
        if let Some(Tls { ca_file, server_name, client, alpn, direct }) = tls {
            self.add("tls", "");
            let client = client.iter().flat_map(|(chain, key)| [("cert_file", chain), ("key_file", key)]);
            for (key, path) in ca_file.iter().map(|path| ("ca_file", path)).chain(client) {
                self.add(key, path.as_os_str().as_bytes());
            }
            for (key, word) in server_name
                .iter()
                .map(|name| ("server_name", name))
                .chain(alpn.iter().map(|name| ("alpn", name)))
            {
                self.add(key, word);
            }
            if *direct {
                self.add("direct", "");
            }
        }
        protocol.fingerprint(self);
    }
}
